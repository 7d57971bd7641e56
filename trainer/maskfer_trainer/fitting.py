"""Training: one network, from a data set to a run folder that can be resumed at any moment."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import LABELS, FloatArray
from maskfer_edge.dataset import PictureSet, dataset_info, read_pictures, split_records
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes
from maskfer_trainer.batches import FaceBatches, face_ids, fold_of, validation_part
from maskfer_trainer.calibration import best_temperature, calibration_error, fold_lift, fold_temperature, lift
from maskfer_trainer.devices import describe, spread, spread_over
from maskfer_trainer.keras_file import check_validation_share, embed_metadata, predict_views, take_weights
from maskfer_trainer.networks import ARCHITECTURES
from maskfer_trainer.prefetch import prefetch
from maskfer_trainer.run_folder import (
    LAST,
    History,
    RunFolder,
    best_of,
    best_path,
    load_last,
    open_run,
    reading_run,
    seed_dropout,
)
from maskfer_trainer.settings import FitSettings, parse_fold
from maskfer_trainer.teachers import predict_soft_labels

# Of the old weights in the running mean, a step.
AVERAGE = 0.998

PREFETCHED_BATCHES = 4  # batches that are made before they are needed


def fit(
    dataset: Path,
    run: Path,
    settings: FitSettings,
    *,
    initial: Path | None = None,
    teachers: Sequence[Path] = (),
    resume: bool = False,
    distribute: bool = False,
    log: Callable[[str], None] = lambda _: None,
    verbose: int = 2,
) -> Path:
    """Train a network.

    The model that is kept is the one of the epoch with the best accuracy on the validation part, which
    is cut from the training part: masked faces, or bare ones if it is trained on these alone. Its
    confidence is calibrated on them. The test part is not touched.

    Args:
        dataset: Made by ``trainer build-dataset``.
        run: Folder to make, see `run_folder`.
        settings: How to train.
        initial: A `.keras` of the same architecture whose weights to start from; trained with at least the same
            validation share, as it would have seen the validation part.
        teachers: `.keras` files whose scores of the training faces count for `FitSettings.teacher_share`
            of the target, see `teachers.predict_soft_labels`. The same care with the validation part.
        resume: Go on with the run that `run` holds.
        distribute: Split each batch over all devices.
        log: Takes messages for the terminal.
        verbose: Keras' own: 0 silent, 1 bar, 2 a line an epoch.

    Returns:
        The path of model.keras.

    Raises:
        InputError: If the data set cannot be used, has fewer validation pictures than there are devices, `resume` does
            not fit what `run` holds, or the loss becomes no number; then the last state is kept.
        OutputError: If `run` is there already and `resume` is not given.
    """
    info = dataset_info(dataset)
    config = {"settings": asdict(settings), "dataset": info["name"], "dataset_sha256": info["sha256"]}
    if initial is not None:
        config["initial_sha256"] = hashlib.sha256(read_bytes(initial)).hexdigest()
    if teachers:
        config["teachers_sha256"] = [hashlib.sha256(read_bytes(teacher)).hexdigest() for teacher in teachers]
    check_validation_share([*([initial] if initial else []), *teachers], settings.validation_share)
    with open_run(run, config, resume) as create_folder:
        if resume and (run / "model.keras").exists():
            return run / "model.keras"
        devices = spread_over(settings.batch_size) if distribute else []
        log(describe())
        keras.utils.set_random_seed(settings.seed)
        batches, validation = _batches(dataset, settings, teachers, log)
        log(f"{batches.faces} faces to train on; {len(validation)} pictures to validate")
        if devices:
            if len(validation) < len(devices):
                raise InputError(
                    f"{len(validation)} validation pictures cannot be split over {len(devices)} devices; "
                    "raise validation_share"
                )
            spread(devices)  # not before the teachers have scored: their last batch need not split evenly
            log(f"Each batch is split over {len(devices)} devices: {', '.join(devices)}")
            # validation batches must split evenly too
            validation = validation.take(np.arange(len(validation) - len(validation) % len(devices)))

        history = History()
        if (run / LAST).exists():
            model, history = _load_state(run, settings, len(batches))
        else:
            model = ARCHITECTURES[settings.arch]()
            if initial is not None:
                take_weights(model, initial, "start from one of the same, or give its --arch")
            _compile(model, settings, len(batches))
        create_folder()
        log(f"Training {settings.arch}, epochs: {settings.epochs}; watch {run / 'curves.png'}")
        if len(history) < settings.epochs:
            callbacks = [*_callbacks(model, settings, history), RunFolder(run, history, settings.epochs)]
            _train(model, batches, validation, range(len(history), settings.epochs), callbacks, verbose)
        if devices:
            keras.distribution.set_distribution(None)
        best_row = best_of(history)
        metadata = {
            **config,
            "architecture": settings.arch,
            "backend": keras.backend.backend(),
            "best_epoch": int(best_row["epoch"]),
            "training_pictures": len(batches.masked),
            "validation_pictures": len(validation),
        }
        best = keras.models.load_model(best_path(run, history), compile=False)
        counts = np.bincount(batches.masked.labels, minlength=len(LABELS))
        write_calibrated(best, validation, counts, settings.least_recall, metadata, run / "model.keras")
        return run / "model.keras"


class Parts(NamedTuple):
    """The training faces of a data set, and what is kept of them for validation.

    Attributes:
        masked: Pictures to train on.
        bare: The bare one of each; None if none is needed.
        faces: (n,) which face each shows.
        pixels: SHA-256 of the bare pixels of each.
        validation: Bare pictures for a network of bare faces alone, else masked ones.
    """

    masked: PictureSet
    bare: PictureSet | None
    faces: npt.NDArray[np.int64]
    pixels: list[str]
    validation: PictureSet


def read_parts(dataset: Path, settings: FitSettings, need_bare: bool = False) -> Parts:
    """Read the training faces of a data set.

    Args:
        dataset: Made by ``trainer build-dataset``.
        settings: How large the validation part is, what is left out, whether bare faces are shown.
        need_bare: Whether bare faces are needed though none is shown.

    Raises:
        InputError: If they cannot be read, or there are too few.
    """
    records = split_records(dataset, "train", "source", "pixels_sha256")
    masked = read_pictures(dataset, "masked", records)
    bare = read_pictures(dataset, "bare", records) if settings.bare_share > 0 or need_bare else None
    pixels = [str(record["pixels_sha256"]) for record in records]
    held_out = validation_part(pixels, settings.validation_share)
    to_validate = bare if bare is not None and settings.bare_share == 1 else masked
    fold, folds = parse_fold(settings.leave_out)
    in_training = ~held_out & (fold_of(pixels, folds) != fold) if folds else ~held_out
    training, validation = masked.take(in_training), to_validate.take(held_out)
    _check_parts(training, validation, dataset)
    of_training = [pixels[i] for i in np.flatnonzero(in_training)]
    return Parts(
        training, bare.take(in_training) if bare else None, face_ids(records)[in_training], of_training, validation
    )


def _batches(
    dataset: Path, settings: FitSettings, teachers: Sequence[Path], log: Callable[[str], None]
) -> tuple[FaceBatches, PictureSet]:
    parts = read_parts(dataset, settings, need_bare=bool(teachers))
    soft_labels = (
        # cached, as teachers mostly left out parts of the same number
        predict_soft_labels(teachers, parts.masked, parts.bare, parts.faces, cache(partial(fold_of, parts.pixels)), log)
        if teachers and parts.bare is not None
        else None
    )
    return FaceBatches(parts.masked, parts.bare, parts.faces, settings, soft_labels), parts.validation


def write_calibrated(
    network: keras.Model,
    validation: PictureSet,
    counts: npt.NDArray[np.int64],
    least_recall: float,
    metadata: dict[str, Any],
    path: Path,
) -> None:
    """Write a network, rare classes lifted, with the temperature that suits validation faces, and what was measured.

    Args:
        network: Its last layer is changed.
        validation: Faces that it was not trained on.
        counts: (7,) training pictures of each class.
        least_recall: See `FitSettings`.
        metadata: To write with it; accuracy, lift, temperature and calibration errors are added. The accuracy is of
            the faces as they are, all else of the mean over a face and its mirror image, as at the edge.
        path: `.keras` file; an existing one is replaced.
    """
    views = predict_views(network, validation.images)
    lifted = lift(views, validation.labels, least_recall, counts)
    if lifted.any():
        fold_lift(network, lifted)
        views = predict_views(network, validation.images)
    temperature = best_temperature(views, validation.labels)
    before = calibration_error(views.mean(axis=0), validation.labels)
    fold_temperature(network, temperature)
    after = calibration_error(predict_views(network, validation.images).mean(axis=0), validation.labels)
    calibration = {
        "validation_accuracy": round(float((views[0].argmax(axis=1) == validation.labels).mean()), 4),
        "lifted": {label: round(float(by), 2) for label, by in zip(LABELS, lifted, strict=True) if by},
        "temperature": round(temperature, 4),
        "validation_calibration_error": {"before": round(before, 4), "after": round(after, 4)},
    }
    with tempfile.TemporaryDirectory() as folder:
        network.save(Path(folder) / "model.keras")
        embed_metadata(Path(folder) / "model.keras", path, {**metadata, **calibration})


def _check_parts(training: PictureSet, validation: PictureSet, dataset: Path) -> None:
    for part, name in ((training, "to train on"), (validation, "for validation")):
        if not len(part):
            raise InputError(f"{dataset} has too few pictures: none is left {name}; change validation_share")
    counts = np.bincount(training.labels, minlength=len(LABELS))
    if counts.min() < 1:
        short = LABELS[int(counts.argmin())]
        raise InputError(f"{dataset} has too few pictures of {short}: none is left to train on beside validation")


def _compile(model: keras.Model, settings: FitSettings, steps: int) -> None:
    if settings.arch == "paper":
        optimizer = keras.optimizers.Adam(float(settings.learning_rate))
    else:
        warm_up = min(2 * steps, settings.epochs * steps // 4)
        schedule = keras.optimizers.schedules.CosineDecay(
            1e-5,
            settings.epochs * steps - warm_up,
            alpha=0.002,
            warmup_target=float(settings.learning_rate),
            warmup_steps=warm_up,
        )
        # of a short run the mean must not be of the first weights
        momentum = min(AVERAGE, max(0.0, 1 - 20 / (settings.epochs * steps)))
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.02, use_ema=True, ema_momentum=momentum)
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])


def _train(
    model: keras.Model,
    batches: FaceBatches,
    validation: PictureSet,
    epochs: range,
    callbacks: list[keras.callbacks.Callback],
    verbose: int,
) -> None:
    """`keras.Model.fit` with its own callbacks and words, but batch by batch.

    On two processor cores, under TensorFlow, `fit` took 1.3 to 2.6 times as long.
    """
    faces = validation.images[..., None].astype(np.float32)
    targets = np.eye(len(LABELS), dtype=np.float32)[validation.labels]
    size = batches.settings.batch_size
    calls = keras.callbacks.CallbackList(
        callbacks, add_progbar=verbose > 0, model=model, verbose=verbose, epochs=epochs.stop, steps=len(batches)
    )
    calls.on_train_begin()
    for epoch in epochs:
        batches.start_epoch(epoch)
        seed_dropout(model, batches.settings.seed, epoch)
        calls.on_epoch_begin(epoch)
        sums: dict[str, float] = {}
        for index, batch in enumerate(_prefetched(batches)):
            calls.on_train_batch_begin(index)
            model.reset_metrics()  # the metrics are of this batch alone; logged is their mean, as by `fit`
            for name, value in model.train_on_batch(*batch, return_dict=True).items():
                sums[name] = sums.get(name, 0.0) + float(value)
            calls.on_train_batch_end(index, {name: total / (index + 1) for name, total in sums.items()})
        train_logs = {name: total / len(batches) for name, total in sums.items()}
        val_logs = model.evaluate(faces, targets, batch_size=size, callbacks=calls, return_dict=True, verbose=0)
        calls.on_epoch_end(epoch, train_logs | {f"val_{name}": float(value) for name, value in val_logs.items()})
    calls.on_train_end()


def _prefetched(batches: FaceBatches) -> Iterator[tuple[FloatArray, FloatArray, FloatArray]]:
    """The batches of an epoch, the next ones made while one is learned from."""
    with ThreadPoolExecutor(1) as pool:
        yield from prefetch(pool, batches.__getitem__, zip(range(len(batches))), PREFETCHED_BATCHES)


def _callbacks(model: keras.Model, settings: FitSettings, history: History) -> list[keras.callbacks.Callback]:
    if settings.arch == "paper":
        return [_plateau(model, history, settings.learning_rate)]
    # validates and keeps the running mean of the weights; goes first, so that all others see it
    averaging = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    averaging._ema_weights_in_model = len(history) > 0  # as last.keras was kept
    return [averaging]


def _load_state(run: Path, settings: FitSettings, steps: int) -> tuple[keras.Model, History]:
    """The model with its optimizer, and the history, as `RunFolder` kept them."""
    model, history = load_last(run, steps)
    with reading_run(run):
        kept = model.optimizer.variables
        # Keras does not keep which variables are excluded from weight decay
        _compile(model, settings, steps)
        model.optimizer.build(model.trainable_variables)
        for variable, value in zip(model.optimizer.variables, kept, strict=True):
            variable.assign(value)
    return model, history


def _plateau(model: keras.Model, history: History, first_rate: float) -> keras.callbacks.Callback:
    """ReduceLROnPlateau; after a resume it has seen `history` already."""
    callback = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.2, patience=4, min_lr=1e-6)
    callback.set_model(model)
    callback.on_train_begin()
    rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
    model.optimizer.learning_rate = first_rate  # it counts otherwise once the least rate is reached
    for epoch, row in enumerate(history):
        callback.on_epoch_end(epoch, dict(row))
    model.optimizer.learning_rate = rate
    # Keras calls it again when training begins, and it would forget
    callback.on_train_begin = lambda logs=None: None
    return callback
