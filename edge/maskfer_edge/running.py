"""A live run put together from its settings: camera, pipeline, outputs, watchdog."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from maskfer_edge.addresses import address, without_secrets
from maskfer_edge.board import Throttle
from maskfer_edge.browser import BrowserCamera, BrowserView
from maskfer_edge.browser_server import BrowserServer
from maskfer_edge.camera_devices import NetworkStream
from maskfer_edge.camera_list import pick_source
from maskfer_edge.cameras import Camera
from maskfer_edge.capture import Capture
from maskfer_edge.classifier import open_classifier
from maskfer_edge.detector import open_detector
from maskfer_edge.drawing import annotate
from maskfer_edge.errors import CameraError, InputError, OutputError
from maskfer_edge.health import HealthMeter
from maskfer_edge.learned_detector import LearnedDetector
from maskfer_edge.loop import Pipeline, results, spare_a_core
from maskfer_edge.metrics import MetricsServer
from maskfer_edge.model_file import DETECTOR, EXPRESSION
from maskfer_edge.model_store import ModelStore, Reporter, StoredModel
from maskfer_edge.model_watch import Terminate, TrialWatch, WatchedCapture, start
from maskfer_edge.mqtt import MqttOutput
from maskfer_edge.outputs import CsvFile, JsonLines, Output, VideoRecording, Window, has_display
from maskfer_edge.results import FrameResult
from maskfer_edge.run_settings import BROWSER_PORT, METRICS_PORT, RunSettings
from maskfer_edge.sources import CameraOptions, open_camera
from maskfer_edge.systemd import Notifier
from maskfer_edge.tracker import Tracker

Quiet = Callable[[], AbstractContextManager[None]]
BROWSER_SOURCE = "browser"
# Detections after which a face before a camera is believed.
CONFIRM = 2
# Ends of a run that no model is to blame for.
INNOCENT = (GeneratorExit, KeyboardInterrupt, CameraError, OutputError)


@dataclass
class Run:
    """A run that is ready to begin.

    Attributes:
        settings: What it was made from; the source is the one that was picked.
        capture: Reads the camera.
        pipeline: Makes results.
        outputs: Take them; `results` closes them, or else the end of the run does.
        meter: Counts.
        pulse: To be called after each frame.
    """

    settings: RunSettings
    capture: Capture
    pipeline: Pipeline
    outputs: list[Output]
    meter: HealthMeter
    pulse: Callable[[], None]

    def results(self) -> Iterator[FrameResult]:
        """Process the source to its end, once; see `loop.results`."""
        draw = partial(annotate, blur=self.settings.blur)
        outputs = list(self.outputs)
        self.outputs.clear()
        yield from results(self.capture, self.pipeline, outputs, self.settings.max_frames, self.meter, draw, self.pulse)


@contextmanager
def open_run(
    settings: RunSettings,
    report: Reporter = lambda text: None,
    terminate: Terminate = lambda error: None,
    quiet: Quiet = nullcontext,
) -> Iterator[Run]:
    """Open all that a run needs; it is closed again on leaving.

    Args:
        settings: Of the run.
        report: Receives lines for people: what was picked, lost, found again.
        terminate: Ends the process when an installed model on trial hangs the loop; see `model_watch.TrialWatch`.
        quiet: What native libraries are opened in, such as `quiet.quiet_native_libraries` for a command.

    Raises:
        MaskferError: If anything cannot be opened; nothing is left behind then.
    """
    with ExitStack() as stack:
        settings, watch = _with_installed(settings, report, terminate)
        with quiet():
            pipeline = open_pipeline(settings)
        stack.callback(pipeline.close)
        watch.models_opened()
        stack.push(lambda kind, error, trace: watch.close(innocent=kind is None or issubclass(kind, INNOCENT)))
        meter = HealthMeter(put_back=watch.put_back)
        server = None
        if settings.browser or settings.source == BROWSER_SOURCE:
            host, port = address(settings.browser or str(BROWSER_PORT), "browser", BROWSER_PORT)
            token = settings.token or os.environ.get("MASKFER_TOKEN", "")
            server = stack.enter_context(BrowserServer(host, port, token))
            # what is no terminal is a log, which others read
            report(f"live view: {server.url if sys.stderr.isatty() else without_secrets(server.url)}")
        if settings.source == "auto":
            settings = replace(settings, source=pick_source())
            report(f"source: {settings.source}")
        with quiet():
            camera, reopen = _open_camera(settings, server)
        retries = None if settings.retries < 0 else settings.retries
        # which closes the camera
        capture = stack.enter_context(WatchedCapture(watch, camera, reopen, retries=retries, report=report))
        if isinstance(camera, BrowserCamera):
            stack.callback(camera.close)  # its read ends by that alone
        for line in _ineffective_settings(settings, camera):
            report(line)
        if camera.live and camera.moving:
            pipeline.tracker.confirm = CONFIRM
        if camera.live:
            spare_a_core()
        # never for a file: its results are to be the same each time, whatever the machine does meanwhile
        if camera.live and camera.moving and len(os.sched_getaffinity(0)) > 1:
            # a trial watches the loop, which has to wait for the detector then
            watch.when_proved(pipeline.detect_in_background)
        outputs: list[Output] = []
        # if a later one cannot be opened, or no result is asked for, they leave nothing behind
        stack.callback(_close_unused, outputs)
        for open_output in _outputs(settings, camera, meter, server, report):
            outputs.append(open_output())
        if settings.metrics:
            host, port = address(settings.metrics, "metrics", METRICS_PORT)
            metrics_server = stack.enter_context(MetricsServer(meter.snapshot, port, host))
            if port == 0:
                report(f"metrics: port {metrics_server.port}")
        notifier = Notifier()
        stack.callback(notifier.stopping)
        pulse = _pulse(notifier, Throttle(report), pipeline, meter, watch)
        yield Run(settings, capture, pipeline, outputs, meter, pulse)


def open_pipeline(settings: RunSettings) -> Pipeline:
    """Detector, network and tracker by their settings. Raises MaskferError if one cannot be opened."""
    settings = with_installed_files(settings)
    model, detector_model = (Path(path) if path else None for path in (settings.model, settings.detector_model))
    detector = open_detector(
        settings.detector, settings.search_side, detector_model, settings.runtime, settings.threads
    )
    pipeline = Pipeline(
        detector,
        open_classifier(model, settings.runtime, settings.threads, mirror=settings.mirror),
        Tracker(min_confidence=settings.min_confidence),
        detect_every=settings.detection_interval,
        budget_ms=settings.budget_ms,
    )
    if settings.blur:
        pipeline.covers = True
        if isinstance(detector, LearnedDetector):
            detector.keep_small = True  # a face too small for an expression can still be recognised
    return pipeline


def with_installed_files(settings: RunSettings) -> RunSettings:
    """The settings with the files of installed models in them, but without a trial of these."""
    if not settings.models:
        return settings
    store = ModelStore(Path(settings.models))
    return _with_models(settings, store.choose_each(store.state(), _installed_kinds(settings)))


def _installed_kinds(settings: RunSettings) -> list[str]:
    """The kinds of models that are taken from the folder of installed ones: those of which no file is named."""
    own_detector = settings.detector != "learned" or settings.detector_model
    return [kind for kind, own in ((EXPRESSION, settings.model), (DETECTOR, own_detector)) if not own]


def _with_models(settings: RunSettings, chosen: Mapping[str, StoredModel | None]) -> RunSettings:
    paths = {kind: str(model.path) for kind, model in chosen.items() if model is not None}
    model, detector_model = paths.get(EXPRESSION, settings.model), paths.get(DETECTOR, settings.detector_model)
    return replace(settings, models="", model=model, detector_model=detector_model)


def _with_installed(settings: RunSettings, report: Reporter, terminate: Terminate) -> tuple[RunSettings, TrialWatch]:
    """The settings with the files of installed models in them, and what watches those on trial."""
    if not settings.models:
        return settings, TrialWatch(None, {}, terminate)
    chosen, watch = start(ModelStore(Path(settings.models), report), _installed_kinds(settings), terminate)
    return _with_models(settings, chosen), watch


def _open_camera(settings: RunSettings, server: BrowserServer | None) -> tuple[Camera, Callable[[], Camera] | None]:
    """The camera, and how it is opened again."""
    if settings.source == BROWSER_SOURCE:
        assert server is not None
        return BrowserCamera(server), None
    options = CameraOptions(settings.size_wh, settings.fps, settings.realtime, settings.loop)
    camera = open_camera(settings.source, options)
    # not quiet: once other threads run, the process's stderr is no longer to be redirected
    return camera, partial(open_camera, settings.source, options) if camera.endless else None


def _ineffective_settings(settings: RunSettings, camera: Camera) -> Iterator[str]:
    """Lines that name settings without effect."""
    by_page = isinstance(camera, BrowserCamera)
    if settings.token and not (settings.browser or by_page):
        yield "token has no effect without browser"
    if settings.append and not (settings.jsonl or settings.csv):
        yield "append has no effect without jsonl or csv"
    if settings.detector == "learned" and settings.search_side != RunSettings.search_side:
        yield "search_side has no effect on the learned detector"
    effective: tuple[str, ...] = () if by_page else ("size", "fps")
    if camera.file:
        effective = ("realtime", "loop")
    elif isinstance(camera, NetworkStream):
        effective = ("fps",)
    ineffective = [
        name for name in ("size", "fps", "realtime", "loop") if getattr(settings, name) and name not in effective
    ]
    if ineffective:
        yield f"no effect on {without_secrets(settings.source)}: {', '.join(ineffective)}"


def _outputs(
    settings: RunSettings, camera: Camera, meter: HealthMeter, server: BrowserServer | None, report: Reporter
) -> Iterator[Callable[[], Output]]:
    """Factories of the outputs that are configured."""
    for kind, path in ((JsonLines, settings.jsonl), (CsvFile, settings.csv)):
        if path:
            rotate_bytes = settings.rotate_mb * 1e6
            yield partial(kind, path, settings.overwrite, append=settings.append, rotate_bytes=rotate_bytes)
    if settings.record:
        yield partial(VideoRecording, Path(settings.record), camera.fps, settings.overwrite, live=camera.live)
    if server is not None:
        page = camera if isinstance(camera, BrowserCamera) else None
        yield partial(BrowserView, server, meter.snapshot, page)
    if settings.mqtt:
        yield partial(MqttOutput, settings.mqtt, meter.snapshot, source=settings.source, report=report)
    if not settings.headless:
        if has_display():
            yield Window
        else:
            report("No display here: running headless.")


def _close_unused(outputs: list[Output]) -> None:
    for output in outputs:
        output.close(failed=True)


def _pulse(
    notifier: Notifier, throttle: Throttle, pipeline: Pipeline, meter: HealthMeter, watch: TrialWatch
) -> Callable[[], None]:
    """What is done after each frame besides."""

    def pulse() -> None:
        watch.result(pipeline.classifier)
        if meter.frames == 1:
            notifier.ready()
        notifier.alive()
        pipeline.slowdown = throttle.factor()
        meter.warnings = throttle.warnings
        notifier.status(f"{meter.frames} frames")

    return pulse


def stream(source: str = "auto", *, report: Reporter = lambda text: None, **settings: Any) -> Iterator[FrameResult]:
    """Results of a camera, a file or a stream, one a frame.

        for result in maskfer_edge.stream("usb:0"):
            print([face.expression for face in result.faces])

    Args:
        source: As ``maskfer-edge run --source`` takes it.
        report: Receives lines for people.
        settings: Attributes of `run_settings.RunSettings`; no window is opened unless ``headless=False``.

    Raises:
        InputError: If a setting is unknown.
        MaskferError: What the camera, the pipeline or an output raised.
    """
    known = {field.name for field in fields(RunSettings)}
    if unknown := set(settings) - known:
        raise InputError(f"unknown setting {min(unknown)!r}; there are {', '.join(sorted(known))}")
    with open_run(RunSettings(**{"source": source, "headless": True, **settings}), report) as run:
        yield from run.results()
