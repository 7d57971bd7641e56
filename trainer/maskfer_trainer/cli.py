"""The command `trainer`."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

import typer

from maskfer_edge.command_line import make_app, print_json, print_result, run_app, say
from maskfer_edge.dataset import dataset_info
from maskfer_edge.dependencies import extra
from maskfer_edge.errors import InputError
from maskfer_edge.files import atomic_file, check_writable, read_bytes
from maskfer_edge.quiet import quiet_native_libraries
from maskfer_edge.scenes import scenes_info
from maskfer_trainer.checks import TEACHER, check_network, check_run

# What Keras takes as a seed.
MAX_SEED = 2**32 - 1

app = make_app("Puts masks on bare faces, and trains and evaluates expression networks and face detectors.")


@app.command("build-dataset")
def build_dataset_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Zip or folder with train/<class>/ and test/<class>/, or <class>/ alone (split 5:1)."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    kinds: Annotated[
        list[str] | None,
        typer.Option("--mask", help="Kind of mask (trainer masks lists them). May be repeated. Default: all."),
    ] = None,
    templates: Annotated[
        list[Path] | None,
        typer.Option(
            "--template", help="Your own mask: NAME.png with alpha, and NAME.json with named points. May be repeated."
        ),
    ] = None,
    worn: Annotated[
        list[str] | None,
        typer.Option(help="How masks are worn: properly, under-nose or chin. May be repeated. Default: properly."),
    ] = None,
    variants: Annotated[int, typer.Option(help="Masked pictures of each training face; test faces get one.")] = 1,
    fit: Annotated[str, typer.Option(help="mesh: follows turned heads. homography: the paper's four points.")] = "mesh",
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Masks as drawn, all alike: without the picture's light, blur, grain and shadow."),
    ] = False,
    protocol: Annotated[
        str, typer.Option(help="all: each picture is a face crop. detected: find faces first, as the paper did.")
    ] = "all",
    faces: Annotated[
        str, typer.Option(help="With --protocol detected: use the largest face of a picture, or all.")
    ] = "largest",
    keep_bare: Annotated[bool, typer.Option(help="Also copy the bare pictures; fit and evaluate need them.")] = True,
    ground_truth: Annotated[
        bool, typer.Option("--ground-truth", help="Also write what each mask covers, as PNG.")
    ] = False,
    coco: Annotated[bool, typer.Option("--coco", help="Also write boxes and mask outlines as COCO JSON.")] = False,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Leave out test pictures that are duplicated in train, exactly or nearly.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of all random choices, also of the split.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes; 0: one per core.")] = 0,
    scheduler: Annotated[
        str | None, typer.Option(help="Use the workers of this Dask scheduler instead, such as tcp://HOST:8786.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Put masks on the faces of SOURCE and write a data set for fit and evaluate."""
    with extra("trainer"):
        from maskfer_trainer.builder import build_dataset, partial_path
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
    with progress_bar("Masking faces") as progress, _resume_hint(partial_path(out), "the same command"):
        report = build_dataset(source, out, settings, workers, progress, scheduler)
    if json_:
        print_json(report)
        return
    print_result(f"{report.pictures} faces masked in {report.seconds:.0f} s, {report.skipped} files skipped: {out}")
    for reason, count in report.reasons.items():
        print_result(f"  skipped {count} × {reason}")
    print_result(
        f"  {report.duplicates_in_test} test faces are duplicated in train, {report.near_duplicates_in_test} more "
        f"with small changes ({'left out' if dedupe else 'marked in the manifest; --dedupe leaves them out'})"
    )
    print_result(f"  look at {out / 'contact-sheet.png'}")


@app.command("masks")
def masks_command(
    preview: Annotated[Path | None, typer.Option(help="Draw all of them on a face and write this PNG.")] = None,
    on: Annotated[
        Path | None, typer.Option(help="Photograph of one face to draw them on. Default: a drawn face.")
    ] = None,
    templates: Annotated[
        list[Path] | None, typer.Option("--template", help="Also show your own mask. May be repeated.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing preview.")] = False,
) -> None:
    """List the kinds of masks, or draw them (--preview)."""
    with extra("trainer"):
        from maskfer_trainer.contact_sheet import preview_sheet
        from maskfer_trainer.masks import KINDS
        from maskfer_trainer.templates import load_template

    if on is not None and preview is None:
        raise InputError("--on needs --preview FILE.png, the picture to make")
    kinds = [*KINDS.values(), *(load_template(path) for path in templates or ())]
    if preview is not None:
        check_writable(preview, overwrite)
        _check_png("--preview", preview)
        sheet = preview_sheet(kinds, on)
        with atomic_file(preview, overwrite) as partial:
            sheet.save(partial, "PNG")
    width = max(len(kind.name) for kind in kinds)
    for kind in kinds:
        print_result(f"{kind.name:{width}}  {kind.about}")
    if preview is not None:
        print_result(f"look at {preview}")


