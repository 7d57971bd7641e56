"""maskfer's lean runtime: finds faces in camera frames and says what they show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskfer_edge.results import FrameResult

__all__ = ["stream"]


def stream(source: str = "auto", **settings: Any) -> Iterator[FrameResult]:
    """Results of a camera, a file or a stream, one a frame; see `running.stream`."""
    from maskfer_edge import running  # OpenCV and the runtime are loaded only when they are needed

    return running.stream(source, **settings)
