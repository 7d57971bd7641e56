"""Random changes to training faces: pure functions on arrays, seeded."""

from __future__ import annotations

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2


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
    angles = random.uniform(-12, 12, (count,)) * strength
    scales = 1 + random.uniform(-0.12, 0.14, (count,)) * strength
    shifts = random.uniform(-0.08, 0.08, (count, 2)) * (width, height) * strength
    contrasts = 1 + random.uniform(-0.3, 0.3, (count,)) * strength
    brightnesses = random.uniform(-35, 35, (count,)) * strength
    blurs = np.where(random.random((count,)) < 0.15 * strength, random.uniform(0.4, 1.0, (count,)), 0)
    for i, original in enumerate(images):
        image = original[:, ::-1] if flips[i] else original
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angles[i], scales[i])
        matrix[:, 2] += shifts[i]
        image = cv2.warpAffine(np.ascontiguousarray(image), matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        if blurs[i]:
            image = cv2.GaussianBlur(image, (0, 0), blurs[i])
        mean = image.mean()
        light = (image.astype(np.float32) - mean) * contrasts[i] + mean + brightnesses[i]
        changed[i] = np.clip(np.round(light), 0, 255).astype(np.uint8)
    return changed
