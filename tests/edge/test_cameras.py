import numpy as np

from maskfer_edge.cameras import FakeCamera


def test_the_fake_gives_its_pictures_and_remembers_its_end():
    camera = FakeCamera([np.zeros((1, 1, 3), np.uint8)] * 3, fps=4)
    assert [camera.read().time for _ in range(3)] == [0, 0.25, 0.5]
    assert camera.read() is None
    camera.close()
    assert camera.closed
