from dataclasses import replace

import numpy as np
import pytest

from maskfer_edge.contract import LABELS
from maskfer_edge.drawing import BLUR_CELLS, COLOURS, annotate
from maskfer_edge.results import UNSURE, FrameResult, face_result

SHAPE = (240, 320, 3)


def result(*boxes, label=1):
    scores = np.eye(7, dtype=np.float32)[label]
    return FrameResult(0.0, 0, tuple(face_result(1, box, 1.0, scores) for box in boxes), 0.0)


def label_pixels(drawn, label):
    """Pixels in the colour of the label's filled rectangle, which no other drawing has in such number."""
    return np.argwhere((drawn == COLOURS[LABELS[label]]).all(axis=2))


def test_the_original_is_not_changed():
    image = np.zeros(SHAPE, np.uint8)
    annotate(image, result((50, 80, 60, 60)))
    assert not image.any()


def test_a_frame_without_faces_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    np.testing.assert_array_equal(annotate(image, result()), image)


def test_the_box_is_drawn_in_the_expression_s_colour():
    drawn = annotate(np.zeros(SHAPE, np.uint8), result((50, 80, 60, 60), label=3))
    np.testing.assert_allclose(drawn[110, 50], COLOURS["Happy"], rtol=0.15)  # an antialiased line


def test_every_expression_has_its_own_colour():
    assert set(COLOURS) == {*LABELS, UNSURE} and len(set(COLOURS.values())) == 8


def test_an_unsure_face_is_drawn_as_such():
    scores = np.full(7, 1 / 7, dtype=np.float32)
    faces = (face_result(1, (50, 80, 60, 60), 1.0, scores, min_confidence=0.5),)
    drawn = annotate(np.zeros(SHAPE, np.uint8), FrameResult(0.0, 0, faces, 0.0))
    assert ((drawn == COLOURS[UNSURE]).all(axis=2)).sum() > 200


@pytest.mark.parametrize(
    "box",
    [(50, 80, 60, 60), (0, 0, 60, 60), (300, 80, 20, 60), (-30, -30, 60, 60), (260, 180, 60, 60), (0, 0, 320, 240)],
    ids=["middle", "top left", "right", "beyond top left", "bottom right", "whole"],
)
def test_the_label_is_whole_inside_the_picture(box):
    expected = annotate(np.zeros(SHAPE, np.uint8), result((50, 80, 60, 60)))[:80]
    height, width = np.ptp(label_pixels(expected, 1), axis=0) + 1
    drawn = annotate(np.zeros(SHAPE, np.uint8), result(box))
    mask = (drawn == COLOURS["Disgust"]).all(axis=2)
    # a filled label has a full row of its width somewhere, and as many such rows as it has padding
    longest = max(max((len(run) for run in "".join("x" if v else " " for v in row).split()), default=0) for row in mask)
    assert longest >= width - 2
    assert mask.any(axis=1).sum() >= height - 2


@pytest.mark.parametrize("shape", [(1, 1, 3), (10, 10, 3), (5, 400, 3)])
def test_a_picture_smaller_than_a_label_does_not_fail(shape):
    assert annotate(np.zeros(shape, np.uint8), result((0, 0, shape[1], shape[0]))).shape == shape


@pytest.mark.parametrize("box", [(100, 80, 80, 80), (-20, -20, 80, 80), (290, 210, 60, 60)])
def test_a_blurred_face_keeps_a_few_squares_only(box):
    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    x, y, w, h = box
    face = (slice(max(0, y + 4), y + h - 4), slice(max(0, x + 4), x + w - 4))
    plain, blurred = (annotate(image, result(box), blur=blur)[face] for blur in (False, True))
    assert len(np.unique(plain.reshape(-1, 3), axis=0)) > 500
    assert len(np.unique(blurred.reshape(-1, 3), axis=0)) < 120


def test_what_is_only_covered_is_blurred_without_a_rectangle():
    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    covering = replace(result(), covered=((100, 100, 80, 80),))
    blurred = annotate(image, covering, blur=True)
    assert len(np.unique(blurred[100:180, 100:180].reshape(-1, 3), axis=0)) <= BLUR_CELLS**2
    np.testing.assert_array_equal(annotate(image, covering), image)


def test_blurring_reaches_beyond_the_box_and_leaves_the_rest():
    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    blurred = annotate(image, result((100, 100, 80, 80)), blur=True)
    assert not np.array_equal(blurred[110:170, 84:96], image[110:170, 84:96])
    np.testing.assert_array_equal(blurred[210:], image[210:])


def test_a_face_outside_the_picture_is_no_error():
    annotate(np.zeros(SHAPE, np.uint8), result((400, 300, 50, 50)), blur=True)
