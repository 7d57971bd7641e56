"""From a picture file's bytes to pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes

# no .gif: only from 4.12 on can OpenCV read it as a picture; as a source of frames it is a video
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def decode(data: bytes, name: str) -> UInt8Array:
    """Decode a picture file's bytes; the first picture of an animation or of several pages.

    Returns:
        (height, width, 3) uint8 in B,G,R order, turned as its EXIF orientation says, 16 bits scaled to 8, and
        transparent PNG, WebP and GIF laid on white.

    Raises:
        InputError: If the bytes are no valid picture, or one too large for memory.
    """
    if not data:
        raise InputError(f"{name} is empty (0 bytes)")
    data = _without_animation(data)
    try:
        image = None if _is_truncated(data) else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is not None and data.startswith((b"\x89PNG", b"RIFF", b"GIF8")):
            image = _on_white(image, data)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error) or error.code == cv2.Error.StsNoMem:
            raise InputError(f"{name} is too large; scale it down to 64 megapixels or less") from None
        image = None
    if image is None:
        raise InputError(
            f"{name} is not a picture that can be read (damaged, cut short, or not JPEG, PNG, BMP, WebP or TIFF; "
            "convert HEIC and others to JPEG)"
        )
    return np.asarray(image, dtype=np.uint8)


def _without_animation(data: bytes) -> bytes:
    """A PNG without its animation chunk: damaged animations crash OpenCV 4.12 to 4.14 (opencv issue 27744)."""
    if not data.startswith(b"\x89PNG"):
        return data
    kind = data.find(b"acTL", 0, data.find(b"IDAT"))
    # a chunk: 4 bytes length, 4 bytes kind, here 8 bytes content, 4 bytes checksum
    return data if kind < 4 else data[: kind - 4] + data[kind + 16 :]


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG has no end marker.

    Before 4.11 OpenCV fills the missing part of a JPEG with what its memory held, and says nothing; of a PNG's
    libpng writes a line of its own to stderr.
    """
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    # over the segments before the scan, as a thumbnail in one of them has an end too
    while data[position : position + 1] == b"\xff" and (kind := data[position + 1 : position + 2]) != b"\xda":
        # FF before a kind is padding
        position += 1 if kind == b"\xff" else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.find(b"\xff\xd9", position) < 0


def _on_white(image: UInt8Array, data: bytes) -> UInt8Array:
    """Lay a picture on white, as viewers do: the colours that IMREAD_COLOR gives where it is transparent are arbitrary.

    Args:
        image: What IMREAD_COLOR gave: (height, width, 3) uint8.
        data: The file's bytes: PNG, WebP or GIF.
    """
    if data.startswith(b"\x89PNG") and not (data[25] & 4 or b"tRNS" in data):
        return image  # no transparency: spare the second decoding
    layers = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if layers is None or layers.ndim != 3 or layers.shape[2] != 4:
        return image
    if layers.dtype == np.uint16:
        layers = (layers >> 8).astype(np.uint8)
    # only IMREAD_COLOR turns by EXIF: find the turn that it made
    turned = (np.rot90(side, times) for side in (layers, layers.swapaxes(0, 1)) for times in range(4))
    match = next((turn for turn in turned if np.array_equal(turn[..., :3], image)), None)
    if match is None:
        return image
    alpha = cv2.cvtColor(np.ascontiguousarray(match[..., 3]), cv2.COLOR_GRAY2BGR)
    white: UInt8Array = cv2.bitwise_not(cv2.multiply(cv2.bitwise_not(image), alpha, scale=1 / 255))
    return white


def decode_layers(data: bytes) -> npt.NDArray[Any] | None:
    """A picture as it is, with transparency and depth; None if it cannot be read."""
    try:
        return cv2.imdecode(np.frombuffer(_without_animation(data), np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:  # too large
        return None


def read_picture(path: Path) -> UInt8Array:
    """Read a picture file: (height, width, 3) uint8, B,G,R. Raises InputError as `decode` does."""
    return decode(read_bytes(path), str(path))


def read_grey(path: Path) -> UInt8Array:
    """Read a picture file: (height, width) uint8 grey. Raises InputError as `decode` does."""
    return np.asarray(cv2.cvtColor(read_picture(path), cv2.COLOR_BGR2GRAY), dtype=np.uint8)
