"""install.sh on a made-up machine: what it refuses, does, undoes and removes; try_install.sh runs it on real ones."""

import os
import pty
import re
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

from maskfer_edge.run_settings import RunSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
PACKAGES = {"libgl1", "libxcb1", "libglib2.0-0", "openssh-client", "python3-venv"}


def refused(machine, *arguments, **options):
    """What a run says that changes nothing and fails."""
    before = machine.state()
    ran = machine.run(*arguments, **options)
    assert ran.code == 1, ran.said
    assert machine.state() == before
    lines = [line for line in ran.said.splitlines() if line.startswith("install.sh: ")]
    assert len(lines) == 1
    return lines[0]


# ---- What is refused ----


@pytest.mark.parametrize(
    ("system", "architecture", "line"),
    [
        ("debian 11", "amd64", "Debian GNU/Linux 11 (bullseye) is not supported"),
        ("ubuntu 20.04", "amd64", "Ubuntu 20.04 LTS is not supported"),
        ("fedora 42", "amd64", "Fedora Linux 42 is not supported"),
        ("raspbian 12", "armhf", "is a 32-bit system (armhf)"),
        ("debian 13", "i386", "is a 32-bit system (i386)"),
        ("debian 13", "riscv64", "the architecture riscv64 is not supported"),
    ],
)
def test_an_unsupported_system_is_refused_before_anything_is_done(machine, system, architecture, line):
    machine.be(system)
    machine.set("architecture", architecture)
    assert line in refused(machine)
    assert not machine.calls("apt-get")


def test_a_system_without_a_name_is_refused(machine):
    (machine.root / "etc/os-release").unlink()
    assert "os-release is missing" in refused(machine)


def test_ubuntu_22_04_needs_a_newer_python_of_its_own(machine):
    machine.be("ubuntu 22.04")
    assert "apt-get install -y python3.11-venv" in refused(machine)
    shutil.copy(machine.root / "usr/bin/python3", machine.root / "usr/bin/python3.11")
    ran = machine.run()
    assert ran.code == 0, ran.said
    assert machine.calls("python3.11 -m venv")


def test_an_old_python3_is_refused_and_its_packages_are_removed_again(machine):
    machine.set("python-is-old")
    before = machine.state()
    ran = machine.run()
    assert ran.code == 1
    assert "is older than 3.11" in ran.said
    assert machine.state() == before


def test_it_needs_root(machine):
    machine.set("uid", "1000")
    assert "this needs root; run: sudo" in refused(machine)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--unknown"], "unknown option --unknown"),
        (["--extras"], "--extras needs a value"),
        (["--wheels", "--no-start"], "--wheels needs a value"),
        (["--extras", "browser,trainer"], "--extras takes browser, mqtt, metrics or none; received trainer"),
        (["--keep-data"], "--keep-data goes with --uninstall"),
        (["--wheels", "/no/such/folder"], "/no/such/folder is no folder"),
    ],
)
def test_wrong_options_are_named(machine, arguments, line):
    assert line in refused(machine, *arguments)


@pytest.mark.parametrize(
    ("wheels", "line"),
    [([], "holds no wheel of maskfer"), (["maskfer-1-x.whl", "maskfer-2-x.whl"], "holds 2 wheels of maskfer")],
)
def test_a_folder_of_wheels_holds_one_of_maskfer(machine, tmp_path, wheels, line):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in wheels:
        (folder / name).touch()
    assert line in refused(machine, "--wheels", str(folder))


def test_a_script_without_its_checkout_says_so(machine):
    (machine.checkout / "pyproject.toml").unlink()
    assert "lies neither in a checkout of maskfer nor beside wheels" in refused(machine)


@pytest.mark.parametrize("there", ["nothing", "the packages"])
def test_too_little_disk_is_said_with_figures(machine, there):
    if there == "the packages":
        machine.set("installed", "\n".join(PACKAGES))
    machine.set("free_mb", " 100M")
    assert re.search(r"too little disk: \S+ has 100 MB free, and \d{3} MB are needed", refused(machine))
    assert not [call for call in machine.calls("apt-get") if "install" in call]


def test_the_disk_needs_room_for_the_packages_too(machine):
    machine.set("free_mb", "703")  # enough for all but these, see ENVIRONMENT_MB and LISTS_MB
    assert "has 703 MB free, and 1107 MB are needed" in refused(machine)


