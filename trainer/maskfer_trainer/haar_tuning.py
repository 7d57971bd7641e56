"""Which settings of the Haar cascades find most masked faces, tried on the tuning half of some photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskfer_edge.detector import Equalisation, HaarDetector
from maskfer_edge.errors import InputError
from maskfer_trainer.detector_evaluation import (
    Found,
    Photo,
    Progress,
    figures_of,
    percent,
    search,
    tuning_half,
)

CASCADES = ("frontalface_default", "frontalface_alt2", "frontalface_alt")
SCALE_FACTORS = (1.05, 1.1, 1.2)
MIN_NEIGHBORS = (2, 3, 4, 5)
# The usual setting, against which time is counted.
REFERENCE = (CASCADES[0], "none", 1.1, 3)
EQUALISATIONS: tuple[Equalisation, ...] = ("none", "histogram", "clahe")
# Rows of the table.
LISTED = 10


@dataclass(frozen=True)
class HaarTrial:
    """One setting of the cascade, and how it does.

    Attributes:
        cascade: Name of OpenCV's file, without ``haarcascade_``.
        equalisation: What is done to the grey picture first.
        scale_factor: Between one search size and the next.
        min_neighbors: Windows that must agree on a face.
        recall_masked: Share of masked faces that are found, 0 to 1; None if there are none.
        recall_bare: The same of bare faces.
        false_boxes: Detections that find no face, a picture.
        milliseconds: Median for a picture, on one thread.
    """

    cascade: str
    equalisation: Equalisation
    scale_factor: float
    min_neighbors: int
    recall_masked: float | None
    recall_bare: float | None
    false_boxes: float
    milliseconds: float


def tune_haar(
    photos: Sequence[Photo],
    least_px: int = 48,
    min_face: int = 40,
    progress: Progress = lambda done, total: None,
) -> list[HaarTrial]:
    """Try settings of the Haar cascade on the tuning half of some photographs; the testing half is not looked at.

    Args:
        photos: From `read_photos`.
        least_px: Least size of the faces that count, as in `evaluate_detector`.
        min_face: Smallest face to look for, in pixels.
        progress: Takes how many photographs are done, and of how many.

    Raises:
        InputError: If no photograph is in the tuning half.
    """
    photos = tuning_half(photos)
    if not photos:
        raise InputError("none of the photographs is in the tuning half (docs/detecting.md#photographs); give more")
    settings = [(c, e, s) for c in CASCADES for e in EQUALISATIONS for s in SCALE_FACTORS]
    variants = [
        HaarDetector(s, min(MIN_NEIGHBORS), min_face, cascade=cascade, equalisation=e) for cascade, e, s in settings
    ]
    trials = []
    for (cascade, equalisation, scale_factor), found in zip(settings, search(variants, photos, progress), strict=True):
        for min_neighbors in MIN_NEIGHBORS:
            # Asking for more neighbours only drops boxes on which no more windows agree, in the same time.
            kept = [_agreed(f, min_neighbors) for f in found]
            evaluation = figures_of(HaarDetector.name, kept, photos, (least_px,), 0.35)
            trials.append(
                HaarTrial(
                    cascade,
                    equalisation,
                    scale_factor,
                    min_neighbors,
                    evaluation.sizes[0].recall_masked,
                    evaluation.sizes[0].recall_bare,
                    evaluation.false_boxes,
                    evaluation.milliseconds_median,
                )
            )
    return trials


def _agreed(found: Found, min_neighbors: int) -> Found:
    kept = found.scores > min_neighbors
    return Found(found.boxes_xyxy[kept], found.scores[kept], found.milliseconds)


def rank_trials(trials: Sequence[HaarTrial], max_false_boxes: float, max_slowdown: float) -> list[HaarTrial]:
    """The settings within limits, first those that find most masked faces, or bare ones where there are none; of equals
    the faster.

    Args:
        trials: From `tune_haar`.
        max_false_boxes: Limit of false boxes a picture.
        max_slowdown: Limit of time, in multiples of what `REFERENCE` takes.

    Raises:
        InputError: If none is within the limits.
    """
    reference = next(
        trial
        for trial in trials
        if (trial.cascade, trial.equalisation, trial.scale_factor, trial.min_neighbors) == REFERENCE
    )
    within = [
        trial
        for trial in trials
        if trial.false_boxes <= max_false_boxes and trial.milliseconds <= max_slowdown * reference.milliseconds
    ]
    if not within:
        raise InputError(
            f"no setting of the cascade stays within {max_false_boxes:g} false boxes a picture and {max_slowdown:g} "
            "times the usual one's time; allow more of either"
        )
    return sorted(
        within, key=lambda trial: (-(trial.recall_masked or 0), -(trial.recall_bare or 0), trial.milliseconds)
    )


def as_text(ranked: Sequence[HaarTrial]) -> str:
    """The first ten as a table for a terminal."""
    heads = "scale  neighbours  masked    bare  false boxes     ms"
    lines = [f"{'cascade':21}{'contrast':11}{heads}"]
    lines += [
        f"{trial.cascade:21}{trial.equalisation:11}{trial.scale_factor:5.2f}{trial.min_neighbors:12}"
        f"{percent(trial.recall_masked):>8}{percent(trial.recall_bare):>8}{trial.false_boxes:13.2f}"
        f"{trial.milliseconds:7.1f}"
        for trial in ranked[:LISTED]
    ]
    return "\n".join(lines)
