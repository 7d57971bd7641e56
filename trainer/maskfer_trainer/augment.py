"""Random changes to training faces: pure functions on arrays, seeded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import FloatArray, UInt8Array
from maskfer_edge.dependencies import cv2

# Of `augment` at full strength, here and in `together`: turns in degrees, what is added to a scale of 1, moves as a
# share of the sides, what is added to a contrast of 1, grey levels; how many are blurred, and by what width in pixels.
DEGREES, ENLARGED, MOVED = (-12, 12), (-0.12, 0.14), (-0.08, 0.08)
CONTRAST, BRIGHTNESS = (-0.3, 0.3), (-35, 35)
BLURRED, BLUR = 0.15, (0.4, 1.0)
# Of the patches of `cut_out`: where the upper edge, the left and the right one lie, as shares of the sides.
PATCH_TOP, PATCH_LEFT, PATCH_RIGHT = (0.5, 0.75), (0, 0.25), (0.75, 1)


def augment(images: UInt8Array, random: np.random.Generator, strength: float = 1.0) -> UInt8Array:
    """Flip, turn, scale, shift, light and blur each face at random (own choice of ranges).

    Shift and scale imitate the boxes of face detectors, which never sit as FER2013's crops do.

    Args:
        images: (n, h, w) uint8 grey.
        random: Source of randomness.
        strength: 1 for the full ranges, 0 for flips alone.

    Returns:
        (n, h, w) uint8 grey, new.
    """
    count, height, width = images.shape
    changed = np.empty_like(images)
    flips = random.random((count,)) < 0.5
    angles = random.uniform(*DEGREES, (count,)) * strength
    scales = 1 + random.uniform(*ENLARGED, (count,)) * strength
    shifts = random.uniform(*MOVED, (count, 2)) * (width, height) * strength
    contrasts = (1 + random.uniform(*CONTRAST, (count,)) * strength).astype(np.float32)
    brightnesses = (random.uniform(*BRIGHTNESS, (count,)) * strength).astype(np.float32)
    blurs = np.where(random.random((count,)) < BLURRED * strength, random.uniform(*BLUR, (count,)), 0)
    for i, original in enumerate(images):
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angles[i], scales[i])
        if flips[i]:  # mirrored first, then turned
            matrix[:, 2] += matrix[:, 0] * (width - 1)
            matrix[:, 0] *= -1
        matrix[:, 2] += shifts[i]
        image = cv2.warpAffine(original, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        changed[i] = cv2.GaussianBlur(image, (0, 0), blurs[i]) if blurs[i] else image
    means = changed.mean(axis=(1, 2), dtype=np.float32)[:, None, None]
    light = (changed - means) * contrasts[:, None, None] + (means + brightnesses[:, None, None])
    return np.asarray(np.clip(np.round(light), 0, 255), dtype=np.uint8)


def cut_out(images: UInt8Array, random: np.random.Generator, share: float) -> UInt8Array:
    """Lay a patch of one grey over the lower half of some faces (after DeVries and Taylor, Cutout, 2017).

    A stand-in for masks of a look that no mask of the data set has: the network learns not to lean
    on what a drawn mask lets through. The upper edge lies between the middle of the picture and
    three quarters down, the sides anywhere that leaves at least half the width covered.

    Args:
        images: (n, h, w) uint8 grey.
        random: Source of randomness.
        share: Share of faces that get one, 0 to 1.

    Returns:
        (n, h, w) uint8 grey, new.
    """
    changed = images.copy()
    count, height, width = images.shape
    chosen = random.random((count,)) < share
    tops = np.round(random.uniform(*PATCH_TOP, (count,)) * height).astype(int)
    lefts = np.round(random.uniform(*PATCH_LEFT, (count,)) * width).astype(int)
    rights = np.round(random.uniform(*PATCH_RIGHT, (count,)) * width).astype(int)
    greys = random.integers(0, 256, (count,))
    for i in np.flatnonzero(chosen):
        changed[i, tops[i] :, lefts[i] : rights[i]] = greys[i]
    return changed


def mix_up(
    faces: FloatArray, targets: FloatArray, weights: FloatArray, random: np.random.Generator, alpha: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mix each face of a batch with another one, and their targets alike (Zhang and others, mixup, 2018).

    Args:
        faces: (n, h, w, 1) float32.
        targets: (n, classes) float32.
        weights: (n,) float32.
        random: Source of randomness.
        alpha: Shares are drawn from Beta(alpha, alpha), one a pair; above 0.

    Returns:
        The three, mixed, of the same shapes.
    """
    count = len(faces)
    share = random.beta(alpha, alpha, count).astype(np.float32)
    other = random.permutation(count)

    def mixed(values: npt.NDArray[np.float32]) -> FloatArray:
        own = share.reshape(-1, *(1,) * (values.ndim - 1))
        return np.asarray(own * values + (1 - own) * values[other], dtype=np.float32)

    # so that the loss is the mix of the two faces' weighted losses
    weighed = mixed(weights)
    return mixed(faces), mixed(weights[:, None] * targets) / weighed[:, None], weighed