@pytest.mark.parametrize("path", ["opt/maskfer/mine", "usr/local/bin/maskfer-edge"])
def test_what_others_have_put_there_is_left_alone(machine, path):
    (machine.root / path).parent.mkdir(exist_ok=True)
    (machine.root / path).write_text("mine")
    # a name that the installer uses as well
    (machine.root / path).with_name("work").mkdir()
    assert "was not made by install.sh; move it away" in refused(machine)
    assert (machine.root / path).with_name("work").exists()


def test_a_person_of_that_name_is_not_made_the_service(machine):
    machine.set("accounts", "root\nmaskfer\n")
    assert "there is a user maskfer who was not made by install.sh" in refused(machine)


def test_two_runs_at_once_are_refused(machine):
    machine.set("pip-is-slow")
    first = machine.start()
    try:
        while not machine.calls("python -m pip"):
            assert first.poll() is None
        assert "another install.sh is running" in machine.run().said
    finally:
        first.terminate()
        first.communicate()


# ---- What is installed ----


def test_a_fresh_machine_gets_everything(machine):
    ran = machine.run()
    assert ran.code == 0, ran.said
    assert set(machine.lines("installed")) == {"bash", *PACKAGES}
    assert "maskfer" in machine.lines("accounts")
    assert (machine.root / "usr/local/bin/maskfer-edge").resolve().parent == machine.link.resolve() / "bin"
    assert machine.link.resolve().name.startswith("env-1.0-")
    assert (machine.root / "var/lib/maskfer/models").is_dir()
    unit = machine.root / "etc/systemd/system/maskfer.service"
    assert unit.read_text() == (DEPLOY / "maskfer.service").read_text()
    assert (unit.parent / "multi-user.target.wants/maskfer.service").is_symlink()
    assert machine.calls("systemctl")[-1] == "systemctl restart maskfer"
    assert "the service runs" in ran.said
    assert "ok   all" in ran.said
    assert not (machine.root / "opt/maskfer/work").exists()


def test_the_settings_are_ones_that_run_understands(machine):
    machine.run()
    settings = RunSettings(**tomllib.loads((machine.root / "etc/maskfer/maskfer.toml").read_text()))
    assert (settings.source, settings.headless, settings.models) == ("auto", True, "/var/lib/maskfer/models")


def test_settings_that_a_power_cut_left_empty_are_written_again(machine):
    machine.run()
    settings = machine.root / "etc/maskfer/maskfer.toml"
    written = settings.read_text()
    settings.write_text("")
    assert machine.run().code == 0
    assert settings.read_text() == written


def test_the_demonstration_runs_as_the_service_will(machine):
    machine.run()
    calls = machine.calls("setpriv")
    assert re.search(r"--reuid maskfer .*bin/maskfer-edge run --source demo --headless", calls[0])


@pytest.mark.parametrize(
    ("system", "package", "constrained"),
    [
        ("debian 12", "libglib2.0-0", True),
        ("debian 13", "libglib2.0-0t64", False),
        ("ubuntu 24.04", "libglib2.0-0t64", False),
    ],
)
def test_each_release_has_its_packages_and_constraints(machine, system, package, constrained):
    machine.be(system)
    assert machine.run().code == 0
    assert package in machine.lines("installed")
    assert ("constraints-bookworm.txt" in machine.calls("python -m pip")[0]) is constrained
    assert "--system-site-packages" not in machine.calls("python3 -m venv")[0]


def test_raspberry_pi_os_gets_picamera2_and_an_environment_that_sees_it(machine):
    (machine.root / "etc/rpi-issue").touch()
    ran = machine.run()
    assert "Raspberry Pi OS" in ran.said
    assert "python3-picamera2" in machine.lines("installed")
    assert "--system-site-packages" in machine.calls("python3 -m venv")[0]


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [([], "[browser,mqtt,metrics]"), (["--extras", "mqtt"], "[mqtt]"), (["--extras", "none"], "")],
)
def test_extras_are_asked_of_pip(machine, arguments, extras):
    assert machine.run(*arguments).code == 0
    assert machine.calls("python -m pip")[0].endswith(f"/checkout{extras}")


