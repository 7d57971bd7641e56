import socket
import struct
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from maskfer_edge import metrics
from maskfer_edge.errors import OutputError
from maskfer_edge.health import Health, Latency
from maskfer_edge.metrics import MetricsServer

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")

HEALTH = Health(
    seconds=9.0,
    frames=120,
    fps=14.9,
    faces=2,
    frame_age_s=0.02,
    dropped=3,
    losses=1,
    lost="",
    latency_ms={"detect": Latency(20.0, 31.5)},
    output_drops={"mqtt": 4},
    warnings=("under-voltage",),
    put_back=("detector",),
)


def scrape(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return list(parser.text_string_to_metric_families(text))


def samples(server, beginning="maskfer_"):
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in scrape(server)
        for sample in family.samples
        if sample.name.startswith(beginning)
    }


def test_a_scrape_gives_the_state_of_the_run():
    with MetricsServer(lambda: HEALTH, 0) as server:
        assert samples(server) == {
            ("maskfer_frames_total",): 120,
            ("maskfer_frames_per_second",): 14.9,
            ("maskfer_faces",): 2,
            ("maskfer_result_age_seconds",): 0.02,
            ("maskfer_frames_dropped_total",): 3,
            ("maskfer_camera_losses_total",): 1,
            ("maskfer_camera_up",): 1,
            ("maskfer_latency_seconds", "0.5", "detect"): 0.02,
            ("maskfer_latency_seconds", "0.95", "detect"): 0.0315,
            ("maskfer_output_dropped_total", "mqtt"): 4,
            ("maskfer_board_warning", "under-voltage"): 1,
            ("maskfer_model_put_back", "detector"): 1,
        }


def test_labels_and_types_are_named():
    with MetricsServer(lambda: HEALTH, 0) as server:
        families = {family.name: family for family in scrape(server)}
    labels = {name: set(f.samples[0].labels) for name, f in families.items() if name.startswith("maskfer_")}
    assert {name: keys for name, keys in labels.items() if keys} == {
        "maskfer_latency_seconds": {"stage", "quantile"},
        "maskfer_output_dropped": {"output"},
        "maskfer_board_warning": {"warning"},
        "maskfer_model_put_back": {"kind"},
    }
    counters = {name for name in labels if families[name].type == "counter"}
    assert counters == {
        "maskfer_frames",
        "maskfer_frames_dropped",
        "maskfer_camera_losses",
        "maskfer_output_dropped",
    }
    assert all(families[name].documentation.endswith(".") for name in labels)


def test_each_scrape_reads_the_state_anew():
    states = iter([HEALTH, replace(HEALTH, frames=121, lost="it gives no frames")])
    with MetricsServer(lambda: next(states), 0) as server:
        first, second = samples(server), samples(server)
    seen = [(s[("maskfer_frames_total",)], s[("maskfer_camera_up",)]) for s in (first, second)]
    assert seen == [(120, 1), (121, 0)]


def test_before_the_first_result_there_is_no_age():
    with MetricsServer(lambda: replace(HEALTH, frame_age_s=None), 0) as server:
        assert ("maskfer_result_age_seconds",) not in samples(server)


def test_the_process_is_measured_too():
    # the 24th field; its second, a name in brackets, may hold spaces
    if Path("/proc/self/stat").read_text().rpartition(")")[2].split()[21] == "0":
        pytest.skip("QEMU's user emulation tells no resident memory")
    with MetricsServer(lambda: HEALTH, 0) as server:
        assert samples(server, "process_")[("process_resident_memory_bytes",)] > 0


def test_two_servers_do_not_share_a_registry():
    with MetricsServer(lambda: HEALTH, 0) as one, MetricsServer(lambda: replace(HEALTH, frames=7), 0) as two:
        assert [samples(server)[("maskfer_frames_total",)] for server in (one, two)] == [120, 7]


def test_a_port_in_use_is_one_line_with_the_remedy():
    with MetricsServer(lambda: HEALTH, 0) as server, pytest.raises(OutputError) as caught:
        MetricsServer(lambda: HEALTH, server.port)
    text = str(caught.value)
    assert f"port {server.port}: Address already in use; give a free port" in text and "\n" not in text


@pytest.mark.parametrize(
    ("host", "port"),
    [("192.0.2.1", 0), ("nobody.invalid", 0), ("a..b", 0), ("127.0.0.1", 70000), ("127.0.0.1", -1)],
    ids=["not ours", "unknown", "not a name", "high port", "negative port"],
)
def test_an_address_that_cannot_be_served_is_one_line_with_the_remedy(host, port):
    with pytest.raises(OutputError, match="give a free port from 1024 to 65535 and an address") as caught:
        MetricsServer(lambda: HEALTH, port, host)
    assert "\n" not in str(caught.value)


def test_who_asks_for_nothing_is_let_go(monkeypatch, capfd):
    monkeypatch.setattr(metrics._RequestTimeout, "timeout", 0.2)
    with MetricsServer(lambda: HEALTH, 0) as server:
        before = set(threading.enumerate())
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        for connection in idle:
            connection.settimeout(5)
            assert connection.recv(1) == b""  # the server has ended it
            connection.close()
        deadline = time.monotonic() + 5
        while set(threading.enumerate()) - before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not set(threading.enumerate()) - before  # of other tests some may end meanwhile
        assert samples(server)["maskfer_frames_total",] == 120
    assert capfd.readouterr().err == ""


def test_the_port_is_free_after_closing():
    with MetricsServer(lambda: HEALTH, 0) as server:
        samples(server)
        # a scraper that connects and says nothing holds nothing up
        silent = socket.create_connection(("127.0.0.1", server.port))
        start = time.monotonic()
    assert time.monotonic() - start < metrics.REQUEST_TIMEOUT_S / 2
    silent.close()
    with MetricsServer(lambda: HEALTH, server.port) as again:
        assert samples(again)[("maskfer_frames_total",)] == 120


@pytest.mark.parametrize("asked", [b"", b"GET /met"])
def test_who_leaves_before_the_answer_is_no_news(asked, capfd):
    before = set(threading.enumerate())
    with MetricsServer(lambda: HEALTH, 0) as server:
        serving = set(threading.enumerate())
        with socket.create_connection(("127.0.0.1", server.port)) as link:
            link.sendall(asked)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that it ends by a reset
        assert samples(server)  # asked later: the other is served by now
        for thread in set(threading.enumerate()) - serving - before:
            thread.join(timeout=5)
    assert capfd.readouterr().err == ""


def test_an_output_whose_name_is_not_utf_8_does_not_end_the_metrics():
    with MetricsServer(lambda: replace(HEALTH, output_drops={"r\udce9.jsonl": 4}), 0) as server:
        assert samples(server)["maskfer_output_dropped_total", "r?.jsonl"] == 4