@app.command("networks")
def networks_command() -> None:
    """List the networks: parameters, multiply-accumulates per face, and what each is for."""
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
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Data set made by build-dataset.")],
    out: Annotated[Path, typer.Option(help="Run folder to create.")],
    config: Annotated[Path | None, typer.Option(help="TOML file of the settings below; flags override it.")] = None,
    arch: Annotated[str | None, typer.Option(help="Network (trainer networks lists them). Default: lean.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the faces. Default: 30; paper: 250.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation. Default: 0.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Faces per step. Default: 128.")] = None,
    bare_share: Annotated[
        float | None, typer.Option(help="Fraction of faces shown without a mask. Default: 0.3; paper: 0.")
    ] = None,
    validation_share: Annotated[
        float | None, typer.Option(help="Fraction of the training set kept for validation. Default: 0.05.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest learning rate. Default: 0.002; paper: 0.0005.")
    ] = None,
    augmentation: Annotated[
        float | None, typer.Option(help="Strength of the random changes to faces, 0 to 1. Default: 1; paper: 0.")
    ] = None,
    cutout: Annotated[
        float | None,
        typer.Option(help="Fraction of faces with a grey patch over the lower half. Default: 0.25; paper: 0."),
    ] = None,
    mixup: Annotated[
        float | None, typer.Option(help="Parameter of mixup's Beta distribution. Default: 0 (off).")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Fraction of the target spread over all classes. Default: 0.1; paper: 0.")
    ] = None,
    balance: Annotated[
        float | None,
        typer.Option(
            help="Weight of rare classes: 0 weighs each face the same, 1 each class. Default: 0.25; paper: 0."
        ),
    ] = None,
    teachers: Annotated[
        list[Path] | None,
        typer.Option(
            "--teacher", help="Also learn from this network's scores (distillation): a .keras file. May be repeated."
        ),
    ] = None,
    teacher_share: Annotated[
        float | None, typer.Option(help="Fraction of the target that the teachers' scores make up. Default: 0.5.")
    ] = None,
    least_recall: Annotated[
        float | None,
        typer.Option(help="Boost rare classes until each has this recall on the validation set. Default: 0 (off)."),
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(
            help="Part of the faces not to train on, such as 1/4, for which this network can then be a teacher."
        ),
    ] = None,
    initial: Annotated[Path | None, typer.Option(help="Start from the weights of this .keras file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")] = False,
    distribute: Annotated[
        bool, typer.Option("--distribute", help="Split each batch over all devices (KERAS_BACKEND=jax).")
    ] = False,
) -> None:
    """Train a network on DATASET; watch curves.png in the run folder, use model.keras when it is done."""
    options = dict(locals())
    _check_backend()
    _check_inputs(dataset_info, dataset, out, resume, teachers=teachers or (), initial=initial)
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.fitting import fit
        from maskfer_trainer.settings import FitSettings, fit_settings

    settings = fit_settings(config, {field.name: options[field.name] for field in fields(FitSettings)})
    with redirect_stdout(sys.stderr), _resume_hint(out, "--resume"):  # where Keras says how far it is
        model = fit(
            dataset,
            out,
            settings,
            initial=initial,
            teachers=teachers or (),
            resume=resume,
            distribute=distribute,
            log=say,
            verbose=1 if sys.stderr.isatty() else 2,
        )
    print_result(str(model))