def test_a_second_run_changes_nothing(machine):
    machine.run()
    before = machine.state()
    machine.forget()
    ran = machine.run()
    assert ran.code == 0
    assert "maskfer 1.0 is up to date; nothing was changed." in ran.said
    assert machine.state() == before
    assert not [c for name in ("apt-get", "useradd", "python -m pip", "python3 -m venv") for c in machine.calls(name)]
    assert machine.calls("systemctl")[-1] == "systemctl start maskfer"


def test_a_newer_version_is_swapped_in_and_the_settings_stay(machine):
    machine.run()
    settings = machine.root / "etc/maskfer/maskfer.toml"
    settings.write_text('source = "usb:1"\n')
    old = machine.link.resolve()
    machine.release("2.0")
    machine.forget()
    ran = machine.run()
    assert "maskfer 2.0 is installed." in ran.said
    assert machine.link.resolve().name.startswith("env-2.0-")
    assert not old.exists()
    assert settings.read_text() == 'source = "usb:1"\n'
    assert machine.calls("systemctl")[-1] == "systemctl restart maskfer"


@pytest.mark.parametrize("change", ["sources", "extras", "damage"])
def test_what_an_environment_depends_on_makes_it_anew(machine, change):
    machine.run()
    old = machine.link.resolve()
    if change == "sources":
        (machine.checkout / "edge/a.py").write_text("other\n")
    if change == "damage":
        (old / "bin/maskfer-edge").unlink()
    ran = machine.run(*(["--extras", "mqtt"] if change == "extras" else []))
    assert "maskfer 1.0 is installed." in ran.said
    assert machine.link.resolve() != old
    assert not old.exists()


def test_the_unit_follows_the_version(machine):
    machine.run()
    unit = machine.checkout / "deploy/maskfer.service"
    unit.write_text(unit.read_text() + "# newer\n")
    assert "maskfer 1.0 is installed." in machine.run().said
    assert (machine.root / "etc/systemd/system/maskfer.service").read_text().endswith("# newer\n")


@pytest.mark.parametrize(("systemd", "there"), [("252", False), ("254", True), ("257", True)])
def test_pauses_grow_where_systemd_can_do_that(machine, systemd, there):
    machine.set("systemd", systemd)
    machine.run()
    assert (machine.root / "etc/systemd/system/maskfer.service.d/pauses.conf").exists() is there


def test_without_service_there_is_only_the_program(machine):
    before = machine.state()
    assert machine.run("--no-service").code == 0
    assert "maskfer" not in machine.lines("accounts")
    assert not machine.calls("systemctl")
    assert {path.split("/")[0] for path in set(machine.state()) - set(before)} == {"opt", "usr"}


def test_a_service_is_not_left_behind_by_no_service(machine):
    machine.run()
    assert "leave --no-service out" in refused(machine, "--no-service")


def test_it_can_wait_for_the_next_boot(machine):
    ran = machine.run("--no-start")
    assert "starts at the next boot (--no-start)" in ran.said
    assert {call.split()[1] for call in machine.calls("systemctl")} == {"--version", "daemon-reload"}


def test_a_service_that_still_runs_the_version_before_is_started_afresh_by_the_next_run(machine):
    machine.run("--no-start")
    machine.set("process", str(os.getpid()))  # which is of no environment at all
    assert "nothing was changed" in machine.run().said
    assert machine.calls("systemctl")[-1] == "systemctl restart maskfer"


def test_in_an_image_without_systemd_the_service_starts_at_its_first_boot(machine):
    (machine.root / "run/systemd/system").rmdir()
    (machine.commands / "systemctl").write_text("#!/bin/sh\nexit 127\n")
    ran = machine.run()
    assert ran.code == 0, ran.said
    assert "systemd is not running here" in ran.said
    assert (machine.root / "etc/systemd/system/multi-user.target.wants/maskfer.service").is_symlink()


def test_a_missing_camera_is_said_and_is_no_failure(machine):
    machine.unset("camera")
    ran = machine.run()
    assert ran.code == 0
    assert "No camera was found" in ran.said
    assert "no camera has given it a frame yet" in ran.said


def test_what_the_doctor_finds_is_no_failure_of_the_installation(machine):
    machine.set("doctor-finds")
    ran = machine.run()
    assert ran.code == 0
    assert "look at the lines that begin with BAD" in ran.said


