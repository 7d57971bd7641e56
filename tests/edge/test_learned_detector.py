import os
import tempfile
import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest

from maskfer_edge import learned_detector
from maskfer_edge.detector import Detection
from maskfer_edge.errors import DependencyError, InputError, ModelError
from maskfer_edge.learned_detector import (
    MAX_CANDIDATES,
    PADDING,
    LearnedDetector,
    decode,
    letterbox,
    open_learned_detector,
)
from maskfer_edge.model_file import DetectorInfo, DetectorModel, pack, unpack_detector
from maskfer_edge.rescorer import CANDIDATE_SCORE

STRIDE, WIDTH, HEIGHT = 8, 160, 120
# What the tiny network says of every face: a quarter of a cell right of the cell's centre and above it, 4 × 2 cells.
OFFSET, SIZE = (0.25, -0.25), (4, 2)


def info(**changes):
    return replace(DetectorInfo("tiny", (WIDTH, HEIGHT), STRIDE, 0.5, {}, {}, {}, "none"), **changes)


@pytest.fixture(scope="module")
def flatbuffer():
    """An int8 network for which a face is a cell that is white all over."""
    keras, tf = pytest.importorskip("keras"), pytest.importorskip("tensorflow")
    inputs = keras.Input((HEIGHT, WIDTH, 1))
    means = keras.layers.Conv2D(1, STRIDE, strides=STRIDE, use_bias=False)
    heat, boxes = keras.layers.Conv2D(1, 1, activation="sigmoid"), keras.layers.Conv2D(4, 1)
    features = means(keras.layers.Rescaling(1 / 255)(inputs))
    network = keras.Model(inputs, [heat(features), boxes(features)])
    means.set_weights([np.full((STRIDE, STRIDE, 1, 1), 1 / STRIDE**2, np.float32)])
    heat.set_weights([np.full((1, 1, 1, 1), 16, np.float32), np.float32([-12])])
    boxes.set_weights([np.zeros((1, 1, 1, 4), np.float32), np.float32([*OFFSET, *np.log(SIZE)])])

    def representative():
        for value in (0, 64, 128, 255):
            picture = np.full((1, HEIGHT, WIDTH, 1), value, np.float32)
            picture[0, 40:80, 40:120] = 255 - value
            yield [picture]

    with tempfile.TemporaryDirectory() as folder:
        signature = [tf.TensorSpec((1, HEIGHT, WIDTH, 1), tf.float32, name="grey")]
        network.export(folder, format="tf_saved_model", verbose=False, input_signature=signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
        return converter.convert()


@pytest.fixture(scope="module")
def detector(flatbuffer):
    return LearnedDetector(unpack_detector(pack(flatbuffer, info()), "tiny.tflite"))


def dark_picture(shape=(HEIGHT, WIDTH, 3)):
    return np.zeros(shape, np.uint8)


def with_face(column, row, cell=STRIDE, shape=(HEIGHT, WIDTH, 3)):
    """A black picture with one white cell, of a grid of `cell` pixels."""
    picture = dark_picture(shape)
    picture[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = 255
    return picture


def expected_box(column, row, cell=STRIDE, start=(0, 0)):
    centre = np.array([column + 0.5 + OFFSET[0], row + 0.5 + OFFSET[1]]) * cell + start
    size = np.array(SIZE) * cell
    return (*(centre - size / 2), *size)


class FakeInterpreter:
    """Keeps its input and gives `outputs`, in that order."""

    def __init__(self, outputs, in_type=np.uint8, in_quantization=(1.0, 0), in_shape=(1, 16, 32, 1)):
        self.inputs = [{"index": 0, "shape": np.array(in_shape), "dtype": in_type, "quantization": in_quantization}]
        self.raw = [raw for raw, _ in outputs]
        self.outputs = [
            {"index": i, "shape": np.array(raw.shape), "dtype": raw.dtype.type, "quantization": quantization}
            for i, (raw, quantization) in enumerate(outputs)
        ]
        self.seen = None

    def get_input_details(self):
        return self.inputs

    def get_output_details(self):
        return self.outputs

    def set_tensor(self, index, value):
        self.seen = value.copy()

    def invoke(self):
        pass

    def get_tensor(self, index):
        return self.raw[index]


def heat_output(value=0.0, dtype=np.float32, quantization=(0.0, 0)):
    """One cell of a (1, 2, 4, 1) heat has `value`, the others zero's code."""
    heat = np.full((1, 2, 4, 1), quantization[1], dtype)
    heat[0, 1, 2] = value
    return heat, quantization


def box_output(values=(0, 0, 0, 0), dtype=np.float32, quantization=(0.0, 0), shape=(1, 2, 4, 4)):
    return np.broadcast_to(np.array(values, dtype), shape).copy(), quantization


@pytest.fixture
def fake(monkeypatch):
    def make(*outputs, **options):
        interpreter = FakeInterpreter(outputs or (heat_output(), box_output()), **options)
        monkeypatch.setattr(learned_detector, "open_interpreter", lambda *_: interpreter)
        model = DetectorModel(b"", info(input_size_wh=(32, 16)), "my.tflite")
        return LearnedDetector(model), interpreter

    return make


def output(faces, shape=(6, 8)):
    """Heat and boxes: zero but for `faces`, (row, column, heat, (dx, dy, width, height in cells))."""
    heat, boxes = np.zeros(shape, np.float32), np.zeros((*shape, 4), np.float32)
    for row, column, value, (dx, dy, width, height) in faces:
        heat[row, column] = value
        boxes[row, column] = dx, dy, np.log(width), np.log(height)
    return heat, boxes


@pytest.mark.parametrize(
    ("face", "expected"),
    [
        ((2, 3, 0.9, (0, 0, 1, 1)), (24, 16, 8, 8)),
        ((2, 3, 0.9, (0.5, 0, 1, 1)), (28, 16, 8, 8)),
        ((2, 3, 0.9, (0, -0.25, 1, 1)), (24, 14, 8, 8)),
        ((2, 3, 0.9, (0, 0, 2, 3)), (20, 8, 16, 24)),
        ((0, 0, 0.9, (0, 0, 2, 2)), (-4, -4, 16, 16)),
        ((5, 7, 0.9, (0, 0, 0.5, 0.5)), (58, 42, 4, 4)),
    ],
)
def test_a_cell_becomes_a_box_in_input_pixels(face, expected):
    found, _ = decode(*output([face]), STRIDE, 0.5)
    np.testing.assert_allclose(found, [expected], atol=1e-4)


def test_the_score_is_the_heat():
    _, scores = decode(*output([(2, 3, 0.75, (0, 0, 1, 1))]), STRIDE, 0.5)
    assert scores.tolist() == [0.75]


@pytest.mark.parametrize(("heat", "count"), [(0.49, 0), (0.5, 1), (0.51, 1)])
def test_the_threshold_itself_is_enough(heat, count):
    assert len(decode(*output([(2, 3, heat, (0, 0, 1, 1))]), STRIDE, 0.5)[0]) == count


@pytest.mark.parametrize(
    ("second", "count"),
    [((2, 4), 1), ((3, 4), 1), ((1, 2), 1), ((2, 5), 2), ((4, 3), 2)],
    ids=["beside", "below right", "above left", "two right", "two below"],
)
def test_a_cell_beside_a_hotter_one_is_no_face(second, count):
    faces = [(2, 3, 0.9, (0, 0, 0.5, 0.5)), (*second, 0.8, (0, 0, 0.5, 0.5))]
    assert len(decode(*output(faces), STRIDE, 0.5)[0]) == count


@pytest.mark.parametrize(
    ("width", "count"),
    # two boxes of that width, two cells apart: they share (width - 2) of (width + 2)
    [(2, 2), (4, 2), (4.6, 2), (4.7, 1), (8, 1)],
)
def test_boxes_that_share_two_fifths_are_one_face(width, count):
    faces = [(2, 2, 0.9, (0, 0, width, 4)), (2, 4, 0.8, (0, 0, width, 4))]
    assert len(decode(*output(faces), STRIDE, 0.5)[0]) == count


def test_of_boxes_that_overlap_the_surest_stays():
    faces = [(2, 2, 0.6, (0, 0, 6, 4)), (2, 4, 0.9, (0, 0, 6, 4)), (2, 6, 0.7, (0, 0, 6, 4))]
    assert decode(*output(faces), STRIDE, 0.5)[1].tolist() == pytest.approx([0.9])


def test_a_box_that_was_left_out_leaves_none_out_itself():
    faces = [(2, 1, 0.9, (0, 0, 5, 4)), (2, 3, 0.8, (0, 0, 5, 4)), (2, 5, 0.7, (0, 0, 5, 4))]
    assert decode(*output(faces), STRIDE, 0.5)[1].tolist() == pytest.approx([0.9, 0.7])


def test_two_equal_cells_side_by_side_are_one_face():
    faces = [(2, 3, 0.9, (0.5, 0, 3, 3)), (2, 4, 0.9, (-0.5, 0, 3, 3))]
    found, _ = decode(*output(faces), STRIDE, 0.5)
    np.testing.assert_allclose(found, [(20, 8, 24, 24)], atol=1e-4)


def test_the_surest_face_comes_first():
    faces = [(0, 0, 0.6, (0, 0, 1, 1)), (2, 2, 0.9, (0, 0, 1, 1)), (4, 4, 0.7, (0, 0, 1, 1))]
    assert decode(*output(faces), STRIDE, 0.5)[1].tolist() == pytest.approx([0.9, 0.7, 0.6])


def test_of_many_cells_the_surest_are_looked_at():
    cells = [(row, column) for row in range(0, 40, 2) for column in range(0, 40, 2)]
    heats = np.random.default_rng(0).permutation(len(cells)) / len(cells) / 2 + 0.5
    faces = [(*cell, heat, (0, 0, 1, 1)) for cell, heat in zip(cells, heats, strict=True)]
    _, scores = decode(*output(faces, (40, 40)), STRIDE, 0.5)
    np.testing.assert_allclose(scores, np.sort(heats)[::-1][:MAX_CANDIDATES], rtol=1e-6)


def test_small_faces_take_no_large_one_s_place():
    cells = [(row, column) for row in range(0, 40, 2) for column in range(0, 40, 2)]
    small = [(*cell, 0.9, (0, 0, 0.5, 0.5)) for cell in cells[:-1]]
    _, scores = decode(*output([*small, (*cells[-1], 0.6, (0, 0, 1, 1))], (40, 40)), STRIDE, 0.5, STRIDE)
    assert scores.tolist() == pytest.approx([0.6])


def test_without_a_limit_all_cells_count():
    cells = [(row, column) for row in range(0, 40, 2) for column in range(0, 40, 2)]
    maps = output([(*cell, 0.9, (0, 0, 1, 1)) for cell in cells], (40, 40))
    assert len(decode(*maps, STRIDE, 0.5, max_candidates=None)[0]) == len(cells) > MAX_CANDIDATES


def test_where_faces_are_covered_no_crowd_is_too_large(fake, monkeypatch):
    monkeypatch.setattr(learned_detector, "MAX_CANDIDATES", 1)
    monkeypatch.setattr(learned_detector, "MIN_FACE_SHARE", STRIDE / 16)  # of 16 pixels: a cell
    heat, boxes = output([(1, 0, 0.8, (0, 0, 1.1, 1.1)), (1, 3, 0.9, (0, 0, 1.1, 1.1))], shape=(2, 4))
    detect, _ = fake((heat[None, ..., None], (0.0, 0)), (boxes[None], (0.0, 0)))
    assert len(detect(dark_picture((16, 32)))) == 1
    detect.keep_small = True
    assert len(detect(dark_picture((16, 32)))) == 2


def test_nothing_hot_gives_empty_arrays_of_the_same_kinds():
    found, scores = decode(*output([]), STRIDE, 0.5)
    assert (found.shape, found.dtype, scores.shape, scores.dtype) == ((0, 4), np.float32, (0,), np.float32)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e30])
