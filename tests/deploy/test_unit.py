"""The systemd unit: no warnings, hardened, and what the program counts on."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "maskfer.service"
# systemd calls up to 5 "medium" and up to 3 "OK".
MOST_EXPOSURE = 3.0


def analyze(*arguments):
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def systemd_version():
    if not shutil.which("systemd-analyze"):
        return 0
    return int(re.match(r"systemd (\d+)", analyze("--version").stdout)[1])


needs_systemd = pytest.mark.skipif(systemd_version() < 252, reason="needs systemd-analyze 252 or newer")


@pytest.fixture
def unit(tmp_path):
    """The unit as it is on a machine, where its command exists."""
    copy = tmp_path / "maskfer.service"
    command = Path(sys.executable).with_name("maskfer-edge")
    copy.write_text(UNIT.read_text().replace("/opt/maskfer/env/bin/maskfer-edge", str(command)))
    return copy


def settings(path):
    """Key to all its values, of all sections."""
    keys = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            keys.setdefault(key, []).append(value)
    return keys


@needs_systemd
def test_systemd_finds_nothing_to_warn_of(unit):
    said = analyze("verify", unit)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


@pytest.mark.skipif(systemd_version() < 254, reason="needs systemd-analyze 254 or newer")
def test_nor_with_growing_pauses(unit):
    folder = unit.with_name("maskfer.service.d")
    folder.mkdir()
    shutil.copy(DEPLOY / "maskfer-pauses.conf", folder / "pauses.conf")
    said = analyze("verify", unit)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


@needs_systemd
def test_systemd_warns_of_a_key_that_it_does_not_know(unit):
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in analyze("verify", unit).stderr


@needs_systemd
def test_the_service_is_hardened(unit):
    said = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE * 10:.0f}", unit)
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said.stdout)[1])
    assert exposure <= MOST_EXPOSURE
    assert said.returncode == 0


def test_a_lost_camera_never_makes_systemd_give_up():
    keys = settings(UNIT)
    assert keys["StartLimitIntervalSec"] == ["0"]
    assert keys["Restart"] == ["on-failure"]
    assert int(keys["RestartSec"][0]) > 0


def test_the_watchdog_is_slower_than_the_longest_pause_between_attempts_to_open_a_camera():
    from maskfer_edge.capture import MAX_PAUSE_S, OPEN_TIMEOUT_S

    keys = settings(UNIT)
    assert keys["Type"] == ["notify"]
    for name in ("WatchdogSec", "TimeoutStartSec"):
        assert int(keys[name][0]) > MAX_PAUSE_S + OPEN_TIMEOUT_S


def test_only_cameras_and_what_they_need_are_open():
    keys = settings(UNIT)
    assert keys["DevicePolicy"] == ["closed"]
    assert {allowed.split()[0] for allowed in keys["DeviceAllow"]} == {
        "char-video4linux", "char-media", "char-dma_heap", "/dev/vcio", "/dev/vchiq"
    }  # fmt: skip
    assert keys["SupplementaryGroups"] == ["video"]


def test_no_memory_dump_holds_a_picture():
    assert settings(UNIT)["LimitCORE"] == ["0"]


def test_the_command_has_the_options_that_the_unit_gives(capsys, monkeypatch, tmp_path):
    from maskfer_edge import cli

    program, command, option, _ = settings(UNIT)["ExecStart"][0].split()
    assert Path(program).name == "maskfer-edge"
    assert command == "run"
    config = tmp_path / "maskfer.toml"
    config.write_text("no_such_setting = 1\n")
    monkeypatch.setattr(sys, "argv", ["maskfer-edge", command, option, str(config)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "no_such_setting" in capsys.readouterr().err
