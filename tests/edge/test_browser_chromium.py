"""The page in a real browser."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from maskfer_edge.browser import BrowserCamera, BrowserView
from maskfer_edge.browser_server import BrowserServer
from maskfer_edge.cameras import Frame
from maskfer_edge.drawing import annotate
from maskfer_edge.health import HealthMeter
from maskfer_edge.results import FrameResult, face_result

pytest.importorskip("websockets")
pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        not (CHROMIUM.exists() and DRIVER.exists()),
        reason=f"{CHROMIUM} and {DRIVER} are needed; run: sudo apt install -y chromium chromium-driver",
    ),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --no-proxy-server --window-size=1280,900 "
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)
SCORES = np.array([0.05, 0.05, 0.05, 0.6, 0.1, 0.1, 0.05], np.float32)
BOX = (60, 40, 80, 80)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium):
    chromium.get("about:blank")
    chromium.get_log("browser")  # of the test before
    yield chromium
    chromium.get("about:blank")


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def result_of(index):
    return FrameResult(float(index), index, (face_result(4, BOX, 5.0, SCORES),), 3.5)


def picture():
    return np.full((240, 320, 3), (200, 120, 40), np.uint8)


class Feed:
    """Writes ten results a second until it is left."""

    def __init__(self, port=0):
        self.server = BrowserServer(port=port)
        self.meter = HealthMeter()
        self.view = BrowserView(self.server, self.meter.snapshot)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def _write(self):
        index = 0
        while not self._over.wait(0.1):
            result = result_of(index)
            self.meter.add(result, {"result": 3.5})
            self.view.write(Frame(picture(), index, 0.0), result, annotate(picture(), result))
            index += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(timeout=2)
        self.server.close()


def shows(page, selector, text):
    WebDriverWait(page, 10).until(
        lambda page: any(text in found.text for found in page.find_elements(By.CSS_SELECTOR, selector))
    )


def complaints(page):
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def pixel(page, x, y):
    """R, G, B, A of the page's picture."""
    return page.execute_script(
        "return [...document.getElementById('picture').getContext('2d').getImageData(...arguments, 1, 1).data]", x, y
    )


def test_the_page_shows_the_picture_and_its_faces(page, stack):
    feed = stack.enter_context(Feed())
    page.get(feed.server.url)
    shows(page, ".card", "Happy 60%")
    WebDriverWait(page, 10).until(lambda page: pixel(page, 5, 200)[3])
    expected = annotate(picture(), result_of(0))
    for x, y in ((5, 200), (100, 80), (BOX[0] + 1, BOX[1] - 4)):  # the wall, the face, its label's ground
        assert np.abs(np.subtract(pixel(page, x, y)[:3], expected[y, x, ::-1].astype(int))).max() < 60
    card = page.find_element(By.CSS_SELECTOR, ".card")
    rows = card.find_elements(By.TAG_NAME, "li")
    assert card.text.startswith("Face 4") and [row.text.split()[0] for row in rows] == list(
        result_of(0).faces[0].scores
    )
    rails = [row.find_element(By.CSS_SELECTOR, ".rail") for row in rows]
    widths = [rail.find_element(By.TAG_NAME, "div").size["width"] / rail.size["width"] for rail in rails]
    assert np.allclose(widths, SCORES, atol=0.02)
    shows(page, "#timeline-text", "Face 4: Happy")
    shows(page, "#stages", "both 3.5 3.5")
    assert not page.find_element(By.ID, "camera").is_displayed()
    assert not page.find_element(By.ID, "banner").is_displayed()
    assert complaints(page) == []


def test_the_page_says_that_the_camera_is_lost(page, stack):
    feed = stack.enter_context(Feed())
    feed.meter.capture_state = lambda: (2, 1, "it was unplugged")
    feed.meter.warnings = ("under-voltage",)
    page.get(feed.server.url)
    shows(page, "#banner", "The camera is lost: it was unplugged.")
    shows(page, "#warnings", "⚠ under-voltage")
    feed.meter.capture_state = lambda: (2, 1, "")
    WebDriverWait(page, 10).until(lambda page: not page.find_element(By.ID, "banner").is_displayed())


def test_the_page_comes_back_with_its_server(page, stack):
    with Feed() as feed:
        page.get(feed.server.url)
        shows(page, "#state", "● connected")
    shows(page, "#banner", "The connection is lost")
    assert "not connected" in page.find_element(By.ID, "state").text
    stack.enter_context(Feed(feed.server.port))
    shows(page, "#state", "● connected")
    shows(page, ".card", "Happy 60%")
    assert not page.find_element(By.ID, "banner").is_displayed()
    assert [text for text in complaints(page) if "ERR_CONNECTION_REFUSED" not in text] == []


def test_the_browsers_own_camera_is_a_source(page, stack):
    server = stack.enter_context(BrowserServer(port=0))
    camera = stack.enter_context(BrowserCamera(server))
    meter = HealthMeter()
    view = BrowserView(server, meter.snapshot, camera)
    page.get(server.url)
    shows(page, "#banner", "No page sends pictures at present")
    page.find_element(By.ID, "camera").click()
    began = time.monotonic()
    pictures = []
    while len(pictures) < 20:
        frame = camera.read()
        pictures.append(frame.image)
        meter.add(result_of(frame.index), {"result": 3.5})
        view.write(frame, result_of(frame.index), annotate(frame.image, result_of(frame.index)))
    assert 20 / (time.monotonic() - began) < 25  # at most 15 a second, once the camera runs
    assert {image.shape for image in pictures} == {(480, 640, 3)} and pictures[0].std() > 10
    assert any((image != pictures[0]).any() for image in pictures[1:])
    shows(page, ".card", "Happy 60%")
    WebDriverWait(page, 10).until(lambda page: pixel(page, BOX[0] + 40, BOX[1])[3] == 255)  # the box, over the video
    assert pixel(page, 400, 300)[3] == 0
    assert page.execute_script("return document.getElementById('video').videoWidth") == 640
    page.find_element(By.ID, "camera").click()
    shows(page, "#camera", "Use this browser's camera")
    WebDriverWait(page, 10).until(lambda _: camera._page is None)
    assert complaints(page) == []
