from __future__ import annotations

import json
import os
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge.detector import Detection, Detector, HaarDetector, open_detector
from maskfer_edge.errors import InputError, OutputError
from maskfer_trainer.detector_evaluation import (
    as_text,
    draw_curve,
    evaluate_detector,
    half,
    read_photos,
)

LABELLED, SCORED = "image,label,xmin,ymin,xmax,ymax", "image,xmin,ymin,xmax,ymax,score"
DATA = Path(os.environ.get("MASKFER_DATA", Path(__file__).parents[2] / "../shared/data")) / "masked-photos"


class Told(Detector):
    """Finds what it is told for each picture, which it knows by the brightness of its first pixel."""

    name = "told"

    def __init__(self, *found: list[tuple[int, int, int, int, float]]) -> None:
        self.found = found

    def __call__(self, image, near=()):
        return [Detection((x, y, w, h), score) for x, y, w, h, score in self.found[image[0, 0, 0]]]


@pytest.fixture
def make_photos(tmp_path):
    """A factory of photographs of 400 by 300 pixels: takes the lines of boxes.csv, and how many pictures to draw."""

    def make(*lines: str, header: str = LABELLED, pictures: int = 1) -> Path:
        for i in range(pictures):
            cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((300, 400, 3), i, np.uint8))
        (tmp_path / "boxes.csv").write_text("\n".join([header, *lines]) + "\n")
        return tmp_path

    return make


@pytest.fixture
def three_faces(make_photos):
    """Two photographs: a masked face of 100 pixels and a bare one of 40, and a masked one of 60."""
    lines = (
        "0.png,with_mask,0,0,100,90",
        "0.png,without_mask,200,100,240,140",
        "1.png,mask_weared_incorrect,10,10,70,60",
    )
    return read_photos(make_photos(*lines, pictures=2))


def test_labels_say_who_is_masked(three_faces):
    first, second = three_faces
    assert (first.path.name, second.path.name) == ("0.png", "1.png")
    assert first.boxes_xyxy.tolist() == [[0, 0, 100, 90], [200, 100, 240, 140]]
    assert (first.boxes_xyxy.dtype, first.masked.dtype) == (np.float64, np.bool_)
    assert (first.masked.tolist(), second.masked.tolist()) == ([True, False], [True])


def test_without_labels_all_are_bare_and_boxes_are_cut_at_the_edges(make_photos):
    (photo,) = read_photos(make_photos("0.png,-8,20.5,500,400,0.9", header=SCORED))
    assert photo.boxes_xyxy.tolist() == [[0, 20.5, 400, 300]]
    assert photo.masked.tolist() == [False]