def test_sizes_that_cannot_be_never_become_boxes_without_an_end(odd):
    heat, boxes = output([(2, 3, 0.9, (0, 0, 1, 1))])
    boxes[2, 3, 2] = odd
    assert np.isfinite(decode(heat, boxes, STRIDE, 0.5)[0]).all()


def test_heat_that_is_no_number_is_no_face():
    heat, boxes = output([])
    heat[2, 3] = np.nan
    assert len(decode(heat, boxes, STRIDE, 0.5)[0]) == 0


@pytest.mark.parametrize(
    ("size_wh", "placed"),
    [
        ((640, 480), (0, 0, 0.5, 0.5)),
        ((320, 240), (0, 0, 1, 1)),
        ((640, 240), (0, 60, 0.5, 0.5)),
        ((240, 480), (100, 0, 0.5, 0.5)),
        ((100, 100), (60, 20, 2, 2)),
        ((1, 1), (159, 119, 2, 2)),
        ((6400, 1), (0, 119, 0.05, 1)),
    ],
)
def test_a_picture_is_placed_undistorted_in_the_middle(size_wh, placed):
    out = np.zeros((240, 320), np.uint8)
    assert letterbox(np.full(size_wh[::-1], 255, np.uint8), out) == pytest.approx(placed)


@pytest.mark.parametrize("shape", [(240, 640), (480, 240), (100, 100), (1, 1)])
def test_the_picture_is_surrounded_by_mean_grey(shape):
    out = np.zeros((240, 320), np.uint8)
    left, top, scale_x, scale_y = letterbox(np.full(shape, 255, np.uint8), out)
    expected = np.full_like(out, PADDING)
    expected[top : top + round(shape[0] * scale_y), left : left + round(shape[1] * scale_x)] = 255
    np.testing.assert_array_equal(out, expected)


