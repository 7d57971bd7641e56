"""A trained `.keras` file, opened without running any code that it may hold."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

from maskfer_edge.contract import INPUT_SIZE, LABELS
from maskfer_edge.dependencies import extra
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes
from maskfer_edge.model_file import FLATBUFFER_IDENTIFIER

# The kind in the metadata of a network of `trainer fit-rescorer`.
RESCORER = "rescorer"
EXPRESSION_SHAPES = ((None, INPUT_SIZE, INPUT_SIZE, 1), (None, len(LABELS)))


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a `.keras` file; empty if it has none. Raises InputError if it is no whole Keras file."""
    content = read_bytes(path)  # says what is wrong with the path itself
    if content[4:8] == FLATBUFFER_IDENTIFIER:  # ours have a zip appended
        raise InputError(f"{path} is a TFLite file already; give the model.keras of trainer fit")
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read("maskfer.json")) if "maskfer.json" in archive.namelist() else {}
        if not isinstance(metadata, dict):
            raise ValueError
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError):  # RuntimeError: marked as encrypted
        raise InputError(f"{path} is not a whole .keras file; make one with: trainer fit DATASET --out RUN") from None
    return metadata


def load_keras(
    path: Path, expected: tuple[Any, Any] = EXPRESSION_SHAPES, remedy: str = "give the model.keras of trainer fit"
) -> tuple[Any, dict[str, Any]]:
    """Load a `.keras` file and its metadata (empty if it has none).

    Args:
        path: The file.
        expected: Input and output shapes, as Keras gives them.
        remedy: For messages about other shapes.

    Raises:
        InputError: If it is no Keras file, needs code of its own, or has other shapes.
    """
    metadata = read_metadata(path)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # only its models become TFLite
    with extra("converter"):
        import keras
        import tensorflow  # noqa: F401
    try:
        network = keras.models.load_model(path, compile=False, safe_mode=True)
        outputs = network.output
        named = {name: tuple(output.shape) for name, output in outputs.items()} if isinstance(outputs, dict) else None
        shapes = (network.input_shape, named or network.output_shape)
    except Exception as error:  # Keras raises many kinds for files that it cannot read
        raise InputError(f"{path} cannot be loaded by Keras: {' '.join(str(error).split())[:200]}") from error
    if shapes != expected:
        raise InputError(f"{path} has input and output of shapes {shapes}; expected {expected}; {remedy}")
    return network, metadata
