"""The browser as a screen and as a camera.

``/view`` and ``/camera`` are WebSockets: pictures, results and health to a page, and a page's own camera to the loop.
``/healthz`` is one line of JSON, over plain HTTP.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from http import HTTPStatus

import numpy as np

from maskfer_edge.browser_server import HEALTH_S, MAX_SIDE_PX, TRY_AGAIN_LATER, UNSUPPORTED, BrowserServer, Client
from maskfer_edge.cameras import Camera, Frame
from maskfer_edge.contract import UInt8Array
from maskfer_edge.decoding import decode
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError
from maskfer_edge.health import Health
from maskfer_edge.outputs import Output
from maskfer_edge.results import FrameResult

MAX_VIEWERS = 8
MAX_WIDTH_PX, JPEG_QUALITY = 960, 80
# /healthz reports a failure if the newest result is older.
STALE_S = 5.0


class BrowserView(Output):
    """Shows every page that is open the newest picture, its result, and how the run is doing.

    A message is 4 bytes, big-endian, that say how long its JSON is, the JSON ``{"result":…, "health":…}``, and the
    annotated picture as JPEG. Health is null but once a second; a message without a picture has health only.

    Attributes:
        replaced: Pictures that pages were too slow for.
    """

    name = "browser"

    def __init__(
        self, server: BrowserServer, health: Callable[[], Health], camera: BrowserCamera | None = None
    ) -> None:
        """Serve ``/view`` and ``/healthz``.

        Args:
            server: Which others may use as well; it is not closed here.
            health: The run's state at the moment.
            camera: Whose page gets the results, too.
        """
        self._health, self._camera = health, camera
        self._viewers: set[Client] = set()
        self._lock = threading.Lock()
        server.sockets["/view"] = self._serve
        server.pages["/healthz"] = self._healthz

    def write(self, frame: Frame, result: FrameResult, annotated: UInt8Array | None) -> bool:
        """Hand the picture to every page; never waits for one."""
        with self._lock:
            viewers = list(self._viewers)
        if not viewers and self._camera is None:
            return True
        result_json = result.to_json()
        if self._camera is not None:
            self._camera.answer(result_json)
        if viewers and annotated is not None:  # None: the first page has only just been opened
            item = result_json, _jpeg(annotated)
            for viewer in viewers:
                viewer.post(item)
        return True

    def close(self, failed: bool = False) -> None:
        """Tell the pages that the run is over."""
        with self._lock:
            viewers = list(self._viewers)
        for viewer in viewers:
            viewer.end()

    def _serve(self, client: Client) -> None:
        with self._lock:
            for viewer in self._viewers:
                viewer.disconnect_if_stuck()
            if len(self._viewers) >= MAX_VIEWERS:
                client.end(TRY_AGAIN_LATER, f"{MAX_VIEWERS} pages are open already; close one of them")
                return
            self._viewers.add(client)
            self.wants_picture = True
        due = 0.0

        def message(item: tuple[str, bytes] | None) -> bytes:
            nonlocal due
            result_json, picture = item or ("null", b"")
            health = "null"
            if item is None or time.monotonic() >= due:
                health, due = json.dumps(asdict(self._health())), time.monotonic() + HEALTH_S
            head = f'{{"result":{result_json},"health":{health}}}'.encode()
            return len(head).to_bytes(4, "big") + head + picture

        try:
            client.send_newest(message)
        finally:
            with self._lock:
                self._viewers.discard(client)
                self.wants_picture = bool(self._viewers)

    def _healthz(self) -> tuple[HTTPStatus, str]:
        health = self._health()
        age_s = health.seconds if health.frame_age_s is None else health.frame_age_s
        return HTTPStatus.SERVICE_UNAVAILABLE if age_s > STALE_S else HTTPStatus.OK, json.dumps(asdict(health))


class BrowserCamera(Camera):
    """The camera of a page that is open in a browser: one page at a time sends its frames over ``/camera``.

    While no page sends, `read` waits: that is no loss, and nothing here could open a page. So it is not `endless`,
    and `Capture` must be given no `reopen`, or its stall check would take the wait for a camera that hangs. Close the
    camera before the `Capture`, whose thread waits in `read`.
    """

    name = "browser"
    live, fps = True, 15.0

    def __init__(self, server: BrowserServer) -> None:
        """Serve ``/camera``; the server is not closed here."""
        self._changed = threading.Condition()
        self._newest: UInt8Array | None = None
        self._index = 0
        self._page: Client | None = None
        self._pages = 0
        self._closed = False
        server.sockets["/camera"] = self._serve

    def read(self) -> Frame | None:
        """Wait for the next frame of a page; None after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._newest is not None)
            if self._newest is None or self._closed:
                return None
            frame = Frame(self._newest, self._index, time.time(), losses=self._pages)
            self._newest = None
            self._index += 1
            return frame

    def close(self) -> None:
        """End `read`, and the page's connection."""
        with self._changed:
            self._closed = True
            page = self._page
            self._changed.notify_all()
        if page is not None:
            page.end()

    def answer(self, result_json: str) -> None:
        """Send a result to the page, unless a newer one overtakes it; never waits."""
        page = self._page
        if page is not None:
            page.post(result_json)

    def _serve(self, client: Client) -> None:
        with self._changed:
            if self._closed or self._page is not None:
                client.end(TRY_AGAIN_LATER, "another page sends its camera already; stop it there first")
                return
            self._page = client
            self._pages += 1
            self._newest = None  # of the page before
        try:
            # may fail for want of threads, and then the next page must be let in
            threading.Thread(target=client.send_newest, args=(lambda text: text,), daemon=True).start()
            while not client.ended:
                with suppress(TimeoutError):
                    image = _decode_frame(client.connection.recv(timeout=0.5))
                    with self._changed:
                        self._newest = image
                        self._changed.notify_all()
        except InputError as error:
            client.end(UNSUPPORTED, str(error))
        finally:
            client.end()
            with self._changed:
                self._page = None


def jpeg_size_wh(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG's header names, without decoding it; None if it has no plain header."""
    position = 2
    while data.startswith(b"\xff\xd8") and data[position : position + 1] == b"\xff" and position + 9 <= len(data):
        kind = data[position + 1]
        if kind == 0xFF:  # padding
            position += 1
        elif kind < 0xC0 or 0xD0 <= kind <= 0xDA:  # a marker without a length, or the scan
            return None
        elif kind < 0xD0 and kind not in (0xC4, 0xC8, 0xCC):  # start of frame
            return int.from_bytes(data[position + 7 : position + 9]), int.from_bytes(data[position + 5 : position + 7])
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return None


def _decode_frame(data: bytes | str) -> UInt8Array:
    """(height, width, 3) uint8, B,G,R. Raises InputError with a text short enough to close a WebSocket with."""
    size_wh = jpeg_size_wh(data) if isinstance(data, bytes) else None
    if size_wh is not None and max(size_wh) > MAX_SIDE_PX:
        width, height = size_wh
        raise InputError(f"the picture has {width}×{height} pixels; send at most {MAX_SIDE_PX} a side")
    with suppress(InputError):
        if isinstance(data, bytes) and size_wh is not None:
            return decode(data, "the picture")
    raise InputError("this is no whole JPEG picture; send one binary JPEG a message")


def _jpeg(image: UInt8Array) -> bytes:
    """A (height, width, 3) uint8 B,G,R picture as JPEG, made smaller if it is wider than pages show it."""
    height, width = image.shape[:2]
    if width > MAX_WIDTH_PX:
        size_wh = MAX_WIDTH_PX, max(1, round(height * MAX_WIDTH_PX / width))
        image = np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1])
