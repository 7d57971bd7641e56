import cv2
import numpy as np
import pytest

from maskfer_edge import bench as module
from maskfer_edge.bench import bench, naive_loop
from maskfer_edge.cameras import Frame
from maskfer_edge.classifier import DEFAULT_MODEL, Classifier, default_model
from maskfer_edge.errors import InputError, MaskferError
from maskfer_edge.run_settings import RunSettings
from maskfer_edge.sources import open_camera


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "MAX_FRAMES", 6)
    monkeypatch.setattr(module, "REALTIME_FRAMES", 5)


@pytest.fixture
def no_processes(monkeypatch):
    """What is measured in other processes is made up."""
    monkeypatch.setattr(module, "start_to_first_result", lambda settings: (1.0, 2.0))
    monkeypatch.setattr(module, "realtime_share", lambda settings: 0.5)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    from importlib.resources import files

    return files("maskfer_edge") / "data" / DEFAULT_MODEL


def test_it_measures_frames_stages_start_memory_and_cpu(bundled):
    report = bench(RunSettings(source="demo"), bundled)
    assert report.frames == (6, 480, 360)
    assert set(report.latency_ms) == {"detect", "classify", "result", "age"}
    assert report.fps > 0 < report.naive_fps
    assert 0.1 < report.first_result_s < 30
    assert 40 < report.memory_mb < 400
    assert report.cpu_share > 0
    assert report.faces_a_frame > 0.5


def test_without_a_rival_there_is_no_comparison(no_processes):
    assert bench(RunSettings(source="demo")).naive_fps is None


def test_a_camera_cannot_be_measured(monkeypatch):
    class Live:
        file = False

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(module, "open_camera", lambda source: Live())
    with pytest.raises(InputError, match="usb:0 is a camera"):
        bench(RunSettings(source="usb:0"))
    with pytest.raises(InputError, match="browser is a camera"):
        bench(RunSettings(source="browser"))


@pytest.mark.parametrize(("max_bytes", "max_frames", "count"), [(1e9, 0, 6), (1e6, 0, 2), (1e9, 4, 4)])
def test_no_more_frames_are_held_than_asked_for_or_fit(no_processes, monkeypatch, max_bytes, max_frames, count):
    monkeypatch.setattr(module, "MAX_BYTES", max_bytes)
    assert bench(RunSettings(source="demo", max_frames=max_frames)).frames[0] == count


def test_the_process_that_is_measured_runs_no_code_of_the_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typer.py").write_text("raise SystemExit('of the folder')")
    assert module.start_to_first_result(RunSettings(source="demo", headless=True))[0] > 0


def test_the_naive_loop_searches_every_whole_frame(monkeypatch):
    seen = []

    class Detector(module.HaarDetector):
        def __call__(self, image, near=()):
            seen.append(
                (image.shape, self.scale_factor, self.min_neighbors, self.search_side, self.cascade, self.equalisation)
            )
            return super().__call__(image, near)

    monkeypatch.setattr(module, "HaarDetector", Detector)
    with open_camera("demo") as camera:
        frames = [camera.read() for _ in range(3)]
    naive_loop(frames, Classifier(default_model(), mirror=False))
    assert seen == [((360, 480, 3), 1.3, 5, 480, "frontalface_default", "none")] * 3


def test_nothing_is_written_or_sent(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "start_to_first_result", lambda settings: seen.append(settings) or (1.0, 2.0))
    monkeypatch.setattr(module, "realtime_share", lambda settings: seen.append(settings) or 0.5)
    files = {name: str(tmp_path / name) for name in ("jsonl", "csv", "record")}
    asked = {**files, "mqtt": "mqtt://broker", "metrics": "9090"}
    bench(RunSettings(source="demo", browser="8090", **asked))
    assert seen == [RunSettings(source="demo", headless=True)] * 2


@pytest.mark.parametrize("measure", [module.start_to_first_result, module.realtime_share])
def test_a_process_that_fails_is_no_figure(measure):
    with pytest.raises(MaskferError, match=r"was to be measured failed: maskfer-edge: .*gone\.mp4"):
        measure(RunSettings(source="gone.mp4", headless=True))


def test_opencv_s_threads_are_as_before(no_processes, bundled):
    before = cv2.getNumThreads()
    bench(RunSettings(source="demo"), bundled)
    assert cv2.getNumThreads() == before


def test_a_frame_without_faces_is_no_error():
    naive_loop([Frame(np.zeros((64, 64, 3), np.uint8), 0, 0.0)], Classifier(default_model(), mirror=False))


def test_settings_that_belong_to_an_output_do_not_stand_in_the_way(no_processes, tmp_path):
    assert bench(RunSettings(source="demo", jsonl=str(tmp_path / "a.jsonl"), rotate_mb=1.0)).fps > 0
