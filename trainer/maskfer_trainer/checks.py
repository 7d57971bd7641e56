"""What a training is given, looked at before Keras is loaded, which takes seconds."""

from __future__ import annotations

import zipfile
from pathlib import Path

from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import check_creatable, read_bytes

TEACHER = "a teacher is a model.keras of trainer fit"


def check_run(run: Path, resume: bool) -> None:
    """Refuse a run folder that is there already or cannot be made, and with `resume` one that holds no run.

    Raises:
        InputError: If there is no run to go on with.
        OutputError: If there is one already, or no folder can be made there.
    """
    if resume:
        if not (run / "run.json").exists():
            raise InputError(f"{run} holds no run to go on with; leave out --resume to start one")
    elif run.exists():
        go_on = "give --resume to go on with it, or " if (run / "run.json").exists() else ""
        raise OutputError(f"{run} is already there; {go_on}name another folder")
    else:
        check_creatable(run)


def check_network(path: Path, remedy: str) -> None:
    """Refuse what is no whole `.keras` file. Raises InputError, which ends with `remedy`."""
    read_bytes(path)  # says what is wrong with the path itself
    if path.suffix != ".keras":
        raise InputError(f"{path} is {f'a {path.suffix}' if path.suffix else 'no .keras'} file; {remedy}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no whole .keras file; {remedy}")
