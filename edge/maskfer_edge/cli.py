"""The command `maskfer-edge`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskfer_edge.command_line import make_app, print_json, print_result, run_app, say

if TYPE_CHECKING:  # OpenCV and the runtime are loaded by the commands, so that --help needs neither
    from maskfer_edge.capture import Capture
    from maskfer_edge.health import HealthMeter
    from maskfer_edge.outputs import Output

app = make_app("Reads facial expressions on people who wear face masks, live or from files.")

ModelOption = Annotated[Path | None, typer.Option(help="Model file of converter quantize. Default: the bundled one.")]
DetectorOption = Annotated[str, typer.Option(help="What finds the faces: haar.")]
RuntimeOption = Annotated[str, typer.Option(help="TFLite runtime: auto, litert, litert-builtin or tflite-runtime.")]
MirrorOption = Annotated[
    bool,
    typer.Option("--mirror/--no-mirror", help="Ask about each face's mirror image as well: surer, twice the time."),
]
ConfidenceOption = Annotated[
    float, typer.Option(help="Share, 0 to 1, of which the network must be sure; else a face's expression is Unsure.")
]


@app.callback()
def _edge() -> None:
    pass


@app.command("run")
def run_command(
    source: Annotated[str, typer.Option(help="A video file, a picture, a folder, usb:N, picamera or demo.")],
    model: ModelOption = None,
    detector: DetectorOption = "haar",
    headless: Annotated[bool, typer.Option("--headless", help="Open no window.")] = False,
    jsonl: Annotated[
        str | None, typer.Option(help="Write one line of JSON a frame to this file; - for stdout.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write the annotated video to this file (.mp4 or .avi).")] = None,
    max_frames: Annotated[int, typer.Option(min=0, help="End after so many frames; 0: at the source's end.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")] = False,
    runtime: RuntimeOption = "auto",
    mirror: MirrorOption = True,
    min_confidence: ConfidenceOption = 0.0,
) -> None:
    """Find faces, classify their expressions, and show or write the results.

    A file is processed whole; of a live camera only the newest frame counts. Nothing is stored
    unless --jsonl or --record asks for it, and nothing is sent anywhere. Exit status 1 if a file
    or folder shows no face at all.
    """
    from maskfer_edge.cameras import open_camera
    from maskfer_edge.capture import Capture
    from maskfer_edge.classifier import open_classifier
    from maskfer_edge.detector import open_detector
    from maskfer_edge.loop import Pipeline, run_loop
    from maskfer_edge.outputs import JsonLines, VideoRecording, Window, has_display
    from maskfer_edge.quiet import quiet_native_libraries
    from maskfer_edge.tracker import Tracker

    with ExitStack() as stack:
        with quiet_native_libraries():
            tracker = Tracker(min_confidence=min_confidence)
            pipeline = Pipeline(open_detector(detector), open_classifier(model, runtime, mirror=mirror), tracker)
            camera = open_camera(source)
        capture = stack.enter_context(Capture(camera))  # which closes the camera
        outputs: list[Output] = []
        with _closed_on_failure(outputs):
            if jsonl is not None:
                outputs.append(JsonLines(jsonl, overwrite))
            if record is not None:
                outputs.append(VideoRecording(record, camera.fps, overwrite))
            if not headless and has_display():
                outputs.append(Window())
        if not headless and not has_display():
            say("No display here: running headless.")
        with _ends_on_signals(capture) as received:
            summary = run_loop(capture, pipeline, outputs, max_frames)
    _say_summary(summary, source, jsonl, record)
    if received and not camera.live:
        say(f"maskfer-edge: stopped before the end of {source}")
        raise typer.Exit(130)
    if not camera.live and not summary.frames_with_faces:
        say(f"maskfer-edge: no face found in {summary.frames} frames of {source}")
        raise typer.Exit(1)


@app.command("predict")
def predict_command(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    model: ModelOption = None,
    detector: DetectorOption = "haar",
    crop: Annotated[bool, typer.Option("--crop", help="The pictures are face crops: look for no faces.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    runtime: RuntimeOption = "auto",
    mirror: MirrorOption = True,
    min_confidence: ConfidenceOption = 0.0,
) -> None:
    """Say the expression of every face in each IMAGE.

    Exit status 1 if a picture cannot be read, or no face is found in any.
    """
    from maskfer_edge.classifier import open_classifier
    from maskfer_edge.decoding import read_picture
    from maskfer_edge.detector import Detection, FakeDetector, open_detector
    from maskfer_edge.loop import Pipeline
    from maskfer_edge.quiet import quiet_native_libraries
    from maskfer_edge.tracker import Tracker

    with quiet_native_libraries():
        classifier = open_classifier(model, runtime, mirror=mirror)
        finder = FakeDetector() if crop else open_detector(detector)
    results: dict[str, Any] = {}
    found = 0
    for path in images:
        with quiet_native_libraries():
            image = read_picture(path)
        height, width = image.shape[:2]
        if crop:
            finder = FakeDetector([Detection((0, 0, width, height), 1.0)])
        # a tracker of its own: faces of different pictures have nothing to do with each other
        tracker = Tracker(min_confidence=min_confidence)
        faces = Pipeline(finder, classifier, tracker, margin=0.0 if crop else None).faces(image, 0)
        found += len(faces)
        results[str(path)] = faces
        if not json_:
            for face in faces:
                x, y, w, h = face.box
                print_result(f"{path}  {face.expression:<8} {face.confidence:4.0%}  at {x},{y} {w}×{h}")
            if not faces:
                say(f"{path}: no face found")
    if json_:
        print_json({path: [vars(face) for face in faces] for path, faces in results.items()})
    if not found:
        say("maskfer-edge: no face found; if the pictures are face crops already, give --crop")
        raise typer.Exit(1)


@contextmanager
def _closed_on_failure(outputs: list[Output]) -> Iterator[None]:
    """If a later output cannot be opened, the earlier ones leave nothing behind."""
    try:
        yield
    except BaseException:
        for output in outputs:
            output.close(failed=True)
        raise


@contextmanager
def _ends_on_signals(capture: Capture) -> Iterator[list[int]]:
    """SIGINT and SIGTERM end the loop in order, with files finished and the camera free."""
    received: list[int] = []

    def end(number: int, _: object) -> None:
        received.append(number)
        capture.stop()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_summary(summary: HealthMeter, source: str, jsonl: str | None, record: Path | None) -> None:
    rate = summary.frames / summary.seconds if summary.seconds else 0.0
    passed_over = summary.snapshot().dropped
    dropped = f", {passed_over} passed over for newer ones" if passed_over else ""
    say(f"{source}: {summary.frames} frames in {summary.seconds:.1f} s ({rate:.0f} a second){dropped}")
    shown = ", ".join(f"{name} {count}" for name, count in summary.expressions.most_common())
    say(f"  faces in {summary.frames_with_faces} frames{': ' + shown if shown else ''}")
    for path in (jsonl, record):
        if path is not None and Path(path).exists():
            say(f"  wrote {path}")


def main() -> None:
    """Entry point of `maskfer-edge`."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_app(app, "maskfer-edge")
