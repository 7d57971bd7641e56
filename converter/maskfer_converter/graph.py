"""What a TFLite flatbuffer holds: operators, tensors, their quantisation and cost. TensorFlow is not needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from maskfer_edge.dependencies import extra
from maskfer_edge.errors import ModelError
from maskfer_edge.model_file import FLATBUFFER_IDENTIFIER, REMEDY

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model.

    Attributes:
        name: As the converter named it.
        dtype: ``UINT8``, ``INT8``, ``INT32``, ``FLOAT32``, ...
        shape: Dimensions; empty for a scalar.
        scales: One a channel, or one for all; empty if it is not quantised.
        zero_points: Likewise.
        axis: Of the channels.
        bytes: Of a constant; 0 for what is computed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    bytes: int

    @property
    def short_name(self) -> str:
        """The first of the layers that were fused into it, without the network's own name."""
        return self.name.partition(";")[0].partition("/")[2] or self.name


@dataclass(frozen=True)
class Operator:
    """One step of a model.

    Attributes:
        name: Of the builtin operator, or of the custom one.
        version: Of the builtin operator.
        custom: Whether it is none of TFLite's own (Flex operators are custom ones).
        inputs: Indices of tensors; -1 for one left out.
        outputs: Likewise.
        multiply_accumulates: Of a convolution or dense layer; 0 for all else.
    """

    name: str
    version: int
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    multiply_accumulates: int


@dataclass(frozen=True)
class Graph:
    """A model's only subgraph.

    Attributes:
        tensors: All of them.
        operators: In the order of computation.
        inputs: Indices of tensors.
        outputs: Likewise.
        min_runtime: TFLite's version that first had all these operators, as the converter wrote it; "" if it did not.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    min_runtime: str

    @property
    def multiply_accumulates(self) -> int:
        """Of one pass."""
        return sum(operator.multiply_accumulates for operator in self.operators)

    def weights_of(self, operator: Operator) -> Tensor | None:
        """The weights of a convolution or dense layer; None for all else."""
        return self.tensors[operator.inputs[1]] if operator.name in WEIGHTED else None


def read_graph(flatbuffer: bytes, name: str) -> Graph:
    """Read a flatbuffer's structure.

    Args:
        flatbuffer: A TFLite model; what is appended to it is not looked at.
        name: For messages.

    Raises:
        ModelError: If it is no TFLite model, is damaged, or has several subgraphs.
        DependencyError: If no description of the format is installed.
    """
    with extra("converter"):
        from ai_edge_litert import schema_py_generated as schema
    if flatbuffer[4:8] != FLATBUFFER_IDENTIFIER:
        raise ModelError(f"{name} is not a TFLite model; {REMEDY}")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))
        subgraph, *others = model.subgraphs
        tensors = tuple(_tensor(t, model, _names(schema.TensorType)) for t in subgraph.tensors)
        names = _names(schema.BuiltinOperator)
        operators = tuple(
            _operator(op, model.operatorCodes[op.opcodeIndex], names, tensors) for op in subgraph.operators
        )
        metadata = {bytes(m.name).decode(): bytes(model.buffers[m.buffer].data) for m in model.metadata or ()}
        inputs, outputs = tuple(map(int, subgraph.inputs)), tuple(map(int, subgraph.outputs))
    except Exception as error:  # damaged buffers lead to errors of many kinds
        raise ModelError(f"{name} is cut short or damaged; copy or convert it again") from error
    if others:
        raise ModelError(f"{name} has {1 + len(others)} subgraphs; give a model of one, without control flow")
    return Graph(tensors, operators, inputs, outputs, metadata.get("min_runtime_version", b"").rstrip(b"\0").decode())


def _names(enumeration: Any) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


def _tensor(tensor: Any, model: Any, types: dict[int, str]) -> Tensor:
    def plain(values: Any, kind: type) -> tuple[Any, ...]:
        return () if values is None else tuple(kind(value) for value in values)

    quantization, data = tensor.quantization, model.buffers[tensor.buffer].data
    return Tensor(
        bytes(tensor.name).decode(errors="replace"),
        types[tensor.type],
        plain(tensor.shape, int),
        plain(quantization.scale, float) if quantization else (),
        plain(quantization.zeroPoint, int) if quantization else (),
        int(quantization.quantizedDimension) if quantization else 0,
        0 if data is None else len(data),
    )


def _operator(operator: Any, code: Any, names: dict[int, str], tensors: tuple[Tensor, ...]) -> Operator:
    # old writers knew one byte only, new ones fill both
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    custom = code.customCode is not None
    name = bytes(code.customCode).decode(errors="replace") if custom else names[number]
    inputs, outputs = tuple(map(int, operator.inputs)), tuple(map(int, operator.outputs))
    cost = 0
    if name in WEIGHTED:
        weights, out = tensors[inputs[1]].shape, tensors[outputs[0]].shape
        # a depthwise filter is (1, height, width, channels), the others' first axis is the output's channels
        per_output = weights[1:3] if name == "DEPTHWISE_CONV_2D" else weights[1:]
        cost = math.prod(out) * math.prod(per_output)
    return Operator(name, int(code.version), custom, inputs, outputs, cost)
