"""The model file: a `.tflite` flatbuffer with a zip of metadata appended.

    unzip -l model.tflite      shows maskfer.json, labels.txt if it tells expressions apart, and rescorer.tflite
                               if it finds faces in two steps
    any TFLite runtime         loads the file as it is

The sha256 of the flatbuffer stands in `maskfer.json`, because a zip's checksums do not cover what
comes before it, and a TFLite runtime runs a damaged model without a word.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from maskfer_edge.contract import INPUT_SIZE, LABELS
from maskfer_edge.errors import ModelError
from maskfer_edge.files import read_bytes

FORMAT_VERSION = 2
EXPRESSION, DETECTOR = "expression", "detector"
JSON_NAME, LABELS_NAME, RESCORER_NAME = "maskfer.json", "labels.txt", "rescorer.tflite"
FLATBUFFER_IDENTIFIER = b"TFL3"
REMEDY = "make it with: converter quantize MODEL.keras --calibrate DATASET -o MODEL.tflite"
# Sides of a detector's input, in pixels.
DETECTOR_SIDES = (32, 1024)
# A zip's dates must not change the bytes; this is the earliest that it can hold.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class ModelInfo:
    """Metadata of an expression model.

    Attributes:
        architecture: Name of the network, e.g. ``lean``.
        crop_margins: Detector name to the crop margin (see `contract.preprocess`) that frames its
            boxes as the training pictures were framed.
        training_data: Name and sha256 of the data set's manifest, and how many pictures.
        accuracy: Measured accuracies, e.g. ``{"masked test": {"float": 0.57, "int8": 0.57, ...}}``.
        quantization: Format (``int8``, ``float16``, ``dynamic`` or ``float``), and what it was calibrated
            and measured on: ``{"format": "int8", "calibration": {"Angry": 72, ...}, "seed": 0, ...}``.
        licence_note: What limits the use of the weights.
        kind: ``expression``; a detector's is `DetectorInfo`.
        labels: Class names in the order of the output.
        input_size: Side of the grey input in pixels.
        flatbuffer_sha256: Of the bytes before the zip; set by `pack`.
        format_version: Of this layout.
    """

    architecture: str
    crop_margins: Mapping[str, float]
    training_data: Mapping[str, Any]
    accuracy: Mapping[str, Any]
    quantization: Mapping[str, Any]
    licence_note: str
    kind: str = EXPRESSION
    labels: tuple[str, ...] = LABELS
    input_size: int = INPUT_SIZE
    flatbuffer_sha256: str = ""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class DetectorInfo:
    """Metadata of a face detector's model file.

    Attributes:
        architecture: Name of the network.
        input_size_wh: Width and height of the grey input in pixels, 32 to 1024, multiples of `stride`.
        stride: Side in input pixels of a cell of the output.
        score_threshold: Score, 0 to 1, from which a face is accepted; chosen on validation data.
        training_data: Name and hash of what it was trained on, and how many pictures.
        accuracy: Measured recalls, precisions and the like.
        quantization: As `ModelInfo.quantization`.
        licence_note: What limits the use of the weights.
        kind: ``detector``.
        flatbuffer_sha256: Of the bytes before the zip; set by `pack`.
        format_version: Of this layout.
    """

    architecture: str
    input_size_wh: tuple[int, int]
    stride: int
    score_threshold: float
    training_data: Mapping[str, Any]
    accuracy: Mapping[str, Any]
    quantization: Mapping[str, Any]
    licence_note: str
    kind: str = DETECTOR
    flatbuffer_sha256: str = ""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Model:
    """A model file that kept the contract when it was read.

    Attributes:
        flatbuffer: The TFLite model without the zip.
        info: Its metadata.
        name: Where it came from, for messages.
    """

    flatbuffer: bytes = field(repr=False)
    info: ModelInfo
    name: str


@dataclass(frozen=True)
class DetectorModel:
    """A face detector's model file that kept the contract when it was read.

    Attributes:
        flatbuffer: As `Model.flatbuffer`.
        info: As `Model.info`; with a rescorer, its threshold is of the scores that both give together.
        name: As `Model.name`.
        rescorer: TFLite model of `rescorer.Rescorer`, which rescores each candidate; empty if there is none.
    """

    flatbuffer: bytes = field(repr=False)
    info: DetectorInfo
    name: str
    rescorer: bytes = field(default=b"", repr=False)


def pack(flatbuffer: bytes, info: ModelInfo | DetectorInfo, rescorer: bytes = b"") -> bytes:
    """Append metadata, labels and a rescorer if there are any, to a flatbuffer; an older appendix is taken off first.

    The same arguments give the same bytes.
    """
    flatbuffer = strip(flatbuffer)
    metadata = {**asdict(info), "flatbuffer_sha256": hashlib.sha256(flatbuffer).hexdigest()}
    buffer = io.BytesIO(flatbuffer)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        if isinstance(info, ModelInfo):
            archive.writestr(zipfile.ZipInfo(LABELS_NAME, ZIP_DATE), "\n".join(info.labels) + "\n")
        if rescorer:
            archive.writestr(zipfile.ZipInfo(RESCORER_NAME, ZIP_DATE), rescorer)
        text = json.dumps(metadata, indent=2, sort_keys=True) + "\n"
        archive.writestr(zipfile.ZipInfo(JSON_NAME, ZIP_DATE), text)
    return buffer.getvalue()


@contextmanager
def appendix(content: bytes) -> Iterator[zipfile.ZipFile]:
    """The zip behind a model.

    Raises:
        zipfile.BadZipFile: If there is none, or an entry of it is compressed: ours never are, and such a one may hold
            more than fits the memory.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise zipfile.BadZipFile("compressed")
        yield archive


