import http.client
import json
import re
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from maskfer_edge import browser, browser_server
from maskfer_edge.browser import MAX_VIEWERS, BrowserCamera, BrowserView, jpeg_size_wh
from maskfer_edge.browser_server import BrowserServer
from maskfer_edge.cameras import Frame
from maskfer_edge.drawing import annotate
from maskfer_edge.errors import DependencyError, InputError, OutputError
from maskfer_edge.health import HealthMeter
from maskfer_edge.results import FrameResult, face_result

pytest.importorskip("websockets")
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

pytestmark = pytest.mark.timeout(120)
SCORES = np.array([0.05, 0.05, 0.05, 0.6, 0.1, 0.1, 0.05], np.float32)


class Site:
    """A server with everything on it, and ways to reach it."""

    def __init__(self, **options):
        self.stack = ExitStack()
        self.server = self.stack.enter_context(BrowserServer(port=0, **options))
        self.meter = HealthMeter()
        self.camera = self.stack.enter_context(BrowserCamera(self.server))
        self.view = BrowserView(self.server, self.meter.snapshot, self.camera)
        self.token = options.get("token", "")

    def get(self, path="/", **headers):
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=5)
        link.request("GET", path, headers=headers)
        answer = link.getresponse()
        body = answer.read().decode()
        link.close()
        return answer, body

    def socket(self, path, **options):
        query = f"?token={self.token}" if self.token else ""
        address = f"ws://127.0.0.1:{self.server.port}{path}{query}"
        return self.stack.enter_context(connect(address, proxy=None, open_timeout=20, close_timeout=1, **options))

    def viewer(self):
        """A page that watches, and that the view knows of."""
        known = len(self.view._viewers)
        link = self.socket("/view", max_size=2**24)
        wait_for(lambda: len(self.view._viewers) > known)
        return link

    def write(self, index=0, image=None):
        image = picture() if image is None else image
        result = FrameResult(float(index), index, (face_result(1, (60, 40, 80, 80), 5.0, SCORES),), 3.5)
        self.meter.add(result, {"result": 3.5})
        self.view.write(Frame(image, index, float(index)), result, annotate(image, result))
        return result


@pytest.fixture
def site():
    made = Site()
    yield made
    made.stack.close()