def test_a_picture_is_made_smaller_by_the_mean_of_its_pixels():
    picture = np.random.default_rng(0).integers(0, 256, (480, 640), dtype=np.uint8)
    out = np.zeros((240, 320), np.uint8)
    letterbox(picture, out)
    np.testing.assert_allclose(out, picture.reshape(240, 2, 320, 2).mean(axis=(1, 3)), atol=0.5)


def test_a_colour_picture_is_placed_as_its_grey_one():
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    colour, grey = np.zeros((2, 240, 320), np.uint8)
    letterbox(picture, colour)
    letterbox(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), grey)
    np.testing.assert_array_equal(colour, grey)


@pytest.mark.parametrize("cell", [(3, 3), (10, 7), (17, 11)])
def test_a_real_network_finds_a_face_where_it_is(detector, cell):
    (found,) = detector(with_face(*cell))
    np.testing.assert_allclose(found.box, expected_box(*cell), atol=1)


def test_the_score_of_a_real_network_is_a_probability(detector):
    (found,) = detector(with_face(10, 7))
    assert found.score == pytest.approx(1 / (1 + np.exp(-4)), abs=0.02)


def test_a_real_network_finds_two_faces(detector):
    found = detector(np.maximum(with_face(4, 3), with_face(12, 10)))
    assert len(found) == 2