# What reading an entry of a damaged appendix, or of none, or parsing it, raises. RuntimeError: marked as encrypted, or
# nested too deeply.
UNREADABLE = (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError, RuntimeError)


def strip(content: bytes) -> bytes:
    """The flatbuffer without whatever zips are appended to it, as far as they can be read."""
    while zipfile.is_zipfile(io.BytesIO(content)):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                start = min((entry.header_offset for entry in archive.infolist()), default=archive.start_dir)
        except zipfile.BadZipFile:
            break
        if not 0 <= start < len(content):  # impossible offsets
            break
        content = content[:start]
    return content


def unpack(content: bytes, name: str) -> Model:
    """Read a model file's bytes and check them against the contract.

    The shapes of the tensors are checked by `classifier.Classifier`, which opens the interpreter.

    Args:
        content: The whole file.
        name: For messages.

    Raises:
        ModelError: If the file is no TFLite model, is cut short or damaged, has no metadata,
            or is of another format version, kind, label set or input size.
    """
    metadata, others = _read_appendix(content, name, ModelInfo)
    labels = others.get(LABELS_NAME, b"").decode(errors="replace").split()
    if metadata["labels"] != list(LABELS) or tuple(labels) != LABELS:
        raise ModelError(f"{name} has other labels than {', '.join(LABELS)}; {REMEDY}")
    if metadata["input_size"] != INPUT_SIZE:
        raise ModelError(f"{name} takes {metadata['input_size']!r} pixels; expected {INPUT_SIZE}")
    margins = metadata["crop_margins"]
    if not isinstance(margins, dict) or not all(isinstance(m, int | float) and abs(m) < 0.5 for m in margins.values()):
        raise ModelError(f"{name} has damaged crop margins; {REMEDY}")
    return Model(_checked_flatbuffer(content, name, metadata), ModelInfo(**{**metadata, "labels": LABELS}), name)