# ---- Bundles ----


def test_a_bundle_needs_no_index(machine):
    ran = machine.run(script=machine.bundle() / "install.sh")
    assert ran.code == 0, ran.said
    call = machine.calls("python -m pip")[0]
    assert "--no-index --find-links" in call
    assert call.endswith("/wheels/maskfer-2.0-py3-none-any.whl[mqtt]")  # its own extras


def test_its_packages_are_installed_from_it(machine):
    folder = machine.bundle()
    (folder / "debs").mkdir()
    for name in (*PACKAGES, "libof-these", "bash"):
        (folder / f"debs/{name}.deb").touch()
    assert machine.run(script=folder / "install.sh").code == 0
    assert not [call for call in machine.calls("apt-get") if "update" in call]
    assert set(machine.lines("installed")) == {"bash", "libof-these", *PACKAGES}
    assert "/debs/bash.deb" not in machine.calls("apt-get")[-1]


def test_packages_of_a_bundle_and_of_apt_count_once(machine):
    folder = machine.bundle()
    (folder / "debs").mkdir()
    (folder / "debs/libgl1.deb").touch()
    ran = machine.run(script=folder / "install.sh")
    # 1 MB of each file, 100 MB of each that apt knows, rounded up
    assert f"installing {len(PACKAGES)} packages, {1 + (len(PACKAGES) - 1) * 100 + 1} MB" in ran.said


@pytest.mark.parametrize(("release", "architecture"), [("trixie", "amd64"), ("bookworm", "arm64")])
def test_a_bundle_for_another_machine_is_refused(machine, release, architecture):
    folder = machine.bundle(release, architecture)
    line = refused(machine, script=folder / "install.sh")
    assert f"this bundle is for {release} {architecture}, and this machine is bookworm amd64" in line


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_bundle_is_refused(machine, damage):
    folder = machine.bundle()
    wheel = folder / "wheels/maskfer-2.0-py3-none-any.whl"
    wheel.write_text("whee") if damage == "changed" else wheel.unlink()
    assert "is damaged" in refused(machine, script=folder / "install.sh")


# ---- Failures on the way: the machine is as it was ----

