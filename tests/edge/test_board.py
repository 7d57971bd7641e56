import os
import subprocess
from pathlib import Path

import pytest

from maskfer_edge import board
from maskfer_edge.board import Throttle, cpu_name, governor, hottest_celsius, memory_mb

ALL = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"}, "Raspberry Pi 4 Model B Rev 1.4"),
        ({"/proc/cpuinfo": "processor : 0\nmodel name\t: Some CPU @ 2 GHz\n"}, "Some CPU @ 2 GHz"),
        ({}, "aarch64"),
    ],
)
def test_the_cpu_is_named_as_the_system_does(monkeypatch, files, expected):
    def read(path):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(board.platform, "machine", lambda: "aarch64")
    assert cpu_name() == expected


@pytest.mark.parametrize(("zones", "expected"), [([], None), (["51234", "48000"], 51.234), (["broken"], None)])
def test_the_hottest_zone_counts(monkeypatch, zones, expected):
    monkeypatch.setattr(Path, "glob", lambda path, pattern: map(str, range(len(zones))))
    monkeypatch.setattr(board, "_first_line", lambda path: zones[int(path)])
    assert hottest_celsius() == expected


def test_a_governor_that_cannot_be_read_is_empty(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: (_ for _ in ()).throw(PermissionError()))
    assert governor() == ""


def test_memory_grows_with_what_the_process_holds():
    before = memory_mb()
    held = bytearray(os.urandom(1000) * 50_000)
    assert memory_mb() - before == pytest.approx(len(held) / 1e6, abs=10)


@pytest.fixture
def firmware(monkeypatch, tmp_path):
    """Fakes what the kernel's file and the command vcgencmd say; None: there is no such thing."""

    def fake(sysfs=None, command=None, folder="soc"):
        if sysfs is not None:
            path = tmp_path / folder / f"{folder}:firmware" / "get_throttled"
            path.parent.mkdir(parents=True)
            path.write_text(sysfs)

        def run(arguments, timeout, **options):
            assert (arguments, timeout) == (["vcgencmd", "get_throttled"], 1)
            if command is None:
                raise FileNotFoundError(arguments[0])
            if command == "hangs":
                raise subprocess.TimeoutExpired(arguments, timeout)
            return subprocess.CompletedProcess(arguments, 0, command, "")

        monkeypatch.setattr(board, "PLATFORM", tmp_path)
        monkeypatch.setattr(board.subprocess, "run", run)

    return fake


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("0", ()),
        ("1", ALL[:1]),
        ("2", ALL[1:2]),
        ("4", ALL[2:3]),
        ("8", ALL[3:]),
        ("5000f", ALL),
        ("f0000", ()),
        ("", ()),
        ("odd", ()),
    ],
)
def test_the_low_flags_are_warnings_of_the_moment(firmware, flags, expected):
    firmware(sysfs=f"{flags}\n")
    assert board.throttle_warnings() == expected


def test_the_firmware_of_a_raspberry_pi_5_is_found(firmware):
    firmware(sysfs="4\n", folder="soc@107c000000")
    assert board.throttle_warnings() == ("throttled",)


@pytest.mark.parametrize(
    ("output", "expected"),
    [("throttled=0x50001\n", ("under-voltage",)), ("VCHI initialization failed\n", ()), ("hangs", ()), (None, ())],
)
def test_without_the_kernels_file_the_command_is_asked(firmware, output, expected):
    firmware(command=output)
    assert board.throttle_warnings() == expected


def test_with_the_kernels_file_no_command_is_run(firmware):
    firmware(sysfs="0\n", command="throttled=0x1\n")
    assert board.throttle_warnings() == ()


@pytest.mark.parametrize(
    ("sysfs", "command", "expected"),
    [
        ("0\n", "throttled=0x50000\n", ("under-voltage", "throttled")),
        ("80000\n", None, ("soft temperature limit",)),
        ("f\n", "throttled=0xf\n", ()),
        (None, None, ()),
    ],
)
def test_the_high_flags_say_what_happened_before(firmware, sysfs, command, expected):
    firmware(sysfs, command)
    assert board.throttled_since_boot() == expected


class FakeBoard:
    """A throttle whose time and warnings the test sets."""

    def __init__(self):
        self.now, self.warnings, self.looks, self.reported = 0.0, (), 0, []
        self.throttle = Throttle(
            self.reported.append, interval_s=5, clear_after_s=60, read=self.read, clock=lambda: self.now
        )

    def read(self):
        self.looks += 1
        return self.warnings

    def at(self, now, *warnings):
        self.now, self.warnings = now, warnings
        return self.throttle.factor()


@pytest.mark.parametrize(
    ("warnings", "factor"),
    [((), 1), (ALL[:1], 2), (ALL[1:2], 1), (ALL[2:3], 2), (ALL[3:], 2), (ALL[1:], 2)],
)
def test_the_detector_rests_longer_while_power_or_cooling_lacks(warnings, factor):
    assert FakeBoard().at(0, *warnings) == factor


def test_the_board_is_looked_at_every_five_seconds():
    board = FakeBoard()
    for tenths in range(101):
        board.at(tenths / 10)
    assert board.looks == 3


def test_a_warning_between_looks_waits_for_the_next_look():
    board = FakeBoard()
    assert [board.at(0), board.at(4.9, "throttled"), board.at(5, "throttled")] == [1, 1, 2]


def test_the_beginning_is_told_once_with_the_remedy():
    board = FakeBoard()
    board.at(0, "under-voltage")
    board.at(5, "under-voltage")
    assert board.reported == ["the board reports under-voltage: use a better power supply; running slower"]


def test_a_capped_clock_is_told_without_running_slower():
    board = FakeBoard()
    board.at(0, "frequency capped")
    assert board.reported == ["the board reports frequency capped: cool it"]


def test_a_further_warning_is_told_by_itself():
    board = FakeBoard()
    board.at(0, "under-voltage")
    board.at(5, "under-voltage", "soft temperature limit")
    assert board.reported[1:] == ["the board reports soft temperature limit: cool it; running slower"]


def test_the_end_is_told_when_it_has_been_calm_for_long_enough():
    board = FakeBoard()
    board.at(0, "throttled")
    assert [board.at(59), board.at(64), board.at(70)] == [2, 1, 1]
    assert board.reported[1:] == ["the board reports no more warnings; running at full speed"]


def test_a_supply_that_comes_and_goes_does_not_fill_the_log():
    board = FakeBoard()
    for look in range(100):
        board.at(5 * look, *(ALL[:1] if look % 3 == 0 else ()))
    assert len(board.reported) == 1


def test_the_warnings_can_be_read():
    board = FakeBoard()
    board.at(0, "throttled", "frequency capped")
    assert board.throttle.warnings == ("throttled", "frequency capped")
