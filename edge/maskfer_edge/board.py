"""State of the board: its processor, clock, temperature, memory and power."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# The firmware's flags, from bit 0, and the remedy of each. The bits from 16 are set if the flag was set before.
FLAGS = {
    "under-voltage": "use a better power supply",
    "frequency capped": "cool it",
    "throttled": "cool it, or use a better power supply",
    "soft temperature limit": "cool it",
}
# While one of these is set, less work lets the board recover.
SLOWING = {"under-voltage", "throttled", "soft temperature limit"}
PLATFORM = Path("/sys/devices/platform")
POLL_INTERVAL_S = 5.0
# A power supply at its limit comes and goes; a warning ends when it has stayed away for so long.
CLEAR_AFTER_S = 60.0


def cpu_name() -> str:
    """The processor as Linux names it; on a Raspberry Pi the board's name."""
    board = _first_line("/proc/device-tree/model").rstrip("\0")
    if board:
        return board
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def governor() -> str:
    """What sets the first core's clock, e.g. ``ondemand``; "" where it cannot be read."""
    return _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def hottest_celsius() -> float | None:
    """The hottest thermal zone; None where there is none to read."""
    zones = (_first_line(str(zone)) for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"))
    return max((int(zone) / 1000 for zone in zones if zone.lstrip("-").isdigit()), default=None)


def memory_mb() -> float:
    """Resident memory of this process in 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def throttle_warnings() -> tuple[str, ...]:
    """Keys of `FLAGS` that hold at this moment; () where there is no Raspberry Pi's firmware to ask."""
    found = _flags_from_sysfs()
    return _flag_names(_flags_from_vcgencmd() if found is None else found)


def throttled_since_boot() -> tuple[str, ...]:
    """Keys of `FLAGS` that held at any time since the board was started."""
    # the kernel's voltage driver resets these bits in its own file every two seconds
    found = _flags_from_vcgencmd()
    return _flag_names(_flags_from_sysfs() if found is None else found, shift=16)


class Throttle:
    """Says by how much to work less while the board lacks power or is too hot.

    Attributes:
        warnings: Keys of `FLAGS` seen lately.
    """

    def __init__(
        self,
        report: Callable[[str], None] = lambda text: None,
        *,
        interval_s: float = POLL_INTERVAL_S,
        clear_after_s: float = CLEAR_AFTER_S,
        read: Callable[[], tuple[str, ...]] = throttle_warnings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up.

        Args:
            report: Receives a line for people when warnings begin and when the last one has ended.
            interval_s: Seconds between two readings.
            clear_after_s: A warning ends when it was not seen for so long.
            read: Gives the warnings of the moment.
            clock: Gives seconds.
        """
        self.warnings: tuple[str, ...] = ()
        self._report, self._read, self._clock = report, read, clock
        self._interval_s, self._clear_after_s = interval_s, clear_after_s
        self._seen: dict[str, float] = {}
        self._next_poll = float("-inf")

    def factor(self) -> int:
        """How many times longer the detector should rest: 1, or 2 while a flag of `SLOWING` is set. Call it freely."""
        now = self._clock()
        if now >= self._next_poll:
            self._next_poll = now + self._interval_s
            self._poll(now)
        return 2 if SLOWING.intersection(self.warnings) else 1

    def _poll(self, now: float) -> None:
        self._seen.update(dict.fromkeys(self._read(), now))
        before = self.warnings
        self.warnings = tuple(flag for flag, seen in self._seen.items() if now - seen < self._clear_after_s)
        new = [flag for flag in self.warnings if flag not in before]
        if new:
            slower = "; running slower" if SLOWING.intersection(self.warnings) else ""
            self._report(f"the board reports {', '.join(new)}: {remedy_for(new)}{slower}")
        elif before and not self.warnings:
            self._report("the board reports no more warnings; running at full speed")


def remedy_for(warnings: Iterable[str]) -> str:
    """What helps against some of `FLAGS`."""
    return "; ".join(dict.fromkeys(FLAGS[flag] for flag in warnings))


def _flag_names(flags: int | None, shift: int = 0) -> tuple[str, ...]:
    return tuple(name for bit, name in enumerate(FLAGS, shift) if (flags or 0) >> bit & 1)


def _flags_from_sysfs() -> int | None:
    # the folder is soc/soc:firmware up to the Raspberry Pi 4, and has an address in its name from the 5
    lines = (_first_line(str(path)) for path in PLATFORM.glob("soc*/soc*:firmware/get_throttled"))
    return _hexadecimal(next(lines, ""))


def _flags_from_vcgencmd() -> int | None:
    try:
        completed = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=1, check=False
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return _hexadecimal(completed.stdout.partition("=")[2])


def _hexadecimal(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""
