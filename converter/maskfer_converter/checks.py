"""What a converted model must be, checked on the file itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskfer_converter.convert import DYNAMIC, FLOAT, FLOAT16, INT8
from maskfer_converter.graph import Graph
from maskfer_edge.contract import INPUT_SIZE, LABELS
from maskfer_edge.errors import DependencyError, ModelError
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
        passed: Whether it is; None if that could not be looked at here.
        found: What is instead, or a figure; may be empty.
    """

    what: str
    passed: bool | None
    found: str = ""


class Checked:
    """Base of what is found of a model: `model`, the path of its file, and `checks`, all that was looked at."""

    model: str
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if check.passed not in (True, None)]


class RefusedModelError(ModelError):
    """A converted model that failed its checks and was not written.

    Attributes:
        report: What was found.
    """

    def __init__(self, report: Checked) -> None:
        super().__init__(f"{report.model} was not written: {failures(report.failed)}; --force writes it all the same")
        self.report = report


def failures(checks: list[Check]) -> str:
    """Failed checks in one line."""
    return "; ".join(f"{check.what}: {check.found or 'no'}" for check in checks)


# Input and outputs of an expression network.
Shapes = tuple[tuple[int, ...], ...]
FACE_IN, SCORES_OUT = (1, INPUT_SIZE, INPUT_SIZE, 1), (1, len(LABELS))


def check_graph(graph: Graph, form: str, shapes_in_out: Shapes = (FACE_IN, SCORES_OUT)) -> list[Check]:
    """Check a model's structure against the contract and its format.

    Args:
        graph: Of the model.
        form: A key of `convert.FORMATS`.
        shapes_in_out: Of the one input and of the outputs, which may come in any order.
    """
    inputs, outputs = ([graph.tensors[i].shape for i in ends] for ends in (graph.inputs, graph.outputs))
    as_expected = inputs == [shapes_in_out[0]] and sorted(outputs) == sorted(shapes_in_out[1:])
    custom = [operator.name for operator in graph.operators if operator.custom]
    oldest = ".".join(map(str, OLDEST_RUNTIME))
    checks = [
        Check(
            "input and outputs of the shapes that the edge expects",
            as_expected,
            "" if as_expected else f"{inputs}, {outputs}",
        ),
        Check("no custom or Flex operator", not custom, ", ".join(custom)),
        Check(
            f"operators that TFLite {oldest} has",
            bool(graph.min_runtime) and _version(graph.min_runtime) <= OLDEST_RUNTIME,
            f"since {graph.min_runtime}" if graph.min_runtime else "not stated",
        ),
    ]
    return checks + (_integer_checks(graph) if form == INT8 else [_weights_check(graph, form)])


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(".")[:2] if number.isdigit())


def _integer_checks(graph: Graph) -> list[Check]:
    floating = [tensor.short_name for tensor in graph.tensors if "FLOAT" in tensor.dtype or "COMPLEX" in tensor.dtype]
    first = graph.tensors[graph.inputs[0]]
    pixel = (first.dtype, first.scales, first.zero_points) == ("UINT8", (1.0,), (0,))
    per_tensor = []
    for operator in graph.operators:
        weights = graph.weights_of(operator)
        if weights is not None and len(weights.scales) != weights.shape[weights.axis]:
            per_tensor.append(weights.short_name)
    return [
        Check("integers throughout", not floating, _some(floating, "floating point")),
        Check(
            "the input is the grey pixel",
            pixel,
            "" if pixel else f"{first.dtype}, scale {first.scales}, zero point {first.zero_points}",
        ),
        Check("weights per channel", not per_tensor, _some(per_tensor, "one scale for all channels")),
    ]


def _weights_check(graph: Graph, form: str) -> Check:
    expected = WEIGHTS_OF[form]
    dtypes = {
        tensor.dtype
        for tensor in graph.tensors
        if np.prod(tensor.shape) >= SMALL_WEIGHTS and tensor.bytes and tensor.dtype != "INT32"
    }
    return Check(f"weights are {expected}", dtypes <= {expected}, ", ".join(sorted(dtypes)))


def _some(names: list[str], what: str) -> str:
    return f"{len(names)} with {what}, {names[0]} first" if names else ""


def check_runtimes(run: Callable[[str], bool]) -> list[Check]:
    """Run a model on each TFLite runtime that works here; those that are not installed are named.

    Args:
        run: Opens the model on a runtime, runs it, and tells whether its outputs are those of the usual one.
    """
    checks = []
    for runtime in RUNTIMES:
        try:
            same = run(runtime)
        except DependencyError:
            checks.append(Check(f"runs on {runtime}", None, "not installed here, not tried"))
        except ModelError as error:
            checks.append(Check(f"runs on {runtime}", False, str(error)))
        else:
            checks.append(Check(f"runs on {runtime}", same, "" if same else "other answers"))
    return checks
