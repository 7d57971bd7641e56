"""Whether what the monitoring asks for is what the machines report, and whether nobody gets in without a password."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from maskfer_edge.board import FLAGS
from maskfer_edge.health import Health, Latency
from maskfer_edge.metrics import MetricsServer
from maskfer_edge.model_state import KINDS

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; pip install pyyaml")
parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
BOARD = MONITORING / "grafana/boards/maskfer.json"
PROMTOOL = shutil.which("promtool")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed; apt install prometheus")
# Made by Prometheus itself.
OF_PROMETHEUS = {"up", "ALERTS"}
LABELS_OF_PROMETHEUS = {"job", "instance", "host", "alertname", "alertstate", "severity"}


def read_yaml(name):
    return yaml.safe_load((MONITORING / name).read_text())


def compose():
    return read_yaml("compose.yaml")


def alerts():
    return {rule["alert"]: rule for group in read_yaml("maskfer.rules.yml")["groups"] for rule in group["rules"]}


def queries():
    """All queries of the dashboard and of the alerts."""
    panels = json.loads(BOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [a["expr"] for a in alerts().values()]


@pytest.fixture(scope="module")
def reported():
    """The labels of all metrics that a run can report, by name."""
    took = Latency(20.0, 31.5)
    stages = {"detect": took, "classify": took, "result": took, "age": took}
    health = Health(9.0, 120, 14.9, 2, 0.02, 3, 1, "", stages, {"mqtt": 4}, tuple(FLAGS), KINDS)
    with MetricsServer(lambda: health, 0) as server:
        text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5).read().decode()
    labels = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            values = labels.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                values.setdefault(name, set()).add(value)
    return labels


def test_every_metric_that_is_asked_for_is_reported(reported):
    asked = {name for query in queries() for name in re.findall(r"\b(?:maskfer|process)_\w+|\bup\b|\bALERTS\b", query)}
    assert asked - OF_PROMETHEUS <= reported.keys()
    # and every one that is reported is shown
    assert {name for name in reported if name.startswith("maskfer_")} <= asked


def test_every_label_that_is_asked_for_is_reported(reported):
    asked = [
        (metric, *matcher)
        for query in queries()
        for metric, matchers in re.findall(r"(\w+)\{([^}]*)\}", query)
        for matcher in re.findall(r'(\w+)=(~?)"([^"]*)"', matchers)
        if matcher[0] not in LABELS_OF_PROMETHEUS
    ]
    assert len(asked) >= 6
    for metric, label, regular, value in asked:
        assert (set(value.split("|")) if regular else {value}) <= reported[metric][label], (metric, label, value)


def test_every_warning_of_a_board_has_an_alert():
    matched = [re.search(r'warning=~?"([^"]*)"', alert["expr"]) for alert in alerts().values()]
    assert {warning for match in matched if match for warning in match[1].split("|")} == set(FLAGS)


def test_alerts_say_which_machine_and_what_helps():
    for alert in alerts().values():
        assert "{{ $labels.host }}" in alert["annotations"]["summary"] and alert["annotations"]["description"]
        assert alert["labels"]["severity"] in ("critical", "warning")


def test_the_dashboard_is_whole():
    board = json.loads(BOARD.read_text())
    assert re.fullmatch(r"[a-z]+", board["uid"]) and board["schemaVersion"] >= 39
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) and all(panel["title"] for panel in board["panels"])
    source = read_yaml("grafana/datasources/prometheus.yml")["datasources"][0]["uid"]
    asked = [panel["datasource"]["uid"] for panel in board["panels"]]
    asked += [target["datasource"]["uid"] for panel in board["panels"] for target in panel["targets"]]
    asked += [variable["datasource"]["uid"] for variable in board["templating"]["list"]]
    assert set(asked) == {source}


def test_the_panels_neither_overlap_nor_stick_out():
    taken = set()
    for place in (panel["gridPos"] for panel in json.loads(BOARD.read_text())["panels"]):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells


def test_every_service_is_pinned_checked_and_started_again():
    for service in compose()["services"].values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])
        assert service["healthcheck"]["test"][0] == "CMD" and service["restart"] == "unless-stopped"


def test_what_is_mounted_is_there_and_read_only():
    for service in compose()["services"].values():
        for volume in service["volumes"]:
            if isinstance(volume, dict):  # made by whoever sets this up; a name that is wrong must not become a folder
                assert volume["read_only"] and volume["bind"] == {"create_host_path": False}
                continue
            source, target, *mode = volume.split(":")
            if source.startswith("./"):
                assert (MONITORING / source).exists() and mode == ["ro"], volume
            else:
                assert source in compose()["volumes"], volume
            assert target.startswith("/")


def test_the_dashboard_lies_where_grafana_looks():
    grafana = compose()["services"]["grafana"]
    mounts = {target: source for source, target, *_ in (volume.split(":") for volume in grafana["volumes"])}
    looked_in = read_yaml("grafana/dashboards/maskfer.yml")["providers"][0]["options"]["path"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == looked_in and (MONITORING / mounts[looked_in] / home.name) == BOARD


def test_no_password_is_written_down_and_none_has_a_default():
    password = compose()["services"]["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert re.fullmatch(r"\$\{GRAFANA_PASSWORD:\?[^}]+\}", password)
    assert "/secrets/" in (MONITORING / ".gitignore").read_text().splitlines()


def test_prometheus_without_a_password_is_for_this_machine_only():
    assert compose()["services"]["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", MONITORING / "prometheus.yml"),
        ("check", "rules", MONITORING / "maskfer.rules.yml"),
        ("test", "rules", Path(__file__).with_name("maskfer.rules.test.yml")),
    ],
    ids=["configuration", "rules", "alerts fire when they should"],
)
def test_promtool_finds_no_fault(arguments):
    ran = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="docker compose is not installed",
)
def test_compose_reads_its_file(monkeypatch):
    command = ["docker", "compose", "-f", str(MONITORING / "compose.yaml"), "config", "--quiet"]
    monkeypatch.delenv("GRAFANA_PASSWORD", raising=False)
    without = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert without.returncode != 0 and "choose the password" in without.stderr
    monkeypatch.setenv("GRAFANA_PASSWORD", "for the test")
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).returncode == 0


@pytest.fixture
def broker_port(tmp_path):
    """A broker with the committed settings, for this machine, with the users maskfer and reader."""
    passwords = tmp_path / "passwd"
    passwords.touch(0o600)
    for user in ("maskfer", "reader"):
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, f"{user}'s"], check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = (MONITORING / "mosquitto.conf").read_text()
    for line, here in (
        ("listener 1883", f"listener {port} 127.0.0.1\nuser root"),
        ("/mosquitto/config/passwd", str(passwords)),
        ("/mosquitto/config/acl", str(MONITORING / "mosquitto.acl")),
        ("/mosquitto/data/", f"{tmp_path}/"),
    ):
        assert settings.count(line) == 1
        settings = settings.replace(line, here)
    (tmp_path / "mosquitto.conf").write_text(settings)
    broker = subprocess.Popen([MOSQUITTO, "-c", str(tmp_path / "mosquitto.conf")], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and broker.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        broker.kill()
        broker.wait()


def received(port, user, topic, writer="maskfer"):
    """What `user` gets of a message that `writer` leaves at a topic; None if it may not even connect."""
    mqtt = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
    refused, messages = [], []

    def connected(name):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        if name:
            client.username_pw_set(name, f"{name}'s")
        client.on_connect = lambda client, userdata, flags, reason, properties: refused.append(reason.is_failure)
        client.on_message = lambda client, userdata, message: messages.append(message.payload.decode())
        client.connect("127.0.0.1", port)
        client.loop_start()
        deadline = time.monotonic() + 20
        while not refused and time.monotonic() < deadline:
            time.sleep(0.01)
        return client, refused.pop()

    sender, _ = connected(writer)
    sender.publish(topic, "hello", qos=1, retain=True).wait_for_publish(5)
    reader, no_entry = connected(user)
    answers = threading.Semaphore(0)
    reader.on_subscribe = lambda *_: answers.release()
    for asked in (topic, "nothing"):  # what the first gives has come when the second is answered
        reader.subscribe(asked, qos=1)
        assert no_entry or answers.acquire(timeout=20)
    for client in (sender, reader):
        client.disconnect()
        client.loop_stop()
    return None if no_entry else messages


@pytest.mark.skipif(
    MOSQUITTO is None or shutil.which("mosquitto_passwd") is None,
    reason="Mosquitto is not installed; apt install mosquitto",
)
def test_the_broker_lets_in_only_whom_it_should(broker_port):
    assert received(broker_port, "reader", "maskfer/door/faces") == ["hello"]
    assert received(broker_port, None, "maskfer/door/faces") is None
    assert received(broker_port, "maskfer", "maskfer/door/faces") == []
    assert received(broker_port, "reader", "other") == []
    assert received(broker_port, "reader", "maskfer/door/status", writer="reader") == []
    assert received(broker_port, "reader", "homeassistant/status", writer="reader") == ["hello"]
