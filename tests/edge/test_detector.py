import cv2
import numpy as np
import pytest

from maskfer_edge.detector import Detection, FakeDetector, HaarDetector, YunetDetector, iou, open_detector
from maskfer_edge.errors import DependencyError, InputError, ModelError
from maskfer_edge.sources import open_camera


@pytest.fixture(scope="module")
def haar():
    return HaarDetector()


@pytest.fixture(scope="module")
def portrait():
    """The demonstration clip's first frame; its face is about 165 pixels wide at (155, 95)."""
    with open_camera("demo") as camera:
        return camera.read().image


def contains(box, point):
    x, y, w, h = box
    return x < point[0] < x + w and y < point[1] < y + h


def test_the_masked_face_is_found(haar, portrait):
    assert [contains(found.box, (238, 177)) for found in haar(portrait)] == [True]


def test_the_box_is_about_the_face(haar, portrait):
    _, _, width, height = haar(portrait)[0].box
    assert 130 < width < 220 and width == height


def test_the_score_counts_agreeing_windows(haar, portrait):
    assert haar(portrait)[0].score >= haar.min_neighbors


def test_a_grey_picture_works_as_well(haar, portrait):
    assert haar(cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)) == haar(portrait)


def test_a_black_picture_holds_no_face(haar):
    assert haar(np.zeros((480, 640, 3), np.uint8)) == []


def test_boxes_of_a_large_picture_are_in_its_own_pixels(haar, portrait):
    scale = 4000 / portrait.shape[1]
    large = cv2.resize(portrait, (4000, round(portrait.shape[0] * scale)))
    found = haar(large)
    assert any(contains(f.box, (238 * scale, 177 * scale)) and f.box[2] > 100 * scale for f in found)


def test_boxes_are_plain_integers(haar, portrait):
    assert [type(value) for value in haar(portrait)[0].box] == [int] * 4


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1), (1, 4000, 3), (4000, 1, 3)])
def test_odd_pictures_hold_no_face(haar, shape):
    assert haar(np.zeros(shape, np.uint8)) == []


def test_a_detector_opens_by_name():
    assert isinstance(open_detector("haar"), HaarDetector)


def test_an_unknown_detector_is_refused_with_the_names():
    with pytest.raises(InputError, match="'yolo'; known: haar, learned, yunet"):
        open_detector("yolo")


def test_a_missing_cascade_names_the_apt_line(monkeypatch, tmp_path):
    monkeypatch.setattr("maskfer_edge.detector.Path", lambda _: tmp_path)
    with pytest.raises(DependencyError, match="sudo apt install -y opencv-data"):
        HaarDetector()


def test_the_fake_finds_what_it_is_told():
    detections = [Detection((1, 2, 3, 4), 5.0)]
    assert FakeDetector(detections)(np.zeros((1, 1, 3), np.uint8)) == detections


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 10, 10), 1 / 3),
        ((0, 0, 10, 10), (2, 2, 5, 5), 0.25),
        ((0, 0, 10, 10), (10, 0, 10, 10), 0.0),
        ((0, 0, 10, 10), (50, 50, 10, 10), 0.0),
    ],
)
def test_overlap_is_intersection_over_union(a, b, expected):
    assert iou(a, b) == iou(b, a) == pytest.approx(expected)


def test_near_a_known_face_it_is_found_again(haar, portrait):
    (everywhere,) = haar(portrait)
    x, y, w, h = everywhere.box
    (near,) = haar(portrait, [(x + 8, y - 6, w, h)])
    assert iou(near.box, everywhere.box) > 0.7


def test_away_from_it_nothing_is_found(haar, portrait):
    assert haar(portrait, [(0, 250, 60, 60)]) == []


