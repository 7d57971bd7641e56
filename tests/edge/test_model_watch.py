import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge import bench, model_watch, running
from maskfer_edge.cameras import FakeCamera
from maskfer_edge.classifier import Classifier, default_model
from maskfer_edge.errors import CameraError, InputError, ModelError, OutputError
from maskfer_edge.learned_detector import DEFAULT_DETECTOR, LearnedDetector
from maskfer_edge.model_fetch import FetchedModel
from maskfer_edge.model_file import DETECTOR, EXPRESSION, load_detector_model, pack
from maskfer_edge.model_install import Trial, install
from maskfer_edge.model_state import BUNDLED, MAX_TRIES, Slot
from maskfer_edge.model_store import ModelStore
from maskfer_edge.run_settings import RunSettings
from maskfer_edge.running import open_run
from maskfer_edge.sources import open_camera

BUNDLED_DETECTOR = Path(str(files("maskfer_edge") / "data")) / DEFAULT_DETECTOR


@pytest.fixture(scope="module")
def frames():
    """The first pictures of the demonstration, with a face in each."""
    with open_camera("demo") as camera:
        return [camera.read().image for _ in range(8)]


@pytest.fixture
def store(tmp_path):
    made = ModelStore(tmp_path / "models")
    made.make()
    return made


def put(store, name, *, kind=EXPRESSION, prove=False):
    """Install the bundled model under another name; gives its ID."""
    model = default_model() if kind == EXPRESSION else load_detector_model(BUNDLED_DETECTOR)
    content = pack(model.flatbuffer, replace(model.info, architecture=name))
    fetched = FetchedModel(content, None, name, f"{name}.tflite", f"{name}.tflite.sig")
    stored, _ = install(store, fetched, "", use=True, try_model=lambda path, name: Trial(1, 1, 1.0))
    if prove:
        store.change(lambda state: state.with_slot(kind, state.slot(kind).proved()))
    return stored.id


def test_a_benchmark_ends_no_trial(store, monkeypatch):
    put(store, "new")
    before = store.state()
    monkeypatch.setattr(bench, "REALTIME_FRAMES", 3)
    assert bench.bench(RunSettings(source="demo", models=str(store.folder), max_frames=3)).fps > 0
    assert store.state() == before and before.slot(EXPRESSION).on_trial


def run(store, reported=None, terminate=lambda error: None, **settings):
    """A run with the store's models; gives its results."""
    settings = {"source": "demo", "headless": True, "max_frames": 3, "models": str(store.folder), **settings}
    report = (lambda text: None) if reported is None else reported.append
    with open_run(RunSettings(**settings), report, terminate) as made:
        return list(made.results())


@pytest.fixture
def camera(monkeypatch):
    """Makes a run take a camera of these pictures."""

    def take(images, **options):
        made = FakeCamera(images, **options)
        monkeypatch.setattr(running, "open_camera", lambda source, options: made)
        return made

    return take


def test_a_run_takes_the_models_in_use(store):
    one, other = put(store, "a"), put(store, "b", kind=DETECTOR)
    with open_run(RunSettings(source="demo", headless=True, models=str(store.folder))) as made:
        assert made.pipeline.classifier.model.info.architecture == "a"
        assert made.pipeline.detector.model.info.architecture == "b"
        assert (made.settings.model, made.settings.detector_model) == (
            str(store.get(one).path), str(store.get(other).path),
        )  # fmt: skip


def test_a_file_that_is_named_wins(store):
    put(store, "a")
    put(store, "b", kind=DETECTOR)
    named = {kind: str(store.get(store.state().slot(kind).in_use).path) for kind in (EXPRESSION, DETECTOR)}
    put(store, "c")
    put(store, "d", kind=DETECTOR)
    settings = RunSettings(models=str(store.folder), model=named[EXPRESSION], detector_model=named[DETECTOR])
    pipeline = running.open_pipeline(settings)
    assert (pipeline.classifier.model.info.architecture, pipeline.detector.model.info.architecture) == ("a", "b")


def test_another_detector_leaves_the_installed_one_alone(store):
    put(store, "b", kind=DETECTOR)
    run(store, detector="haar")
    assert store.state().detector.on_trial


def test_the_pipeline_alone_takes_them_without_a_trial(store):
    put(store, "a")
    pipeline = running.open_pipeline(RunSettings(models=str(store.folder)))
    assert pipeline.classifier.model.info.architecture == "a"
    assert store.state().expression == Slot(store.models()[0].id, on_trial=True)


