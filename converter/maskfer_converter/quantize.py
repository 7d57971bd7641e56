"""Keras to full-integer TFLite, with the figures of both before it is written."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import CROP_MARGINS, INPUT_SIZE, LABELS, FloatArray
from maskfer_edge.dataset import PARTS, PictureSet, dataset_info, read_part
from maskfer_edge.dependencies import extra
from maskfer_edge.errors import InputError, ModelError
from maskfer_edge.files import check_free, read_bytes, write_whole
from maskfer_edge.model_file import FLATBUFFER_MARK, Model, ModelInfo, pack
from maskfer_edge.runtime import open_interpreter

LICENCE_NOTE = (
    "Weights trained on pictures of {name}. FER2013 was scraped for research, and the landmark model that placed the "
    "masks (iBUG 300-W) excludes commercial use. Not for judging what a person feels; not for use at work or school."
)


@dataclass(frozen=True)
class QuantizeReport:
    """Float against int8.

    Attributes:
        model: Path of the written file.
        bytes: Its size.
        calibration_pictures: How many were used.
        accuracy: By part of the test split: float, int8, agreement (share of pictures given the same
            class by both) and how many pictures; shares from 0 to 1.
    """

    model: str
    bytes: int
    calibration_pictures: int
    accuracy: dict[str, dict[str, float | int]]


def quantize(
    keras_path: Path, dataset: Path, out: Path, per_class: int = 72, seed: int = 0, overwrite: bool = False
) -> QuantizeReport:
    """Convert a trained network to full-integer TFLite: uint8 in, uint8 out, int8 between.

    Calibration pictures come from the training split, as many of each class, masked and bare in
    turn. The figures are measured on the test split as the edge classifies, mirror images included, and
    written into the file.

    Args:
        keras_path: A `.keras` of ``trainer fit``.
        dataset: Made by ``trainer build-dataset``.
        out: `.tflite` to write.
        per_class: Calibration pictures of each class.
        seed: Of their choice.
        overwrite: Whether an existing `out` is replaced.

    Raises:
        InputError: If the model or data set cannot be used.
        OutputError: If `out` is there already or cannot be written.
        ModelError: If the converted model is not integer throughout or gives one class only.
    """
    check_free(out, overwrite)
    info = dataset_info(dataset)
    network, said = load_keras(keras_path)
    calibration = calibration_pictures(dataset, per_class, seed)
    flatbuffer = convert(network, calibration)
    check_integer(flatbuffer, str(out))

    model_info = ModelInfo(
        architecture=said.get("architecture", network.name),
        crop_margins=CROP_MARGINS,
        training_data={
            "name": said.get("dataset", info["name"]),
            "sha256": said.get("dataset_sha256", "unknown"),
            "pictures": said.get("training_pictures", 0),
        },
        accuracy={},
        licence_note=LICENCE_NOTE.format(name=said.get("dataset", info["name"])),
    )
    classifier = Classifier(Model(flatbuffer, model_info, str(out)))
    accuracy = {f"{part} test": _compare(network, classifier, read_part(dataset, part, "test")) for part in PARTS}
    content = pack(flatbuffer, replace(model_info, accuracy=accuracy))
    write_whole(out, content, overwrite)
    return QuantizeReport(str(out), len(content), len(calibration), accuracy)


def load_keras(path: Path) -> tuple[Any, dict[str, Any]]:
    """Load a `.keras` file and what it says of itself (empty if it says nothing).

    Raises:
        InputError: If it is no Keras file, needs code of its own, or has other shapes than the contract.
    """
    read_bytes(path)  # says what is wrong with the path itself
    try:
        with zipfile.ZipFile(path) as archive:
            said = json.loads(archive.read("maskfer.json")) if "maskfer.json" in archive.namelist() else {}
        if not isinstance(said, dict):
            raise ValueError
    except (zipfile.BadZipFile, zlib.error, ValueError):
        raise InputError(f"{path} is not a whole .keras file; make one with: trainer fit DATASET --out RUN") from None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # only its models become TFLite
    with extra("converter"):
        import keras
        import tensorflow  # noqa: F401
    try:
        network = keras.models.load_model(path, compile=False)
        shapes = (network.input_shape, network.output_shape)
    except Exception as error:  # Keras raises many kinds for files that it cannot read
        raise InputError(f"{path} cannot be loaded by Keras: {' '.join(str(error).split())[:200]}") from error
    expected = ((None, INPUT_SIZE, INPUT_SIZE, 1), (None, len(LABELS)))
    if shapes != expected:
        raise InputError(f"{path} has input and output of shapes {shapes}; expected {expected}")
    return network, said


def calibration_pictures(dataset: Path, per_class: int, seed: int) -> npt.NDArray[np.float32]:
    """(n, 48, 48, 1) float32 grey pixels: `per_class` faces of each class, every other one bare.

    A black and a white picture are added, so that the input covers 0 to 255 and is the pixel itself.

    Raises:
        InputError: If a class has too few.
    """
    masked, bare = (read_part(dataset, part, "train") for part in PARTS)
    random = np.random.default_rng(seed)
    chosen = []
    for label, name in enumerate(LABELS):
        of_class = np.flatnonzero(masked.labels == label)
        if len(of_class) < per_class or not np.array_equal(masked.labels, bare.labels):
            raise InputError(f"{dataset} has {len(of_class)} training pictures of {name}; {per_class} are needed")
        drawn = random.permutation(of_class)[:per_class]
        chosen += [(masked if i % 2 == 0 else bare).images[face] for i, face in enumerate(drawn)]
    side = (INPUT_SIZE, INPUT_SIZE)
    chosen += [np.zeros(side, dtype=np.uint8), np.full(side, 255, dtype=np.uint8)]
    return np.stack(chosen)[..., None].astype(np.float32)


def convert(network: Any, calibration: npt.NDArray[np.float32]) -> bytes:
    """The flatbuffer of the quantised network: int8 weights per channel, uint8 input and output."""
    import tensorflow as tf

    def representative() -> Iterator[list[npt.NDArray[np.float32]]]:
        for picture in calibration:
            yield [picture[None]]

    with tempfile.TemporaryDirectory() as folder:
        network.export(folder, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
        return bytes(converter.convert())


def check_integer(flatbuffer: bytes, name: str) -> None:
    """Check that no tensor of the model is floating point.

    Raises:
        ModelError: Naming a tensor that is.
    """
    assert flatbuffer[4:8] == FLATBUFFER_MARK
    details = open_interpreter(flatbuffer, name=name).get_tensor_details()
    floating = [d["name"] for d in details if np.issubdtype(np.dtype(d["dtype"]), np.floating)]
    if floating:
        raise ModelError(f"{name} is not integer throughout: tensor {floating[0]!r} is floating point")


def _compare(network: Any, classifier: Classifier, pictures: PictureSet) -> dict[str, float | int]:
    faces = pictures.images[..., None].astype(np.float32)
    floats: FloatArray = sum(network.predict(view, batch_size=256, verbose=0) for view in (faces, faces[:, :, ::-1]))
    by_float = floats.argmax(axis=1)
    by_int8 = np.array([int(classifier(face).argmax()) for face in pictures.images])
    if len(set(by_int8.tolist())) == 1 and len(set(pictures.labels.tolist())) > 1:
        raise ModelError(
            f"{classifier.model.name} gives one class only, {LABELS[int(by_int8[0])]}, for {len(pictures)} pictures; "
            "train for longer, or calibrate on other pictures"
        )
    return {
        "float": round(float((by_float == pictures.labels).mean()), 4),
        "int8": round(float((by_int8 == pictures.labels).mean()), 4),
        "agreement": round(float((by_float == by_int8).mean()), 4),
        "pictures": len(pictures),
    }