def test_a_face_of_quite_another_size_is_not_the_one_that_is_looked_for(haar, portrait):
    (everywhere,) = haar(portrait)
    x, y, w, h = everywhere.box
    assert haar(portrait, [(x + w // 2 - 20, y + h // 2 - 20, 40, 40)]) == []


def test_two_places_that_overlap_give_one_face(haar, portrait):
    (everywhere,) = haar(portrait)
    x, y, w, h = everywhere.box
    assert len(haar(portrait, [(x, y, w, h), (x + 20, y, w, h)])) == 1


@pytest.mark.parametrize("box", [(-500, -500, 50, 50), (5000, 10, 50, 50), (479, 359, 1, 1), (-20, 300, 60, 60)])
def test_a_place_outside_the_picture_is_no_error(haar, portrait, box):
    assert haar(portrait, [box]) == []


class FakeFaceDetectorYN:
    """In place of cv2.FaceDetectorYN: finds `rows`, and keeps what it is told."""

    rows = None

    @classmethod
    def create(cls, *arguments):
        made = cls()
        made.arguments, made.sizes, made.pictures = arguments, [], []
        return made

    def setInputSize(self, size_wh):
        self.sizes.append(size_wh)

    def detect(self, image):
        self.pictures.append(image)
        return 1, self.rows


def yunet_row(x, y, width, height, score):
    return [x, y, width, height, *[0.0] * 10, score]


@pytest.fixture
def onnx(tmp_path):
    path = tmp_path / "yunet.onnx"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def make_yunet(monkeypatch, onnx):
    def make(*rows, search_side=640):
        monkeypatch.setattr(cv2, "FaceDetectorYN", FakeFaceDetectorYN)
        monkeypatch.setattr(FakeFaceDetectorYN, "rows", np.float32(rows) if rows else None)
        detector = open_detector("yunet", search_side, onnx)
        return detector, detector._network

    return make


def test_yunet_opens_the_users_file_with_its_threshold(make_yunet, onnx):
    detector, network = make_yunet()
    assert isinstance(detector, YunetDetector)
    assert network.arguments == (str(onnx), "", (320, 320), 0.6, 0.4)


def test_yunets_rows_become_boxes_and_scores(make_yunet):
    detector, _ = make_yunet(yunet_row(10.4, 20.6, 30.2, 40, 0.75), yunet_row(-3, 0, 8, 9, 0.625))
    assert detector(np.zeros((480, 640, 3), np.uint8)) == [
        Detection((10, 21, 30, 40), 0.75),
        Detection((-3, 0, 8, 9), 0.625),
    ]


def test_yunets_boxes_are_plain_integers_and_scores_plain_floats(make_yunet):
    (found,) = make_yunet(yunet_row(10.4, 20.6, 30.2, 40, 0.75))[0](np.zeros((48, 64, 3), np.uint8))
    assert [*map(type, found.box), type(found.score)] == [int, int, int, int, float]


def test_yunet_that_finds_nothing_gives_an_empty_list(make_yunet):
    assert make_yunet()[0](np.zeros((480, 640, 3), np.uint8)) == []


def test_yunets_input_is_as_large_as_each_picture(make_yunet):
    detector, network = make_yunet()
    for shape in ((480, 640, 3), (1, 1, 3), (120, 90, 3)):
        detector(np.zeros(shape, np.uint8))
    assert network.sizes == [(640, 480), (1, 1), (90, 120)]
    assert [picture.shape[1::-1] for picture in network.pictures] == network.sizes


def test_yunet_looks_at_large_pictures_in_a_smaller_size(make_yunet):
    detector, network = make_yunet(yunet_row(10, 20, 30, 40, 0.75), search_side=320)
    assert detector(np.zeros((960, 1280, 3), np.uint8)) == [Detection((40, 80, 120, 160), 0.75)]
    assert network.sizes == [(320, 240)]


def test_yunet_sees_a_grey_picture_in_three_channels(make_yunet):
    detector, network = make_yunet()
    detector(np.full((48, 64), 9, np.uint8))
    np.testing.assert_array_equal(network.pictures[0], np.full((48, 64, 3), 9, np.uint8))


def test_yunet_without_a_file_says_how_to_name_one():
    with pytest.raises(InputError, match=r"'yunet' needs its model file: .*--detector-model FILE"):
        open_detector("yunet")


def test_yunets_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.onnx cannot be read"):
        open_detector("yunet", model_path=tmp_path / "none.onnx")


def test_a_picture_is_not_yunets_file(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"picture")
    with pytest.raises(ModelError, match=r"photo\.jpg is not YuNet's model .\.onnx.; get face_detection_yunet_2023mar"):
        open_detector("yunet", model_path=tmp_path / "photo.jpg")


def test_a_file_that_is_no_network_is_refused_by_name(onnx):
    with pytest.raises(ModelError, match=r"yunet\.onnx is refused by the FaceDetectorYN of OpenCV") as caught:
        open_detector("yunet", model_path=onnx)
    assert "\n" not in str(caught.value)


def test_a_network_that_is_another_than_yunet_is_refused_by_name(make_yunet, monkeypatch):
    def fail(self, image):
        raise cv2.error("no output of\nthat name")

    monkeypatch.setattr(FakeFaceDetectorYN, "detect", fail)
    with pytest.raises(ModelError, match=r"yunet\.onnx is refused by .*: no output of that name"):
        make_yunet()[0](np.zeros((48, 64, 3), np.uint8))


def test_an_opencv_without_yunet_names_the_pip_line(monkeypatch, onnx):
    monkeypatch.delattr(cv2, "FaceDetectorYN")
    with pytest.raises(DependencyError, match="has no FaceDetectorYN, which runs YuNet; run: pip install"):
        open_detector("yunet", model_path=onnx)


def test_haar_takes_no_model_file(onnx):
    with pytest.raises(InputError, match=r"'haar' takes no model file; leave .*yunet\.onnx out"):
        open_detector("haar", model_path=onnx)


def test_a_learned_detector_opens_with_the_runtime_that_is_asked_for(monkeypatch, onnx):
    asked = []
    monkeypatch.setattr("maskfer_edge.learned_detector.open_learned_detector", lambda *given: asked.append(given))
    open_detector("learned", 320, onnx, "litert", 2)
    assert asked == [(onnx, "litert", 2)]


def test_a_foreign_file_is_no_learned_detector(onnx):
    with pytest.raises(ModelError, match=r"yunet\.onnx is not a TFLite model"):
        open_detector("learned", model_path=onnx)