@pytest.mark.parametrize(
    ("shape", "cell", "start"),
    [
        ((480, 640, 3), 32, (0, 0)),
        ((480, 640), 32, (0, 0)),
        ((60, 80, 3), 4, (0, 0)),
        ((240, 640, 3), 32, (0, -120)),
        ((480, 320, 3), 32, (-160, 0)),
    ],
    ids=["larger", "grey", "smaller", "wide", "tall"],
)
def test_boxes_are_in_pixels_of_the_picture(detector, shape, cell, start):
    picture = dark_picture(shape)
    column, row = 10, 7
    left, top = column * cell + start[0], row * cell + start[1]
    picture[top : top + cell, left : left + cell] = 255
    (found,) = detector(picture)
    np.testing.assert_allclose(found.box, expected_box(column, row, cell, start), atol=1)


def test_boxes_are_plain_integers_and_scores_plain_floats(detector):
    (found,) = detector(with_face(10, 7))
    assert [*map(type, found.box), type(found.score)] == [int, int, int, int, float]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1), (1, 4000, 3), (4000, 1), (HEIGHT, WIDTH, 3), (480, 640)])
def test_a_black_picture_of_any_size_holds_no_face(detector, shape):
    assert detector(dark_picture(shape)) == []


@pytest.mark.parametrize(
    ("shape", "most"),
    # of a colour picture a grey copy is made
    [((8000, 8000), 1e6), ((8000, 8000, 3), 65e6)],
)
def test_a_huge_picture_is_searched_in_bounded_memory(detector, shape, most):
    picture = dark_picture(shape)
    picture[2600:3800, 4000:5200] = 255
    tracemalloc.start()
    found = detector(picture)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found
    assert peak < most


