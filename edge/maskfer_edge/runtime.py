"""The one place where a TFLite runtime is chosen and opened."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from maskfer_edge.contract import FloatArray
from maskfer_edge.errors import DependencyError, InputError, ModelError

# name for users: (module, pip line). litert computes with XNNPACK, whose rounding differs from that of
# TFLite's own kernels in the last bit, so that near-ties fall the other way now and then;
# litert-builtin computes with those kernels: slower, but the same bits as tflite-runtime.
RUNTIMES = {
    "litert": ("ai_edge_litert.interpreter", "pip install ai-edge-litert"),
    "litert-builtin": ("ai_edge_litert.interpreter", "pip install ai-edge-litert"),
    "tflite-runtime": ("tflite_runtime.interpreter", "pip install 'maskfer[tflite-runtime]' (Python 3.11)"),
}
AUTO = "auto"


def open_interpreter(
    flatbuffer: bytes, runtime: str = AUTO, threads: int = 1, name: str = "model", *, keep_tensors: bool = False
) -> Any:
    """Open a model and allocate its tensors.

    Args:
        flatbuffer: A TFLite model.
        runtime: ``auto`` (the first that is installed) or a key of `RUNTIMES`.
        threads: For the computation. More than one slows small networks down.
        name: For messages.
        keep_tensors: Whether the tensors between the layers can be read after a run. They are computed by TFLite's own
            kernels then, as a delegate keeps its own to itself.

    Returns:
        An ``Interpreter``; both runtimes have the same interface.

    Raises:
        DependencyError: If no runtime is installed, or it does not go with the installed numpy.
        InputError: If `runtime` is none of the names.
        ModelError: If the runtime refuses the model.
    """
    if runtime != AUTO and runtime not in RUNTIMES:
        raise InputError(f"unknown runtime {runtime!r}; there are {AUTO}, {', '.join(RUNTIMES)}")
    module, found = _import_runtime(runtime)
    options: dict[str, Any] = {"experimental_preserve_all_tensors": True} if keep_tensors else {}
    if found == "litert-builtin" or keep_tensors:
        options["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = module.Interpreter(model_content=flatbuffer, num_threads=threads, **options)
        interpreter.allocate_tensors()
    except Exception as error:  # the runtimes raise ValueError, RuntimeError and, under numpy 2, more
        if found == "tflite-runtime" and _numpy_2():
            raise _needs_numpy_1() from error
        raise ModelError(f"{name} is refused by {found}: {' '.join(str(error).split())[:200]}") from error
    return interpreter


def _import_runtime(runtime: str) -> tuple[Any, str]:
    for candidate, (module, _) in RUNTIMES.items():
        if runtime in (AUTO, candidate):
            try:
                return importlib.import_module(module), candidate
            except ImportError as error:
                # there, but broken: say what is missing in it rather than that it is not there
                if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
                    if candidate == "tflite-runtime" and _numpy_2():
                        raise _needs_numpy_1() from error
                    reason = " ".join(str(error).split())[:200]
                    raise DependencyError(f"{candidate} is installed but cannot be loaded: {reason}") from error
    names = ["litert", "tflite-runtime"] if runtime == AUTO else [runtime]
    lines = " or ".join(RUNTIMES[name][1] for name in names)
    raise DependencyError(f"no TFLite runtime ({', '.join(names)}) is installed; run: {lines}")


def _numpy_2() -> bool:
    return int(np.__version__.split(".")[0]) >= 2


def _needs_numpy_1() -> DependencyError:
    return DependencyError(f"tflite-runtime does not work with numpy {np.__version__}; run: pip install 'numpy<2'")


def check_types(details: Iterable[Any], name: str) -> None:
    """Check that tensors hold floats, or integers of 8 bits that say what they stand for.

    Args:
        details: The interpreter's details of each.
        name: Of the model, for messages.

    Raises:
        ModelError: If one does not.
    """
    for detail in details:
        dtype = np.dtype(detail["dtype"])
        if dtype not in (np.uint8, np.int8, np.float32):
            raise ModelError(f"{name} has a tensor of {dtype}; expected integers of 8 bits")
        if dtype != np.float32 and not detail["quantization"][0] > 0:
            raise ModelError(f"{name} has a tensor of {dtype} without a scale; convert the model again")


def codes_of_pixels(detail: Any) -> Any:
    """What a network takes for each of the 256 values of a pixel, in the dtype of the input with details `detail`."""
    pixels, dtype = np.arange(256, dtype=np.float32), np.dtype(detail["dtype"])
    if dtype == np.float32:
        return pixels
    scale, zero = detail["quantization"]
    limits = np.iinfo(dtype)
    return np.clip(np.round(pixels / np.float32(scale)) + zero, limits.min, limits.max).astype(dtype)


def dequantised(raw: Any, detail: Any) -> FloatArray:
    """Dequantise the values of an output with details `detail`: float32 of the same shape."""
    values: FloatArray = raw.astype(np.float32)
    if raw.dtype != np.float32:
        scale, zero = detail["quantization"]
        values = (values - np.float32(zero)) * np.float32(scale)
    return values