@pytest.mark.parametrize("kind", [EXPRESSION, DETECTOR])
def test_a_model_on_trial_that_gives_results_is_good(store, camera, frames, kind):
    good, new = put(store, "good", kind=kind, prove=True), put(store, "new", kind=kind)
    camera(frames, live=True, pause_s=0.01)
    assert run(store, max_frames=0)
    assert store.state().slot(kind) == Slot(new, new, good)


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.mark.usefixtures("two_cores")
def test_it_is_good_while_the_run_goes_on(store, camera, frames, monkeypatch):
    monkeypatch.setattr(model_watch, "PROVED_S", 0.1)
    new = put(store, "new")
    camera(frames * 50, live=True, pause_s=0.02)
    settings = RunSettings(source="usb:0", headless=True, models=str(store.folder))
    with open_run(settings) as made:
        for _ in made.results():
            if not store.state().expression.on_trial:
                break
        assert store.state().expression == Slot(new, new, BUNDLED)
        # the detector goes to its thread only now
        assert made.pipeline._background is not None


@pytest.mark.usefixtures("two_cores")
def test_without_a_trial_the_detector_has_its_thread_at_once(store, camera, frames):
    camera(frames, live=True)
    with open_run(RunSettings(source="usb:0", headless=True, models=str(store.folder))) as made:
        assert made.pipeline._background is not None


def test_a_face_need_not_be_in_view(store, camera):
    new = put(store, "new")
    camera([np.zeros((120, 160, 3), np.uint8)] * 5)
    run(store)
    assert store.state().expression == Slot(new, new, BUNDLED)


def test_a_camera_that_is_lost_after_results_is_no_fault_of_the_model(store, camera, frames, monkeypatch):
    class Lost(FakeCamera):
        def read(self):
            frame = super().read()
            if frame is None:
                raise CameraError("unplugged")
            return frame

    new = put(store, "new")
    monkeypatch.setattr(running, "open_camera", lambda source, options: Lost(frames))
    with pytest.raises(CameraError):
        run(store, max_frames=0)
    assert store.state().expression == Slot(new, new, BUNDLED)


def test_a_damaged_picture_after_results_is_no_fault_of_the_model(store, tmp_path, frames):
    new = put(store, "new")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, frame in enumerate(frames):
        cv2.imwrite(str(pictures / f"{index}.png"), frame)
    (pictures / "9.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"9\.png is not a picture"):
        run(store, source=str(pictures), max_frames=0)
    assert store.state().expression == Slot(new, new, BUNDLED)


def test_while_no_frame_comes_the_try_is_not_noted(store, camera, frames, monkeypatch):
    def tries(wanted):
        deadline = time.monotonic() + 5
        while store.state().expression.tries != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        return store.state().expression.tries

    monkeypatch.setattr(model_watch, "IDLE_S", 0.05)
    monkeypatch.setattr(model_watch, "RESULT_TIMEOUT_S", 4.0)  # looked at ten times as often
    monkeypatch.setattr(model_watch, "PROVED_S", 60.0)
    put(store, "new")
    seen = []
    real = Classifier.__call__
    monkeypatch.setattr(Classifier, "__call__", lambda self, face: (seen.append(tries(1)), real(self, face))[1])
    camera(frames[:2])
    settings = RunSettings(source="demo", headless=True, models=str(store.folder))
    with open_run(settings) as made:
        results = made.results()
        for _ in range(2):
            next(results)
            assert tries(0) == 0
    assert set(seen) == {1}


def test_what_ends_in_an_error_of_the_model_is_a_try(store, camera, frames, monkeypatch):
    def fails(self, face):
        raise ModelError("the network fails")

    new = put(store, "new")
    camera(frames)
    monkeypatch.setattr(Classifier, "__call__", fails)
    with pytest.raises(ModelError, match="the network fails"):
        run(store)
    assert store.state().expression == Slot(new, on_trial=True, tries=1)


def test_three_starts_that_ended_early_put_the_last_good_one_back(store, camera, frames, monkeypatch):
    good, new = put(store, "good", prove=True), put(store, "new")

    def crash(self, face):
        raise RuntimeError("a crash")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "__call__", crash)
        for tries in range(1, MAX_TRIES + 1):
            camera(frames)
            with pytest.raises(RuntimeError):
                run(store)
            assert store.state().expression == Slot(new, good, BUNDLED, on_trial=True, tries=tries)
    reported = []
    camera(frames)
    results = run(ModelStore(store.folder), reported)
    assert len(results) == 3
    why = "3 starts in a row ended before it was proved"
    assert reported == [f"{new}-new: {why}; {good}-good is put back"]
    assert store.state().expression == Slot(good, good, BUNDLED, put_back=new, reason=why)


