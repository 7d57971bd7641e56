"""Results over MQTT, announced to Home Assistant. Pictures are never sent.

``PREFIX/status``   ``online`` or ``offline``, retained; the broker itself says ``offline`` if the program dies
``PREFIX/faces``    a frame's result as in JSON lines, the largest face first
``PREFIX/health``   the state of the run, on connecting and then every 10 s
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from maskfer_edge.addresses import PASSWORD_VARIABLE, parse_broker
from maskfer_edge.cameras import Frame
from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import extra
from maskfer_edge.errors import InputError
from maskfer_edge.health import Health
from maskfer_edge.home_assistant import discovery, identity
from maskfer_edge.outputs import Output
from maskfer_edge.results import FrameResult

HEALTH_S = 10.0
MACHINE_ID = Path("/etc/machine-id")
# A connection that is dead without a word is noticed after twice this; until then the system holds what is sent.
KEEPALIVE_S = 10
# Pauses between attempts to connect: the first, doubled each time, up to the longest.
FIRST_PAUSE_S, MAX_PAUSE_S = 1, 30
CLOSE_TIMEOUT_S = 1.0


def _machine() -> str:
    """ID that distinguishes this machine from another of the same host name."""
    machine_id = ""
    with suppress(OSError):
        machine_id = MACHINE_ID.read_text().strip()
    # images that were never started have an empty one, or say so
    return machine_id if machine_id not in ("", "uninitialized") else str(uuid.getnode())


class MqttOutput(Output):
    """Publishes results at a bounded rate. A broker that is not there is waited for and stops nothing.

    Attributes:
        broker: Where to.
        dropped: Results that were due while there was no connection.
    """

    name = "mqtt"

    def __init__(
        self,
        url: str,
        health: Callable[[], Health],
        *,
        source: str = "",
        rate: float = 5.0,
        report: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to connect, in a thread.

        Args:
            url: See `parse_broker`.
            health: Gives the state of the run; called by any thread.
            source: Of the run; two runs of one prefix that differ in it, or in the machine, do not push each other out.
            rate: Results a second at most; one in which a face or an expression changes is sent at once.
            report: Receives a line for people when the broker is lost, refuses, and when it is back.
            clock: Seconds that never go back.

        Raises:
            InputError: If the address or the rate cannot be used.
            DependencyError: If paho-mqtt is missing.
        """
        with extra("mqtt"):
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion

        if not rate > 0:
            raise InputError(f"expected more than 0 results a second; received {rate:g}")
        self.broker, self.dropped = parse_broker(url), 0
        self._health, self._report, self._clock = health, report, clock
        self._discovery = discovery(self.broker.prefix)
        self._pause_s = 1.0 / rate
        self._due = -float("inf")
        self._shown: set[tuple[int, str]] = set()
        self._online = False
        self._problem = ""
        self._closing = threading.Event()
        self._lock = threading.Lock()

        # With the same id a new connection ends a dead one at once; else its "offline" would follow the new "online".
        client_name = f"{self.broker.prefix} {_machine()} {source}"
        self._client = Client(CallbackAPIVersion.VERSION2, identity(client_name))
        if self.broker.user is not None:
            self._client.username_pw_set(self.broker.user, self.broker.password)
        if self.broker.scheme == "mqtts":
            self._client.tls_set()
        self._client.will_set(f"{self.broker.prefix}/status", "offline", retain=True)
        self._client.reconnect_delay_set(FIRST_PAUSE_S, MAX_PAUSE_S)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.connect_async(self.broker.host, self.broker.port, KEEPALIVE_S)
        self._client.loop_start()
        threading.Thread(target=self._report_health, name="mqtt health", daemon=True).start()

    def write(self, frame: Frame, result: FrameResult, annotated: UInt8Array | None) -> bool:
        """Publish the result if one is due; never waits for the network."""
        now = self._clock()
        shown = {(face.track, face.expression) for face in result.faces}
        if shown == self._shown and now < self._due:
            return True
        self._shown, self._due = shown, now + self._pause_s
        largest_first = tuple(sorted(result.faces, key=lambda face: face.box[2] * face.box[3], reverse=True))
        if not (self._online and self._publish("faces", replace(result, faces=largest_first).to_json())):
            self.dropped += 1
        return True

    def close(self, failed: bool = False) -> None:
        """Say ``offline`` and disconnect; takes little more than `CLOSE_TIMEOUT_S` even if the broker is gone."""
        with self._lock:
            self._closing.set()
            self._publish("status", "offline", retain=True)
            self._client.disconnect()
        # waits for the network's thread, which may hang in a connection attempt
        stopping = threading.Thread(target=self._client.loop_stop, daemon=True)
        stopping.start()
        stopping.join(CLOSE_TIMEOUT_S)

    def _publish(self, topic: str, payload: str, retain: bool = False) -> bool:
        """False without a connection: QoS 0 keeps nothing for later."""
        return self._client.publish(f"{self.broker.prefix}/{topic}", payload, retain=retain).rc == 0

    def _report_health(self) -> None:
        # a thread of its own, as a lost camera gives no frames to write
        while not self._closing.wait(HEALTH_S):
            if self._online:
                self._publish_health()

    def _publish_health(self) -> None:
        self._publish("health", json.dumps(asdict(self._health())))

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._lock:  # or an "online" could follow the "offline" of `close`
            if self._closing.is_set():
                client.disconnect()
                return
            if reason.is_failure:
                self._report_problem("refused", f"refuses: {reason}; check user and password ({PASSWORD_VARIABLE})")
                return
            for topic, payload in self._discovery.items():
                client.publish(topic, payload, retain=True)
            self._publish("status", "online", retain=True)
            self._publish_health()
            self._online = True
        if self._problem:
            self._report_problem("", "is back")

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        error = sys.exception()  # paho calls this while it handles the error, and does not pass it on
        reason = getattr(error, "strerror", None) or str(error)
        self._report_problem("gone", f"cannot be reached: {reason}; trying again, results are not sent meanwhile")

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._online and not self._closing.is_set():
            self._report_problem("gone", "is lost; trying to connect again, results are not sent meanwhile")
        elif not (self._problem or self._closing.is_set()):  # a web server's port, or one that expects TLS
            self._report_problem(
                "mute",
                "does not answer as a broker does; is the port right, or TLS expected there (mqtts://)? "
                "Trying again, results are not sent meanwhile",
            )
        self._online = False

    def _report_problem(self, problem: str, text: str) -> None:
        """Report each kind of problem once, not at each attempt."""
        if problem != self._problem:
            self._report(f"{self.broker} {text}")
        self._problem = problem
