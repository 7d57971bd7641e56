"""One network out of several that started from the same weights: the mean of their weights."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from maskfer_edge.dataset import PictureSet, dataset_info
from maskfer_edge.errors import InputError
from maskfer_edge.files import check_free, read_bytes
from maskfer_trainer.fitting import read_validation, write_calibrated
from maskfer_trainer.keras_file import METADATA_NAME, predict_views
from maskfer_trainer.settings import FitSettings

# Which of the things that a run says of itself its average says too.
SHARED = (
    "dataset",
    "dataset_sha256",
    "initial_sha256",
    "architecture",
    "backend",
    "training_pictures",
    "validation_pictures",
)


@dataclass(frozen=True)
class AverageReport:
    """Shares of validation pictures that are right, each shown once, as in a run's history.

    Attributes:
        model: Path of the written file.
        each: Path of each network to its share.
        average: That of the mean of their weights.
        temperature: Folded into it.
    """

    model: str
    each: dict[str, float]
    average: float
    temperature: float


def average(models: list[Path], dataset: Path, out: Path, overwrite: bool = False) -> AverageReport:
    """Average the weights of networks that were trained from the same start (Wortsman and others, Model Soups, 2022).

    Networks of several seeds that start from one network (``trainer fit --initial``) end close enough
    to each other for the mean of their weights to be better than each; from different starts it is
    worth nothing. The mean is calibrated anew on the validation faces, which none of them saw.

    Args:
        models: `.keras` files of ``trainer fit``, two or more.
        dataset: On which they were trained.
        out: `.keras` file to write.
        overwrite: Whether an existing `out` is replaced.

    Raises:
        InputError: If a file cannot be used, or they differ in more than the seed.
        OutputError: If `out` is there already or cannot be written.
    """
    check_free(out, overwrite)
    if len(models) < 2:
        raise InputError("one network has no average; name two or more")
    networks, said = zip(*(_load(path) for path in models), strict=True)
    shapes = [[weights.shape for weights in network.get_weights()] for network in networks]
    for path, other, of_other in zip(models[1:], said[1:], shapes[1:], strict=True):
        if of_other != shapes[0]:
            raise InputError(f"{path} has weights of other shapes than {models[0]}")
        for key in ("architecture", "dataset_sha256", "initial_sha256", "settings"):
            if other[key] != said[0][key]:
                raise InputError(f"{path} and {models[0]} differ in {key}: {other[key]!r} and {said[0][key]!r}")
    if said[0]["dataset_sha256"] != dataset_info(dataset)["sha256"]:
        raise InputError(f"{models[0]} was not trained on {dataset}; name the data set that it was trained on")
    validation = read_validation(dataset, said[0]["settings"])
    each = {str(path): _share_right(network, validation) for path, network in zip(models, networks, strict=True)}
    result = networks[0]
    result.set_weights(
        [np.mean(same, axis=0) for same in zip(*(n.get_weights() for n in networks), strict=True)]
    )  # fmt: skip
    right = _share_right(result, validation)
    metadata = {
        **{key: said[0][key] for key in SHARED},
        "settings": asdict(said[0]["settings"]),
        "averaged_sha256": [hashlib.sha256(read_bytes(path)).hexdigest() for path in models],
        "validation_accuracy": right,
    }
    temperature = write_calibrated(result, validation, metadata, out)
    return AverageReport(str(out), each, right, temperature)


def _load(path: Path) -> tuple[keras.Model, dict[str, Any]]:
    """A network and what it says of itself; its settings without the seed, in which runs may differ."""
    read_bytes(path)  # says what is wrong with the path itself
    try:
        with zipfile.ZipFile(path) as archive:
            said = json.loads(archive.read(METADATA_NAME))
        settings = replace(FitSettings(**said["settings"]), seed=0)
        network = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds for files that it cannot read
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{path} is no whole model.keras of trainer fit: {reason}") from error
    return network, {**dict.fromkeys(SHARED), **said, "settings": settings}


def _share_right(network: keras.Model, faces: PictureSet) -> float:
    given = predict_views(network, faces.images)[0].argmax(axis=1)
    return round(float((given == faces.labels).mean()), 4)