def test_a_run_tells_which_models_were_put_back_until_the_next_switch(store):
    def put_back():
        with open_run(RunSettings(source="demo", headless=True, models=str(store.folder))) as made:
            return made.meter.snapshot().put_back

    put(store, "new")
    assert put_back() == ()
    store.change(lambda state: state.with_slot(EXPRESSION, state.expression.failed("no result")))
    assert put_back() == (EXPRESSION,)
    put(store, "newer")
    assert put_back() == ()


def test_a_model_that_cannot_be_opened_is_a_try_each_time(store, monkeypatch):
    put(store, "new")

    def refuses(*arguments, **options):
        raise ModelError("refused by the runtime")

    with monkeypatch.context() as patch:
        patch.setattr(running, "open_classifier", refuses)
        for _ in range(MAX_TRIES):
            with pytest.raises(ModelError):
                run(store)
    reported = []
    run(store, reported)
    assert store.state().expression.in_use == BUNDLED and "the bundled one is put back" in reported[0]


def test_no_frames_judge_nothing(store, camera, monkeypatch):
    new = put(store, "new")
    for _ in range(MAX_TRIES + 2):
        camera([])
        assert run(store) == []
        assert store.state().expression == Slot(new, on_trial=True)

    def no_camera(source, options):
        raise CameraError("no camera")

    monkeypatch.setattr(running, "open_camera", no_camera)
    for _ in range(MAX_TRIES + 2):
        with pytest.raises(CameraError):
            run(store)
    assert store.state().expression == Slot(new, on_trial=True)


def test_a_try_stays_noted_until_the_models_are_open_and_from_the_first_frame_on(store, camera, frames, monkeypatch):
    put(store, "new")
    seen = []

    def note(where):
        seen.append((where, store.state().expression.tries))

    real_open, real_call = running.open_classifier, Classifier.__call__
    monkeypatch.setattr(running, "open_classifier", lambda *a, **o: (note("models"), real_open(*a, **o))[1])
    monkeypatch.setattr(Classifier, "__call__", lambda self, face: (note("frame"), real_call(self, face))[1])
    made = camera(frames)
    monkeypatch.setattr(running, "open_camera", lambda source, options: (note("camera"), made)[1])
    run(store, max_frames=1)
    assert list(dict.fromkeys(seen)) == [("models", 1), ("camera", 0), ("frame", 1)]
    assert store.state().expression.tries == 0


@pytest.mark.parametrize("kind", [EXPRESSION, DETECTOR])
def test_a_model_that_hangs_is_put_back_and_the_process_is_left(store, camera, frames, monkeypatch, kind):
    monkeypatch.setattr(model_watch, "RESULT_TIMEOUT_S", 2.0)  # which what does not hang keeps on a slow machine, too
    monkeypatch.setattr(model_watch, "GRACE_S", 0.1)
    good, new = put(store, "good", kind=kind, prove=True), put(store, "new", kind=kind)
    left = []

    def hang(self, *arguments):
        deadline = time.monotonic() + 30
        while not left and time.monotonic() < deadline:
            time.sleep(0.01)
        raise SystemExit  # the process would be gone

    hanging, method = (Classifier, "__call__") if kind == EXPRESSION else (LearnedDetector, "detect")
    monkeypatch.setattr(hanging, method, hang)
    camera(frames, live=True, pause_s=0.01)
    with pytest.raises(SystemExit):
        run(store, terminate=left.append)
    assert [str(error) for error in left] == [
        f"{new}-new: a frame had no result within 2 s; the last good model is put back, start again"
    ]
    slot = Slot(good, good, BUNDLED, put_back=new, reason="a frame had no result within 2 s")
    assert store.state().slot(kind) == slot