def test_a_file_of_a_spreadsheet_is_read(make_photos):
    folder = make_photos()
    (folder / "boxes.csv").write_bytes(f"\ufeff{LABELLED}\r\n0.png,with_mask,1,2,3,4\r\n\r\n".encode())
    assert read_photos(folder)[0].boxes_xyxy.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0.png,with_mask,0,0,10,10", "0.png,with_mask,a,0,10,10"], "line 3: xmin is 'a'; expected a number"),
        (["0.png,with_mask,0,0,10"], "line 2: ymax is ''; expected a number"),
        (["0.png,with_mask,0,0,10,nan"], "line 2: the box 0, 0, 10, nan is not finite"),
        (["0.png,with_mask,0,0,inf,9"], "line 2: the box 0, 0, inf, 9 is not finite"),
        (["0.png,with_mask,10,0,10,10"], "line 2: the box 10, 0, 10, 10 has no area"),
        (["0.png,with_mask,0,10,10,5"], "line 2: the box 0, 10, 10, 5 has no area"),
        (
            ["0.png,with_mask,400,0,410,10"],
            "line 2: the box 400, 0, 410, 10 lies outside its picture of 400x300 pixels",
        ),
        (["0.png,with_mask,0,-9,10,0"], "line 2: the box 0, -9, 10, 0 lies outside its picture"),
        (["0.png,masked,0,0,10,10"], "line 2: unknown label 'masked'; known: with_mask, mask_weared_incorrect"),
        (["gone.png,with_mask,0,0,10,10"], "gone.png cannot be read: No such file or directory"),
        ([",with_mask,0,0,10,10"], "is a folder; a file is needed"),
        (["boxes.csv,with_mask,0,0,10,10"], "line 2: "),
        ([], "boxes.csv lists no faces"),
    ],
)
def test_a_bad_line_is_named(make_photos, lines, message):
    with pytest.raises(InputError) as caught:
        read_photos(make_photos(*lines))
    assert message in str(caught.value)
    assert "boxes.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ("", "image, xmin, ymin, xmax, ymax"),
        ("image,label,xmin,ymin", "xmax, ymax"),
        ("image,xmin,ymin,xmax,ymax", "label (or score)"),
    ],
)
def test_missing_columns_are_named(make_photos, header, missing):
    with pytest.raises(InputError, match="expected image,label") as caught:
        read_photos(make_photos("0.png,0,0,1,1", header=header))
    assert f"columns missing: {missing};" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "boxes.csv cannot be read: No such file"),
        (b"\xff\xfe\x00", "boxes.csv is not text in UTF-8"),
        (f"{LABELLED}\n{'x' * 200_000},with_mask,0,0,1,1".encode(), "boxes.csv, line 1: field larger than field limit"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "boxes.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_photos(tmp_path)


def test_the_halves_go_by_the_name_alone():
    names = [f"{i}.jpg" for i in range(1000)]
    halves = [half(name) for name in names]
    assert [half(name) for name in names] == halves
    assert halves == ["testing" if int(sha256(n.encode()).hexdigest(), 16) % 2 else "tuning" for n in names]
    assert 450 < halves.count("tuning") < 550
    # files keep their halves from one release to the next
    assert (half("maksssksksss1.jpg"), half("maksssksksss303.jpg")) == ("tuning", "testing")


def test_figures_by_hand(three_faces):
    # right on both large faces, once beside everything, once on the small one
    detector = Told([(0, 0, 100, 90, 0.9), (300, 200, 50, 50, 0.8), (200, 100, 40, 40, 0.6)], [(10, 10, 60, 50, 0.7)])
    done = evaluate_detector(detector, three_faces, least_px=(32, 48, 61))
    assert (done.detector, done.pictures, done.iou, done.false_boxes) == ("told", 2, 0.35, 0.5)
    assert 0 <= done.milliseconds_median <= done.milliseconds_p95 < 1000
    small, middle, large = done.sizes
    assert [(s.least_px, s.masked, s.bare) for s in done.sizes] == [(32, 2, 1), (48, 2, 0), (61, 1, 0)]
    assert (small.recall_masked, small.recall_bare) == (1.0, 1.0)
    assert (middle.recall_masked, middle.recall_bare) == (1.0, None)
    # precision 1, 1/2, 2/3, 3/4 at recall 1/3, 1/3, 2/3, 1: the best at or past each is 1, 3/4, 3/4
    assert small.average_precision == pytest.approx(1 / 3 + 3 / 4 / 3 + 3 / 4 / 3, abs=1e-4)
    # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1; the box on the face of 40 pixels is neither right nor false
    assert middle.average_precision == pytest.approx(1 / 2 + 2 / 3 / 2, abs=1e-4)
    assert [(p.score, p.precision, p.recall, p.false_boxes) for p in middle.curve] == [
        (0.9, 1.0, 0.5, 0.0),
        (0.8, 0.5, 0.5, 0.5),
        (0.7, 0.6667, 1.0, 0.5),
    ]
    assert [(p.recall_masked, p.recall_bare) for p in small.curve] == [(0.5, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 1.0)]
    assert (large.average_precision, len(large.curve)) == (1.0, 2)


def test_a_face_that_is_missed_lowers_the_area(three_faces):
    done = evaluate_detector(Told([(0, 0, 100, 90, 0.9)], []), three_faces)
    assert [s.average_precision for s in done.sizes] == [pytest.approx(1 / 3, abs=1e-4), 0.5]
    assert [(s.recall_masked, s.recall_bare) for s in done.sizes] == [(0.5, 0.0), (0.5, None)]


def test_equal_scores_count_together_whatever_their_order(three_faces):
    for first in ([(0, 0, 100, 90, 3.0), (300, 200, 50, 50, 3.0)], [(300, 200, 50, 50, 3.0), (0, 0, 100, 90, 3.0)]):
        done = evaluate_detector(Told(first, []), three_faces, least_px=(48,))
        assert done.sizes[0].average_precision == 0.25
        assert len(done.sizes[0].curve) == 1


def test_recall_is_counted_by_size(three_faces):
    done = evaluate_detector(Told([(0, 0, 100, 90, 0.9)], []), three_faces)
    assert [(b.least_px, b.below_px, b.masked, b.bare, b.recall_masked, b.recall_bare) for b in done.bins] == [
        (16, 32, 0, 0, None, None),
        (32, 48, 0, 1, None, 0.0),
        (48, 64, 1, 0, 0.0, None),
        (64, 96, 0, 0, None, None),
        (96, 160, 1, 0, 1.0, None),
        (160, None, 0, 0, None, None),
    ]


def test_a_size_belongs_to_the_range_that_it_begins(make_photos):
    photos = read_photos(make_photos("0.png,with_mask,0,0,10,48"))
    done = evaluate_detector(Told([]), photos)
    assert [(b.least_px, b.masked) for b in done.bins if b.masked] == [(48, 1)]
    assert done.sizes[1].masked == 1


@pytest.mark.parametrize(
    ("boxes", "recall", "false"),
    [
        # 35 of 100 rows in common with a box of the same width: 3500 / 10000
        ([(0, 0, 100, 35, 1.0)], 0.5, 0),
        ([(0, 0, 100, 34, 1.0)], 0.0, 1),
        # a second box on a face is false
        ([(0, 0, 100, 100, 1.0), (0, 0, 100, 99, 0.5)], 0.5, 1),
        # the surer one chooses first, and the other takes what is left: 60 of 140 columns, or 40 of 160
        ([(40, 0, 100, 100, 0.5), (55, 0, 100, 100, 1.0)], 1.0, 0),
        ([(60, 0, 100, 100, 0.5), (35, 0, 100, 100, 1.0)], 0.5, 1),
        # cut at the edges, as the faces are
        ([(-100, -100, 200, 200, 1.0)], 0.5, 0),
        ([(-100, -100, 50, 50, 1.0)], 0.0, 1),
    ],
)
def test_which_box_finds_which_face(make_photos, boxes, recall, false):
    photos = read_photos(make_photos("0.png,with_mask,0,0,100,100", "0.png,with_mask,60,0,160,100"))
    done = evaluate_detector(Told(boxes), photos)
    assert (done.sizes[0].recall_masked, done.false_boxes) == (recall, false)


def test_a_detector_that_finds_nothing(three_faces):
    done = evaluate_detector(Told([], []), three_faces)
    assert (done.false_boxes, done.sizes[0].average_precision, done.sizes[0].curve) == (0.0, 0.0, ())


def test_only_faces_below_the_least_size(make_photos):
    photos = read_photos(make_photos("0.png,with_mask,0,0,20,20"))
    done = evaluate_detector(Told([(0, 0, 20, 20, 1.0), (200, 200, 9, 9, 2.0)]), photos)
    assert (done.sizes[0].average_precision, done.sizes[0].recall_masked, done.false_boxes) == (None, None, 1.0)


def test_the_detector_has_one_thread_meanwhile(three_faces):
    threads = []

    class Counting(Told):
        def __call__(self, image, near=()):
            threads.append(cv2.getNumThreads())
            raise RuntimeError

    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        with pytest.raises(RuntimeError):
            evaluate_detector(Counting(), three_faces)
        assert (threads, cv2.getNumThreads()) == ([1], 2)
    finally:
        cv2.setNumThreads(before)


def test_progress_counts_every_photograph(three_faces):
    seen = []
    evaluate_detector(Told([], []), three_faces, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("iou", [0.0, -1.0, 1.1, float("nan")])
def test_an_overlap_out_of_range_is_refused(three_faces, iou):
    with pytest.raises(InputError, match="expected above 0 and up to 1"):
        evaluate_detector(Told([], []), three_faces, iou=iou)


def test_no_photographs_are_refused():
    with pytest.raises(InputError, match="no photographs"):
        evaluate_detector(Told(), [])


@pytest.mark.parametrize("name", ["haar", "learned"])
@pytest.mark.parametrize("size_wh", [(1, 1), (2000, 3), (8000, 8000)])
def test_odd_pictures_are_searched(tmp_path, name, size_wh):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((size_wh[1], size_wh[0], 3), np.uint8))
    (tmp_path / "boxes.csv").write_text(f"{LABELLED}\n0.png,with_mask,0,0,1,1\n")
    done = evaluate_detector(open_detector(name), read_photos(tmp_path))
    assert (done.pictures, done.false_boxes) == (1, 0.0)


def test_figures_fit_into_json(three_faces):
    done = evaluate_detector(Told([(0, 0, 100, 90, 0.9)], [(9, 9, 1, 1, 0.1)]), three_faces)
    assert json.loads(json.dumps(asdict(done)))["sizes"][0]["curve"][0]["score"] == 0.9


def test_figures_are_printed_as_tables(three_faces):
    text = as_text(evaluate_detector(Told([(0, 0, 100, 90, 0.9)], []), three_faces))
    assert text.startswith("told on 2 photographs: 0.00 false boxes a picture, ")
    assert "32 px and more       2   50.0%       1    0.0%               33.3%" in text
    assert "48 to 64 px          1    0.0%       0       -" in text


@pytest.mark.parametrize("found", [[(0, 0, 100, 90, 0.9), (300, 200, 50, 50, 0.8)], []])
def test_the_curve_is_drawn_and_nothing_overwritten(three_faces, tmp_path, found):
    done = evaluate_detector(Told(found, []), three_faces, least_px=(32, 48, 300))
    draw_curve(done, tmp_path / "curve.png")
    assert cv2.imread(str(tmp_path / "curve.png")).shape == (500, 600, 3)
    with pytest.raises(OutputError, match="already there"):
        draw_curve(done, tmp_path / "curve.png")
    draw_curve(done, tmp_path / "curve.png", overwrite=True)


def test_haar_on_real_photographs():
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there (MASKFER_DATA names the folder that holds it)")
    photos = read_photos(DATA)
    assert len(photos) == 335
    assert sum(photo.masked.sum() for photo in photos) == 1322
    testing = [photo for photo in photos if half(photo.path.name) == "testing"]
    done = evaluate_detector(HaarDetector(), testing[:30])
    # it was made for bare faces
    assert 0.1 < done.sizes[1].recall_masked < 0.6
    assert done.sizes[1].recall_masked < done.sizes[1].recall_bare
    assert done.sizes[1].average_precision < 0.6
