import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from maskfer_edge import mqtt
from maskfer_edge.cameras import Frame
from maskfer_edge.contract import LABELS
from maskfer_edge.errors import InputError
from maskfer_edge.health import Health, Latency
from maskfer_edge.home_assistant import ENTITIES, discovery, identity
from maskfer_edge.mqtt import MqttOutput
from maskfer_edge.results import FaceResult, FrameResult

paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")

MOSQUITTO = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="Mosquitto is not installed; apt install mosquitto")
PICTURE = np.zeros((8, 8, 3), np.uint8)
SCORES = dict.fromkeys(LABELS, 0.0)
LONGEST_WRITE_S = 0.5  # connecting takes seconds


def health(lost=""):
    return Health(9.0, 120, 14.9, 2, 0.02, 3, 1, lost, {"detect": Latency(20.0, 31.5)}, {"mqtt": 4})


def face(track=1, expression="Happy", side=30, confidence=0.934):
    return FaceResult(track, (0, 0, side, side), 7.0, expression, confidence, SCORES | {"Happy": confidence})


def write(output, *faces, index=0):
    return output.write(Frame(PICTURE, index, 0.0), FrameResult(0.0, index, faces, 1.0), None)


class FakeClient:
    """Remembers what it was told; `connect` and `lose` play the broker."""

    def __init__(self, api, client_id):
        self.client_id, self.connected = client_id, False
        self.published = []
        self.calls = {}

    def __getattr__(self, name):
        return lambda *args, **options: self.calls.update({name: (args, options)})

    def publish(self, topic, payload, retain=False):
        if self.connected:
            self.published.append((topic, payload, retain))
        return SimpleNamespace(rc=0 if self.connected else 4)

    def connect(self):
        self.connected = True
        self.on_connect(self, None, None, SimpleNamespace(is_failure=False), None)

    def lose(self):
        self.connected = False
        self.on_disconnect(self, None, None, None, None)

    def payloads(self, topic):
        return [json.loads(payload) for at, payload, _ in self.published if at == topic]


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(paho, "Client", FakeClient)
    outputs = []

    def make(url="mqtt://broker/room", **options):
        outputs.append(MqttOutput(url, health, **options))
        return outputs[-1], outputs[-1]._client

    yield make
    for output in outputs:
        output.close()


def test_user_and_password_reach_the_client_and_nothing_that_is_shown(make):
    reported = []
    output, client = make("mqtt://me:secret@broker/room", report=reported.append)
    assert client.calls["username_pw_set"] == (("me", "secret"), {})
    client.connect()
    client.lose()
    client.on_connect_fail(client, None)
    client.on_connect(client, None, None, SimpleNamespace(is_failure=True), None)
    shown = " ".join([*reported, str(output.broker), repr(output.broker), *map(str, client.published)])
    assert len(reported) == 2 and "secret" not in shown


def test_what_answers_and_is_no_broker_is_told_once(make):
    reported = []
    _, client = make(report=reported.append)
    for _ in range(3):
        client.lose()
    assert (
        len(reported) == 1 and "mqtt://broker:1883 does not answer as a broker does; is the port right" in reported[0]
    )
    client.connect()
    assert reported[1:] == ["mqtt://broker:1883 is back"]


@pytest.mark.parametrize(("scheme", "expected"), [("mqtt", False), ("mqtts", True)])
def test_tls_is_used_if_asked_for(make, scheme, expected):
    _, client = make(f"{scheme}://broker")
    assert ("tls_set" in client.calls) is expected


def test_the_last_will_is_offline(make):
    _, client = make()
    assert client.calls["will_set"] == (("room/status", "offline"), {"retain": True})


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_that_cannot_be_kept_is_refused(make, rate):
    with pytest.raises(InputError, match="expected more than 0 results a second"):
        make(rate=rate)


def test_on_connecting_it_is_announced_before_online_and_retained(make):
    _, client = make()
    client.connect()
    topics = [topic for topic, _, _ in client.published]
    assert topics == [*discovery("room"), "room/status", "room/health"]
    assert [retain for _, _, retain in client.published] == [True] * len(ENTITIES) + [True, False]


def test_it_is_announced_again_at_each_connection(make):
    _, client = make()
    for _ in range(2):
        client.connect()
        client.lose()
    assert [payload for topic, payload, _ in client.published if topic == "room/status"] == ["online"] * 2


@pytest.mark.parametrize(("component", "key"), ENTITIES)
def test_what_home_assistant_needs_is_there(component, key):
    config = json.loads(discovery("a/room")[f"homeassistant/{component}/{identity('a/room')}/{key}/config"])
    assert config.keys() >= {"name", "unique_id", "state_topic", "value_template", "availability_topic", "device"}
    assert config["unique_id"] == f"{identity('a/room')}_{key}"
    assert config["availability_topic"] == "a/room/status"
    assert config["state_topic"] in ("a/room/faces", "a/room/health")
    assert config["device"]["identifiers"] == [identity("a/room")]
    assert config["device"]["name"] == "a room"


