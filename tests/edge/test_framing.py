"""Haar boxes frame a face as FER2013's crops do; that is why the Haar crop margin is 0."""

import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge.decoding import decode
from maskfer_edge.detector import HaarDetector

ARCHIVE = Path(os.environ.get("MASKFER_DATA", Path(__file__).parents[2] / "../shared/data")) / "fer2013.zip"


@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"{ARCHIVE} is not here")
def test_haar_boxes_are_framed_as_fer2013_crops():
    detector = HaarDetector(min_face=60)
    shares = []
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("train/") and n.endswith(".jpg"))
        for name in names[::100]:
            face = cv2.resize(decode(archive.read(name), name), (160, 160), interpolation=cv2.INTER_CUBIC)
            found = detector(cv2.copyMakeBorder(face, 80, 80, 80, 80, cv2.BORDER_REPLICATE))
            if found:
                shares.append(max(detection.box[2] for detection in found) / 160)
    assert len(shares) > 150
    assert 0.94 < float(np.median(shares)) < 1.06
