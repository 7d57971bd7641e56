"""How long TFLite models take on this machine, side by side, and how much memory they need."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from maskfer_edge.board import cpu_name, governor, hottest_celsius, memory_mb
from maskfer_edge.errors import DependencyError, InputError, ModelError
from maskfer_edge.files import read_bytes
from maskfer_edge.model_file import FLATBUFFER_IDENTIFIER, strip, unpack_detector
from maskfer_edge.runtime import RUNTIMES, open_interpreter

# Models take turns of so many runs: short against what changes in the machine, long against what a switch costs.
RUNS_PER_TURN = 10


@dataclass(frozen=True)
class Timing:
    """One model on one runtime with so many threads.

    Attributes:
        model: Its path.
        runtime: Key of `runtime.RUNTIMES`.
        threads: Of the computation.
        median_ms: Of one run, one picture.
        p95_ms: 95 of 100 runs took no longer.
        runs: How many were timed.
        memory_mb: By how much opening it and running it once made a fresh process grow, in 10^6 bytes.
        bytes: Size of the file.
    """

    model: str
    runtime: str
    threads: int
    median_ms: float
    p95_ms: float
    runs: int
    memory_mb: float
    bytes: int


@dataclass(frozen=True)
class Benchmark:
    """Timings, and what they were taken on.

    Attributes:
        timings: By model, then runtime, then threads.
        cpu: As the system names it.
        cores: That this process may use.
        governor: Of the first core's clock; "" where it cannot be read.
        celsius: Hottest thermal zone after the runs; None where there is none to read.
        missing: Runtimes that do not work here, with the reason.
    """

    timings: list[Timing]
    cpu: str
    cores: int
    governor: str
    celsius: float | None
    missing: dict[str, str] = field(default_factory=dict)


def benchmark(
    models: Mapping[str, bytes],
    threads: Sequence[int] = (1,),
    runtimes: Sequence[str] = tuple(RUNTIMES),
    runs: int = 300,
    warm_up: int = 30,
) -> Benchmark:
    """Time models in turns, so that whatever else the machine does meets all of them alike.

    Args:
        models: Name to the content of a `.tflite` file, maskfer's or anyone's; inputs are filled with seeded noise.
        threads: Numbers of threads to try.
        runtimes: Keys of `runtime.RUNTIMES`; one that is missing here, or refuses a model, is passed over if
            another works.
        runs: Timed runs of each.
        warm_up: Runs of each before those.

    Raises:
        InputError: If a runtime's name is none.
        ModelError: If no runtime takes a model.
        DependencyError: If none of the runtimes works here.
    """
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise InputError(f"unknown runtime {runtime!r}; give one of {', '.join(RUNTIMES)}")
    missing: dict[str, str] = {}
    refusal: type[DependencyError | ModelError] = DependencyError
    opened = []
    for name, content in models.items():
        flatbuffer = strip(content)
        for runtime in runtimes:
            try:
                run = {count: open_interpreter(flatbuffer, runtime, count, name) for count in threads}
            except (DependencyError, ModelError) as error:
                missing[runtime], refusal = str(error), type(error)
                continue
            memory = memory_of(flatbuffer, runtime)
            opened += [(name, runtime, count, run[count], memory, len(content)) for count in threads]
    if not opened:
        raise refusal("; ".join(missing.values()))
    times = time_in_turns([interpreter for _, _, _, interpreter, _, _ in opened], runs, warm_up)
    timings = [
        Timing(name, runtime, count, *_median_p95(of_one), len(of_one), memory, size)
        for (name, runtime, count, _, memory, size), of_one in zip(opened, times, strict=True)
    ]
    return Benchmark(timings, cpu_name(), len(os.sched_getaffinity(0)), governor(), hottest_celsius(), missing)


def read_models(paths: Sequence[Path]) -> dict[str, bytes]:
    """Path to content of `.tflite` files, and ``PATH: rescorer`` to a detector's second network.

    Raises ModelError if one is none, InputError if it cannot be read.
    """
    models = {}
    for path in paths:
        models[str(path)] = content = read_bytes(path)
        if content[4:8] != FLATBUFFER_IDENTIFIER:
            raise ModelError(f"{path} is not a TFLite model")
        with suppress(ModelError):
            if rescorer := unpack_detector(content, str(path)).rescorer:
                models[f"{path}: rescorer"] = rescorer
    return models


def _median_p95(milliseconds: list[float]) -> tuple[float, float]:
    median, p95 = np.percentile(milliseconds, (50, 95))
    return round(float(median), 4), round(float(p95), 4)


def time_in_turns(interpreters: Sequence[Any], runs: int, warm_up: int) -> list[list[float]]:
    """Milliseconds of `runs` runs of each interpreter, in turns of `RUNS_PER_TURN`, after `warm_up` runs of each."""
    for interpreter in interpreters:
        fill_inputs(interpreter)
        try:
            for _ in range(warm_up):
                interpreter.invoke()
        except RuntimeError as error:  # of what a model makes of noise
            raise ModelError(f"a model cannot be run: {' '.join(str(error).split())}") from error
    times: list[list[float]] = [[] for _ in interpreters]
    while len(times[-1]) < runs:
        for interpreter, of_one in zip(interpreters, times, strict=True):
            for _ in range(min(RUNS_PER_TURN, runs - len(of_one))):
                started = time.perf_counter()
                interpreter.invoke()
                of_one.append((time.perf_counter() - started) * 1000)
    return times


def fill_inputs(interpreter: Any) -> None:
    """Fill all inputs with seeded noise: a byte's range, as pixels have."""
    random = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        noise = random.integers(0, 256, size=detail["shape"]).astype(np.uint8)
        interpreter.set_tensor(detail["index"], noise.astype(detail["dtype"]))


def memory_of(flatbuffer: bytes, runtime: str) -> float:
    """By how many 10^6 bytes a fresh process, with the runtime loaded, grows as it opens a model and runs it once.

    Raises ModelError if the process dies of it.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    # not a Pool: it waits for ever for a process that has died
    process = context.Process(target=_growth, args=(flatbuffer, runtime, sender), daemon=True)
    process.start()
    sender.close()
    try:
        growth: float = receiver.recv()
    except EOFError:
        raise ModelError(
            f"a process that ran the model on {runtime} has died; free some memory, or leave it out"
        ) from None
    finally:
        process.join()
    return growth


def _growth(flatbuffer: bytes, runtime: str, sender: Connection) -> None:
    importlib.import_module(RUNTIMES[runtime][0])
    before = memory_mb()
    interpreter = open_interpreter(flatbuffer, runtime)
    fill_inputs(interpreter)
    interpreter.invoke()
    sender.send(round(memory_mb() - before, 2))