def picture(shape=(240, 320)):
    """A smooth picture, which JPEG keeps well."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.dstack([x * 255 // shape[1], y * 255 // shape[0], np.full(shape, 90)]).astype(np.uint8)


def jpeg(image):
    return cv2.imencode(".jpg", image)[1].tobytes()


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "not in 20 s"
        time.sleep(0.01)


def parts(message):
    """JSON and JPEG of a message of /view."""
    length = int.from_bytes(message[:4], "big")
    return json.loads(message[4 : 4 + length]), message[4 + length :]


def next_picture(link):
    """The next message with a picture; one without has health only."""
    while True:
        content, data = parts(link.recv(timeout=20))
        if data:
            return content, data


def closed(link):
    """Code and reason with which the server closes it."""
    with suppress(ConnectionClosed):
        while True:
            link.recv(timeout=20)
    return link.close_code, link.close_reason


def test_pictures_are_wanted_while_a_page_watches(site):
    assert not site.view.wants_picture
    link = site.viewer()
    assert site.view.wants_picture
    link.close()
    wait_for(lambda: not site.view.wants_picture)


def test_a_page_that_comes_between_waits_for_the_next_picture(site):
    link = site.viewer()
    assert site.view.write(Frame(picture(), 1, 1.0), FrameResult(1.0, 1, (), 3.5), None)
    site.write(2)
    assert next_picture(link)[0]["result"]["frame"] == 2


def test_the_page_is_served_whole_and_allows_nothing_foreign(site):
    answer, page = site.get("/")
    policy = answer.headers["Content-Security-Policy"]
    nonce = re.search("script-src 'nonce-(.+?)'", policy)[1]
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert policy.startswith("default-src 'none'") and f'<script nonce="{nonce}">' in page
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "{{" not in page


def test_every_page_has_a_nonce_of_its_own(site):
    policies = {site.get("/")[0].headers["Content-Security-Policy"] for _ in range(2)}
    assert len(policies) == 2


def test_another_path_is_not_found(site):
    assert site.get("/../etc/passwd")[0].status == 404


@pytest.mark.parametrize("path", ["/", "/healthz", "/view", "/camera"])
@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?token=s%C3%A9same2"])
def test_without_the_token_nothing_is_answered(path, query):
    site = Site(token="sésame")
    with site.stack:
        assert site.get(path + query)[0].status == 403


def test_with_the_token_everything_is_answered():
    site = Site(token="sesame")
    with site.stack:
        assert site.server.url == f"http://127.0.0.1:{site.server.port}/?token=sesame"
        assert [site.get(path + "?token=sesame")[0].status for path in ("/", "/healthz")] == [200, 200]
        site.socket("/camera")
        link = site.viewer()
        result = site.write()
        assert next_picture(link)[0]["result"] == json.loads(result.to_json())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_others_are_not_let_in_without_a_token(host):
    with pytest.raises(InputError, match=r"^others can reach \S+; give --token \S+ or the like, or use 127\.0\.0\.1$"):
        BrowserServer(host, 0)


def test_others_are_let_in_with_a_token():
    with BrowserServer("0.0.0.0", 0, token="sesame") as server:
        link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        link.request("GET", "/?token=sesame", headers={"Host": "pi.local"})
        assert link.getresponse().status == 200
        link.close()


@pytest.mark.parametrize("path", ["/view", "/camera"])
def test_a_page_of_another_site_is_refused(site, path):
    with pytest.raises(InvalidStatus, match="403"):
        site.socket(path, origin="http://evil.example")


def test_our_own_page_is_let_in(site):
    site.socket("/view", origin=f"http://127.0.0.1:{site.server.port}")


@pytest.mark.parametrize("host", ["evil.example", "localhost", "127.0.0.1:1", "evil.example:{port}", ""])
def test_a_foreign_host_name_is_refused(site, host):
    answer, text = site.get("/", Host=host.format(port=site.server.port))
    assert answer.status == 403 and text == f"open this page as localhost:{site.server.port}\n"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_this_machines_own_names_are_let_in(site, host):
    assert site.get("/", Host=f"{host}:{site.server.port}")[0].status == 200


def test_a_viewer_gets_the_annotated_picture_and_its_result(site):
    link = site.viewer()
    result = site.write(7)
    content, data = next_picture(link)
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    expected = annotate(picture(), result)
    assert content["result"] == json.loads(result.to_json())
    assert shown.shape == expected.shape and np.abs(shown.astype(int) - expected).mean() < 3
    assert np.abs(shown.astype(int) - picture()).mean() > np.abs(shown.astype(int) - expected).mean()


def test_a_wide_picture_is_made_smaller(site):
    link = site.viewer()
    site.write(image=picture((1080, 1920)))
    assert jpeg_size_wh(next_picture(link)[1]) == (960, 540)


def test_health_is_sent_once_a_second(site, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(browser, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(browser_server, "HEALTH_S", 60.0)  # none without a picture meanwhile
    link = site.viewer()
    health = []
    for index, now[0] in enumerate((0.0, 0.9, 1.0)):
        site.write(index)
        health.append(next_picture(link)[0]["health"])
    assert [content and content["frames"] for content in health] == [1, None, 3]


def test_health_is_sent_also_without_pictures(site):
    site.meter.capture_state = lambda: (0, 1, "unplugged")
    content, data = parts(site.viewer().recv(timeout=20))
    assert content["result"] is None and content["health"]["lost"] == "unplugged" and not data


def test_without_viewers_nothing_is_encoded(site, monkeypatch):
    monkeypatch.setattr(browser, "_jpeg", lambda image: pytest.fail("encoded"))
    site.write()


def test_one_picture_is_encoded_once_for_all(site, monkeypatch):
    links = [site.viewer(), site.viewer()]
    calls = []
    monkeypatch.setattr(browser, "_jpeg", lambda image: calls.append(1) or b"picture")
    site.write()
    assert [next_picture(link)[1] for link in links] == [b"picture"] * 2 and len(calls) == 1


def stalled_viewer(site, monkeypatch):
    """A page that asks for pictures and reads none of them; they are too large for what the system buffers."""
    monkeypatch.setattr(browser, "_jpeg", lambda image: bytes(2_000_000))
    known = len(site.view._viewers)
    link = site.stack.enter_context(socket.socket())
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.connect(("127.0.0.1", site.server.port))
    link.sendall(
        f"GET /view HTTP/1.1\r\nHost: 127.0.0.1:{site.server.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    wait_for(lambda: len(site.view._viewers) > known)
    (client,) = (viewer for viewer in site.view._viewers if viewer.connection.socket.getpeername()[1] == port_of(link))
    for index in range(100):  # until the system's buffers are full
        site.write(index)
        time.sleep(0.02)
        if client._slot is not None and client._sending_since and time.monotonic() - client._sending_since > 0.1:
            break
    return client


def port_of(link):
    return link.getsockname()[1]


def test_a_viewer_that_stops_reading_stalls_nobody(site, monkeypatch):
    client = stalled_viewer(site, monkeypatch)
    watching = site.viewer()
    began, slowest = time.monotonic(), 0.0
    for index in range(100, 120):
        start = time.monotonic()
        site.write(index)
        slowest = max(slowest, time.monotonic() - start)
        assert next_picture(watching)[0]["result"]["frame"] == index
    assert slowest < 5 and time.monotonic() - began < browser_server.SEND_TIMEOUT_S
    assert client._sending_since and json.loads(client._slot[0])["frame"] == 119  # the newest replaces the others


def test_a_viewer_that_stops_reading_is_cut_off(site, monkeypatch):
    stalled_viewer(site, monkeypatch)
    monkeypatch.setattr(browser_server, "SEND_TIMEOUT_S", 0.1)
    time.sleep(0.15)
    site.write()
    wait_for(lambda: not site.view._viewers)


def test_only_so_many_may_watch(site):
    links = [site.viewer() for _ in range(MAX_VIEWERS)]
    assert closed(site.socket("/view")) == (1013, f"{MAX_VIEWERS} pages are open already; close one of them")
    links[0].close()
    wait_for(lambda: len(site.view._viewers) < MAX_VIEWERS)
    site.viewer()


def test_viewers_are_told_when_the_run_ends(site):
    link = site.viewer()
    site.view.close()
    assert closed(link) == (1001, "the program has ended")


def test_healthz_is_well_while_results_come(site):
    site.write()
    answer, body = site.get("/healthz")
    assert answer.status == 200 and body.count("\n") == 1 and json.loads(body)["frames"] == 1


@pytest.mark.parametrize("frames", [0, 1])
def test_healthz_fails_when_the_newest_result_is_old(site, monkeypatch, frames):
    for _ in range(frames):
        site.write()
    monkeypatch.setattr(browser, "STALE_S", 0.05)
    time.sleep(0.2)
    answer, body = site.get("/healthz")
    assert answer.status == 503 and json.loads(body)["frames"] == frames


def test_a_pages_frames_come_out_of_the_camera(site):
    link = site.socket("/camera")
    for index, shape in enumerate(((120, 160), (480, 640))):
        link.send(jpeg(picture(shape)))
        frame = site.camera.read()
        assert frame.image.shape == (*shape, 3) and frame.image.dtype == np.uint8 and frame.index == index
        assert np.abs(frame.image.astype(int) - picture(shape)).mean() < 3  # B,G,R as it was sent
        assert abs(frame.time - time.time()) < 5


def test_a_page_gets_the_results_of_its_frames(site):
    link = site.socket("/camera")
    link.send(jpeg(picture()))
    site.camera.read()
    result = site.write(3)
    assert link.recv(timeout=20) == result.to_json()


def png_of(image):
    return cv2.imencode(".png", image)[1].tobytes()


NO_JPEG = "this is no whole JPEG picture; send one binary JPEG a message"


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        ("words", 1003, NO_JPEG),
        (b"", 1003, NO_JPEG),
        (b"\xff\xd8\xff", 1003, NO_JPEG),
        (bytes(1000), 1003, NO_JPEG),
        (png_of(picture()), 1003, NO_JPEG),
        (jpeg(picture())[:-2000], 1003, NO_JPEG),
        (jpeg(picture((8, 1921))), 1003, "the picture has 1921×8 pixels; send at most 1920 a side"),
        (jpeg(picture((1921, 8))), 1003, "the picture has 8×1921 pixels; send at most 1920 a side"),
        (bytes(2 * 2**20 + 1), 1009, None),
    ],
)  # fmt: skip
def test_what_is_no_picture_closes_that_socket_only(site, message, code, reason):
    watching = site.viewer()
    link = site.socket("/camera")
    link.send(message)
    closing = closed(link)
    assert closing[0] == code and closing[1] and (reason is None or closing[1] == reason)
    wait_for(lambda: site.camera._page is None)
    site.socket("/camera").send(jpeg(picture()))
    assert site.camera.read().image.shape == (240, 320, 3)
    site.write()
    next_picture(watching)


def test_a_picture_that_claims_to_be_huge_is_not_decoded(site, monkeypatch):
    monkeypatch.setattr(browser, "decode", lambda *_: pytest.fail("decoded"))
    data = bytearray(jpeg(picture()))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = b"\xff\xff\xff\xff"
    link = site.socket("/camera")
    link.send(bytes(data))
    assert closed(link)[1] == "the picture has 65535×65535 pixels; send at most 1920 a side"


@pytest.mark.parametrize("shape", [(1, 1), (240, 320), (1920, 1080)])
def test_the_size_is_read_off_a_jpegs_header(shape):
    data = jpeg(picture(shape))
    assert jpeg_size_wh(data) == shape[::-1]
    assert jpeg_size_wh(b"\xff\xd8\xff" + data[2:]) == shape[::-1]  # with padding


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8" + b"\xff" * 50, b"\xff\xd8\xff\x01" + bytes(20)])
def test_a_jpeg_without_a_header_has_no_size(data):
    assert jpeg_size_wh(data) is None


def test_a_second_sending_page_is_refused(site):
    first = site.socket("/camera")
    wait_for(lambda: site.camera._page)
    assert closed(site.socket("/camera")) == (1013, "another page sends its camera already; stop it there first")
    first.send(jpeg(picture()))
    assert site.camera.read() is not None


def test_a_page_that_no_thread_can_be_had_for_keeps_no_other_out(site, monkeypatch):
    class NoThread:
        def __init__(self, **_):
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as short:
        short.setattr(browser, "threading", SimpleNamespace(Thread=NoThread))
        closed(site.socket("/camera"))
    site.socket("/camera").send(jpeg(picture()))
    assert site.camera.read().image.shape == (240, 320, 3)


def test_the_next_page_is_told_from_the_one_before_and_begins_with_its_own_picture(site):
    frames = []
    for value in (50, 200):
        link = site.socket("/camera")
        wait_for(lambda: site.camera._page)
        assert site.camera._newest is None
        link.send(jpeg(np.full((48, 64, 3), value, np.uint8)))
        frames.append(site.camera.read())
        link.send(jpeg(np.full((48, 64, 3), value, np.uint8)))
        wait_for(lambda: site.camera._newest is not None)  # which nobody reads
        link.close()
        wait_for(lambda: site.camera._page is None)
    assert [(int(frame.image.mean()), frame.losses) for frame in frames] == [(50, 1), (200, 2)]


def test_closing_the_camera_ends_a_read_that_waits(site):
    frames = []
    reader = threading.Thread(target=lambda: frames.append(site.camera.read()), daemon=True)
    reader.start()
    site.camera.close()
    reader.join(timeout=20)
    assert frames == [None]


def test_closing_the_camera_ends_its_page(site):
    link = site.socket("/camera")
    wait_for(lambda: site.camera._page)
    site.camera.close()
    assert closed(link) == (1001, "the program has ended")


def test_the_page_knows_whether_the_source_is_its_camera(site):
    configs = []
    with BrowserServer(port=0) as bare:
        for server in (site.server, bare):
            link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            link.request("GET", "/")
            page = link.getresponse().read().decode()
            configs.append(json.loads(re.search(r'"application/json">(.*)</script>', page)[1]))
            link.close()
    assert [config["camera"] for config in configs] == [True, False]
    assert configs[0]["colours"]["Angry"] == "#d55e00"


def test_the_server_ends_soon_with_pages_open(site, monkeypatch):
    links = [site.viewer(), site.socket("/camera")]
    wait_for(lambda: site.camera._page)
    silent = site.stack.enter_context(socket.create_connection(("127.0.0.1", site.server.port), timeout=5))
    stalled_viewer(site, monkeypatch)
    began = time.monotonic()
    site.server.close()
    assert time.monotonic() - began < 5
    for link in links:
        assert closed(link)[0] in (1001, 1006)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", site.server.port), timeout=1)
    silent.close()
    site.server.close()  # once more


@pytest.mark.parametrize("failures", [0, 3])
def test_the_server_outlives_a_connection_that_could_not_be_taken(monkeypatch, failures):
    made, failed = [], []
    monkeypatch.setattr("maskfer_edge.browser_server.RETRY_PAUSE_S", 0.01)

    class Server:
        """The first ends as websockets' does when no thread can be started."""

        def __init__(self, handler, *, sock, **options):
            self.sock, self.ended = sock, threading.Event()
            if made and len(failed) < failures:
                failed.append(self)
                raise OSError(24, "Too many open files")
            made.append(self)

        def serve_forever(self):
            if self is made[0]:
                raise RuntimeError("can't start new thread")
            self.ended.wait(5)

        def shutdown(self):
            self.sock.close()
            self.ended.set()

    monkeypatch.setattr("websockets.sync.server.serve", Server)
    with BrowserServer(port=0):
        wait_for(lambda: len(made) == 2)
        assert made[0].sock is made[1].sock
        assert made[1].sock.fileno() >= 0
    assert made[1].ended.is_set()


