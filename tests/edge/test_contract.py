import cv2
import numpy as np
import pytest

from maskfer_edge.contract import INPUT_SIZE, LABELS, preprocess, preprocess_crop
from maskfer_edge.errors import InputError


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_labels_are_the_seven_in_alphabetical_order():
    assert LABELS == ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")


@pytest.mark.parametrize("shape", [(60, 80), (60, 80, 3), (1, 1), (1, 1, 3), (48, 48), (200, 10, 3)])
def test_any_picture_gives_a_grey_square(shape):
    face = preprocess_crop(noise(*shape))
    assert (face.shape, face.dtype) == ((INPUT_SIZE, INPUT_SIZE), np.uint8)


def test_shrinking_is_area_interpolation_of_the_crop():
    image = noise(200, 300)
    expected = cv2.resize(image[40:140, 60:160], (48, 48), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(preprocess(image, (60, 40, 100, 100)), expected)


def test_enlarging_is_bilinear():
    image = noise(100, 100)
    expected = cv2.resize(image[10:30, 10:30], (48, 48), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(preprocess(image, (10, 10, 20, 20)), expected)


def test_a_crop_of_the_input_size_is_kept_as_it_is():
    image = noise(100, 100)
    np.testing.assert_array_equal(preprocess(image, (5, 7, 48, 48)), image[7:55, 5:53])


def test_the_result_does_not_share_memory_with_the_picture():
    image = noise(48, 48)
    assert not np.shares_memory(preprocess_crop(image), image)


@pytest.mark.parametrize(
    ("colour_bgr", "grey"), [((255, 0, 0), 29), ((0, 255, 0), 150), ((0, 0, 255), 76), ((9, 9, 9), 9)]
)
def test_colour_is_read_as_blue_green_red(colour_bgr, grey):
    image = np.full((60, 60, 3), colour_bgr, dtype=np.uint8)
    assert (preprocess_crop(image) == grey).all()


@pytest.mark.parametrize(
    ("box", "padding"),
    [
        ((-24, 10, 48, 48), ((0, 0), (24, 0))),
        ((76, 10, 48, 48), ((0, 0), (0, 24))),
        ((10, -24, 48, 48), ((24, 0), (0, 0))),
        ((10, 76, 48, 48), ((0, 24), (0, 0))),
        ((-8, -8, 48, 48), ((8, 0), (8, 0))),
    ],
    ids=["left", "right", "top", "bottom", "corner"],
)
def test_beyond_the_picture_its_edge_is_repeated(box, padding):
    image = noise(100, 100)
    x, y, w, h = box
    inside = image[max(y, 0) : y + h, max(x, 0) : x + w]
    np.testing.assert_array_equal(preprocess(image, box), np.pad(inside, padding, mode="edge"))


@pytest.mark.parametrize("box", [(-300, 10, 60, 60), (400, 10, 60, 60), (10, -300, 60, 60), (-90, -90, 30, 30)])
def test_a_box_wholly_outside_gives_a_square_nevertheless(box):
    assert preprocess(noise(100, 100), box).shape == (48, 48)


def test_a_box_far_outside_shows_what_one_does_that_touches_the_picture():
    image = noise(100, 100)
    np.testing.assert_array_equal(preprocess(image, (-1e7, 10, 60, 60)), preprocess(image, (-59, 10, 60, 60)))
    np.testing.assert_array_equal(preprocess(image, (10, 1e7, 60, 60)), preprocess(image, (10, 99, 60, 60)))


def test_a_margin_widens_every_edge_by_its_share_of_the_side():
    image = noise(200, 200)
    np.testing.assert_array_equal(
        preprocess(image, (50, 60, 80, 80), margin=0.25), preprocess(image, (30, 40, 120, 120))
    )


def test_a_negative_margin_cuts_tighter():
    image = noise(200, 200)
    np.testing.assert_array_equal(
        preprocess(image, (50, 50, 100, 100), margin=-0.1), preprocess(image, (60, 60, 80, 80))
    )


@pytest.mark.parametrize(("box", "square"), [((40, 60, 100, 60), (40, 40, 100, 100)), ((60, 40, 60, 100),) * 2])
def test_a_box_is_made_square_about_its_centre(box, square):
    x, y, w, h = square
    side = max(w, h)
    image = noise(200, 200)
    expected = preprocess(image, (x + w / 2 - side / 2, y + h / 2 - side / 2, side, side))
    np.testing.assert_array_equal(preprocess(image, box), expected)


def test_a_size_can_be_named():
    assert preprocess(noise(90, 90), (0, 0, 90, 90), size=32).shape == (32, 32)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((50, 50), np.float32),
        np.zeros((0, 50), np.uint8),
        np.zeros((50, 50, 0), np.uint8),
        np.zeros(50, np.uint8),
        np.zeros((1, 50, 50, 3), np.uint8),
        np.zeros((50, 50, 2), np.uint8),
        np.zeros((50, 50, 4), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(InputError, match="received"):
        preprocess(image, (0, 0, 50, 50))


@pytest.mark.parametrize(
    ("box", "margin"),
    [
        ((0, 0, 0, 10), 0.0),
        ((0, 0, 10, -1), 0.0),
        ((0, 0, 10, 10), -0.5),
        ((float("nan"), 0, 10, 10), 0.0),
        ((0, float("inf"), 10, 10), 0.0),
        ((0, 0, float("nan"), 10), 0.0),
        ((0, 0, 10, 10), float("nan")),
    ],
)
def test_a_box_without_area_is_refused(box, margin):
    with pytest.raises(InputError, match="a box with an area"):
        preprocess(noise(50, 50), box, margin)