def test_an_identity_belongs_to_one_prefix_and_is_a_client_id_for_any_broker():
    known = {identity(prefix) for prefix in ("a/b", "a_b", "大", "小", "a/b")}
    assert len(known) == 4 and all(len(i) == 23 and i.isascii() and i.isalnum() for i in known)


@pytest.mark.parametrize(
    ("key", "faces", "lost", "expected"),
    [
        ("expression", [face(1, "Sad", 20), face(2, "Happy", 40)], "", "Happy"),
        ("expression", [], "", "none"),
        ("faces", [face(1), face(2)], "", "2"),
        ("faces", [], "", "0"),
        ("confidence", [face()], "", "93.4"),
        ("confidence", [], "", "None"),
        ("fps", [], "", "14.9"),
        ("frame_age", [], "", "0.02"),
        ("camera", [], "", "ON"),
        ("camera", [], "it gives no frames", "OFF"),
    ],
)
def test_home_assistant_reads_the_values_out_of_the_messages(make, monkeypatch, key, faces, lost, expected):
    jinja2 = pytest.importorskip("jinja2", reason="Jinja2 is not installed")
    output, client = make()
    monkeypatch.setattr(output, "_health", lambda: health(lost))
    client.connect()
    write(output, *faces)
    entity = next(entity for (_, name), entity in ENTITIES.items() if name == key)
    [message] = client.payloads(f"room/{entity['state_topic']}")
    assert jinja2.Template(entity["value_template"]).render(value_json=message) == expected


def test_runs_of_one_prefix_push_each_other_out_only_if_they_are_the_same(make, monkeypatch):
    def known(**options):
        return make(**options)[1].client_id

    usual = known(source="usb:0")
    assert known(source="usb:0") == usual != known(source="usb:1")
    monkeypatch.setattr("maskfer_edge.mqtt._machine", lambda: "another")
    assert known(source="usb:0") != usual


@pytest.mark.parametrize("content", ["", "\n", "uninitialized\n", None])
def test_a_machine_without_an_identity_of_its_own_has_its_address(monkeypatch, tmp_path, content):
    if content is not None:
        (tmp_path / "machine-id").write_text(content)
    monkeypatch.setattr(mqtt, "MACHINE_ID", tmp_path / "machine-id")
    assert mqtt._machine() == str(uuid.getnode())
    (tmp_path / "machine-id").write_text("0123abcd\n")
    assert mqtt._machine() == "0123abcd"


def test_results_are_published_at_the_rate(make):
    now = [0.0]
    output, client = make(rate=4, clock=lambda: now[0])
    client.connect()
    for index in range(32):
        now[0] = index / 16
        write(output, face(), index=index)
    assert [message["frame"] for message in client.payloads("room/faces")] == list(range(0, 32, 4))


@pytest.mark.parametrize(
    "after", [[face(1, "Sad")], [face(2)], [face(1), face(2)], []], ids=["expression", "track", "more", "none"]
)
def test_a_change_is_published_at_once(make, after):
    output, client = make(clock=lambda: 0.0)
    client.connect()
    write(output, face())
    write(output, *after, index=1)
    write(output, *after, index=2)
    assert [message["frame"] for message in client.payloads("room/faces")] == [0, 1]


def test_a_message_has_the_keys_of_the_design(make):
    output, client = make()
    client.connect()
    write(output, face())
    [message] = client.payloads("room/faces")
    assert list(message) == ["time", "frame", "faces", "latency_ms"]


def test_results_without_a_connection_are_counted_and_not_kept(make):
    now = [0.0]
    output, client = make(clock=lambda: now[0])
    for index in range(5):
        now[0] = float(index)
        assert write(output, face(), index=index)
    client.connect()
    assert (output.dropped, client.payloads("room/faces")) == (5, [])


def test_health_is_published_also_while_no_frames_come(make, monkeypatch):
    monkeypatch.setattr(mqtt, "HEALTH_S", 0.01)
    _, client = make()
    client.connect()
    assert wait(lambda: len(client.payloads("room/health")) > 2)
    assert client.payloads("room/health")[-1]["latency_ms"] == {"detect": {"p50": 20.0, "p95": 31.5}}


def test_closing_says_offline_and_stays_so(make):
    output, client = make()
    client.connect()
    output.close()
    client.connect()
    assert client.published[-1] == ("room/status", "offline", True) and "disconnect" in client.calls


# ---- against a real broker


