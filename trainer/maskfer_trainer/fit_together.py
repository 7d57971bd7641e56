"""Training of several networks beside each other, from a data set to a folder that can be resumed at any moment.

OUT/run.json                 settings, networks, data set
OUT/checkpoints/state.npz    where all of them stood when it was last written
OUT/NAME/history.csv         a row an epoch, of each network; its curves beside it
OUT/NAME/model.keras         the network after the last epoch, calibrated
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import PictureSet, dataset_info
from maskfer_edge.errors import InputError
from maskfer_edge.files import atomic_file, read_bytes
from maskfer_trainer.batches import group_by_face
from maskfer_trainer.curves import draw_curves
from maskfer_trainer.devices import describe
from maskfer_trainer.fitting import read_parts, write_calibrated
from maskfer_trainer.keras_file import check_validation_share, read_metadata, take_weights
from maskfer_trainer.networks import ARCHITECTURES
from maskfer_trainer.run_folder import MIN_WRITE_SECONDS, History, open_run, reading_run, write_history
from maskfer_trainer.settings import FitSettings
from maskfer_trainer.together import LARGE, Faces, MultiNetworkTrainer, build_mixed_precision


def fit_together(
    dataset: Path,
    out: Path,
    networks: Sequence[str],
    settings: FitSettings,
    *,
    teachers: Sequence[Path] = (),
    resume: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Train networks.

    Args:
        dataset: Made by ``trainer build-dataset``.
        out: Folder to make.
        networks: Each an architecture and the seed of its weights, such as ``lean:0``.
        settings: How to train all of them, ``paper`` too, without `arch`; `seed` is of order and changes.
        teachers: `.keras` files that know masked and bare faces, see `together.MultiNetworkTrainer`.
        resume: Go on with what `out` holds.
        log: Takes messages for the terminal.

    Returns:
        The path of each network's model.keras.

    Raises:
        InputError: If a network is unknown, `settings` name another than the default, the data set or a teacher cannot
            be used, `resume` does not fit what `out` holds, or the loss becomes no number.
        OutputError: If `out` is there already and `resume` is not given.
    """
    info = dataset_info(dataset)
    config = {
        "settings": {key: value for key, value in asdict(settings).items() if key != "arch"},
        "networks": list(networks),
        "dataset": info["name"],
        "dataset_sha256": info["sha256"],
        "teachers_sha256": [hashlib.sha256(read_bytes(teacher)).hexdigest() for teacher in teachers],
    }
    if settings.arch != FitSettings.arch:  # whose other settings may have been chosen for it alone
        raise InputError(f"the settings are of architecture {settings.arch}; leave it out, each network names its own")
    parsed = [_parse_network(name) for name in networks]
    if not parsed or len(set(parsed)) < len(parsed):
        raise InputError(f"give each network once, such as lean:0; received {', '.join(networks) or 'none'}")
    check_validation_share(teachers, settings.validation_share)
    with open_run(out, config, resume) as create_folder:
        log(describe())
        built = [_build(*of_network) for of_network in parsed]
        teacher_networks = [_load_teacher(path) for path in teachers]
        masked, bare, faces, _, validation = read_parts(dataset, settings, need_bare=True)
        assert bare is not None
        trainer = MultiNetworkTrainer(built, teacher_networks, _group_faces(masked, bare, faces), settings)
        log(f"{trainer.count} faces to train on; {len(validation)} pictures to validate")
        create_folder()
        folders = [out / name.replace(":", "-") for name in networks]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        state = out / "checkpoints" / "state.npz"
        histories = _restore(trainer, out, state) if state.exists() else [History() for _ in networks]
        written = -math.inf
        for epoch in range(len(histories[0]), settings.epochs):
            train_metrics = trainer.train_epoch(epoch, settings.epochs)
            val_metrics = _validate(trainer, validation)
            for name, history, of_training, of_validation in zip(
                networks, histories, train_metrics, val_metrics, strict=True
            ):
                if not math.isfinite(of_training["loss"] + of_validation["val_loss"]):
                    kept = "what was written before is kept" if state.exists() else "nothing was written"
                    raise InputError(
                        f"the loss of {name} became no number in epoch {epoch + 1}; {kept} in {out}; "
                        "train again with a lower --learning-rate, into another folder"
                    )
                history.append({"epoch": epoch + 1, **of_training, **of_validation})
            if time.monotonic() >= written + MIN_WRITE_SECONDS or epoch + 1 == settings.epochs:
                _write(trainer, histories, folders, state)
                written = time.monotonic()
                accuracies = ", ".join(
                    f"{n} {h[-1]['val_accuracy']:.3f}" for n, h in zip(networks, histories, strict=True)
                )
                log(f"epoch {epoch + 1}/{settings.epochs}: right on validation faces: {accuracies}")
        trainer.assign_averaged_weights()
        counts = np.bincount(masked.labels, minlength=len(LABELS))
        for (architecture, seed), network, history, folder in zip(parsed, built, histories, folders, strict=True):
            plain = ARCHITECTURES[architecture]()  # in full precision
            plain.set_weights(network.get_weights())
            metadata = {
                **config, "weights_seed": seed, "architecture": architecture, "backend": "jax",
                "best_epoch": len(history), "training_pictures": len(masked), "validation_pictures": len(validation),
            }  # fmt: skip
            write_calibrated(plain, validation, counts, settings.least_recall, metadata, folder / "model.keras")
        return [folder / "model.keras" for folder in folders]