def test_near_changes_nothing(detector):
    picture = with_face(10, 7)
    assert detector(picture, [(0, 0, 10, 10)]) == detector(picture) != []


def test_one_picture_leaves_nothing_for_the_next(detector):
    detector(np.full((HEIGHT, WIDTH, 3), 255, np.uint8))
    assert detector(dark_picture((40, 160, 3))) == []


@pytest.mark.parametrize(
    "picture",
    [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5), np.float32), np.uint8(1)],
    ids=["empty", "four channels", "float", "scalar"],
)
def test_what_is_no_picture_is_refused(detector, picture):
    with pytest.raises(InputError, match="expected a uint8 picture, grey or B,G,R; received"):
        detector(picture)


def test_a_threshold_of_the_callers_goes_before_the_files(flatbuffer):
    model = unpack_detector(pack(flatbuffer, info()), "tiny.tflite")
    assert LearnedDetector(model, score_threshold=0.99)(with_face(10, 7)) == []


def test_a_face_in_the_padding_is_none(fake):
    detect, _ = fake(heat_output(0.9), box_output())
    # a picture of 16 × 16 pixels lies in columns 8 to 23 of 32, the hot cell at (20, 12)
    assert len(detect(dark_picture((16, 16)))) == 1
    # one of 4 × 16 is in columns 14 to 17
    assert detect(dark_picture((16, 4))) == []


@pytest.mark.parametrize(("cells", "count"), [(0.9, 0), (1.1, 1)])
def test_a_face_under_a_twelfth_of_the_height_is_none(fake, monkeypatch, cells, count):
    monkeypatch.setattr(learned_detector, "MIN_FACE_SHARE", STRIDE / 16)  # of 16 pixels: a cell
    # its area counts, not one side
    detect, _ = fake(heat_output(0.9), box_output((0, 0, np.log(cells * 2), np.log(cells / 2))))
    assert len(detect(dark_picture((16, 32)))) == count


def test_a_face_too_small_hides_no_larger_one():
    small, large = (2, 3, 0.9, (0, 0, 2, 2)), (2, 5, 0.8, (-1.5, 0, 3, 2))
    _, scores = decode(*output([small, large]), STRIDE, 0.5)
    assert scores.tolist() == pytest.approx([0.9])
    _, scores = decode(*output([small, large]), STRIDE, 0.5, min_side=2.2 * STRIDE)
    assert scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("moved", [-2, 0], ids=["on the larger one", "beside it"])
def test_small_faces_that_are_kept_come_last_and_hide_no_larger_one(fake, monkeypatch, moved):
    monkeypatch.setattr(learned_detector, "MIN_FACE_SHARE", STRIDE / 16)  # of 16 pixels: a cell
    # the small one is surer
    heat, boxes = output([(1, 1, 0.8, (0, 0, 1.1, 1.1)), (1, 3, 0.9, (moved, 0, 0.9, 0.9))], shape=(2, 4))
    detect, _ = fake((heat[None, ..., None], (0.0, 0)), (boxes[None], (0.0, 0)))
    picture = dark_picture((16, 32))
    assert [round(face.score, 1) for face in detect(picture)] == [0.8]
    detect.keep_small = True
    assert [(face.readable, round(face.score, 1)) for face in detect(picture)] == [(True, 0.8), (False, 0.9)]


