"""What a `.tflite` file holds, for people: metadata, operators, cost, quantisation of each tensor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskfer_converter.graph import Graph, read_graph
from maskfer_edge.errors import ModelError
from maskfer_edge.files import read_bytes
from maskfer_edge.model_file import DetectorModel, strip
from maskfer_edge.model_store import read_model


@dataclass(frozen=True)
class Inspection:
    """One file.

    Attributes:
        model: Its path.
        bytes: Its size.
        metadata: Its own; None if it is no whole file of maskfer's.
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
        model = read_model(content, str(path))
        metadata = asdict(model.info)
        if isinstance(model, DetectorModel) and model.rescorer:
            rescorer = read_graph(model.rescorer, f"{path}'s rescorer")
    except ModelError as error:
        why = str(error)
    weights = sum(tensor.bytes for tensor in graph.tensors)
    return Inspection(str(path), len(content), metadata, why, graph, graph.multiply_accumulates, weights, rescorer)
