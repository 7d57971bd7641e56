"""The command `trainer`."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from maskfer_edge.command_line import make_app, print_json, print_result, run_app, say
from maskfer_edge.dataset import dataset_info
from maskfer_edge.dependencies import extra
from maskfer_edge.errors import InputError
from maskfer_edge.files import check_free, whole_file
from maskfer_edge.quiet import quiet_native_libraries
from maskfer_trainer.checks import TEACHER, check_network, check_run

# What Keras takes as a seed.
MOST_SEED = 2**32 - 1

app = make_app("Builds masked data sets out of bare faces, and trains and evaluates expression networks.")


@app.callback()
def _trainer() -> None:
    pass


@app.command("build-dataset")
def build_dataset_command(
    source: Annotated[Path, typer.Argument(help="Zip or folder with train/<class>/ and test/<class>/, or <class>/.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    kinds: Annotated[
        list[str] | None,
        typer.Option("--mask", help="Mask kind to use (see: trainer masks); may be given several times. Default: all."),
    ] = None,
    templates: Annotated[
        list[Path] | None,
        typer.Option("--template", help="Own mask: PNG with alpha, points in a JSON file beside it. May be repeated."),
    ] = None,
    worn: Annotated[
        list[str] | None,
        typer.Option(help="properly, under-nose or chin; may be given several times. Default: properly."),
    ] = None,
    variants: Annotated[int, typer.Option(help="Masked pictures of each training face; test faces get one.")] = 1,
    fit: Annotated[str, typer.Option(help="mesh: hugs turned heads too. homography: the paper's.")] = "mesh",
    plain: Annotated[bool, typer.Option("--plain", help="Masks as drawn: one look, no light of the picture.")] = False,
    protocol: Annotated[
        str, typer.Option(help="all: each picture is a face crop. detected: faces are looked for, as in the paper.")
    ] = "all",
    faces: Annotated[str, typer.Option(help="With detected faces: largest, or all of a picture.")] = "largest",
    keep_bare: Annotated[bool, typer.Option(help="Copy the bare pictures too; fit and evaluate need them.")] = True,
    ground_truth: Annotated[bool, typer.Option("--ground-truth", help="Write what each mask covers, as PNG.")] = False,
    coco: Annotated[bool, typer.Option("--coco", help="Write boxes and mask outlines as COCO JSON.")] = False,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Leave out test pictures that stand in train, exactly or nearly.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the choice of masks, and of the split where there is none.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    scheduler: Annotated[
        str | None, typer.Option(help="Let the workers of this Dask scheduler do it, such as tcp://HOST:8786.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Put a mask on every face of SOURCE and write a data set."""
    with extra("trainer"):
        from maskfer_trainer.builder import build_dataset, unfinished
        from maskfer_trainer.masks import KINDS
        from maskfer_trainer.picture import BuildSettings
        from maskfer_trainer.progress import progress_bar
        from maskfer_trainer.templates import load_template

    if scheduler is not None and workers:
        raise InputError("--workers is of this machine, and --scheduler has its own; leave one out")
    own = tuple(load_template(path) for path in templates or ())
    settings = BuildSettings(
        kinds=tuple(kinds) if kinds else () if own else tuple(KINDS),
        templates=own,
        worn=tuple(worn) if worn else ("properly",),
        fit=fit,
        plain=plain,
        variants=variants,
        protocol=protocol,
        faces=faces,
        keep_bare=keep_bare,
        ground_truth=ground_truth,
        coco=coco,
        dedupe=dedupe,
        seed=seed,
    )
    with progress_bar("Masking faces") as progress, _going_on(unfinished(out), "the same command"):
        report = build_dataset(source, out, settings, workers, progress, scheduler)
    if json_:
        print_json(report)
        return
    print_result(f"{report.pictures} faces masked in {report.seconds:.0f} s, {report.skipped} files skipped: {out}")
    for reason, count in report.reasons.items():
        print_result(f"  skipped {count} × {reason}")
    print_result(
        f"  {report.duplicates_in_test} test faces also stand in train, {report.near_duplicates_in_test} more "
        f"with small changes ({'left out' if dedupe else 'marked in the manifest; --dedupe leaves them out'})"
    )
    print_result(f"  look at {out / 'contact-sheet.png'}")


