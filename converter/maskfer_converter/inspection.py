"""What a `.tflite` file holds, for people: metadata, operators, cost, quantisation of each tensor."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskfer_converter.graph import Graph, read_graph
from maskfer_edge.errors import ModelError
from maskfer_edge.files import read_bytes
from maskfer_edge.model_file import strip, unpack, unpack_detector


@dataclass(frozen=True)
class Inspection:
    """One file.

    Attributes:
        model: Its path.
        bytes: Its size.
        metadata: What it says of itself; None if it is no whole file of maskfer's.
        why: Why there is no metadata; "" if there is.
        graph: Operators and tensors.
        multiply_accumulates: Of one pass.
        weight_bytes: Of all constants.
        rescorer: Operators and tensors of a detector's second network, see `maskfer_edge.rescorer`; None if there is
            none.
    """

    model: str
    bytes: int
    metadata: dict[str, Any] | None
    why: str
    graph: Graph
    multiply_accumulates: int
    weight_bytes: int
    rescorer: Graph | None


def inspect(path: Path) -> Inspection:
    """Read a file, maskfer's or anyone's.

    Raises:
        InputError: If it cannot be read.
        ModelError: If it is no TFLite model.
    """
    content = read_bytes(path)
    graph = read_graph(strip(content), str(path))
    metadata, why, rescorer = None, "", None
    try:
        metadata = asdict(unpack(content, str(path)).info)
    except ModelError as error:
        why = str(error)
        with suppress(ModelError):
            detector = unpack_detector(content, str(path))
            metadata, why = asdict(detector.info), ""
            rescorer = read_graph(detector.rescorer, f"{path}'s rescorer") if detector.rescorer else None
    weights = sum(tensor.bytes for tensor in graph.tensors)
    return Inspection(str(path), len(content), metadata, why, graph, graph.multiply_accumulates, weights, rescorer)