def test_a_loop_that_comes_back_in_time_ends_in_order(store, camera, frames, monkeypatch):
    monkeypatch.setattr(model_watch, "RESULT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(model_watch, "GRACE_S", 30.0)
    put(store, "new")
    left = []

    def slow(self, face):
        time.sleep(0.5)
        return np.full(7, 1 / 7, np.float32)

    monkeypatch.setattr(Classifier, "__call__", slow)
    camera(frames)
    with pytest.raises(ModelError, match=r"no result within 0\.2 s"):
        run(store, terminate=left.append)
    assert left == [] and store.state().expression.in_use == BUNDLED


def test_two_models_on_trial_are_judged_together(store, camera, frames, monkeypatch):
    monkeypatch.setattr(model_watch, "RESULT_TIMEOUT_S", 0.2)
    put(store, "a")
    put(store, "b", kind=DETECTOR)

    def slow(self, face):
        time.sleep(0.5)
        return np.full(7, 1 / 7, np.float32)

    monkeypatch.setattr(Classifier, "__call__", slow)
    camera(frames)
    with pytest.raises(ModelError, match=" and "):
        run(store)
    state = store.state()
    assert (state.expression.in_use, state.detector.in_use) == (BUNDLED, BUNDLED)


def test_a_model_that_was_chosen_meanwhile_is_not_judged(store, camera, frames):
    put(store, "old")
    made = []
    camera(frames)
    with open_run(RunSettings(source="demo", headless=True, models=str(store.folder))) as run:
        for _ in run.results():
            if not made:
                made.append(put(store, "chosen"))
    assert store.state().expression == Slot(made[0], on_trial=True)


def test_a_try_that_cannot_be_noted_is_not_made(store, camera, frames, monkeypatch):
    put(store, "good", prove=True)
    put(store, "new")

    def full(*arguments, **options):
        raise OutputError("state.json cannot be written: No space left on device")

    monkeypatch.setattr("maskfer_edge.model_store.atomic_file", full)
    camera(frames)
    reported = []
    settings = RunSettings(source="demo", headless=True, models=str(store.folder))
    with open_run(settings, reported.append) as made:
        assert made.pipeline.classifier.model.info.architecture == "good"
    assert (
        len(reported) == 1
        and "No space left on device; the last good models are used, not those on trial" in reported[0]
    )


def test_a_proof_that_cannot_be_noted_is_one_line_and_the_run_goes_on(store, camera, frames, monkeypatch):
    new = put(store, "new")
    camera(frames)
    reported = []
    settings = RunSettings(source="demo", headless=True, models=str(store.folder))

    def full(*arguments, **options):
        raise OutputError("state.json cannot be written: No space left on device")

    with open_run(settings, reported.append) as made:
        found = made.results()
        next(found)
        monkeypatch.setattr("maskfer_edge.model_store.atomic_file", full)
        assert len(list(found)) == len(frames) - 1
    assert len(reported) == 1 and f"what the trial of {new}-new showed cannot be noted" in reported[0]


def test_a_trial_of_a_damaged_model_is_none(store, camera, frames):
    new = put(store, "new")
    store.get(new).path.write_bytes(b"half")
    camera(frames)
    reported = []
    assert len(run(store, reported)) == 3
    assert len(reported) == 1 and "the expression model used instead is the bundled one" in reported[0]
    assert store.state().expression.on_trial


def test_a_store_that_is_not_there_is_one_line_and_the_run_goes_on(tmp_path):
    reported = []
    assert len(run(ModelStore(tmp_path / "none"), reported)) == 3
    assert len(reported) == 1 and "none, the folder of installed models, is not there" in reported[0]
    assert not (tmp_path / "none").exists()


# A network that hangs in native code: Python's other threads go on, but no exception ends it.
HANGS = """
import ctypes
from maskfer_edge import classifier, cli, model_watch
model_watch.RESULT_TIMEOUT_S, model_watch.GRACE_S = 0.5, 0.2
classifier.Classifier.__call__ = lambda self, face: ctypes.CDLL(None).sleep(60)
cli.main()
"""


def test_the_command_ends_with_status_1_when_the_network_hangs_in_native_code(store, tmp_path):
    new = put(store, "new")
    lines = tmp_path / "a.jsonl"
    options = ["--source", "demo", "--headless", "--models", str(store.folder), "--jsonl", str(lines)]
    command = [sys.executable, "-c", HANGS, "run", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith(
        f"maskfer-edge: {new}-new: a frame had no result within 0.5 s; the last good model is"
    )
    assert store.state().expression == Slot(put_back=new, reason="a frame had no result within 0.5 s")
    # and the next start works
    command = [sys.executable, "-c", "from maskfer_edge.cli import main; main()", "run", *options, "--overwrite"]
    done = subprocess.run([*command, "--max-frames", "3"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["frame"] for line in lines.read_text().splitlines()] == [0, 1, 2]


def test_a_crash_counts_as_a_try(store):
    put(store, "new")
    crash = "import ctypes\nfrom maskfer_edge import classifier, cli\n"
    crash += "classifier.Classifier.__call__ = lambda self, face: ctypes.string_at(0)\ncli.main()\n"
    command = [sys.executable, "-c", crash, "run", "--source", "demo", "--headless", "--models", str(store.folder)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode < 0
    assert store.state().expression.tries == 1