@app.command("masks")
def masks_command(
    preview: Annotated[Path | None, typer.Option(help="Draw them all on a face, into this PNG.")] = None,
    on: Annotated[Path | None, typer.Option(help="Photograph to draw them on. Default: a drawn face.")] = None,
    templates: Annotated[list[Path] | None, typer.Option("--template", help="An own mask to show as well.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing preview.")] = False,
) -> None:
    """List the kinds of masks, and show what they look like."""
    with extra("trainer"):
        from maskfer_trainer.contact_sheet import preview_sheet
        from maskfer_trainer.masks import KINDS
        from maskfer_trainer.templates import load_template

    if on is not None and preview is None:
        raise InputError("--on needs --preview FILE.png, the picture to make")
    kinds = [*KINDS.values(), *(load_template(path) for path in templates or ())]
    if preview is not None:
        check_free(preview, overwrite)
        _check_png("--preview", preview)
        sheet = preview_sheet(kinds, on)
        with whole_file(preview, overwrite) as partial:
            sheet.save(partial, "PNG")
    width = max(len(kind.name) for kind in kinds)
    for kind in kinds:
        print_result(f"{kind.name:{width}}  {kind.about}")
    if preview is not None:
        print_result(f"look at {preview}")


@app.command("networks")
def networks_command() -> None:
    """List the networks, with their parameters and multiply-accumulates a face."""
    _check_backend()
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.networks import ARCHITECTURES, multiply_accumulates

        width = max(map(len, ARCHITECTURES))
        for name, make in ARCHITECTURES.items():
            network = make()
            about = (make.__doc__ or "").partition("\n")[0].partition(":")[0]
            print_result(
                f"{name:{width}}  {network.count_params() / 1e6:5.2f} M parameters  "
                f"{multiply_accumulates(network) / 1e6:5.1f} M multiply-accumulates  {about}"
            )


