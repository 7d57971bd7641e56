from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from maskfer_edge import classifier as classifier_module
from maskfer_edge.classifier import BUNDLED_MODELS, Classifier, bundled_model, default_model, open_classifier
from maskfer_edge.errors import InputError, ModelError
from maskfer_edge.model_file import Model, ModelInfo

EVEN = np.full(7, 1 / 7, np.float32)
BOTH = find_spec("tflite_runtime") is not None and find_spec("ai_edge_litert") is not None


def noise_face(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8)


class FakeInterpreter:
    """Keeps its input and gives `raw` as output."""

    def __init__(self, raw, in_type, in_quantization, out_quantization, in_shape, out_shape):
        self.raw = np.asarray(raw)
        self.details = [{"index": 0, "shape": np.array(in_shape), "dtype": in_type, "quantization": in_quantization}]
        self.out = [
            {"index": 1, "shape": np.array(out_shape), "dtype": self.raw.dtype.type, "quantization": out_quantization}
        ]
        self.seen = None

    def get_input_details(self):
        return self.details

    def get_output_details(self):
        return self.out

    def set_tensor(self, index, value):
        self.seen = value.copy()

    def invoke(self):
        pass

    def get_tensor(self, index):
        return self.raw[None]


@pytest.fixture
def fake(monkeypatch):
    def make(
        raw=EVEN,
        in_type=np.uint8,
        in_quantization=(1.0, 0),
        out_quantization=(0.0, 0),
        in_shape=(1, 48, 48, 1),
        out_shape=(1, 7),
    ):
        interpreter = FakeInterpreter(raw, in_type, in_quantization, out_quantization, in_shape, out_shape)
        monkeypatch.setattr(classifier_module, "open_interpreter", lambda *_: interpreter)
        model = Model(b"", ModelInfo("fake", {}, {}, {}, {}, ""), "my.tflite")
        return Classifier(model, mirror=False), interpreter

    return make


def test_the_bundled_model_gives_seven_scores_that_sum_to_one():
    scores = open_classifier(None)(noise_face())
    assert (scores.shape, scores.dtype) == ((7,), np.float32)
    assert scores.sum() == pytest.approx(1, abs=1e-5)


def test_the_bundled_model_gives_the_same_twice():
    classify = open_classifier(None)
    first = classify(noise_face(0))
    classify(noise_face(1))
    np.testing.assert_array_equal(classify(noise_face(0)), first)


def test_the_bundled_model_names_a_margin_for_the_haar_detector():
    assert "haar" in default_model().info.crop_margins


@pytest.mark.parametrize(
    "face",
    [np.zeros((48, 47), np.uint8), np.zeros((48, 48, 1), np.uint8), np.zeros((48, 48), np.float32)],
    ids=lambda face: f"{face.dtype}{face.shape}",
)
def test_another_shape_or_dtype_is_refused(fake, face):
    with pytest.raises(InputError, match=r"expected a face of \(48, 48\) uint8; received"):
        fake()[0](face)


@pytest.mark.parametrize("shapes", [{"in_shape": (1, 224, 224, 3)}, {"out_shape": (1, 8)}])
def test_a_model_of_other_shapes_is_refused(fake, shapes):
    with pytest.raises(ModelError, match=r"my\.tflite has tensors of shapes"):
        fake(**shapes)


def test_a_model_of_another_dtype_is_refused(fake):
    with pytest.raises(ModelError, match=r"my\.tflite has a tensor of int16"):
        fake(in_type=np.int16)


