"""Training: a run folder with checkpoints, history and live curves, that can be resumed at any moment."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import LABELS, FloatArray
from maskfer_edge.dataset import PictureSet, dataset_info, manifest, read_part, record_name
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import read_bytes, whole_file, write_whole
from maskfer_trainer.augment import augment
from maskfer_trainer.curves import draw_curves
from maskfer_trainer.draw import drawn_share
from maskfer_trainer.keras_file import embed_metadata, predict_scores
from maskfer_trainer.networks import ARCHITECTURES

History = list[dict[str, float]]


@dataclass(frozen=True)
class FitSettings:
    """What determines a training run, besides the data.

    Attributes:
        arch: A key of `networks.ARCHITECTURES`. ``paper`` trains as the paper did (Adam, categorical
            cross-entropy, ReduceLROnPlateau, masked faces as they are); ``lean`` with AdamW, a
            cosine schedule with warm-up, label smoothing and augmented faces.
        epochs: Passes over the training part.
        seed: Of weights, order, augmentation and the validation part.
        batch_size: Faces a step.
        bare_share: Share of faces shown without their mask, drawn anew each epoch.
        validation_share: Share of the training part that is kept for validation.
        learning_rate: Adam's first (paper) or AdamW's highest (lean).
        augmentation: Strength of the random changes to faces, see `augment.augment`; lean only.
    """

    arch: str = "lean"
    epochs: int = 30
    seed: int = 0
    batch_size: int = 128
    bare_share: float = 0.3
    validation_share: float = 0.1
    learning_rate: float = 2e-3
    augmentation: float = 1.0

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise InputError(f"unknown architecture {self.arch!r}; there are {', '.join(ARCHITECTURES)}")
        if not (self.epochs >= 1 and self.batch_size >= 1):
            raise InputError("epochs and batch size must be at least 1")
        if not (0 <= self.bare_share <= 1 and 0 < self.validation_share < 1):
            raise InputError("the bare share must be within 0 and 1, the validation share between them")
        if not (self.learning_rate > 0 and 0 <= self.augmentation <= 1):
            raise InputError("the learning rate must be above 0, and the augmentation within 0 and 1")


class FaceBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of faces, in an order and with changes that depend on seed and epoch alone."""

    def __init__(
        self,
        masked: PictureSet,
        bare: PictureSet | None,
        settings: FitSettings,
        changed: bool,
    ) -> None:
        super().__init__()
        self.masked, self.bare, self.settings, self.changed = masked, bare, settings, changed
        self.targets = np.eye(len(LABELS), dtype=np.float32)[masked.labels]
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch, counted from 0.

        Called with Keras' own count, as its calls of `PyDataset.on_epoch_end` are more than epochs
        (it takes a few batches to build the model, and ends that epoch too).
        """
        self.epoch = epoch
        random = np.random.default_rng([self.settings.seed, self.epoch])
        self.order = random.permutation(len(self.masked))
        self.is_bare = random.random(len(self.masked)) < (self.settings.bare_share if self.bare else 0)

    def __len__(self) -> int:
        return -(-len(self.masked) // self.settings.batch_size)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        size = self.settings.batch_size
        chosen = self.order[index * size : (index + 1) * size]
        images = self.masked.images[chosen]
        if self.bare is not None:
            images = np.where(self.is_bare[chosen][:, None, None], self.bare.images[chosen], images)
        if self.changed:
            random = np.random.default_rng([self.settings.seed, self.epoch, index])
            images = augment(images, random, self.settings.augmentation)
        return images[..., None].astype(np.float32), self.targets[chosen]


class RunFolder(keras.callbacks.Callback):  # type: ignore[misc]
    """After each epoch: history.csv, curves.png, and the whole training state in checkpoints/last.keras."""

    def __init__(self, run: Path, history: History) -> None:
        super().__init__()
        self.run, self.history = run, history

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keras calls this after each epoch."""
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.history.append({"epoch": epoch + 1, "learning_rate": rate, **(logs or {})})
        _write_history(self.run / "history.csv", self.history)
        draw_curves(self.history, self.run / "curves.png")
        # last, as resuming starts from it: whatever was cut short before is done again
        with whole_file(self.run / "checkpoints" / "last.keras", overwrite=True) as partial:
            self.model.save(partial)


