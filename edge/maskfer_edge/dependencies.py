"""Imports that may fail, each failing with the one line that mends it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from maskfer_edge.errors import DependencyError

# Damaged pictures and videos are reported by us, in one line; must stand in the environment before the import.
os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")
# A file of a kilobyte may claim to hold gigabytes of pixels; 64 megapixels are the largest photographs of phones.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 26))
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

try:
    import cv2
except ImportError as error:
    missing_library = re.search(r"lib[\w.+-]+\.so[\w.]*", str(error))
    if missing_library:
        raise DependencyError(
            f"OpenCV cannot load: the system library {missing_library[0]} is missing; "
            "run: sudo apt install -y libgl1 libglib2.0-0 libxcb1"
        ) from error
    raise DependencyError(
        f"OpenCV cannot be imported ({' '.join(str(error).split())[:200]}); run: pip install 'opencv-python>=4.8,<5'"
    ) from error

if not hasattr(cv2, "CascadeClassifier"):
    raise DependencyError(f"OpenCV {cv2.__version__} has no Haar cascades; run: pip install 'opencv-python>=4.8,<5'")

__all__ = ["cv2", "extra"]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Wrap imports that belong to an optional extra.

    Args:
        name: The extra as pip knows it, e.g. ``trainer``.

    Raises:
        DependencyError: If an import inside the block fails; names the module and the pip line.
    """
    try:
        yield
    except ImportError as error:
        cause: BaseException | None = error
        while cause is not None:  # numpy makes an ImportError of Ctrl-C
            if isinstance(cause, KeyboardInterrupt):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        problem = f"{error.name} is not installed"
        if error.name is None:
            problem = f"what it needs cannot be loaded ({' '.join(str(error).split())[:200]})"
        raise DependencyError(f"{problem}; run: pip install 'maskfer[{name}]'") from error
