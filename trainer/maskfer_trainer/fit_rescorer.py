"""Training of the detector's second stage on what the detector finds, in a run folder that can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from maskfer_edge.decoding import read_grey
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes
from maskfer_edge.learned_detector import LearnedDetector
from maskfer_edge.model_file import load_detector_model
from maskfer_edge.scenes import IGNORED, scenes_info
from maskfer_trainer.augment import augment
from maskfer_trainer.candidates import MIN_SCORE, Candidates, LabelledImage, find_candidates
from maskfer_trainer.cutouts import PHOTOGRAPH, held_out
from maskfer_trainer.detector_evaluation import Photo, read_photos, tuning_half
from maskfer_trainer.detector_network import build_rescorer
from maskfer_trainer.devices import describe
from maskfer_trainer.keras_file import embed_metadata
from maskfer_trainer.run_folder import LAST, History, RunFolder, load_last, open_run, seed_dropout
from maskfer_trainer.scene_batches import SceneSet, random_lighting, read_scenes
from maskfer_trainer.scenes import photo_part

# Share of faces in a batch; without it, two in ten of the candidates are.
FACES = 0.375


@dataclass(frozen=True)
class RescorerSettings:
    """What determines a training run, besides detector, scenes and photographs.

    Attributes:
        draws: Parts that are taken of each photograph.
        epochs: How often validation candidates are looked at.
        steps: Batches an epoch.
        seed: Of parts, weights, order and changes.
        batch_size: Candidates a step.
        learning_rate: AdamW's highest.
    """

    draws: int = 60
    epochs: int = 14
    steps: int = 240
    seed: int = 0
    batch_size: int = 256
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        least = min(self.draws, self.epochs, self.steps, self.batch_size)
        if least < 1 or not 0 < self.learning_rate < 1:
            raise InputError(
                "draws, epochs, steps and batch_size must be at least 1, the learning rate between 0 and 1; received "
                f"{self.draws}, {self.epochs}, {self.steps}, {self.batch_size} and {self.learning_rate}"
            )


def fit_rescorer(
    detector: Path,
    scenes: Path,
    photos: Path,
    run: Path,
    settings: RescorerSettings,
    *,
    resume: bool = False,
    verbose: int = 0,
    log: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train the network that scores again what a detector finds.

    The model that is kept is the one after the last epoch, when the learning rate has come down.

    Args:
        detector: Model file, whose finds are learned from; a rescorer in it is left aside.
        scenes: Made by ``trainer build-scenes``; the validation scenes judge.
        photos: Folder of photographs with ``boxes.csv``; only its tuning half is used, without those that the
            scenes show for validation only.
        run: Folder to make, see `run_folder`.
        settings: How to train.
        resume: Go on with the run that `run` holds.
        verbose: As Keras' `fit` takes it.
        log: Takes messages for the terminal.

    Returns:
        The path of model.keras.

    Raises:
        InputError: If detector, scenes or photographs cannot be used, or `resume` does not fit what `run` holds.
        OutputError: If `run` is there already and `resume` is not given.
    """
    info = scenes_info(scenes)
    config = {
        "settings": asdict(settings),
        "kind": "rescorer",
        "scenes": {key: value for key, value in info.items() if key != "validation"},
        "detector_sha256": hashlib.sha256(read_bytes(detector)).hexdigest(),
        "photos_sha256": hashlib.sha256(read_bytes(photos / "boxes.csv")).hexdigest(),
    }
    with open_run(run, config, resume) as create_folder:
        log(describe())
        keras.utils.set_random_seed(settings.seed)
        history = History()
        if (run / LAST).exists():
            network, history = load_last(run, settings.steps)
        else:
            network = build_rescorer()
            steps = settings.epochs * settings.steps
            schedule = keras.optimizers.schedules.CosineDecay(
                0.0, steps - steps // 20, warmup_target=settings.learning_rate, warmup_steps=max(1, steps // 20)
            )
            optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.02)
            network.compile(optimizer, keras.losses.BinaryCrossentropy(label_smoothing=0.02), metrics=["accuracy"])
        if len(history) < settings.epochs:
            training, validation = _candidates(detector, scenes, info, photos, settings, log)
            create_folder()
            dropout = keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs: seed_dropout(network, settings.seed, epoch)
            )
            network.fit(
                _Batches(training, settings, len(history)),
                validation_data=(_pixels(validation.crops), validation.faces.astype(np.float32)[:, None]),
                epochs=settings.epochs,
                initial_epoch=len(history),
                callbacks=[RunFolder(run, history, settings.epochs), dropout],
                verbose=verbose,
                shuffle=False,  # of the batches' numbers, which a run that is gone on with would draw anew
            )
        accuracy = history[-1]["val_accuracy"]
        log(f"right on {accuracy:.3f} of the validation candidates")
        metadata = {**config, "architecture": network.name, "validation_accuracy": round(accuracy, 4)}
        plain = run / "checkpoints" / "rescorer.keras"
        keras.models.load_model(run / LAST, compile=False).save(plain)  # without the optimizer's variables
        embed_metadata(plain, run / "model.keras", metadata)
        return run / "model.keras"


