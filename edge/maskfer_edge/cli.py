"""The command `maskfer-edge`."""

from __future__ import annotations

import inspect
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskfer_edge.addresses import without_secrets
from maskfer_edge.command_line import make_app, print_json, print_result, run_app, say
from maskfer_edge.model_commands import model_app
from maskfer_edge.run_settings import RunSettings
from maskfer_edge.settings_file import as_toml, read_settings

if TYPE_CHECKING:  # OpenCV and the runtime are loaded by the commands, so that --help needs neither
    from maskfer_edge.capture import Capture
    from maskfer_edge.errors import MaskferError
    from maskfer_edge.health import HealthMeter

app = make_app("Reads facial expressions on people who wear face masks, live or from files.")
app.add_typer(model_app, name="model")

# What `bench` measures unless told otherwise: a camera has no end.
BENCH_SOURCE = "demo"

ModelOption = Annotated[
    Path | None, typer.Option(help="Model file of converter quantize, or a bundled one: lean (default), large.")
]
DetectorOption = Annotated[str, typer.Option(help="What finds the faces: learned, haar or yunet.")]
DetectorModelOption = Annotated[
    Path | None, typer.Option(help="Model file of the learned detector, or YuNet's .onnx. Default: the bundled one.")
]
RuntimeOption = Annotated[str, typer.Option(help="TFLite runtime: auto, litert, litert-builtin or tflite-runtime.")]
MirrorOption = Annotated[
    bool,
    typer.Option("--mirror/--no-mirror", help="Ask about each face's mirror image as well: surer, twice the time."),
]
ConfidenceOption = Annotated[
    float, typer.Option(help="Share, 0 to 1, of which the network must be sure; else a face's expression is Unsure.")
]