def test_a_port_is_free_again_after_closing():
    with BrowserServer(port=0) as server:
        port = server.port
    BrowserServer(port=port).close()


def test_a_port_in_use_is_one_line(site):
    with pytest.raises(OutputError) as caught:
        BrowserServer(port=site.server.port)
    assert str(caught.value) == (
        f"the browser view cannot listen on 127.0.0.1:{site.server.port} (address already in use); "
        "name another port, or 0 for any free one"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"port": 70000}, "port 70000 does not exist; name one from 1024 to 65535, or 0 for any free one"),
        ({"port": -1}, "port -1 does not exist; name one from 1024 to 65535, or 0 for any free one"),
        ({"host": "no.such.name.invalid", "port": 0}, "'no.such.name.invalid' is no name or address of this machine"),
        ({"host": "a" * 70, "port": 0}, "is no name or address of this machine; name another, such as 127.0.0.1"),
        ({"host": "192.0.2.1", "port": 0, "token": "t"}, "the browser view cannot listen on 192.0.2.1:0"),
    ],
)  # fmt: skip
def test_where_nobody_can_listen_is_one_line(options, text):
    with pytest.raises(OutputError) as caught:
        BrowserServer(**options)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_without_websockets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.sync.server", None)
    with pytest.raises(DependencyError, match=r"run: pip install 'maskfer\[browser\]'$"):
        BrowserServer(port=0)


def test_noise_instead_of_a_request_disturbs_nothing(site, capfd):
    with socket.create_connection(("127.0.0.1", site.server.port), timeout=5) as link:
        link.sendall(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
        with suppress(OSError):
            while link.recv(1000):
                pass
    assert site.get("/")[0].status == 200
    assert capfd.readouterr().err == ""
