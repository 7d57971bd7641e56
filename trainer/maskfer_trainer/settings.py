"""What determines a training run: settings, their defaults by network, and the file they can stand in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskfer_edge.errors import InputError
from maskfer_edge.settings_file import check_types, read_settings
from maskfer_trainer.networks import ARCHITECTURES

# The paper trains on masked faces as they are; where it names no figure, the choice is ours.
PAPER = {
    "epochs": 250,
    "bare_share": 0.0,
    "learning_rate": 5e-4,
    "augmentation": 0.0,
    "cutout": 0.0,
    "mixup": 0.0,
    "label_smoothing": 0.0,
    "balance": 0.0,
}


@dataclass(frozen=True)
class FitSettings:
    """What determines a training run, besides the data. Shares are from 0 to 1.

    Attributes:
        arch: A key of `networks.ARCHITECTURES`. ``paper`` trains as the paper did (Adam,
            ReduceLROnPlateau, masked faces as they are); the others with AdamW, a cosine schedule
            with warm-up, averaged weights and augmented faces.
        epochs: Passes over the training faces; each is shown once in an epoch.
        seed: Of weights, order and augmentation. The validation part is the same for every seed.
        batch_size: Faces a step.
        bare_share: Share of faces shown without their mask, drawn anew each epoch. With 1 the
            network is also validated on bare faces.
        validation_share: Share of the training part that is kept for validation.
        learning_rate: Adam's first (paper) or AdamW's highest.
        augmentation: Strength of the random changes to faces, see `augment.augment`.
        cutout: Share of faces with a random patch over the lower half, see `augment.cut_out`.
        mixup: Parameter of the Beta distribution that faces are mixed by (Zhang and others, mixup,
            2018); 0 mixes none.
        label_smoothing: Share of the target that is spread over all classes.
        balance: Power of class balancing: a class of n faces weighs n^-balance in the loss. 0: each
            face weighs the same; 1: each class does.
        teacher_share: Share of the target that teachers' scores make up, if there are teachers.
        leave_out: Part of the training faces that is left out, "K/N" for the K-th of N; "" for none. What was left
            out can be taught by this network to another (see `teachers.predict_soft_labels`).
        least_recall: Share of each class's validation faces that the finished network shall find; rare classes are
            lifted for it, within limits (see `calibration.lift`).
    """

    arch: str = "lean"
    epochs: int = 30
    seed: int = 0
    batch_size: int = 128
    bare_share: float = 0.3
    validation_share: float = 0.05
    learning_rate: float = 2e-3
    augmentation: float = 1.0
    cutout: float = 0.25
    mixup: float = 0.0
    label_smoothing: float = 0.1
    balance: float = 0.25
    teacher_share: float = 0.5
    leave_out: str = ""
    least_recall: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        if self.arch not in ARCHITECTURES:
            raise InputError(f"unknown architecture {self.arch!r}; there are {', '.join(ARCHITECTURES)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; received {getattr(self, name)}")
        for name in (
            "bare_share", "augmentation", "cutout", "label_smoothing", "balance", "teacher_share", "least_recall",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be within 0 and 1; received {getattr(self, name)}")
        parse_fold(self.leave_out)
        if not 0 < self.validation_share < 1:
            raise InputError(f"validation_share must be between 0 and 1; received {self.validation_share}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be within 0 and 2³² - 1; received {self.seed}")
        if not 0 < self.learning_rate <= 1:
            raise InputError(f"learning_rate must be above 0, and 1 at most; received {self.learning_rate}")
        if not 0 <= self.mixup < float("inf"):
            raise InputError(f"mixup must not be negative; received {self.mixup}")
        if self.arch == "paper" and (self.augmentation, self.cutout, self.mixup) != (0, 0, 0):
            raise InputError("the paper's network is trained on faces as they are; leave out augmentation, "
                             "cutout and mixup, or choose another network")  # fmt: skip


def parse_fold(fold: str) -> tuple[int, int]:
    """K and N of "K/N"; (0, 0) of "". Raises InputError if it is neither."""
    if not fold:
        return 0, 0
    k, _, n = fold.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n) and int(n) >= 2):
        raise InputError(f'leave_out must be a part such as "1/4"; received {fold!r}')
    return int(k), int(n)


def fit_settings(config: Path | None, given: dict[str, Any]) -> FitSettings:
    """Settings by a TOML file and by flags, which win; the rest is the network's default.

    Args:
        config: File of `FitSettings`' attributes, or None.
        given: Attributes by name; None counts as not given.

    Raises:
        InputError: If the file cannot be read, holds an unknown key, or a value makes no sense.
    """
    chosen = read_settings(FitSettings, config, given)
    return FitSettings(**({**PAPER, **chosen} if chosen.get("arch") == "paper" else chosen))
