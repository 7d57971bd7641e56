"""A face's expression by a quantised network."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from maskfer_edge.contract import INPUT_SIZE, LABELS, FloatArray, UInt8Array
from maskfer_edge.errors import InputError, ModelError
from maskfer_edge.model_file import Model, load_model
from maskfer_edge.runtime import AUTO, check_types, codes_of_pixels, dequantised, open_interpreter

DEFAULT_MODEL = "lean-int8.tflite"
# What comes with the package, by the names that `--model` takes.
BUNDLED_MODELS = {"lean": DEFAULT_MODEL, "large": "large-int8.tflite"}


def bundled_model(name: str) -> Model:
    """A model that comes with the package, by a key of `BUNDLED_MODELS`."""
    with as_file(files("maskfer_edge") / "data" / BUNDLED_MODELS[name]) as path:
        return load_model(path)


def default_model() -> Model:
    """The one that is taken unless another is named."""
    return bundled_model("lean")


def open_classifier(path: Path | None, runtime: str = AUTO, threads: int = 1, *, mirror: bool = True) -> Classifier:
    """A classifier by a model file, or by a bundled model: a key of `BUNDLED_MODELS`; None for the default.

    Raises:
        InputError: If there is no such file and no such name.
        ModelError, DependencyError: As `model_file.load_model` and `Classifier` do.
    """
    name = "lean" if path is None else str(path)
    if path is not None and (path.is_file() or path.suffix or len(path.parts) > 1):
        model = load_model(path)
    elif name in BUNDLED_MODELS:
        model = bundled_model(name)
    else:
        raise InputError(f"{name} is neither a file nor a bundled model; bundled are {', '.join(BUNDLED_MODELS)}")
    return Classifier(model, runtime, threads, mirror=mirror)


class Classifier:
    """Gives seven scores for a preprocessed face. The interpreter is built once.

    A face and its mirror image show the same expression; the mean of the network's scores of both
    is more often correct than either, for twice the network's time.
    """

    def __init__(self, model: Model, runtime: str = AUTO, threads: int = 1, *, mirror: bool = True) -> None:
        """Open the model and check its tensors.

        Args:
            model: What to open.
            runtime: See `runtime.open_interpreter`.
            threads: Likewise.
            mirror: Whether the mirror image is classified as well (test-time augmentation).

        Raises:
            ModelError: If the tensors are not one (1, 48, 48, 1) input and one (1, 7) output.
            DependencyError: If no TFLite runtime works here.
        """
        self.model, self.mirror = model, mirror
        self._interpreter = open_interpreter(model.flatbuffer, runtime, threads, model.name)
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        shapes = [tuple(int(n) for n in d["shape"]) for d in (*inputs, *outputs)]
        expected = [(1, INPUT_SIZE, INPUT_SIZE, 1), (1, len(LABELS))]
        if len(inputs) != 1 or len(outputs) != 1 or shapes != expected:
            raise ModelError(f"{model.name} has tensors of shapes {shapes}; expected {expected}")
        self._input, self._output = inputs[0], outputs[0]
        check_types((self._input, self._output), model.name)
        self._codes = codes_of_pixels(self._input)
        self._buffer = np.empty(expected[0], dtype=self._input["dtype"])

    def __call__(self, face: UInt8Array) -> FloatArray:
        """Classify one face.

        Args:
            face: (48, 48) uint8 grey, from `contract.preprocess`.

        Returns:
            (7,) float32 scores from 0 to 1 in the order of `contract.LABELS`, summing to 1.

        Raises:
            InputError: If `face` is of another shape or dtype.
        """
        if face.shape != (INPUT_SIZE, INPUT_SIZE) or face.dtype != np.uint8:
            raise InputError(
                f"expected a face of ({INPUT_SIZE}, {INPUT_SIZE}) uint8; received {face.shape} {face.dtype}"
            )
        scores = self._scores(face)
        return (scores + self._scores(face[:, ::-1])) / np.float32(2) if self.mirror else scores

    def _scores(self, face: UInt8Array) -> FloatArray:
        self._buffer[0, ..., 0] = self._codes[face]
        self._interpreter.set_tensor(self._input["index"], self._buffer)
        self._interpreter.invoke()
        return self._dequantise(self._interpreter.get_tensor(self._output["index"])[0])

    def _dequantise(self, raw: FloatArray) -> FloatArray:
        scores = dequantised(raw, self._output)
        total = float(scores.sum())
        if not total > 0:
            return np.full(len(LABELS), 1 / len(LABELS), dtype=np.float32)
        return (scores / np.float32(total)).astype(np.float32)