FAILURES = {
    "apt": ("apt-fails", "", "apt could not install"),
    "pip": ("pip-fails", "ERROR: No matching distribution found for typer", "pip could not install maskfer: ERROR: No"),
    "network": ("pip-fails", "WARNING: NewConnectionError(...)\nERROR: None", "the package index cannot be reached"),
    "demonstration": ("demonstration-fails", "", "its demonstration failed: maskfer-edge: no TFLite runtime"),
    "settings": ("settings-are-refused", "", "cannot use its settings: maskfer-edge: unknown key 'size'"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_first_installation_that_fails_leaves_nothing(machine, failure):
    fact, text, line = FAILURES[failure]
    machine.set(fact, text)
    before = machine.state()
    ran = machine.run()
    assert ran.code == 1
    assert line in ran.said
    assert machine.state() == before


@pytest.mark.parametrize("failure", list(FAILURES)[1:])
def test_an_update_that_fails_leaves_the_old_version(machine, failure):
    machine.run()
    fact, text, line = FAILURES[failure]
    machine.set(fact, text)
    machine.release("2.0")
    assert line in machine.run().said  # and once more, with nothing changed:
    refused(machine)
    assert machine.link.resolve().name.startswith("env-1.0-")
    assert (machine.link / "bin/maskfer-edge").exists()


def test_a_locked_apt_is_waited_for_and_then_named(machine):
    machine.set("apt-is-locked")
    assert "apt is locked by another program" in refused(machine)
    assert len(machine.calls("apt-get")) > 2  # it tried again


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_a_signal_undoes_everything(machine, number, code):
    machine.set("pip-is-slow")
    before = machine.state()
    ran = machine.stop(machine.start(), "python -m pip", number)
    assert ran.code == code
    assert "Undoing what was done so far" in ran.said
    assert machine.state() == before


def test_all_is_undone_when_the_terminal_has_hung_up(machine):
    """Nothing can be said there any more."""
    machine.set("pip-is-slow")
    before = machine.state()
    ours, terminal = pty.openpty()
    process = machine.start(told=terminal)
    for end in (ours, terminal):
        os.close(end)
    assert machine.stop(process, "python -m pip", signal.SIGHUP).code == 129
    assert machine.state() == before


def test_apt_is_not_torn_from_its_work(machine):
    machine.set("apt-is-slow")
    before = machine.state()
    ran = machine.stop(machine.start(), "/work/debs install ", signal.SIGTERM)
    assert ran.code == 143
    assert "Waiting for apt to end" in ran.said
    assert machine.state() == before


def test_after_a_power_cut_the_next_run_goes_on_and_forgets_nothing(machine):
    before = machine.state()
    machine.set("pip-is-slow")
    process = machine.start()
    assert machine.stop(process, "python -m pip", signal.SIGKILL).code == -signal.SIGKILL
    machine.unset("pip-is-slow")
    assert list((machine.root / "opt/maskfer").glob("env-*"))  # of the run that was cut off
    ran = machine.run()
    assert ran.code == 0, ran.said
    assert list((machine.root / "opt/maskfer").glob("env-*")) == [machine.link.resolve()]
    assert machine.run("--uninstall").code == 0
    assert machine.state() == before


# ---- Removing ----


def test_uninstalling_leaves_nothing(machine):
    before = machine.state()
    machine.run()
    (machine.root / "etc/maskfer/maskfer.env").write_text("MASKFER_TOKEN=x\n")
    (machine.root / "var/lib/maskfer/models/state.json").write_text("{}\n")
    ran = machine.run("--uninstall")
    assert ran.code == 0, ran.said
    assert machine.state() == before
    assert "systemctl stop maskfer" in machine.calls("systemctl")
    for path in ("/opt/maskfer", "/etc/maskfer", "/var/lib/maskfer"):
        assert path in ran.said.partition("removing")[0]  # said beforehand


def test_packages_that_were_there_or_are_needed_stay(machine):
    machine.set("installed", "bash\nlibgl1\n")
    machine.set("manual", "libgl1\n")
    machine.run()
    machine.set("needed-by-others", "bash\nlibxcb1\n")
    ran = machine.run("--uninstall")
    assert machine.lines("installed") == ["bash", "libgl1", "libxcb1"]
    assert machine.lines("manual") == ["libgl1"]
    assert "these packages stay, since others need them: libxcb1" in ran.said


def test_settings_and_models_can_be_kept_and_are_used_again(machine):
    machine.run()
    settings = machine.root / "etc/maskfer/maskfer.toml"
    settings.write_text('source = "usb:1"\n')
    model = machine.root / "var/lib/maskfer/models/mine.tflite"
    model.write_text("a model")
    assert machine.run("--uninstall", "--keep-data").code == 0
    assert not (machine.root / "opt/maskfer").exists()
    assert model.exists()
    assert f"chown -R root:root {machine.root}/var/lib/maskfer" in machine.calls("chown")
    assert machine.run().code == 0
    assert settings.read_text() == 'source = "usb:1"\n'


def test_if_apt_is_locked_everything_stays_and_the_service_goes_on(machine):
    machine.run()
    machine.set("apt-is-locked")
    assert "apt is locked by another program" in refused(machine, "--uninstall")
    assert set(machine.lines("manual")) >= PACKAGES
    assert machine.calls("systemctl")[-1] == "systemctl start --no-block maskfer"


def test_uninstalling_what_is_not_there_changes_nothing(machine):
    before = machine.state()
    ran = machine.run("--uninstall")
    assert (ran.code, ran.said) == (0, "maskfer is not installed here; nothing was changed.\n")
    assert machine.state() == before


# ---- The scripts ----


def test_the_help_names_every_option():
    text = (DEPLOY / "install.sh").read_text()
    options = set(re.findall(r"^ +(--[a-z-]+)\)", text, re.MULTILINE))
    ran = subprocess.run([DEPLOY / "install.sh", "--help"], capture_output=True, text=True, check=True)
    assert options == {"--wheels", "--extras", "--no-service", "--no-start", "--uninstall", "--keep-data"}
    assert options <= set(re.findall(r"--[a-z-]+", ran.stdout))


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    scripts = ["deploy/install.sh", "deploy/bundle.sh", "tests/deploy/try_install.sh"]
    said = subprocess.run(
        ["shellcheck", "-x", *scripts], cwd=DEPLOY.parent, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (0, "")