@pytest.mark.parametrize("order", [1, -1])
def test_the_outputs_are_told_apart_by_their_shapes(fake, order):
    detect, _ = fake(*[heat_output(0.75), box_output((0, 0, 0, np.log(2)))][::order])
    assert detect(dark_picture((16, 32))) == [Detection((16, 4, 8, 16), 0.75)]


@pytest.mark.parametrize(
    ("heat", "boxes"),
    [
        ((192, np.uint8, (1 / 256, 0)), ((128, 128, 128, 192), np.uint8, (1 / 64, 128))),
        ((64, np.int8, (1 / 256, -128)), ((0, 0, 0, 64), np.int8, (1 / 64, 0))),
        ((0.75, np.float32, (0.0, 0)), ((0, 0, 0, 1), np.float32, (0.0, 0))),
    ],
    ids=["uint8", "int8", "float32"],
)
def test_outputs_are_dequantised_as_the_interpreter_says(fake, heat, boxes):
    detect, _ = fake(heat_output(*heat), box_output(*boxes))
    # e cells high
    assert detect(dark_picture((16, 32))) == [Detection((16, 1, 8, 22), 0.75)]


@pytest.mark.parametrize(
    ("in_type", "quantization", "expected"),
    [
        (np.uint8, (1.0, 0), [0, 128, 255]),
        (np.uint8, (1.5, 3), [3, 88, 173]),
        (np.int8, (1.0, -128), [-128, 0, 127]),
        (np.float32, (0.0, 0), [0, 128, 255]),
    ],
)
def test_pixels_are_quantised_as_the_interpreter_says(fake, in_type, quantization, expected):
    detect, interpreter = fake(in_type=in_type, in_quantization=quantization)
    picture = dark_picture((16, 32))
    picture[0, :3] = 0, 128, 255
    detect(picture)
    assert interpreter.seen.dtype == in_type
    assert interpreter.seen[0, 0, :3, 0].tolist() == expected


@pytest.mark.parametrize(
    ("outputs", "options"),
    [
        ((heat_output(), box_output()), {"in_shape": (1, 32, 16, 1)}),
        ((heat_output(), box_output()), {"in_shape": (1, 16, 32, 3)}),
        ((heat_output(), box_output(shape=(1, 4, 2, 4))), {}),
        ((heat_output(), box_output((0,) * 5, shape=(1, 2, 4, 5))), {}),
        ((heat_output(),), {}),
        ((heat_output(), heat_output(), box_output()), {}),
        ((heat_output(), (np.float32(1), (0.0, 0))), {}),
    ],
    ids=["turned", "colour", "turned boxes", "five numbers a box", "no boxes", "two heats", "a scalar"],
)
def test_a_model_of_other_shapes_is_refused(fake, outputs, options):
    with pytest.raises(ModelError, match=r"my\.tflite has tensors of shapes .*; expected .*\(1, 2, 4, 4\)"):
        fake(*outputs, **options)


def test_a_model_of_another_dtype_is_refused(fake):
    with pytest.raises(ModelError, match=r"my\.tflite has a tensor of int16"):
        fake(in_type=np.int16)


def test_a_model_that_says_another_size_of_itself_is_refused(flatbuffer):
    with pytest.raises(ModelError, match=r"t\.tflite has tensors of shapes \[\(1, 120, 160, 1\)"):
        LearnedDetector(unpack_detector(pack(flatbuffer, info(input_size_wh=(320, 240))), "t.tflite"))


def test_a_detector_opens_by_its_file(flatbuffer, tmp_path):
    path = tmp_path / "d.tflite"
    path.write_bytes(pack(flatbuffer, info()))
    assert open_learned_detector(path)(with_face(10, 7))