def _flag(field: Field[Any], default: Any) -> inspect.Parameter:
    """One setting of a run as an option; what is not given is None, so that the file counts."""
    kind = {"str": str, "int": int, "float": float, "bool": bool}[str(field.type)]
    name = field.name.replace("_", "-")
    shown = f" Default: {default}." if kind is not bool and default not in ("", 0, -1) else ""
    option = typer.Option(
        f"--{name}/--no-{name}" if kind is bool else f"--{name}",
        help=field.metadata["help"] + shown,
        show_default=False,
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def takes_run_settings(**defaults: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each of `RunSettings`, and --config; its help names `defaults` that are its own."""

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        parameters = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters += [_flag(field, defaults.get(field.name, field.default)) for field in fields(RunSettings)]

        def called(**given: Any) -> None:
            command(**given)

        called.__doc__ = command.__doc__
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return with_options


ConfigOption = Annotated[Path | None, typer.Option(help="TOML file of the settings below; flags win.")]


@app.command("run")
@takes_run_settings()
def run_command(config: ConfigOption = None, **given: Any) -> None:
    """Find faces, classify their expressions, and show or write the results.

    A file is processed whole; of a live camera only the newest frame counts, and a camera that is lost is opened again.
    Nothing is stored or sent unless an option asks for it. Exit status 1 if a file or folder shows no face at all.
    """
    from maskfer_edge.quiet import quiet_native_libraries
    from maskfer_edge.running import open_run

    settings = run_settings(config, given)
    with _Signals() as signals, open_run(settings, say, _terminate, quiet_native_libraries) as run:
        signals.attach(run.capture)
        for _ in run.results():
            pass
    _say_summary(run.meter, run.settings)
    # with --loop it has no end either
    has_end = run.capture.camera.file and not run.settings.loop
    if signals.received and has_end:
        say(f"maskfer-edge: stopped before the end of {without_secrets(run.settings.source)}")
        raise typer.Exit(130)
    if has_end and not run.meter.frames_with_faces:
        frames = _with_noun(run.meter.frames, "frame")
        say(f"maskfer-edge: no face found in {frames} of {without_secrets(run.settings.source)}")
        raise typer.Exit(1)


@app.command("config")
@takes_run_settings()
def config_command(config: ConfigOption = None, **given: Any) -> None:
    """Print the settings that `run` would have with the same options, as a file for --config."""
    print_result(as_toml(run_settings(config, given)).rstrip())


@app.command("cameras")
def cameras_command(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the cameras of this machine, as --source takes them. Exit status 1 if there is none."""
    from maskfer_edge.camera_list import list_cameras

    found = list_cameras()
    if json_:
        print_json({"cameras": [asdict(camera) for camera in found]})
    for camera in [] if json_ else found:
        print_result(f"{camera.source:12} {camera.name}  {camera.detail}".rstrip())
    if not found:
        say("maskfer-edge: no camera found; maskfer-edge doctor says what to do")
        raise typer.Exit(1)


@app.command("doctor")
def doctor_command(
    model: ModelOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at everything that maskfer needs: ok, or what to do. Exit status 1 if something is missing."""
    from maskfer_edge.doctor import examine
    from maskfer_edge.quiet import quiet_native_libraries

    with quiet_native_libraries():
        findings = examine(model)
    if json_:
        print_json({"findings": [asdict(finding) for finding in findings]})
    for finding in [] if json_ else findings:
        print_result(f"{finding.mark:4} {finding.what}: {finding.found}")
        if finding.remedy:
            print_result(f"       {finding.remedy}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


@app.command("bench")
@takes_run_settings(source=BENCH_SOURCE)
def bench_command(
    config: ConfigOption = None,
    against: Annotated[
        str | None, typer.Option(help="naive: the paper's loop, one thread, on the same frames.")
    ] = None,
    naive_model: Annotated[Path | None, typer.Option(help="The paper's network in float, for --against naive.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **given: Any,
) -> None:
    """Measure a run on this machine: frames a second, latency by stage, memory, start, CPU."""
    from maskfer_edge.bench import bench
    from maskfer_edge.errors import InputError
    from maskfer_edge.quiet import quiet_native_libraries

    if against not in (None, "naive"):
        raise InputError(f"--against takes naive; received {against!r}")
    if (against is None) != (naive_model is None):
        raise InputError(
            "--against naive and --naive-model go together; make the model with: trainer fit DATA --arch paper --out "
            "paper, and converter quantize paper/model.keras --calibrate DATA --format float --force -o naive.tflite"
        )
    settings = run_settings(config, given)
    if settings.source == "auto":
        settings = replace(settings, source=BENCH_SOURCE)
    with quiet_native_libraries():
        report = bench(settings, naive_model)
    if json_:
        print_json(report)
        return
    count, width, height = report.frames
    warm = f", {report.celsius:.0f} °C" if report.celsius is not None else ""
    print_result(f"{report.cpu}{f', {report.governor}' if report.governor else ''}{warm}")
    print_result(
        f"{report.source}: {_with_noun(count, 'frame')} of {width}×{height}, faces in each: {report.faces_a_frame:g}"
    )
    print_result(f"{'frames a second':26}{report.fps:9.1f}")
    if report.naive_fps:
        print_result(
            f"{'  of the naive loop':26}{report.naive_fps:9.1f}  ({report.fps / report.naive_fps:.1f} times slower)"
        )
    for stage, latency in report.latency_ms.items():
        print_result(f"{stage + ' ms, p50 and p95':26}{latency.p50:9.2f}{latency.p95:9.2f}")
    print_result(f"{'start to first result':26}{report.first_result_s:9.2f} s")
    print_result(f"{'resident memory':26}{report.memory_mb:9.1f} MB")
    if report.cpu_share is not None:
        print_result(
            f"{'CPU in its own time':26}{report.cpu_share:9.0%} of a core, at {report.realtime_fps:g} frames a second"
        )


def run_settings(config: Path | None, given: dict[str, Any]) -> RunSettings:
    """Settings of a run by a file and by flags, which win."""
    settings = RunSettings(**read_settings(RunSettings, config, given))
    settings.check_inputs_kept({"settings": str(config or "")})
    return settings


@app.command("predict")
def predict_command(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    model: ModelOption = None,
    detector: DetectorOption = "learned",
    detector_model: DetectorModelOption = None,
    crop: Annotated[bool, typer.Option("--crop", help="The pictures are face crops: look for no faces.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    runtime: RuntimeOption = "auto",
    mirror: MirrorOption = True,
    min_confidence: ConfidenceOption = 0.0,
) -> None:
    """Classify the expression of every face in each IMAGE; for folders and videos see run --source.

    Exit status 1 if a picture cannot be read (the others are looked at all the same), or no face is found in any.
    """
    from maskfer_edge.classifier import open_classifier
    from maskfer_edge.decoding import PICTURE_SUFFIXES, read_picture
    from maskfer_edge.detector import Detection, FakeDetector, open_detector
    from maskfer_edge.errors import InputError
    from maskfer_edge.loop import Pipeline
    from maskfer_edge.quiet import quiet_native_libraries
    from maskfer_edge.tracker import Tracker

    if crop and (detector != "learned" or detector_model is not None):
        raise InputError("with --crop nothing is looked for; leave out --detector and --detector-model")
    with quiet_native_libraries():
        classifier = open_classifier(model, runtime, mirror=mirror)
        face_detector = FakeDetector() if crop else open_detector(detector, model_path=detector_model, runtime=runtime)
    results: dict[str, Any] = {}
    found = unreadable = 0
    for path in images:
        try:
            with quiet_native_libraries():
                image = read_picture(path)
        except InputError as error:
            may_be_played = path.is_dir() or (path.is_file() and path.suffix.lower() not in PICTURE_SUFFIXES)
            where = shlex.quote(str(path))
            hint = f"; for folders and videos: maskfer-edge run --source {where}" if may_be_played and not crop else ""
            say(f"maskfer-edge: {error}{hint}")
            unreadable += 1
            continue
        height, width = image.shape[:2]
        if crop:
            face_detector = FakeDetector([Detection((0, 0, width, height), 1.0)])
        # a tracker of its own: faces of different pictures have nothing to do with each other
        tracker = Tracker(min_confidence=min_confidence)
        faces = Pipeline(face_detector, classifier, tracker, margin=0.0 if crop else None).faces(image, 0)
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
    if results and not found:
        say("maskfer-edge: no face found; if the pictures are face crops already, give --crop")
    if unreadable or not found:
        raise typer.Exit(1)


class _Signals:
    """SIGINT, SIGTERM and a terminal that hangs up end a run in order: with files finished and the camera free.

    Attributes:
        received: Whether one of them came.
    """

    def __init__(self) -> None:
        self._capture: Capture | None = None
        self.received = False

    def __enter__(self) -> _Signals:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's wish
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def attach(self, capture: Capture) -> None:
        """From now on end its frames. Before there is one, KeyboardInterrupt closes again what was opened."""
        self._capture = capture
        if self.received:
            capture.stop()

    def _handle(self, number: int, frame: object) -> None:
        if self.received:  # a second one must not cut the closing short
            return
        self.received = True
        if self._capture is None:
            raise KeyboardInterrupt
        self._capture.stop()


def _terminate(error: MaskferError) -> None:
    """End the process from a thread beside the main one, which hangs in native code and never sees an exception."""
    say(f"maskfer-edge: {error}")
    os._exit(1)


def _say_summary(meter: HealthMeter, settings: RunSettings) -> None:
    health = meter.snapshot()
    rate = health.frames / health.seconds if health.seconds else 0.0
    passed_over = f", {health.dropped} passed over for newer ones" if health.dropped else ""
    losses = f", camera lost {_with_noun(health.losses, 'time')}" if health.losses else ""
    processed = f"{_with_noun(health.frames, 'frame')} in {health.seconds:.1f} s ({rate:.0f} a second)"
    say(f"{without_secrets(settings.source)}: {processed}{passed_over}{losses}")
    shown = ", ".join(f"{name} {count}" for name, count in meter.expressions.most_common())
    say(f"  faces in {_with_noun(meter.frames_with_faces, 'frame')}{': ' + shown if shown else ''}")
    for name, drops in health.output_drops.items():
        if drops:
            say(f"  {name} missed {_with_noun(drops, 'result')}")
    for path in (settings.jsonl, settings.csv, settings.record):
        if path and health.frames and Path(path).exists():
            say(f"  wrote {path}")


def _with_noun(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def main() -> None:
    """Entry point of `maskfer-edge`."""
    run_app(app, "maskfer-edge")