@app.command("fit-together")
def fit_together_command(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Data set made by build-dataset.")],
    out: Annotated[Path, typer.Option(help="Folder to create, with a run folder for each network.")],
    networks: Annotated[
        list[str], typer.Option("--network", help="Architecture and seed, such as lean:0. May be repeated.")
    ],
    teachers: Annotated[
        list[Path] | None,
        typer.Option(
            "--teacher", help="Also learn from this network's scores (distillation): a .keras file. May be repeated."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of the settings of fit; flags override it.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the faces. Default: 30.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Faces per step. Default: 128.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate. Default: 0.002.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted runs in --out.")] = False,
) -> None:
    """Train several networks side by side on one GPU, many times faster than fit (needs KERAS_BACKEND=jax)."""
    options = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    _check_backend()
    if os.environ.get("KERAS_BACKEND") != "jax":
        raise InputError("fit-together trains by JAX; install jax and run it with KERAS_BACKEND=jax")
    _check_inputs(dataset_info, dataset, out, resume, teachers=teachers or ())
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.fit_together import fit_together
        from maskfer_trainer.settings import fit_settings
    settings = fit_settings(config, options)
    with _resume_hint(out, "--resume"):
        models = fit_together(dataset, out, networks, settings, teachers=teachers or (), resume=resume, log=say)
    for model in models:
        print_result(str(model))


@app.command("build-scenes")
def build_scenes_command(
    portraits: Annotated[Path, typer.Argument(metavar="PORTRAITS", help="Folder of portraits with boxes.csv.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    photos: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photographs with boxes.csv, for backgrounds and faces; only the tuning half is used."
        ),
    ] = None,
    crops: Annotated[
        Path | None,
        typer.Option(help="Data set of build-dataset with bare pictures, whose training faces are pasted as well."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 6000,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of all random choices.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes; 0: one per core.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make training scenes for a face detector: faces, half of them masked, pasted onto backgrounds."""
    with extra("trainer"):
        from maskfer_trainer.progress import progress_bar
        from maskfer_trainer.scenes import SceneSettings, build_scenes

    with _exit_on_sigterm(), progress_bar("Making scenes") as progress:
        info = build_scenes(portraits, out, SceneSettings(count, seed), photos, crops, workers, progress, say)
    if json_:
        print_json(info)
        return
    faces = ", ".join(f"{number} {label}" for label, number in info["faces"].items())
    made_of = f"{info['portraits']} portraits, {info['photos']} photographs, {info['crops']} crops"
    print_result(f"{out}: {info['count']} scenes of {made_of}: {faces}")
    if not info["validation_apart"]:
        say(f"{out} has too few portraits or photographs to keep some for validation alone: figures on it are too good")


@app.command("fit-detector")
def fit_detector_command(
    scenes: Annotated[Path, typer.Argument(metavar="SCENES", help="Scenes made by build-scenes.")],
    out: Annotated[Path, typer.Option(help="Run folder to create.")],
    epochs: Annotated[int, typer.Option(help="Passes over the scenes.")] = 40,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of weights, order and augmentation.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Scenes per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make batches; 0: all cores but one.")] = 0,
    initial: Annotated[Path | None, typer.Option(help="Start from the weights of this .keras file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")] = False,
) -> None:
    """Train a face detector on SCENES; watch curves.png in the run folder."""
    _check_backend()
    _check_inputs(scenes_info, scenes, out, resume, initial=initial)
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.fit_detector import DetectorSettings, fit_detector
    settings = DetectorSettings(epochs, seed, batch_size, learning_rate)
    with _resume_hint(out, "--resume"):
        model = fit_detector(scenes, out, settings, initial=initial, resume=resume, workers=workers, log=say)
    print_result(str(model))


@app.command("fit-rescorer")
def fit_rescorer_command(
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR", help="The detector's .tflite file.")],
    scenes: Annotated[Path, typer.Argument(metavar="SCENES", help="Scenes made by build-scenes.")],
    photos: Annotated[
        Path,
        typer.Argument(metavar="PHOTOS", help="Folder of photographs with boxes.csv; only the tuning half is used."),
    ],
    out: Annotated[Path, typer.Option(help="Run folder to create.")],
    draws: Annotated[int, typer.Option(help="Random crops of each photograph.")] = 60,
    epochs: Annotated[int, typer.Option(help="Epochs, each of 240 batches of 256 boxes.")] = 14,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of crops, weights, order and augmentation.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-3,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")] = False,
) -> None:
    """Train the second stage of a detector: a small network that scores again what DETECTOR finds."""
    _check_backend()
    _check_inputs(scenes_info, scenes, out, resume, files=(detector, photos / "boxes.csv"))
    with extra("trainer"), quiet_native_libraries():
        from maskfer_trainer.fit_rescorer import RescorerSettings, fit_rescorer
    settings = RescorerSettings(draws, epochs, seed=seed, learning_rate=learning_rate)
    with redirect_stdout(sys.stderr), _resume_hint(out, "--resume"):  # where Keras says how far it is
        verbose = 1 if sys.stderr.isatty() else 2
        model = fit_rescorer(detector, scenes, photos, out, settings, resume=resume, verbose=verbose, log=say)
    print_result(str(model))


@app.command("evaluate-detector")
def evaluate_detector_command(
    detector: Annotated[
        str, typer.Argument(metavar="DETECTOR", help="haar, learned, yunet, or a .tflite file of a learned detector.")
    ],
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of photographs with boxes.csv.")],
    detector_model: Annotated[Path | None, typer.Option(help="With yunet: its .onnx file.")] = None,
    half: Annotated[str, typer.Option(help="Photographs to use: all, tuning or testing.")] = "all",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Score from which a box counts as a face (learned only). Default: the model file's."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Draw the precision-recall curve to this PNG.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a face detector: recall by size, masked and bare, false boxes, average precision, time."""
    with extra("trainer"):
        from maskfer_edge.detector import DETECTORS, open_detector
        from maskfer_edge.learned_detector import LearnedDetector
        from maskfer_trainer import detector_evaluation
        from maskfer_trainer.progress import progress_bar

    if half not in ("all", "tuning", "testing"):
        raise InputError(f"--half takes all, tuning or testing; received {half!r}")
    if out is not None:
        check_writable(out, overwrite)
        _check_png("--out", out)
    with quiet_native_libraries():
        if detector in DETECTORS:
            finder = open_detector(detector, model_path=detector_model)
        elif detector_model is not None:
            raise InputError(f"--detector-model goes with a detector's name; here {detector} is the model")
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
        say(f"wrote {out}")
    if json_:
        print_json(evaluation)
    else:
        print_result(detector_evaluation.as_text(evaluation))


@app.command("tune-haar")
def tune_haar_command(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of photographs with boxes.csv.")],
    max_false_boxes: Annotated[float, typer.Option(min=0, help="Limit of false boxes a picture.")] = 0.3,
    max_slowdown: Annotated[
        float, typer.Option(min=0, help="Limit of time, in multiples of the usual setting's.")
    ] = 2.0,
    json_: Annotated[bool, typer.Option("--json", help="Print all settings within the limits as JSON.")] = False,
) -> None:
    """Try 108 settings of the Haar cascade on the tuning half of PHOTOS: which find most masked faces within limits."""
    with extra("trainer"):
        from maskfer_trainer import haar_tuning
        from maskfer_trainer.detector_evaluation import read_photos
        from maskfer_trainer.progress import progress_bar

    found = read_photos(photos)
    with progress_bar("Looking for faces") as progress:
        ranked = haar_tuning.rank_trials(haar_tuning.tune_haar(found, progress=progress), max_false_boxes, max_slowdown)
    if json_:
        print_json({"settings": [asdict(trial) for trial in ranked]})
    else:
        print_result(haar_tuning.as_text(ranked))


@app.command("evaluate")
def evaluate_command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help=".keras file of trainer fit, or .tflite file of converter quantize.")
    ],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Data set made by build-dataset.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to create for evaluation.json and drawn confusion matrices.")
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror/--no-mirror", help="Also classify each face's mirror image (test-time flip), as the runtime does."
        ),
    ] = True,
    through_detector: Annotated[
        bool,
        typer.Option(
            "--through-detector", help="Also place the faces in larger pictures and find them as the runtime does."
        ),
    ] = False,
    detector: Annotated[
        str | None, typer.Option(help="With --through-detector: learned or haar. Default: learned.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Evaluate MODEL on the test split of DATASET: accuracy, recall, calibration; masked and bare."""
    if detector is not None and not through_detector:
        raise InputError("--detector goes with --through-detector; give both, or neither")
    if model.suffix == ".keras":
        _check_backend()
    dataset_info(dataset)
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
    if out is not None:
        say(f"wrote {out}")
    if json_:
        print_json(evaluation)
    else:
        print_result(as_text(evaluation))


def _check_png(option: str, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise InputError(f"{option} {path}: the picture is a PNG; name it {path.with_suffix('.png')}")


def _check_inputs(
    read_info: Callable[[Path], object],
    data: Path,
    out: Path,
    resume: bool,
    *,
    teachers: Sequence[Path] = (),
    initial: Path | None = None,
    files: Sequence[Path] = (),
) -> None:
    """Refuse what a training is given before Keras is loaded; `read_info` raises InputError if `data` is none."""
    read_info(data)
    check_run(out, resume)
    for teacher in teachers:
        check_network(teacher, TEACHER)
    if initial is not None:
        kind = "fit" if read_info is dataset_info else "fit-detector"
        check_network(initial, f"start from a model.keras of trainer {kind}")
    for path in files:
        read_bytes(path)


def _check_backend() -> None:
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend not in ("tensorflow", "torch", "jax"):
        raise InputError(f"KERAS_BACKEND is {backend!r}; there are tensorflow, torch and jax")
    if backend != "tensorflow" and importlib.util.find_spec(backend) is None:
        raise InputError(f"KERAS_BACKEND={backend} needs a package that is not here; run: pip install {backend}")


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that no temporary folder stays."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _resume_hint(kept: Path, how: str) -> Iterator[None]:
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