def fit(
    dataset: Path,
    run: Path,
    settings: FitSettings,
    *,
    initial: Path | None = None,
    teacher: Path | None = None,
    resume: bool = False,
    verbose: int = 2,
) -> Path:
    """Train a network.

    The model that is kept is the one of the epoch with the best accuracy on masked validation
    faces. They are cut from the training part by the hash of their pixels, so that copies of a
    picture stand on one side. The test part is not touched.

    Args:
        dataset: Made by ``trainer build-dataset``.
        run: Folder to make: run.json, history.csv, curves.png, checkpoints/, model.keras.
        settings: How to train.
        initial: A `.keras` of the same architecture whose weights to start from. Give the same seed
            and validation share as it was trained with, or it will have seen the validation part.
        teacher: A `.keras` that is shown each training face bare and mirrored; its mean scores count
            for half of the target (privileged distillation, after Lopez-Paz and others 2016, own form).
            The same care with the validation part.
        resume: Go on with the run that `run` holds.
        verbose: Keras' own: 0 silent, 1 bar, 2 a line an epoch.

    Returns:
        The path of model.keras.

    Raises:
        InputError: If the data set cannot be used, or `resume` does not fit what `run` holds.
        OutputError: If `run` is there already and `resume` is not given.
    """
    info = dataset_info(dataset)
    config = {"settings": asdict(settings), "dataset": info["name"], "dataset_sha256": info["sha256"]}
    if initial is not None:
        config["initial_sha256"] = hashlib.sha256(read_bytes(initial)).hexdigest()
    if teacher is not None:
        config["teacher_sha256"] = hashlib.sha256(read_bytes(teacher)).hexdigest()
    last = run / "checkpoints" / "last.keras"
    _open_run(run, config, resume)
    keras.utils.set_random_seed(settings.seed)

    masked = read_part(dataset, "masked", "train")
    bare = read_part(dataset, "bare", "train") if settings.bare_share > 0 or teacher is not None else None
    if bare is not None and bare.names != masked.names:
        raise InputError(f"{dataset} has masked and bare pictures that differ in name; build it again")
    held_out = validation_part(masked, dataset, settings)
    training, validation = masked.take(~held_out), masked.take(held_out)
    if not len(training) or not len(validation):
        raise InputError(f"{dataset} has too few pictures ({len(masked)}) to cut a validation part from")

    steps = -(-len(training) // settings.batch_size)
    history: History = []
    if resume and last.exists():
        model = _load_state(last, settings, steps)
        done = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) // steps
        history = _read_history(run / "history.csv")[:done]
    else:
        done = 0
        model = ARCHITECTURES[settings.arch]()
        if initial is not None:
            _take_weights(model, initial)
        _compile(model, settings, steps)
    best = run / "checkpoints" / "best.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(
        best,
        monitor="val_accuracy",
        mode="max",
        save_best_only=True,
        initial_value_threshold=max((row["val_accuracy"] for row in history), default=None),
    )
    bare = bare.take(~held_out) if bare else None
    batches = FaceBatches(training, bare, settings, changed=settings.arch != "paper")
    if teacher is not None and bare is not None:
        batches.targets = np.float32(0.5) * (batches.targets + _soft_targets(teacher, bare))
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: batches.start_epoch(epoch)), checkpoint]
    if settings.arch == "paper":
        callbacks.append(_plateau(model, history, settings.learning_rate))
    else:
        # validates and keeps the running mean of the weights; goes first, so that all others see it
        averaging = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        averaging._ema_weights_in_model = bool(history)  # as last.keras was kept
        callbacks.insert(0, averaging)
    if done < settings.epochs:
        model.fit(
            batches,
            validation_data=(
                validation.images[..., None].astype(np.float32),
                np.eye(len(LABELS), dtype=np.float32)[validation.labels],
            ),
            initial_epoch=done,
            epochs=settings.epochs,
            callbacks=[*callbacks, RunFolder(run, history)],
            verbose=verbose,
            shuffle=False,  # the batches are shuffled already, in a way that a resumed run repeats
        )
    best_row = max(history, key=lambda row: row["val_accuracy"])
    metadata = {
        **config,
        "architecture": settings.arch,
        "backend": keras.backend.backend(),
        "best_epoch": int(best_row["epoch"]),
        "validation_accuracy": round(best_row["val_accuracy"], 4),
        "training_pictures": len(training),
        "validation_pictures": len(validation),
    }
    embed_metadata(best, run / "model.keras", metadata)
    return run / "model.keras"


