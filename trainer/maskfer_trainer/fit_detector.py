"""Training of the face detector on scenes, in a run folder that can be resumed at any moment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import keras
import numpy as np

from maskfer_edge.contract import FloatArray, UInt8Array
from maskfer_edge.detector import Detection
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes
from maskfer_edge.learned_detector import MIN_FACE_SHARE, decode
from maskfer_edge.scenes import f1_by_threshold, scenes_info
from maskfer_trainer.detector_network import DetectorLoss, build_detector, concatenate_outputs
from maskfer_trainer.detector_targets import SIZE_WH, STRIDE, targets
from maskfer_trainer.devices import describe
from maskfer_trainer.keras_file import embed_metadata, take_weights
from maskfer_trainer.run_folder import (
    LAST,
    History,
    RunFolder,
    best_of,
    best_path,
    load_averaged,
    load_last,
    open_run,
    weights_of,
)
from maskfer_trainer.scene_batches import SceneSet, batches_of, read_scenes

WARM_UP = 0.05  # share of all steps
# Thresholds that are tried on the validation scenes.
THRESHOLDS = tuple(round(0.2 + 0.02 * step, 2) for step in range(26))
# Share of the running mean of the weights that a step leaves as it is, and after how many steps they are looked at:
# fetching them from a GPU takes longer than a step.
AVERAGE, AVERAGED_EVERY = 0.998, 8


@dataclass(frozen=True)
class DetectorSettings:
    """What determines a training run, besides the scenes.

    Attributes:
        epochs: Passes over the scenes.
        seed: Of weights, order and changes.
        batch_size: Scenes a step.
        learning_rate: AdamW's highest.
    """

    epochs: int = 40
    seed: int = 0
    batch_size: int = 32
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or not 0 < self.learning_rate < 1:
            raise InputError(
                "epochs and batch_size must be at least 1, the learning rate between 0 and 1; "
                f"received {self.epochs}, {self.batch_size} and {self.learning_rate}"
            )


def fit_detector(
    scenes: Path,
    run: Path,
    settings: DetectorSettings,
    *,
    initial: Path | None = None,
    resume: bool = False,
    workers: int = 0,
    log: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train the detector.

    The model that is kept is the one of the epoch with the best F1 on the validation scenes, those that ``scenes.json``
    names, and so is the threshold at which it has it.

    Args:
        scenes: Made by ``trainer build-scenes``.
        run: Folder to make, see `run_folder`.
        settings: How to train.
        initial: A detector's `.keras` whose weights to start from. Give the same one to `resume`.
        resume: Go on with the run that `run` holds.
        workers: Processes that make batches; 0: one less than there are cores. What is learned does not depend on it.
        log: Takes messages for the terminal.

    Returns:
        The path of model.keras.

    Raises:
        InputError: If the scenes or `initial` cannot be used, or `resume` does not fit what `run` holds.
        OutputError: If `run` is there already and `resume` is not given.
    """
    info = scenes_info(scenes)
    made_of = {key: value for key, value in info.items() if key != "validation"}
    config = {"settings": asdict(settings), "kind": "detector", "scenes": made_of}
    if initial is not None:
        config["initial_sha256"] = hashlib.sha256(read_bytes(initial)).hexdigest()
    with open_run(run, config, resume) as create_folder:
        log(describe())
        keras.utils.set_random_seed(settings.seed)
        training, validation = read_scenes(scenes, set(info.get("validation", ())))
        apart = "" if info.get("validation_apart") else ", of the same faces and photographs: its figures are too good"
        log(f"{len(training)} scenes to train on; {len(validation)} to validate{apart}")
        steps = len(training) // settings.batch_size
        if not steps or not len(validation):
            raise InputError(f"{scenes} holds too few scenes for a batch of {settings.batch_size} and for validation")
        history = History()
        if (run / LAST).exists():
            model, history = load_last(run, steps, {"DetectorLoss": DetectorLoss})
        else:
            detector = build_detector()
            if initial is not None:
                take_weights(detector, initial)
            model = concatenate_outputs(detector)
            schedule = keras.optimizers.schedules.CosineDecay(
                0.0, (settings.epochs - settings.epochs * WARM_UP) * steps, alpha=0.01,
                warmup_target=settings.learning_rate, warmup_steps=max(1, int(settings.epochs * WARM_UP * steps)),
            )  # fmt: skip
            optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-3, clipnorm=10.0)
            model.compile(optimizer=optimizer, loss=DetectorLoss())
        create_folder()
        folder = RunFolder(run, history, settings.epochs)
        folder.set_model(model)
        validation_targets, epochs = _stacked_targets(validation), range(len(history), settings.epochs)
        with batches_of(training, settings.batch_size, settings.seed, epochs, run / "checkpoints", workers) as batches:
            averaged = load_averaged(run, model, len(history)) if history else weights_of(model)
            for epoch in epochs:
                losses: list[float] = []
                for step, batch in enumerate(islice(batches, steps), start=1):
                    model.reset_metrics()  # which Keras' older versions leave to us
                    losses.append(float(model.train_on_batch(*batch)))
                    if step % AVERAGED_EVERY == 0 or step == steps:
                        done = epoch * steps + step
                        # at first the mean is of few steps, not of the first weights
                        decay = min(AVERAGE, (done + 1) / (done + 10)) ** (step % AVERAGED_EVERY or AVERAGED_EVERY)
                        averaged = [
                            decay * old + (1 - decay) * new
                            for old, new in zip(averaged, weights_of(model), strict=True)
                        ]
                folder.trained = weights_of(model)
                model.set_weights(averaged)  # these are validated and kept
                maps = predict_maps(model, validation.images)
                f1, threshold = best_threshold(maps, validation)
                val_loss = float(keras.ops.convert_to_numpy(DetectorLoss()(validation_targets, maps)))
                logs = {"loss": float(np.mean(losses)), "val_loss": val_loss, "val_accuracy": f1}
                summary = f"loss {logs['loss']:.3f}, validation {val_loss:.3f}, F1 {f1:.3f}"
                log(f"epoch {epoch + 1}/{settings.epochs}: {summary}")
                folder.on_epoch_end(epoch, {**logs, "threshold": threshold})
                model.set_weights(folder.trained)
        row = best_of(history)
        best = keras.models.load_model(best_path(run, history), compile=False)
        outputs = {name: best.get_layer(name).output for name in ("heat", "boxes")}
        plain = keras.Model(best.input, outputs, name=best.name)
        metadata = {**config, "architecture": plain.name, "stride": STRIDE, "input_size_wh": SIZE_WH,
                    "score_threshold": row["threshold"], "validation_f1": round(row["val_accuracy"], 4)}  # fmt: skip
        plain.save(run / "checkpoints" / "detector.keras")
        embed_metadata(run / "checkpoints" / "detector.keras", run / "model.keras", metadata)
        return run / "model.keras"


