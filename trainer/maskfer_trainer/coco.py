"""Boxes and mask outlines of a data set in the COCO format (Lin et al. 2014, "Data format" of cocodataset.org)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfer_edge.dependencies import cv2
from maskfer_trainer.masks import Points

CATEGORIES = ({"id": 1, "name": "face", "supercategory": "face"}, {"id": 2, "name": "mask", "supercategory": "face"})


def coco(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Describe masked pictures as COCO does.

    Each face has two annotations: the face with its box, and the mask with its box and outline, both
    with the face's ``expression``, and the mask's ``kind`` and how it is ``worn``.

    Args:
        records: Of the manifest; ``file_name`` is their ``picture``.
    """
    images: dict[str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for record in records:
        width, height = record["size"]
        image = images.setdefault(
            record["picture"],
            {"id": len(images) + 1, "file_name": record["picture"], "width": width, "height": height},
        )
        of_both = {"image_id": image["id"], "iscrowd": 0, "expression": record["class"]}
        x, y, w, h = record["box"]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        annotations.append(
            {"id": len(annotations) + 1, "category_id": 1, **of_both, "bbox": [x0, y0, x1 - x0, y1 - y0],
             "area": (x1 - x0) * (y1 - y0), "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
        )  # fmt: skip
        polygon = np.array(record["polygon"], dtype=np.int32)
        x0, y0, w, h = cv2.boundingRect(polygon)
        outline = _edges(polygon - (x0, y0), (w, h)) + np.array((x0, y0), dtype=np.float32)
        annotations.append(
            {"id": len(annotations) + 1, "category_id": 2, **of_both,
             "kind": record["mask"]["kind"], "worn": record["mask"]["worn"],
             "bbox": [x0, y0, w, h], "area": round(float(cv2.contourArea(outline)), 1),
             "segmentation": [outline.ravel().tolist()]}
        )  # fmt: skip
    return {"images": list(images.values()), "annotations": annotations, "categories": list(CATEGORIES)}


FINER = 4


def _edges(polygon: npt.NDArray[np.int32], size_wh: tuple[int, int]) -> Points:
    """The outline, (n, 2) float32, around the pixels whose middles a polygon runs through: COCO counts from edges."""
    filled = cv2.fillPoly(np.zeros(size_wh[::-1], dtype=np.uint8), [polygon], 1)
    finer = cv2.resize(filled, None, fx=FINER, fy=FINER, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(finer, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outline = max(contours, key=cv2.contourArea)
    # a point on a pixel's last fine pixel stands for the edge, which is one further
    outline = outline + (outline % FINER == FINER - 1)
    return np.asarray(cv2.approxPolyDP(outline, 0.5 * FINER, True)[:, 0] / FINER, dtype=np.float32)