def wait(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


class Mosquitto:
    def __init__(self, folder, options="allow_anonymous true"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}/room"
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\n{options}\n")
        self._process = None

    def start(self):
        self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stderr=subprocess.DEVNULL)

        def listens():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        assert wait(listens)

    def stop(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def new_broker(tmp_path):
    brokers = []

    def new_broker(*options):
        brokers.append(Mosquitto(tmp_path, *options))
        return brokers[-1]

    yield new_broker
    for broker in brokers:
        broker.stop()


@pytest.fixture
def broker(new_broker):
    broker = new_broker()
    broker.start()
    return broker


class Subscriber:
    """Keeps the payloads of all topics; of the retained ones a new subscriber gets the last."""

    def __init__(self, port):
        self.payloads = defaultdict(list)
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *rest: client.subscribe("#")
        self._client.on_message = lambda client, data, message: self.payloads[message.topic].append(
            message.payload.decode()
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def __enter__(self):
        return self.payloads

    def __exit__(self, *failure):
        self._client.disconnect()
        self._client.loop_stop()


class Writer(threading.Thread):
    """Writes 15 frames a second, each with a change, and measures how long that takes."""

    def __init__(self, output):
        super().__init__()
        self.output, self.longest_s, self.ended = output, 0.0, threading.Event()

    def run(self):
        index = 0
        while not self.ended.wait(1 / 15):
            start = time.monotonic()
            write(self.output, face(track=index), index=index)
            self.longest_s = max(self.longest_s, time.monotonic() - start)
            index += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *failure):
        self.ended.set()
        self.join()


def close_in_time(output):
    start = time.monotonic()
    output.close()
    assert time.monotonic() - start < 4  # connecting may hang for 5


@needs_mosquitto
def test_results_arrive_and_the_end_is_said(broker):
    output = MqttOutput(broker.url, health)
    with Subscriber(broker.port) as payloads:
        assert wait(lambda: payloads["room/health"])
        write(output, face())
        assert wait(lambda: payloads["room/faces"])
        assert json.loads(payloads["room/faces"][0])["faces"][0]["expression"] == "Happy"
        close_in_time(output)
        assert wait(lambda: payloads["room/status"] == ["online", "offline"])
        assert payloads.keys() >= discovery("room").keys()


@needs_mosquitto
def test_status_and_announcement_are_retained(broker):
    output = MqttOutput(broker.url, health)
    with Subscriber(broker.port) as first:
        assert wait(lambda: first["room/health"])
        with Subscriber(broker.port) as late:
            assert wait(lambda: late["room/status"] == ["online"] and late.keys() >= discovery("room").keys())
    close_in_time(output)


@needs_mosquitto
def test_the_broker_says_offline_after_a_kill(broker):
    program = (
        "import sys, time; from maskfer_edge.health import HealthMeter; from maskfer_edge.mqtt import MqttOutput; "
        "output = MqttOutput(sys.argv[1], HealthMeter().snapshot); time.sleep(60)"
    )
    with Subscriber(broker.port) as payloads:
        process = subprocess.Popen([sys.executable, "-c", program, broker.url])
        try:
            assert wait(lambda: payloads["room/status"] == ["online"], 20)
        finally:
            process.kill()
            process.wait()
        assert wait(lambda: payloads["room/status"] == ["online", "offline"])


@needs_mosquitto
def test_a_broker_that_stops_and_comes_back_is_found_again(broker):
    reported = []
    output = MqttOutput(broker.url, health, report=reported.append)
    with Writer(output) as writer:
        with Subscriber(broker.port) as payloads:
            assert wait(lambda: payloads["room/faces"])
        broker.stop()
        assert wait(lambda: output.dropped > 3)
        broker.start()
        with Subscriber(broker.port) as payloads:
            # this broker kept nothing, so all of it was sent again
            assert wait(lambda: payloads["room/faces"])
            assert payloads["room/status"] == ["online"] and payloads.keys() >= discovery("room").keys()
    close_in_time(output)
    assert writer.longest_s < LONGEST_WRITE_S
    assert [line.removeprefix(str(output.broker)).split(";")[0] for line in reported] == [" is lost", " is back"]


@needs_mosquitto
def test_a_broker_that_is_not_there_yet_is_waited_for(new_broker):
    broker, reported = new_broker(), []
    output = MqttOutput(broker.url, health, report=reported.append)
    with Writer(output) as writer:
        assert wait(lambda: output.dropped > 3 and reported)
        broker.start()
        with Subscriber(broker.port) as payloads:
            assert wait(lambda: payloads["room/faces"])
    broker.stop()
    close_in_time(output)
    assert writer.longest_s < LONGEST_WRITE_S
    assert "cannot be reached: Connection refused" in reported[0]


@needs_mosquitto
def test_a_broker_that_refuses_is_named_with_the_remedy(new_broker):
    broker, reported = new_broker("allow_anonymous false"), []
    broker.start()
    output = MqttOutput(broker.url.replace("//", "//me:secret@"), health, report=reported.append)
    assert wait(lambda: reported)
    close_in_time(output)
    assert "refuses: Not authorized; check user and password" in reported[0] and "secret" not in reported[0]


def test_an_address_where_nothing_answers_does_not_delay_the_end():
    with socket.socket() as deaf:  # its queue of one is full, so that connecting hangs
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            output = MqttOutput(f"mqtt://127.0.0.1:{port}/room", health)
            time.sleep(0.1)
            write(output, face())
            close_in_time(output)
    assert output.dropped == 1
