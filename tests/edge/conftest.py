"""What several tests of the edge stand in with."""

import cv2
import numpy as np
import pytest

from maskfer_edge.cameras import FakeCamera
from maskfer_edge.errors import CameraError


@pytest.fixture
def video_capture(monkeypatch):
    """Stands in for cv2.VideoCapture of a V4L2 camera; it gives two pictures."""

    class FakeVideoCapture:
        def __init__(self, *_):
            self.opened, self.settings, self.released, self.left = True, {}, False, 2

        def isOpened(self):
            return self.opened

        def set(self, key, value):
            self.settings[key] = value

        def get(self, _):
            return 0.0

        def read(self):
            self.left -= 1
            return (True, np.zeros((2, 2, 3), np.uint8)) if self.left >= 0 else (False, None)

        def release(self):
            self.released = True

    monkeypatch.setattr(cv2, "VideoCapture", FakeVideoCapture)
    return FakeVideoCapture


@pytest.fixture
def lossy_camera():
    """A camera that breaks after its pictures."""

    class LossyCamera(FakeCamera):
        endless = True

        def read(self):
            frame = super().read()
            if frame is None:
                raise CameraError("unplugged")
            return frame

    return LossyCamera