def unpack_detector(content: bytes, name: str) -> DetectorModel:
    """Read a face detector's model file, as `unpack` does an expression model's.

    The shapes of the tensors are checked by `learned_detector.LearnedDetector`.

    Raises:
        ModelError: If the file is no TFLite model, is cut short or damaged, has no metadata, is of another
            format version or kind, or has invalid metadata.
    """
    metadata, others = _read_appendix(content, name, DetectorInfo)
    stride, size_wh, threshold = metadata["stride"], metadata["input_size_wh"], metadata["score_threshold"]
    min_side, max_side = DETECTOR_SIDES
    _check(
        name, metadata, "stride", _is_int(stride) and 1 <= stride <= max_side, f"a whole number from 1 to {max_side}"
    )
    valid = isinstance(size_wh, list) and len(size_wh) == 2 and all(map(_is_int, size_wh))
    valid = valid and all(min_side <= side <= max_side and side % stride == 0 for side in size_wh)
    _check(
        name, metadata, "input_size_wh", valid, f"width and height from {min_side} to {max_side}, multiples of {stride}"
    )
    valid = isinstance(threshold, int | float) and not isinstance(threshold, bool) and 0 <= threshold <= 1
    _check(name, metadata, "score_threshold", valid, "a number from 0 to 1")
    info = DetectorInfo(**{**metadata, "input_size_wh": tuple(size_wh), "score_threshold": float(threshold)})
    return DetectorModel(_checked_flatbuffer(content, name, metadata), info, name, others.get(RESCORER_NAME, b""))


def _read_appendix(
    content: bytes, name: str, info_type: type[ModelInfo] | type[DetectorInfo]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read and check what both kinds of files have: the metadata, with exactly the fields of `info_type`.

    With it come the labels and the rescorer by their names, as far as the file has them. Raises ModelError.
    """
    if content[4:8] != FLATBUFFER_IDENTIFIER:
        raise ModelError(f"{name} is not a TFLite model; {REMEDY}")
    try:
        with appendix(content) as archive:
            metadata = json.loads(archive.read(JSON_NAME))
            present = set(archive.namelist()) & {LABELS_NAME, RESCORER_NAME}
            others = {entry: archive.read(entry) for entry in present}
    except UNREADABLE:
        raise ModelError(f"{name} lacks maskfer's metadata (cut short, or made elsewhere); {REMEDY}") from None
    if not isinstance(metadata, dict):
        raise ModelError(f"{name} has damaged metadata; {REMEDY}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{name} has format version {metadata.get('format_version')!r}; this program reads {FORMAT_VERSION}; "
            "update maskfer or convert the model again"
        )
    # before the fields, as another kind has others
    if metadata.get("kind", info_type.kind) != info_type.kind:
        raise ModelError(f"{name} is of kind {metadata['kind']!r}; a model of kind {info_type.kind!r} is needed")
    expected = {f.name for f in fields(info_type)}
    if set(metadata) != expected:
        differing = ", ".join(sorted(expected ^ set(metadata)))
        raise ModelError(f"{name} has metadata that differs from the format in {differing}; {REMEDY}")
    for key in ("architecture", "licence_note"):
        _check(name, metadata, key, isinstance(metadata[key], str), "a text")
    for key in ("training_data", "accuracy", "quantization"):
        _check(name, metadata, key, isinstance(metadata[key], dict), "an object")
    return metadata, others


def _checked_flatbuffer(content: bytes, name: str, metadata: Mapping[str, Any]) -> bytes:
    """The flatbuffer, if it is the one that the metadata was written for. Raises ModelError."""
    flatbuffer = strip(content)
    if hashlib.sha256(flatbuffer).hexdigest() != metadata["flatbuffer_sha256"]:
        raise ModelError(f"{name} is damaged: its weights are not those that it was made with; copy it again")
    return flatbuffer


def _check(name: str, metadata: Mapping[str, Any], key: str, valid: bool, expected: str) -> None:
    if not valid:
        raise ModelError(f"{name} has {key} {repr(metadata[key])[:100]}; expected {expected}; {REMEDY}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def load_model(path: Path) -> Model:
    """Read a model file. Raises InputError if it cannot be read, ModelError as `unpack` does."""
    return unpack(read_bytes(path), str(path))


def load_detector_model(path: Path) -> DetectorModel:
    """Read a face detector's model file. Raises InputError if it cannot be read, ModelError as `unpack_detector`."""
    return unpack_detector(read_bytes(path), str(path))