def test_without_a_bundled_model_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(learned_detector, "DEFAULT_DETECTOR", "none.tflite")
    with pytest.raises(DependencyError, match=r"\(none\.tflite\) is not in this .*--detector-model FILE"):
        open_learned_detector()


def test_a_bundled_model_is_taken_if_none_is_named(monkeypatch, flatbuffer, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / learned_detector.DEFAULT_DETECTOR).write_bytes(pack(flatbuffer, info()))
    monkeypatch.setattr(learned_detector, "files", lambda _: tmp_path)
    assert open_learned_detector().model.name.startswith(os.fspath(tmp_path))


def test_the_bundled_detector_finds_the_masked_face_of_the_demonstration():
    from maskfer_edge.sources import open_camera

    with open_camera("demo") as camera:
        surest = max(open_learned_detector()(camera.read().image), key=lambda detection: detection.score)
    x, y, w, h = surest.box
    assert x < 238 < x + w
    assert y < 177 < y + h


@pytest.fixture
def twice(monkeypatch):
    """A detector of one candidate, with a second look that keeps none and says of what it was asked."""
    asked = []

    class Rescorer:
        def __init__(self, flatbuffer, runtime, threads, name):
            asked.append((flatbuffer, threads, name))

        def __call__(self, image, smaller, candidates, min_score, rescore_all):
            asked.append((image.shape, smaller.shape, [round(found.score, 3) for found in candidates], min_score))
            self.rescore_all = rescore_all
            return []

    def make(score):
        interpreter = FakeInterpreter((heat_output(score), box_output((0, 0, 0.5, 0.5))))
        monkeypatch.setattr(learned_detector, "open_interpreter", lambda *_: interpreter)
        monkeypatch.setattr(learned_detector, "Rescorer", Rescorer)
        model = DetectorModel(b"", info(input_size_wh=(32, 16), score_threshold=0.5), "my.tflite", b"second")
        return LearnedDetector(model), asked

    return make


def test_a_second_look_is_taken_at_what_is_below_the_threshold(twice):
    detect, asked = twice(0.2)
    assert detect(np.zeros((16, 32), np.uint8)) == []
    assert asked == [(b"second", 1, "my.tflite"), ((16, 32), (16, 32), [0.2], 0.5)]


def test_no_second_look_is_taken_at_what_is_unlikely(twice):
    detect, asked = twice(CANDIDATE_SCORE - 0.01)
    detect(np.zeros((16, 32), np.uint8))
    assert asked[1] == ((16, 32), (16, 32), [], 0.5)


@pytest.mark.parametrize(("shape", "smaller"), [((64, 64, 3), (16, 16)), ((10, 40), (8, 32)), ((8, 10), (16, 20))])
def test_a_second_look_gets_what_the_network_saw_of_the_picture(twice, shape, smaller):
    detect, asked = twice(0.2)
    detect(np.zeros(shape, np.uint8))
    assert asked[1][:2] == (shape, smaller)


def test_a_smaller_copy_is_searched_and_a_second_look_taken_at_the_picture_itself(twice):
    detect, asked = twice(0.2)
    detect.detect(np.zeros((64, 128, 3), np.uint8), np.zeros((32, 64), np.uint8))
    assert asked[1][:2] == ((64, 128, 3), (16, 32))


def test_faces_of_a_smaller_copy_have_boxes_in_the_picture(detector):
    picture = with_face(10, 7)
    smaller = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    ((whole,), (half,)) = detector(picture), detector.detect(picture, smaller)
    assert half.box == pytest.approx(whole.box, abs=2)


@pytest.mark.parametrize("keep_small", [False, True])
def test_the_whole_crowd_is_looked_at_where_all_are_to_be_blurred(twice, keep_small):
    detect, _ = twice(0.2)
    detect.keep_small = keep_small
    detect(np.zeros((16, 32), np.uint8))
    assert detect._rescorer.rescore_all is keep_small