def _stacked_targets(scenes: SceneSet) -> FloatArray:
    return np.stack([targets(faces, ignored) for faces, ignored in scenes.ground_truth])


def predict_maps(model: keras.Model, images: UInt8Array) -> FloatArray:
    """(n, 30, 40, 5) maps of (n, 240, 320) uint8 scenes by a network that `concatenate_outputs` made."""
    parts = [
        model.predict_on_batch(images[start : start + 64, ..., None].astype(np.float32))
        for start in range(0, len(images), 64)
    ]
    return np.asarray(np.concatenate(parts), dtype=np.float32)


def best_threshold(maps: FloatArray, scenes: SceneSet) -> tuple[float, float]:
    """The best F1 over the faces of the scenes, and the threshold at which it is had; faces count as the edge's do."""

    def found(of_scene: FloatArray) -> list[Detection]:
        boxes, scores = decode(of_scene[..., 0], of_scene[..., 1:], STRIDE, THRESHOLDS[0], MIN_FACE_SHARE * SIZE_WH[1])
        return [
            Detection((left, top, width, height), score)
            for (left, top, width, height), score in zip(
                boxes.round().astype(int).tolist(), scores.tolist(), strict=True
            )
        ]

    f1 = f1_by_threshold(map(found, maps), scenes.ground_truth, SIZE_WH[1], THRESHOLDS)
    best = int(f1.argmax())
    return float(f1[best]), THRESHOLDS[best]
