"""Tells systemd that the program is ready, alive or ending (the protocol of sd_notify)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

STATUS_EVERY_S = 5.0
# A manager that does not read must not stall the loop for longer.
SEND_TIMEOUT_S = 0.2


class Notifier:
    """Sends systemd short messages; does nothing where systemd did not ask for any. Never raises."""

    def __init__(
        self, environment: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read where to send, and how often.

        Args:
            environment: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``; None: the process's own.
            clock: Gives seconds.
        """
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        # @ stands for the zero byte of an abstract socket, which has no file
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        self._next_alive = self._next_status = float("-inf")
        period, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        ours = period.isdecimal() and process in ("", str(os.getpid()))
        self._alive_every_s = int(period) / 1e6 / 2 if ours else None

    def ready(self) -> None:
        """The program works: the first frame was processed."""
        self._send("READY=1")

    def alive(self) -> None:
        """Feed the watchdog. Call it after each frame: it sends twice in the time that systemd allows."""
        now = self._clock()
        if self._alive_every_s is not None and now >= self._next_alive:
            self._next_alive = now + self._alive_every_s
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """A line for ``systemctl status``; one that comes too soon after another is left out."""
        now = self._clock()
        if now >= self._next_status:
            self._next_status = now + STATUS_EVERY_S
            self._send("STATUS=" + " ".join(text.split()))

    def stopping(self) -> None:
        """The program is ending."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SEND_TIMEOUT_S)
            sender.sendto(message.encode(errors="replace"), self._address)
