"""What a converted model must be, checked on the file itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskfer_converter.convert import DYNAMIC, FLOAT, FLOAT16, INT8
from maskfer_converter.graph import Graph
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import INPUT_SIZE, LABELS, UInt8Array
from maskfer_edge.errors import DependencyError, ModelError
from maskfer_edge.model_file import Model
from maskfer_edge.runtime import RUNTIMES

# The last release of tflite-runtime, and so the oldest runtime that maskfer supports.
OLDEST_RUNTIME = (2, 14)
WEIGHTS_OF = {INT8: "INT8", FLOAT16: "FLOAT16", DYNAMIC: "INT8", FLOAT: "FLOAT32"}
# Below it, the converter's dynamic-range format leaves weights as they are.
SMALL_WEIGHTS = 1024


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: What must be.
        passed: Whether it is.
        found: What is instead, or a figure; may be empty.
    """

    what: str
    passed: bool
    found: str = ""


def check_graph(graph: Graph, form: str) -> list[Check]:
    """Check a model's structure against the contract and its format.

    Args:
        graph: Of the model.
        form: A key of `convert.FORMATS`.
    """
    shapes = [graph.tensors[i].shape for i in graph.inputs], [graph.tensors[i].shape for i in graph.outputs]
    expected = [(1, INPUT_SIZE, INPUT_SIZE, 1)], [(1, len(LABELS))]
    custom = [operator.name for operator in graph.operators if operator.custom]
    oldest = ".".join(map(str, OLDEST_RUNTIME))
    checks = [
        Check("one face in, seven scores out", shapes == expected, "" if shapes == expected else f"{shapes}"),
        Check("no custom or Flex operator", not custom, ", ".join(custom)),
        Check(
            f"operators that TFLite {oldest} has",
            bool(graph.min_runtime) and _version(graph.min_runtime) <= OLDEST_RUNTIME,
            f"since {graph.min_runtime}" if graph.min_runtime else "not said",
        ),
    ]
    return checks + (_integer_checks(graph) if form == INT8 else [_weights_check(graph, form)])


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(".")[:2] if number.isdigit())


def _integer_checks(graph: Graph) -> list[Check]:
    floating = [tensor.short_name for tensor in graph.tensors if "FLOAT" in tensor.dtype or "COMPLEX" in tensor.dtype]
    first = graph.tensors[graph.inputs[0]]
    pixel = (first.dtype, first.scales, first.zero_points) == ("UINT8", (1.0,), (0,))
    shared = []
    for operator in graph.operators:
        weights = graph.weights_of(operator)
        if weights is not None and len(weights.scales) != weights.shape[weights.axis]:
            shared.append(weights.short_name)
    return [
        Check("integers throughout", not floating, _some(floating, "floating point")),
        Check(
            "the input is the grey pixel",
            pixel,
            "" if pixel else f"{first.dtype}, scale {first.scales}, zero point {first.zero_points}",
        ),
        Check("weights per channel", not shared, _some(shared, "one scale for all channels")),
    ]


def _weights_check(graph: Graph, form: str) -> Check:
    wanted = WEIGHTS_OF[form]
    kinds = {
        tensor.dtype
        for tensor in graph.tensors
        if np.prod(tensor.shape) >= SMALL_WEIGHTS and tensor.bytes and tensor.dtype != "INT32"
    }
    return Check(f"weights are {wanted}", kinds <= {wanted}, ", ".join(sorted(kinds)))


def _some(names: list[str], what: str) -> str:
    return f"{len(names)} with {what}, {names[0]} first" if names else ""


def check_runtimes(model: Model, face: UInt8Array) -> list[Check]:
    """Run the model on each TFLite runtime that works here; those that do not are named and pass."""
    checks = []
    for runtime in RUNTIMES:
        try:
            scores = Classifier(model, runtime)(face)
        except DependencyError:
            checks.append(Check(f"runs on {runtime}", True, "not installed here, not tried"))
        except ModelError as error:
            checks.append(Check(f"runs on {runtime}", False, str(error)))
        else:
            checks.append(Check(f"runs on {runtime}", bool(np.isfinite(scores).all())))
    return checks