def validation_part(masked: PictureSet, dataset: Path, settings: FitSettings) -> npt.NDArray[np.bool_]:
    """Which training faces are kept for validation: (n,) bool, by seed and hash of the bare pixels."""
    pixels = {record_name(r): r["pixels_sha256"] for r in manifest(dataset) if r["split"] == "train"}
    absent = [name for name in masked.names if name not in pixels]
    if absent:
        raise InputError(f"{dataset} holds a picture that its manifest does not name, {absent[0]}; build it again")
    shares = [drawn_share("validation", settings.seed, pixels[name]) for name in masked.names]
    return np.array(shares) < settings.validation_share


def _soft_targets(teacher: Path, bare: PictureSet) -> FloatArray:
    """(n, 7) float32: the teacher's scores, mean of each bare face and its mirror image."""
    try:
        network = keras.models.load_model(teacher, compile=False)
        return predict_scores(network, bare.images, mirror=True).reshape(len(bare), len(LABELS))
    except Exception as error:  # Keras raises many kinds for files that it cannot read
        raise InputError(f"{teacher} cannot teach: {' '.join(str(error).split())[:150]}") from error


def _take_weights(model: keras.Model, initial: Path) -> None:
    try:
        model.set_weights(keras.models.load_model(initial, compile=False).get_weights())
    except Exception as error:  # Keras raises many kinds for files that it cannot read
        raise InputError(
            f"{initial} cannot be started from, it is no whole .keras file of architecture {model.name}: "
            f"{' '.join(str(error).split())[:150]}"
        ) from error


def _compile(model: keras.Model, settings: FitSettings, steps: int) -> None:
    if settings.arch == "paper":
        model.compile(keras.optimizers.Adam(settings.learning_rate), "categorical_crossentropy", metrics=["accuracy"])
        return
    warm_up = min(2 * steps, settings.epochs * steps // 4)
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-5, settings.epochs * steps - warm_up, alpha=0.002, warmup_target=settings.learning_rate, warmup_steps=warm_up
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.02, use_ema=True, ema_momentum=0.998)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(label_smoothing=0.1), metrics=["accuracy"])


def _load_state(path: Path, settings: FitSettings, steps: int) -> keras.Model:
    """The model and its optimizer as `RunFolder` kept them."""
    model = keras.models.load_model(path)
    kept = model.optimizer.variables
    # Keras does not keep which variables are excluded from weight decay
    _compile(model, settings, steps)
    model.optimizer.build(model.trainable_variables)
    for variable, value in zip(model.optimizer.variables, kept, strict=True):
        variable.assign(value)
    return model


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


def _open_run(run: Path, config: dict[str, Any], resume: bool) -> None:
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    if not resume:
        if run.exists():
            raise OutputError(f"{run} is already there; give --resume to go on with it, or name another folder")
        try:
            (run / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{run} cannot be made: {error.strerror}") from error
        write_whole(run / "run.json", text)
        return
    if not (run / "run.json").exists():
        raise InputError(f"{run} holds no run to go on with; leave out --resume to start one")
    if (run / "run.json").read_text() != text:
        raise InputError(
            f"{run} was started with other settings or another data set (see {run / 'run.json'}); "
            "repeat them, or start a new run"
        )


def _write_history(path: Path, history: History) -> None:
    with whole_file(path, overwrite=True) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def _read_history(path: Path) -> History:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
