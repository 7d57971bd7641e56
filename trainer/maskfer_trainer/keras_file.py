"""The `.keras` file: its metadata (`maskfer.json` inside the archive), and its scores of faces."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maskfer_edge.contract import FloatArray, UInt8Array
from maskfer_edge.errors import InputError
from maskfer_edge.files import atomic_file

METADATA_NAME = "maskfer.json"
# Faces that are looked at in one go.
SLICE = 8192


def embed_metadata(source: Path, target: Path, metadata: dict[str, Any]) -> None:
    """Copy a `.keras` file (a zip) with `metadata` added; an existing target is replaced."""
    with (
        atomic_file(target, overwrite=True) as partial,
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(partial, "w") as new,
    ):
        for entry in old.infolist():
            if entry.filename != METADATA_NAME:
                new.writestr(entry, old.read(entry))
        new.writestr(zipfile.ZipInfo(METADATA_NAME, (1980, 1, 1, 0, 0, 0)), json.dumps(metadata, indent=2))


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that `embed_metadata` wrote into a `.keras` file; empty if there is none or it is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read(METADATA_NAME))
    except (OSError, KeyError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def check_validation_share(known: Iterable[Path], share: float) -> None:
    """Raise InputError if a network was trained with a smaller validation part, so has seen what would judge."""
    for path in known:
        own_share = settings_of(path).get("validation_share", 1)
        if own_share < share:
            raise InputError(
                f"{path} has learned from faces that would be validated on; "
                f"use a validation share of {own_share} or less"
            )


def settings_of(path: Path) -> dict[str, Any]:
    """The settings with which a network was trained, a run's checkpoint too; {} if nothing is known of it."""
    settings: dict[str, Any] = (read_metadata(path) or _run_metadata(path)).get("settings", {})
    return settings


def _run_metadata(path: Path) -> dict[str, Any]:
    """The configuration of the run that a checkpoint belongs to, which has no metadata of its own."""
    try:
        metadata = json.loads((path.absolute().parent.parent / "run.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def predict_views(network: Any, images: UInt8Array, *, mirror: bool = True) -> FloatArray:
    """The scores of a loaded Keras network for faces and their mirror images.

    Args:
        network: A `keras.Model` of the contract's shapes.
        images: (n, 48, 48) uint8 grey faces.
        mirror: Whether to score the mirror images too.

    Returns:
        (2, n, 7) float32 scores, (1, n, 7) without mirror images; the runtime's are their mean over the first axis.
    """
    parts = []
    # as floats, all pictures of a large data set would not fit into memory
    for start in range(0, max(1, len(images)), SLICE):
        faces = images[start : start + SLICE, ..., None].astype(np.float32)
        views = (faces, faces[:, :, ::-1]) if mirror else (faces,)
        parts.append([network.predict(view, batch_size=256, verbose=0) for view in views])
    return np.concatenate(parts, axis=1, dtype=np.float32)


def load_with_shapes(path: Path, remedy: str) -> tuple[Any, tuple[Any, Any]]:
    """Load a `.keras` file of one input and one output; their shapes come with it, without the batch.

    Raises:
        InputError: If it is none; it ends with `remedy`.
    """
    import keras

    try:
        network = keras.models.load_model(path, compile=False)
        return network, (network.input_shape[1:], network.output_shape[1:])
    except Exception as error:  # Keras raises many kinds for files that it cannot read
        raise InputError(f"{path} cannot be loaded by Keras; {remedy}") from error


def take_weights(model: Any, initial: Path, remedy: str = "start from one of the same") -> None:
    """Give a Keras network the weights of a `.keras` file of the same architecture.

    Raises:
        InputError: If it is none; it ends with `remedy`.
    """
    import keras

    try:
        weights = keras.models.load_model(initial, compile=False).get_weights()
    except Exception as error:  # Keras raises many kinds for files that it cannot read
        raise InputError(
            f"{initial} cannot be loaded by Keras; start from a whole .keras file of architecture {model.name}"
        ) from error
    if [each.shape for each in weights] != [each.shape for each in model.get_weights()]:
        raise InputError(f"{initial} is not a network of architecture {model.name}; {remedy}")
    model.set_weights(weights)