@app.command("fit")
def fit_command(
    dataset: Annotated[Path, typer.Argument(help="Data set made by build-dataset.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    config: Annotated[Path | None, typer.Option(help="TOML file of the settings below; flags win.")] = None,
    arch: Annotated[str | None, typer.Option(help="Network, see: trainer networks. Default: lean.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the faces. Default: 30; paper: 250.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation. Default: 0.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Faces a step. Default: 128.")] = None,
    bare_share: Annotated[
        float | None, typer.Option(help="Share of faces shown without mask. Default: 0.3; paper: 0.")
    ] = None,
    validation_share: Annotated[
        float | None, typer.Option(help="Share of the training part kept for validation. Default: 0.05.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest. Default: 0.002; paper: 0.0005.")] = None,
    augmentation: Annotated[
        float | None, typer.Option(help="Strength of random changes to faces, 0 to 1. Default: 1.")
    ] = None,
    cutout: Annotated[
        float | None, typer.Option(help="Share of faces with a grey patch over the lower half. Default: 0.25.")
    ] = None,
    mixup: Annotated[
        float | None, typer.Option(help="Parameter of mixup's Beta distribution. Default: 0, none.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of the target spread over all classes. Default: 0.1; paper: 0.")
    ] = None,
    balance: Annotated[
        float | None, typer.Option(help="0: each face weighs the same; 1: each class. Default: 0.25; paper: 0.")
    ] = None,
    teachers: Annotated[
        list[Path] | None,
        typer.Option("--teacher", help="Learn also from what this .keras says of the faces. May be repeated."),
    ] = None,
    teacher_share: Annotated[
        float | None, typer.Option(help="Share of the target that teachers' scores make up. Default: 0.5.")
    ] = None,
    least_recall: Annotated[
        float | None, typer.Option(help="Lift rare classes until so much of each is found. Default: 0, none lifted.")
    ] = None,
    leave_out: Annotated[
        str | None, typer.Option(help="Part of the faces to leave out, such as 1/4, for this network to teach them.")
    ] = None,
    initial: Annotated[Path | None, typer.Option(help="Start from the weights of this .keras.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    distribute: Annotated[
        bool, typer.Option("--distribute", help="Split each batch over all devices (KERAS_BACKEND=jax).")
    ] = False,
) -> None:
    """Train a network on the faces of DATASET, with live curves in OUT/curves.png."""
    given = dict(locals())
    _check_backend()
    _check_given(dataset, out, resume, teachers, initial)
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.fitting import fit
        from maskfer_trainer.settings import FitSettings, fit_settings

    settings = fit_settings(config, {field.name: given[field.name] for field in fields(FitSettings)})
    with redirect_stdout(sys.stderr), _going_on(out, "--resume"):  # where Keras says how far it is
        model = fit(
            dataset,
            out,
            settings,
            initial=initial,
            teachers=teachers or (),
            resume=resume,
            distribute=distribute,
            say=say,
            verbose=1 if sys.stderr.isatty() else 2,
        )
    print_result(str(model))


@app.command("fit-together")
def fit_together_command(
    dataset: Annotated[Path, typer.Argument(help="Data set made by build-dataset.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    networks: Annotated[
        list[str], typer.Option("--network", help="Architecture and seed, such as lean:0. May be repeated.")
    ],
    teachers: Annotated[
        list[Path] | None, typer.Option("--teacher", help="Learn also from what this .keras says. May be repeated.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of the settings of fit; flags win.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the faces. Default: 30.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Faces a step. Default: 128.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest. Default: 0.002.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what OUT holds.")] = False,
) -> None:
    """Train several networks beside each other on one GPU, all of it there (KERAS_BACKEND=jax)."""
    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    _check_backend()
    if os.environ.get("KERAS_BACKEND") != "jax":
        raise InputError("fit-together trains by JAX; install jax and run it with KERAS_BACKEND=jax")
    _check_given(dataset, out, resume, teachers)
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.fit_together import fit_together
        from maskfer_trainer.settings import fit_settings
    settings = fit_settings(config, given)
    with _going_on(out, "--resume"):
        models = fit_together(dataset, out, networks, settings, teachers=teachers or (), resume=resume, say=say)
    for model in models:
        print_result(str(model))


@app.command("build-scenes")
def build_scenes_command(
    portraits: Annotated[Path, typer.Argument(help="Folder of portraits with boxes.csv.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    photos: Annotated[
        Path | None, typer.Option(help="Folder of photographs with boxes.csv; only its tuning half is used.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Scenes to make.")] = 6000,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of all random choices.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make scenes to train a face detector on: portraits, half of them masked, in PHOTOS and on drawn backgrounds."""
    with extra("trainer"):
        from maskfer_trainer.progress import progress_bar
        from maskfer_trainer.scenes import SceneSettings, build_scenes

    with _ended_in_order(), progress_bar("Making scenes") as progress:
        said = build_scenes(portraits, out, SceneSettings(count, seed), photos, workers, progress, say)
    if json_:
        print_json(said)
        return
    faces = ", ".join(f"{number} {label}" for label, number in said["faces"].items())
    made_of = f"{said['portraits']} portraits, {said['photos']} photographs"
    print_result(f"{out}: {said['count']} scenes of {made_of}: {faces}")
    if not said["validation_apart"]:
        say(f"{out} has too few portraits or photographs to keep some for validation alone: figures on it are too good")


@app.command("fit-detector")
def fit_detector_command(
    scenes: Annotated[Path, typer.Argument(help="Scenes made by build-scenes.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    epochs: Annotated[int, typer.Option(help="Passes over the scenes.")] = 40,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of weights, order and changes.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Scenes a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Highest.")] = 2e-3,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make batches; 0: one less than cores.")] = 0,
    initial: Annotated[Path | None, typer.Option(help="Start from the weights of this .keras.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
) -> None:
    """Train the face detector on SCENES, with live curves in OUT/curves.png."""
    _check_backend()
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.fit_detector import DetectorSettings, fit_detector
    settings = DetectorSettings(epochs, seed, batch_size, learning_rate)
    with _going_on(out, "--resume"):
        model = fit_detector(scenes, out, settings, initial=initial, resume=resume, workers=workers, say=say)
    print_result(str(model))


@app.command("fit-rescorer")
def fit_rescorer_command(
    detector: Annotated[Path, typer.Argument(help="The detector's .tflite.")],
    scenes: Annotated[Path, typer.Argument(help="Scenes made by build-scenes.")],
    photos: Annotated[Path, typer.Argument(help="Folder of photographs with boxes.csv; only its tuning half is used.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    draws: Annotated[int, typer.Option(help="Parts to take of each photograph.")] = 60,
    epochs: Annotated[int, typer.Option(help="Each of 240 batches of 256.")] = 14,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of parts, weights, order and changes.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="Highest.")] = 3e-3,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
) -> None:
    """Train the network that looks again at what DETECTOR finds, with live curves in OUT/curves.png."""
    _check_backend()
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.fit_rescorer import RescorerSettings, fit_rescorer
    settings = RescorerSettings(draws, epochs, seed=seed, learning_rate=learning_rate)
    with redirect_stdout(sys.stderr), _going_on(out, "--resume"):  # where Keras says how far it is
        verbose = 1 if sys.stderr.isatty() else 2
        model = fit_rescorer(detector, scenes, photos, out, settings, resume=resume, verbose=verbose, say=say)
    print_result(str(model))


@app.command("evaluate-detector")
def evaluate_detector_command(
    detector: Annotated[str, typer.Argument(help="haar, learned, yunet, or a model file of the learned detector.")],
    photos: Annotated[Path, typer.Argument(help="Folder of photographs with boxes.csv.")],
    detector_model: Annotated[Path | None, typer.Option(help="YuNet's .onnx.")] = None,
    half: Annotated[str, typer.Option(help="all, or the half named tuning or testing.")] = "all",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the learned detector; default: the file's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Draw the precision-recall curve into this PNG.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how many faces of PHOTOS a detector finds, masked and bare, by size, with false boxes and milliseconds."""
    with extra("trainer"):
        from maskfer_edge.detector import DETECTORS, open_detector
        from maskfer_edge.learned_detector import LearnedDetector
        from maskfer_trainer import detector_evaluation
        from maskfer_trainer.progress import progress_bar

    if half not in ("all", "tuning", "testing"):
        raise InputError(f"--half takes all, tuning or testing; received {half!r}")
    if out is not None:
        check_free(out, overwrite)
        _check_png("--out", out)
    with quiet_native_libraries():
        if detector in DETECTORS:
            finder = open_detector(detector, model_path=detector_model)
        elif not Path(detector).exists():
            raise InputError(f"{detector} cannot be read; give {', '.join(DETECTORS)} or a model file")
        else:
            finder = open_detector("learned", model_path=Path(detector))
    if threshold is not None:
        if not isinstance(finder, LearnedDetector):
            raise InputError("--threshold is of the learned detector alone")
        finder.score_threshold = threshold
    found = detector_evaluation.read_photos(photos)
    chosen = [photo for photo in found if half in ("all", detector_evaluation.half(photo.path.name))]
    with progress_bar("Looking for faces") as progress:
        evaluation = detector_evaluation.evaluate_detector(finder, chosen, progress=progress)
    if out is not None:
        detector_evaluation.draw_curve(evaluation, out, overwrite)
    if json_:
        print_json(evaluation)
    else:
        print_result(detector_evaluation.as_text(evaluation))


@app.command("evaluate")
def evaluate_command(
    model: Annotated[Path, typer.Argument(help="A .keras of trainer fit or a .tflite of converter quantize.")],
    dataset: Annotated[Path, typer.Argument(help="Data set made by build-dataset.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to make, for evaluation.json and confusion matrices.")
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror/--no-mirror", help="Ask about each face's mirror image as well, as at the edge.")
    ] = True,
    through_detector: Annotated[
        bool, typer.Option("--through-detector", help="Also place the faces in pictures, and find them as at the edge.")
    ] = False,
    detector: Annotated[str | None, typer.Option(help="By which detector: learned or haar. Default: learned.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Evaluate MODEL on the test split of DATASET, masked and bare side by side."""
    if detector is not None and not through_detector:
        raise InputError("--detector goes with --through-detector; give both, or neither")
    if model.suffix == ".keras":
        _check_backend()
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.evaluation import as_text, evaluate
        from maskfer_trainer.progress import progress_bar
    # outside, as what keeps native libraries quiet also keeps the bar from the terminal
    with progress_bar("Finding faces") as progress:
        evaluation = evaluate(
            model,
            dataset,
            out,
            mirror=mirror,
            detector=(detector or "learned") if through_detector else "",
            progress=progress,
        )
    if json_:
        print_json(evaluation)
    else:
        print_result(as_text(evaluation))


def _check_png(option: str, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise InputError(f"{option} {path}: the picture is a PNG; name it {path.with_suffix('.png')}")


def _check_given(
    dataset: Path, out: Path, resume: bool, teachers: list[Path] | None, initial: Path | None = None
) -> None:
    """Refuse what a training is given before Keras is loaded."""
    dataset_info(dataset)
    check_run(out, resume)
    for teacher in teachers or ():
        check_network(teacher, TEACHER)
    if initial is not None:
        check_network(initial, "start from a model.keras of trainer fit")


def _check_backend() -> None:
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend not in ("tensorflow", "torch", "jax"):
        raise InputError(f"KERAS_BACKEND is {backend!r}; there are tensorflow, torch and jax")
    if backend != "tensorflow" and importlib.util.find_spec(backend) is None:
        raise InputError(f"KERAS_BACKEND={backend} needs a package that is not here; run: pip install {backend}")


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that no temporary folder stays."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _going_on(kept: Path, how: str) -> Iterator[None]:
    """On Ctrl-C say where the work so far is, if there is any, and how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if kept.exists():
            say(f"what is done is kept in {kept}; {how} goes on from it")
        raise


def main() -> None:
    """Entry point of `trainer` and `maskfer-trainer`."""
    run_app(app, "trainer")