def _parse_network(name: str) -> tuple[str, int]:
    architecture, _, seed = name.partition(":")
    if architecture not in ARCHITECTURES or not seed.isdecimal() or int(seed) >= 2**32:
        raise InputError(
            f"{name!r} names no network; give an architecture ({', '.join(ARCHITECTURES)}) and a seed, such as lean:0"
        )
    return architecture, int(seed)


def _build(architecture: str, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return build_mixed_precision(architecture) if architecture in LARGE else ARCHITECTURES[architecture]()


def _load_teacher(path: Path) -> keras.Model:
    metadata = read_metadata(path)
    settings = metadata.get("settings", {})
    if metadata.get("architecture") not in ARCHITECTURES or not 0 < settings.get("bare_share", 0) < 1:
        raise InputError(f"{path} cannot teach here: it must be a network of trainer fit, of masked and bare faces")
    if settings.get("leave_out"):
        raise InputError(f"{path} cannot teach here: it may speak of a part of the faces only (leave_out)")
    teacher = _build(metadata["architecture"], seed=0)
    take_weights(teacher, path)
    return teacher


def _group_faces(masked: PictureSet, bare: PictureSet, faces: npt.NDArray[np.int64]) -> Faces:
    """The pictures by face; of a face that has fewer masks than others, some come again."""
    order, first, counts = group_by_face(faces)
    pictures = order[first[:, None] + np.arange(counts.max()) % counts[:, None]]
    return Faces(bare.images[pictures[:, 0]], masked.images[pictures], masked.labels[pictures[:, 0]])


def _validate(trainer: MultiNetworkTrainer, validation: PictureSet) -> list[dict[str, float]]:
    rows = []
    for scores in trainer.scores(validation.images):
        likely = np.maximum(scores[np.arange(len(validation)), validation.labels], 1e-7)
        correct = scores.argmax(axis=1) == validation.labels
        rows.append({"val_loss": float(-np.log(likely).mean()), "val_accuracy": float(correct.mean())})
    return rows


def _write(trainer: MultiNetworkTrainer, histories: list[History], folders: list[Path], state: Path) -> None:
    for history, folder in zip(histories, folders, strict=True):
        write_history(folder / "history.csv", history)
        draw_curves(history, folder / "curves.png")
    # resuming starts from it, histories included, so it is whole or not there
    with atomic_file(state, overwrite=True) as partial, partial.open("wb") as file:
        np.savez(file, *trainer.state(), histories=np.array(json.dumps(histories)))


def _restore(trainer: MultiNetworkTrainer, out: Path, state: Path) -> list[History]:
    with reading_run(out), np.load(state) as kept:
        histories: list[History] = json.loads(str(kept["histories"]))
        trainer.load_state([kept[f"arr_{number}"] for number in range(len(kept.files) - 1)])
    return histories
