from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import pytest

from maskfer_converter import benchmark as module
from maskfer_converter.benchmark import benchmark, memory_of, read_models, time_in_turns
from maskfer_edge.board import cpu_name
from maskfer_edge.errors import DependencyError, InputError, ModelError
from maskfer_edge.learned_detector import DEFAULT_DETECTOR


class FakeInterpreter:
    """Notes its runs in a list that several share."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def get_input_details(self):
        return [{"index": 0, "shape": np.array([1, 2]), "dtype": np.float32}]

    def set_tensor(self, index, value):
        self.filled = value

    def invoke(self):
        self.log.append(self.name)


def test_models_take_turns():
    log = []
    times = time_in_turns([FakeInterpreter("a", log), FakeInterpreter("b", log)], runs=15, warm_up=2)
    assert "".join(log) == "aabb" + "a" * 10 + "b" * 10 + "a" * 5 + "b" * 5
    assert [len(of_one) for of_one in times] == [15, 15]


def test_inputs_are_seeded_noise_of_a_bytes_range():
    first, second = FakeInterpreter("a", []), FakeInterpreter("b", [])
    time_in_turns([first, second], runs=1, warm_up=0)
    assert (first.filled == second.filled).all()
    assert first.filled.dtype == np.float32
    assert 0 <= first.filled.min() <= first.filled.max() <= 255


def test_every_model_runtime_and_thread_count_is_timed(tflite_model):
    models = read_models([tflite_model])
    found = benchmark(models, threads=(1, 2), runtimes=("litert", "litert-builtin"), runs=5, warm_up=1)
    assert [(t.runtime, t.threads) for t in found.timings] == [
        ("litert", 1), ("litert", 2), ("litert-builtin", 1), ("litert-builtin", 2),
    ]  # fmt: skip
    for timing in found.timings:
        assert 0 < timing.median_ms <= timing.p95_ms
        assert (timing.runs, timing.bytes) == (5, tflite_model.stat().st_size)
        assert 0 <= timing.memory_mb < 100
    assert (found.cpu, found.missing) == (cpu_name(), {})
    assert found.cores >= 1


def without(monkeypatch, missing, error=DependencyError):
    real = module.open_interpreter

    def opened(content, runtime, *rest):
        if runtime in missing:
            raise error(f"{runtime} is gone")
        return real(content, runtime, *rest)

    monkeypatch.setattr(module, "open_interpreter", opened)
    monkeypatch.setattr(module, "memory_of", lambda content, runtime: 1.0)


@pytest.mark.parametrize("error", [DependencyError, ModelError])
def test_a_missing_runtime_is_passed_over_and_named(monkeypatch, tflite_model, error):
    without(monkeypatch, ["tflite-runtime"], error)
    found = benchmark(read_models([tflite_model]), runtimes=("litert", "tflite-runtime"), runs=2, warm_up=0)
    assert [t.runtime for t in found.timings] == ["litert"]
    assert found.missing == {"tflite-runtime": "tflite-runtime is gone"}


@pytest.mark.parametrize("error", [DependencyError, ModelError])
def test_no_runtime_at_all_is_an_error(monkeypatch, tflite_model, error):
    without(monkeypatch, ["litert"], error)
    with pytest.raises(error, match="litert is gone"):
        benchmark(read_models([tflite_model]), runtimes=("litert",), runs=2)


@pytest.mark.parametrize("runtime", ["fast", "auto"])
def test_an_unknown_runtime_is_refused(tflite_model, runtime):
    with pytest.raises(InputError, match=f"unknown runtime '{runtime}'; give one of litert, litert-builtin, tfl"):
        benchmark(read_models([tflite_model]), runtimes=("litert", runtime))


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "text.tflite").write_text("no model at all")
    with pytest.raises(ModelError, match=r"text\.tflite is not a TFLite model"):
        read_models([tmp_path / "text.tflite"])


def test_a_process_that_dies_of_a_model_is_told(tflite_model):
    with pytest.raises(ModelError, match="has died"):
        memory_of(tflite_model.read_bytes()[:300], "litert")


def test_a_detector_s_second_network_is_timed_on_its_own():
    with as_file(files("maskfer_edge") / "data" / DEFAULT_DETECTOR) as bundled:
        models = read_models([bundled])
    assert list(models) == [str(bundled), f"{bundled}: rescorer"]
    first, second = benchmark(models, runtimes=("litert",), runs=20, warm_up=2).timings
    assert second.median_ms < first.median_ms
    assert second.bytes < first.bytes