def _candidates(
    detector: Path,
    scenes: Path,
    info: dict[str, Any],
    photos: Path,
    settings: RescorerSettings,
    log: Callable[[str], None],
) -> tuple[Candidates, Candidates]:
    """Those to train on, and those to validate."""
    finder = LearnedDetector(replace(load_detector_model(detector), rescorer=b""), score_threshold=MIN_SCORE)
    of_training, of_validation = read_scenes(scenes, set(info.get("validation", ())))
    validation = find_candidates(finder, _labelled(of_validation))
    photographs = tuning_half(read_photos(photos))
    if info.get("validation_apart"):  # then some photographs are shown in validation scenes only
        photographs = [photo for photo in photographs if not held_out(PHOTOGRAPH, photo.path.name)]
    parts = [find_candidates(finder, pictures) for pictures in (_labelled(of_training), _parts(photographs, settings))]
    training = Candidates(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    for candidates, what in ((training, "to train on"), (validation, "to validate")):
        log(f"{len(candidates.faces)} candidates {what}, {int(candidates.faces.sum())} of them faces")
        if not 0 < candidates.faces.sum() < len(candidates.faces):
            raise InputError(f"{detector} finds no faces, or nothing but faces, {what} in {scenes}; make more scenes")
    return training, validation


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches that seed, epoch and number determine; what the detector was surer of comes oftener."""

    def __init__(self, candidates: Candidates, settings: RescorerSettings, epoch: int) -> None:
        super().__init__()
        self._candidates, self._settings, self._epoch = candidates, settings, epoch
        self._faces, self._background = np.flatnonzero(candidates.faces), np.flatnonzero(~candidates.faces)
        probabilities = np.sqrt(candidates.scores[self._background].astype(float))
        self._probabilities = probabilities / probabilities.sum()

    def __len__(self) -> int:
        return self._settings.steps

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        random = np.random.default_rng((self._settings.seed, self._epoch, number))
        size = self._settings.batch_size
        faces = round(FACES * size)
        chosen = np.concatenate(
            [random.choice(self._faces, faces), random.choice(self._background, size - faces, p=self._probabilities)]
        )
        targets = self._candidates.faces[chosen].astype(np.float32)[:, None]
        return _pixels(augment(self._candidates.crops[chosen], random)), targets

    def on_epoch_end(self) -> None:
        """Keras calls this after each epoch."""
        self._epoch += 1


def _pixels(crops: Any) -> Any:
    return crops[..., None].astype(np.float32)


def _labelled(scenes: SceneSet) -> Iterator[LabelledImage]:
    yield from ((image, *ground_truth) for image, ground_truth in zip(scenes.images, scenes.ground_truth, strict=True))


def _parts(photographs: list[Photo], settings: RescorerSettings) -> Iterator[LabelledImage]:
    """Parts of photographs, at several scales and in other light."""
    for number, photo in enumerate(photographs):
        grey = read_grey(photo.path)
        random = np.random.default_rng((settings.seed, number))
        for _ in range(settings.draws):
            part = photo_part(grey, photo, random)
            faces = [box for label, box in part.faces if label != IGNORED]
            yield random_lighting(part.image, random), faces, [box for label, box in part.faces if label == IGNORED]
