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
from maskfer_edge.files import read_bytes, whole_file
from maskfer_trainer.batches import by_face
from maskfer_trainer.curves import draw_curves
from maskfer_trainer.devices import describe
from maskfer_trainer.fitting import read_parts, write_calibrated
from maskfer_trainer.keras_file import check_validation_share, says_of_itself, take_weights
from maskfer_trainer.networks import ARCHITECTURES
from maskfer_trainer.run_folder import LEAST_SECONDS, History, begun, read_from, write_history
from maskfer_trainer.settings import FitSettings
from maskfer_trainer.together import LARGE, Faces, Together, in_half_precision


def fit_together(
    dataset: Path,
    out: Path,
    networks: Sequence[str],
    settings: FitSettings,
    *,
    teachers: Sequence[Path] = (),
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Train networks.

    Args:
        dataset: Made by ``trainer build-dataset``.
        out: Folder to make.
        networks: Each an architecture and the seed of its weights, such as ``lean:0``.
        settings: How to train all of them, ``paper`` too, without `arch`; `seed` is of order and changes.
        teachers: `.keras` files that know masked and bare faces, see `together.Together`.
        resume: Go on with what `out` holds.
        say: Takes what a person at the terminal should know.

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
    parsed = [_parsed(name) for name in networks]
    if not parsed or len(set(parsed)) < len(parsed):
        raise InputError(f"give each network once, such as lean:0; received {', '.join(networks) or 'none'}")
    check_validation_share(teachers, settings.validation_share)
    with begun(out, config, resume) as make_folder:
        say(describe())
        made = [_made(*of_network) for of_network in parsed]
        teaching = [_teacher(path) for path in teachers]
        masked, bare, faces, _, validation = read_parts(dataset, settings, need_bare=True)
        assert bare is not None
        together = Together(made, teaching, _grouped(masked, bare, faces), settings)
        say(f"{together.count} faces to train on; {len(validation)} pictures to validate")
        make_folder()
        folders = [out / name.replace(":", "-") for name in networks]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        state = out / "checkpoints" / "state.npz"
        histories = _resumed(together, out, state) if state.exists() else [History() for _ in networks]
        written = -math.inf
        for epoch in range(len(histories[0]), settings.epochs):
            told = together.epoch(epoch, settings.epochs)
            judged = _judged(together, validation)
            for name, history, of_training, of_validation in zip(networks, histories, told, judged, strict=True):
                if not math.isfinite(of_training["loss"] + of_validation["val_loss"]):
                    kept = "what was written before is kept" if state.exists() else "nothing was written"
                    raise InputError(
                        f"the loss of {name} became no number in epoch {epoch + 1}; {kept} in {out}; "
                        "train again with a lower --learning-rate, into another folder"
                    )
                history.append({"epoch": epoch + 1, **of_training, **of_validation})
            if time.monotonic() >= written + LEAST_SECONDS or epoch + 1 == settings.epochs:
                _write(together, histories, folders, state)
                written = time.monotonic()
                right = ", ".join(f"{n} {h[-1]['val_accuracy']:.3f}" for n, h in zip(networks, histories, strict=True))
                say(f"epoch {epoch + 1}/{settings.epochs}: right on validation faces: {right}")
        together.take_averaged()
        counts = np.bincount(masked.labels, minlength=len(LABELS))
        for (architecture, seed), network, history, folder in zip(parsed, made, histories, folders, strict=True):
            plain = ARCHITECTURES[architecture]()  # in full precision
            plain.set_weights(network.get_weights())
            metadata = {
                **config, "weights_seed": seed, "architecture": architecture, "backend": "jax",
                "best_epoch": len(history), "training_pictures": len(masked), "validation_pictures": len(validation),
            }  # fmt: skip
            write_calibrated(plain, validation, counts, settings.least_recall, metadata, folder / "model.keras")
        return [folder / "model.keras" for folder in folders]


def _parsed(name: str) -> tuple[str, int]:
    architecture, _, seed = name.partition(":")
    if architecture not in ARCHITECTURES or not seed.isdecimal() or int(seed) >= 2**32:
        raise InputError(
            f"{name!r} names no network; give an architecture ({', '.join(ARCHITECTURES)}) and a seed, such as lean:0"
        )
    return architecture, int(seed)


def _made(architecture: str, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return in_half_precision(architecture) if architecture in LARGE else ARCHITECTURES[architecture]()


def _teacher(path: Path) -> keras.Model:
    said = says_of_itself(path)
    settings = said.get("settings", {})
    if said.get("architecture") not in ARCHITECTURES or not 0 < settings.get("bare_share", 0) < 1:
        raise InputError(f"{path} cannot teach here: it must be a network of trainer fit, of masked and bare faces")
    if settings.get("leave_out"):
        raise InputError(f"{path} cannot teach here: it may speak of a part of the faces only (leave_out)")
    teacher = _made(said["architecture"], seed=0)
    take_weights(teacher, path)
    return teacher


def _grouped(masked: PictureSet, bare: PictureSet, faces: npt.NDArray[np.int64]) -> Faces:
    """The pictures by face; of a face that has fewer masks than others, some come again."""
    order, first, counts = by_face(faces)
    pictures = order[first[:, None] + np.arange(counts.max()) % counts[:, None]]
    return Faces(bare.images[pictures[:, 0]], masked.images[pictures], masked.labels[pictures[:, 0]])


def _judged(together: Together, validation: PictureSet) -> list[dict[str, float]]:
    rows = []
    for scores in together.scores(validation.images):
        likely = np.maximum(scores[np.arange(len(validation)), validation.labels], 1e-7)
        right = scores.argmax(axis=1) == validation.labels
        rows.append({"val_loss": float(-np.log(likely).mean()), "val_accuracy": float(right.mean())})
    return rows


def _write(together: Together, histories: list[History], folders: list[Path], state: Path) -> None:
    for history, folder in zip(histories, folders, strict=True):
        write_history(folder / "history.csv", history)
        draw_curves(history, folder / "curves.png")
    # resuming starts from it, histories included, so it is whole or not there
    with whole_file(state, overwrite=True) as partial, partial.open("wb") as file:
        np.savez(file, *together.state(), histories=np.array(json.dumps(histories)))


def _resumed(together: Together, out: Path, state: Path) -> list[History]:
    with read_from(out), np.load(state) as kept:
        histories: list[History] = json.loads(str(kept["histories"]))
        together.take_state([kept[f"arr_{number}"] for number in range(len(kept.files) - 1)])
    return histories
