import os
import socket
import time
from contextlib import suppress

import pytest

from maskfer_edge.systemd import SEND_TIMEOUT_S, Notifier


class Manager:
    """A socket as systemd opens it."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def received(self):
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def manager(tmp_path):
    opened = Manager(str(tmp_path / "notify"))
    yield opened
    opened.socket.close()


@pytest.fixture
def notifier(manager):
    """A factory of notifiers that talk to the manager, with a clock that the test sets."""

    def make(**environment):
        clock = Clock()
        made = Notifier({"NOTIFY_SOCKET": manager.socket.getsockname(), **environment}, clock)
        return made, clock

    return make


def test_ready_and_stopping_are_told(notifier, manager):
    systemd, _ = notifier()
    systemd.ready()
    systemd.stopping()
    assert manager.received() == ["READY=1", "STOPPING=1"]


def test_an_abstract_socket_is_understood():
    name = f"maskfer-test-{os.getpid()}"
    manager = Manager("\0" + name)
    Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
    assert manager.received() == ["READY=1"]
    manager.socket.close()


def test_the_process_environment_counts_if_none_is_given(monkeypatch, manager):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.socket.getsockname())
    Notifier().ready()
    assert manager.received() == ["READY=1"]


def test_the_watchdog_is_fed_twice_in_its_time(notifier, manager):
    systemd, clock = notifier(WATCHDOG_USEC="10000000")
    for second in range(21):
        clock.now = float(second)
        systemd.alive()
    assert manager.received() == ["WATCHDOG=1"] * 5


@pytest.mark.parametrize(
    ("environment", "fed"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "1000000"}, 1),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}, 1),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
    ],
    ids=["no watchdog", "anyone's", "ours", "another's", "damaged"],
)
def test_only_a_watchdog_of_this_process_is_fed(notifier, manager, environment, fed):
    systemd, _ = notifier(**environment)
    systemd.alive()
    assert len(manager.received()) == fed


def test_the_status_is_one_line_every_five_seconds(notifier, manager):
    systemd, clock = notifier()
    for clock.now, text in ((0.0, "9.8 frames\na second"), (4.9, "too soon"), (5.0, "Würfel")):
        systemd.status(text)
    assert manager.received() == ["STATUS=9.8 frames a second", "STATUS=Würfel"]


@pytest.mark.parametrize(
    "address",
    ["", "/nowhere/notify", "x" * 300, "vsock:2:1234", "@" + "x" * 300],
    ids=["none", "gone", "too long", "of another kind", "too long and abstract"],
)
def test_without_a_manager_nothing_happens(address):
    systemd = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    for notify in (systemd.ready, systemd.alive, systemd.stopping, lambda: systemd.status("\udcff")):
        notify()


def test_a_manager_that_does_not_read_holds_nobody_up_for_long(notifier, manager):
    systemd, _ = notifier()
    queued = 0
    with suppress(BlockingIOError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        while True:  # until the socket's queue is full
            sender.sendto(b"READY=1", manager.socket.getsockname())
            queued += 1
    started = time.monotonic()
    systemd.ready()
    assert SEND_TIMEOUT_S / 2 < time.monotonic() - started < SEND_TIMEOUT_S + 5
    assert len(manager.received()) == queued > 0
