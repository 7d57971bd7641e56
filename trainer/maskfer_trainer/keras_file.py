"""The `.keras` file and what it says of itself: `maskfer.json` inside the archive."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from maskfer_edge.files import whole_file

METADATA_NAME = "maskfer.json"


def embed_metadata(source: Path, target: Path, metadata: dict[str, Any]) -> None:
    """Copy a `.keras` file (a zip) with `metadata` added; an existing target is replaced."""
    with (
        whole_file(target, overwrite=True) as partial,
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(partial, "w") as new,
    ):
        for entry in old.infolist():
            if entry.filename != METADATA_NAME:
                new.writestr(entry, old.read(entry))
        new.writestr(zipfile.ZipInfo(METADATA_NAME, (1980, 1, 1, 0, 0, 0)), json.dumps(metadata, indent=2))
