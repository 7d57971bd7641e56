import sys
from types import ModuleType

import numpy as np
import pytest

from maskfer_edge.classifier import Classifier, default_model
from maskfer_edge.errors import DependencyError, InputError, ModelError
from maskfer_edge.runtime import check_types, open_interpreter

LITERT, TFLITE = "ai_edge_litert.interpreter", "tflite_runtime.interpreter"


def install(monkeypatch, litert=None, tflite=None):
    """Put interpreter classes in place of both runtimes; None makes one missing."""
    for name, interpreter in ((LITERT, litert), (TFLITE, tflite)):
        module = None
        if interpreter is not None:
            module = ModuleType(name)
            module.Interpreter = interpreter
            monkeypatch.setitem(sys.modules, name.partition(".")[0], ModuleType(name.partition(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)


class Good:
    def __init__(self, model_content, num_threads):
        self.model_content, self.num_threads, self.allocated = model_content, num_threads, False

    def allocate_tensors(self):
        self.allocated = True


class Other(Good):
    pass


class Refusing(Good):
    def allocate_tensors(self):
        raise RuntimeError("bad\nmodel")


def broken(message):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name in (TFLITE, LITERT):
                raise ImportError(message)

    return Finder()


def test_auto_prefers_litert(monkeypatch):
    install(monkeypatch, litert=Good, tflite=Other)
    assert type(open_interpreter(b"")) is Good


def test_auto_falls_back_to_tflite_runtime(monkeypatch):
    install(monkeypatch, tflite=Other)
    assert type(open_interpreter(b"")) is Other


@pytest.mark.parametrize(("runtime", "expected"), [("litert", Good), ("tflite-runtime", Other)])
def test_a_runtime_can_be_named(monkeypatch, runtime, expected):
    install(monkeypatch, litert=Good, tflite=Other)
    assert type(open_interpreter(b"", runtime)) is expected


def test_a_named_runtime_is_not_replaced_by_another(monkeypatch):
    install(monkeypatch, litert=Good)
    with pytest.raises(DependencyError, match=r"maskfer\[tflite-runtime\]"):
        open_interpreter(b"", "tflite-runtime")


def test_the_tensors_are_allocated(monkeypatch):
    install(monkeypatch, litert=Good)
    assert open_interpreter(b"").allocated


def test_model_and_threads_are_handed_on(monkeypatch):
    install(monkeypatch, litert=Good)
    opened = open_interpreter(b"abc", threads=3)
    assert (opened.model_content, opened.num_threads) == (b"abc", 3)


def test_without_a_runtime_the_pip_lines_are_named(monkeypatch):
    install(monkeypatch)
    with pytest.raises(DependencyError, match=r"pip install ai-edge-litert or pip install 'maskfer\[tflite-runtime\]'"):
        open_interpreter(b"")


def test_a_runtime_that_lacks_a_library_says_which(monkeypatch):
    for name in (LITERT, LITERT.partition(".")[0]):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [broken("libfoo.so.1: cannot open"), *sys.meta_path])
    with pytest.raises(DependencyError, match=r"litert is installed but cannot be loaded: libfoo\.so\.1"):
        open_interpreter(b"", "litert")


def test_tflite_runtime_under_numpy_2_names_the_remedy(monkeypatch):
    install(monkeypatch, tflite=Refusing)
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(DependencyError, match=r"numpy 2\.1\.0; run: pip install 'numpy<2'"):
        open_interpreter(b"", "tflite-runtime")


def test_tflite_runtime_that_cannot_be_imported_under_numpy_2_names_the_remedy(monkeypatch):
    for name in (TFLITE, TFLITE.partition(".")[0]):
        monkeypatch.delitem(sys.modules, name, raising=False)
    package = ModuleType("tflite_runtime")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "tflite_runtime", package)
    monkeypatch.setattr(np, "__version__", "2.1.0")
    monkeypatch.setattr(sys, "meta_path", [broken("numpy.core.multiarray failed to import"), *sys.meta_path])
    with pytest.raises(DependencyError, match="numpy<2"):
        open_interpreter(b"", "tflite-runtime")


@pytest.mark.parametrize(("runtime", "version"), [("litert", "2.1.0"), ("tflite-runtime", "1.26.4")])
def test_a_model_that_the_runtime_refuses_is_a_model_error_of_one_line(monkeypatch, runtime, version):
    install(monkeypatch, litert=Refusing, tflite=Refusing)
    monkeypatch.setattr(np, "__version__", version)
    with pytest.raises(ModelError, match=f"my.tflite is refused by {runtime}: bad model"):
        open_interpreter(b"", runtime, name="my.tflite")


def test_an_unknown_runtime_is_refused_with_the_names():
    with pytest.raises(InputError, match="'onnx'; there are auto, litert, litert-builtin, tflite-runtime"):
        open_interpreter(b"", "onnx")


def test_builtin_kernels_give_the_bits_of_tflite_runtime():
    pytest.importorskip("tflite_runtime", reason="tflite-runtime is not installed")
    model = default_model()
    exact, other = Classifier(model, "litert-builtin"), Classifier(model, "tflite-runtime")
    faces = np.random.default_rng(0).integers(0, 256, (20, 48, 48), dtype=np.uint8)
    assert all(np.array_equal(exact(face), other(face)) for face in faces)


def test_builtin_kernels_are_close_to_xnnpack():
    model = default_model()
    fast, exact = Classifier(model, "litert"), Classifier(model, "litert-builtin")
    faces = np.random.default_rng(0).integers(0, 256, (20, 48, 48), dtype=np.uint8)
    assert max(float(np.abs(fast(face) - exact(face)).max()) for face in faces) < 0.1


@pytest.mark.parametrize(
    ("kind", "scale", "message"), [(np.int16, 0.1, "a tensor of int16"), (np.int8, 0.0, "int8 without a scale")]
)
def test_integers_that_say_nothing_are_refused(kind, scale, message):
    known = [{"dtype": np.float32, "quantization": (0.0, 0)}, {"dtype": np.uint8, "quantization": (1.0, 0)}]
    check_types(known, "m")
    with pytest.raises(ModelError, match=message):
        check_types([*known, {"dtype": kind, "quantization": (scale, 0)}], "m")