@pytest.mark.parametrize(
    ("in_type", "quantization", "pixels", "expected"),
    [
        (np.uint8, (1.0, 0), [0, 128, 255], [0, 128, 255]),
        (np.int8, (1.0, -128), [0, 128, 255], [-128, 0, 127]),
        (np.int8, (2.0, 0), [0, 100, 255], [0, 50, 127]),
        (np.uint8, (0.5, 0), [0, 100, 255], [0, 200, 255]),
        (np.uint8, (1.5, 3), [0, 4, 255], [3, 6, 173]),
        (np.float32, (0.0, 0), [0, 128, 255], [0, 128, 255]),
    ],
)
def test_pixels_are_quantised_as_the_interpreter_says(fake, in_type, quantization, pixels, expected):
    classify, interpreter = fake(in_type=in_type, in_quantization=quantization)
    face = np.zeros((48, 48), np.uint8)
    face[0, :3] = pixels
    classify(face)
    assert interpreter.seen.dtype == in_type
    assert interpreter.seen[0, 0, :3, 0].tolist() == expected


@pytest.mark.parametrize(
    ("raw", "quantization"),
    [
        (np.array([0, 64, 192, 0, 0, 0, 0], np.uint8), (1 / 256, 0)),
        (np.array([-128, -64, 64, -128, -128, -128, -128], np.int8), (1 / 256, -128)),
        (np.array([0, 0.25, 0.75, 0, 0, 0, 0], np.float32), (0.0, 0)),
    ],
    ids=["uint8", "int8", "float32"],
)
def test_scores_are_dequantised_as_the_interpreter_says(fake, raw, quantization):
    classify, _ = fake(raw=raw, out_quantization=quantization)
    np.testing.assert_allclose(classify(noise_face()), [0, 0.25, 0.75, 0, 0, 0, 0], atol=1e-6)


def test_scores_that_do_not_sum_to_one_are_scaled(fake):
    raw = np.array([10, 10, 0, 0, 0, 0, 0], np.uint8)
    classify, _ = fake(raw=raw, out_quantization=(1 / 256, 0))
    np.testing.assert_allclose(classify(noise_face()), [0.5, 0.5, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("value", [0, float("nan")])
def test_scores_without_a_sum_become_equal(fake, value):
    classify, _ = fake(raw=np.full(7, value, np.float32))
    np.testing.assert_allclose(classify(noise_face()), np.full(7, 1 / 7))


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_bundled_models_are_opened_by_name(name):
    classify = open_classifier(Path(name))
    assert classify.model.info.crop_margins.keys() >= {"haar", "learned"}
    assert classify.model.flatbuffer == bundled_model(name).flatbuffer
    assert classify(noise_face()).sum() == pytest.approx(1)


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(InputError, match="larger is neither a file nor a bundled model; bundled are lean, large"):
        open_classifier(Path("larger"))


def test_a_file_of_a_bundled_model_s_name_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("large").write_bytes(b"no model")
    with pytest.raises(ModelError, match="large"):
        open_classifier(Path("large"))


def test_a_truncated_file_is_refused_by_name(tmp_path):
    content = (tmp_path / "m.tflite", default_model().flatbuffer[:1000])
    content[0].write_bytes(content[1])
    with pytest.raises(ModelError, match=r"m\.tflite"):
        open_classifier(content[0])


def test_a_flatbuffer_that_the_runtime_refuses_is_a_model_error():
    garbage = Model(b"\x1c\x00\x00\x00TFL3" + bytes(200), default_model().info, "my.tflite")
    with pytest.raises(ModelError, match=r"my\.tflite is refused by"):
        Classifier(garbage)


def test_the_mirror_image_counts_for_half():
    model, face = default_model(), noise_face()
    once = Classifier(model, mirror=False)
    expected = (once(face) + once(face[:, ::-1])) / 2
    np.testing.assert_allclose(Classifier(model)(face), expected, atol=1e-6)
    assert not np.allclose(once(face), expected, atol=1e-6)


@pytest.mark.skipif(not BOTH, reason="needs both ai-edge-litert and tflite-runtime")
def test_both_runtimes_agree():
    a, b = (open_classifier(None, runtime)(noise_face()) for runtime in ("litert", "tflite-runtime"))
    np.testing.assert_allclose(a, b, atol=2 / 256)
