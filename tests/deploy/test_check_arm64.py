"""What check-arm64.sh refuses, and the parts of it that need neither root nor an emulator."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/check-arm64.sh"
EMULATOR = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: {}\noffset 0\n"
COMMANDS = {
    "id": "echo 0",
    "df": "echo Avail; echo 9000M",
    "debootstrap": "exit 9",
    "unshare": "exit 9",
    "git": "exit 9",
}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Host:
    """A workstation as the script sees it: its commands are stand-ins, and its emulator is a line in a file."""

    def __init__(self, folder):
        self.folder, self.out, self.binfmt = folder, folder / "out", folder / "binfmt"
        self.commands = folder / "bin"
        self.commands.mkdir()
        self.binfmt.mkdir()
        self.emulator = self.binfmt / "qemu-aarch64"
        self.emulator.write_text(EMULATOR.format("PF"))
        for name, text in COMMANDS.items():
            self.put(name, text)
        for name in (
            "bash",
            "grep",
            "dirname",
            "readlink",
            "tr",
            "cat",
            "mkdir",
            "rm",
            "awk",
            "cut",
            "sleep",
            "sed",
            "wc",
            "head",
        ):
            (self.commands / name).symlink_to(shutil.which(name))

    def put(self, name, text):
        (self.commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.commands / name).chmod(0o755)

    def call(self, code, *arguments):
        """Read the script, and run some code that uses it."""
        code = f'source "$1"; shift; BINFMT={self.binfmt} REFERENCE={self.folder}/none OUT={self.out}; {code}'
        done = subprocess.run(
            ["bash", "-c", code, "check-arm64.sh", str(SCRIPT), *map(str, arguments)],
            env={"PATH": str(self.commands)}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    def run(self, *arguments):
        return self.call('OUT=""; main "$@"', *arguments)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


# ---- What is refused ----


def refused(host, *arguments):
    ran = host.run(*arguments)
    assert (ran.code, ran.out) == (1, "")
    assert not host.out.exists() or not list(host.out.glob("*.figures"))
    (line,) = ran.err.splitlines()
    assert line.startswith("check-arm64.sh: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--unknown", "out"], "unknown option --unknown; check-arm64.sh --help lists them"),
        (["--releases"], "--releases needs a value"),
        (["--roots", "--no-tests", "out"], "--roots needs a value"),
        (["--releases", "bookworm bullseye", "out"], "--releases takes bookworm and trixie; received bullseye"),
        ([], "which folder takes the results?"),
        (["one", "two"], "one folder takes the results; received"),
    ],
)
def test_wrong_options_are_named(host, arguments, line):
    assert line in refused(host, *arguments)


def test_it_needs_root(host):
    host.put("id", "echo 1000")
    assert "this needs root; run: sudo" in refused(host, host.out)


@pytest.mark.parametrize(
    ("tool", "package"), [("debootstrap", "debootstrap"), ("git", "git"), ("unshare", "util-linux")]
)
def test_a_missing_tool_is_named_with_its_package(host, tool, package):
    (host.commands / tool).unlink()
    assert f"{tool} is missing; run: sudo apt-get install -y {package}" in refused(host, host.out)


@pytest.mark.parametrize("emulator", [None, EMULATOR.format("P"), EMULATOR.format("PF").replace("enabled", "disabled")])
def test_without_an_emulator_that_works_in_another_root_it_says_what_to_install(host, emulator):
    host.emulator.unlink() if emulator is None else host.emulator.write_text(emulator)
    assert re.search(
        r"qemu-aarch64 is missing, disabled or without .*apt-get install -y qemu-user", refused(host, host.out)
    )


def test_too_little_disk_is_said_with_figures(host):
    host.put("df", "echo Avail; echo 100M")
    assert re.search(
        r"too little disk: \S+ has 100 MB free, and \d{4} MB are needed", refused(host, host.out / "below")
    )


def test_an_older_log_is_not_overwritten(host):
    host.out.mkdir()
    log = host.out / "trixie.log"
    log.write_text("older")
    assert "holds a log of trixie; name another folder" in refused(host, host.out)
    assert log.read_text() == "older"


# ---- What is done ----


def test_a_failure_is_in_the_log_and_in_the_table_and_the_next_release_is_tried(host):
    ran = host.run("--no-tests", host.out)
    assert ran.code == 1
    for release in ("bookworm", "trixie"):
        assert f"check-arm64.sh: {release}: debootstrap failed; see {host.out}/{release}.log" in ran.err
        assert "FAILED: debootstrap failed" in (host.out / f"{release}.log").read_text()
    assert "| gave up | debootstrap failed | debootstrap failed |" in ran.out.splitlines()
    assert (host.out / "table.md").read_text() == ran.out
    assert "not all is well" in ran.err.splitlines()[-1]


def test_the_table_has_a_row_a_figure_and_a_column_a_release(host):
    host.out.mkdir()
    (host.out / "bookworm.figures").write_text("Python\t3.11.2\nnumpy\t1.26.4\n")
    (host.out / "trixie.figures").write_text("Python\t3.13.5\nnumpy\t2.4.6\ntests: passed\t500\n")
    assert host.call("write_table").out.splitlines() == [
        "| | bookworm, arm64 | trixie, arm64 |",
        "|---|---|---|",
        "| Python | 3.11.2 | 3.13.5 |",
        "| numpy | 1.26.4 | 2.4.6 |",
        "| tests: passed |  | 500 |",
    ]


def face(box, expression="Happy", score=0.5):
    return {"track": 1, "box": box, "expression": expression, "scores": {"Happy": score, "Sad": 1 - score}}


def compare(host, ours, theirs):
    """Compare frames of x86-64 with frames of arm64; gives the figures and what is wrong."""
    host.out.mkdir()
    for name, frames in (("reference", ours), ("trixie", theirs)):
        (host.out / f"{name}.jsonl").write_text("".join(json.dumps({"faces": faces}) + "\n" for faces in frames))
    (host.commands / "python").symlink_to(sys.executable)
    variables = f"REFERENCE={host.commands} release=trixie FIGURES={host.out}/figures"
    ran = host.call(f"{variables}; compare_with_reference 3>&2; echo $FAILED")
    figures = dict(line.split("\t") for line in (host.out / "figures").read_text().splitlines())
    return [value for name, value in figures.items() if name.startswith("as on x86-64")], ran.out.splitlines()[-1]


def test_frames_that_differ_by_rounding_are_the_same(host):
    ours = [[face([10, 10, 50, 50]), face([100, 10, 40, 40], "Sad", 0.3)], []]
    theirs = [[face([101, 10, 40, 40], "Sad", 0.32), face([10, 11, 50, 50])], []]
    assert compare(host, ours, theirs) == (["2 of 2", "2 of 2", "0.020"], "no")


@pytest.mark.parametrize(
    ("theirs", "figures"),
    [
        ([[face([10, 10, 50, 50], "Sad")]], ["1 of 1", "0 of 1", "0.000"]),
        ([[face([90, 10, 50, 50])]], ["0 of 1", "0 of 0", "0.000"]),
        ([[]], ["0 of 1", "0 of 0", "0.000"]),
        ([[face([10, 10, 50, 50])]] * 2, ["1 of 1", "1 of 1", "0.000"]),
    ],
    ids=["expression", "place", "no face", "more frames"],
)
def test_what_arm64_sees_otherwise_is_a_failure(host, theirs, figures):
    assert compare(host, [[face([10, 10, 50, 50])]], theirs) == (figures, "yes")


def test_the_checkout_is_copied_as_it_lies_there(host, tmp_path):
    checkout, copy = tmp_path / "checkout", tmp_path / "copy"
    (checkout / "edge").mkdir(parents=True)
    copy.mkdir()
    for name in ("git", "tar"):
        (host.commands / name).unlink(missing_ok=True)
        (host.commands / name).symlink_to(shutil.which(name))
    for name, text in {"known": "1", "deleted": "2", "edge/a b.py": "3", ".gitignore": "ignored\n"}.items():
        (checkout / name).write_text(text)
    git = ["git", "-C", str(checkout)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    (checkout / "known").write_text("changed")
    (checkout / "deleted").unlink()
    for name in ("new", "ignored"):
        (checkout / name).write_text(name)
    host.out.mkdir()
    host.call(f"CHECKOUT={checkout} COPY={copy} PLACE=/ release=trixie; copy_checkout")
    copied = {str(path.relative_to(copy)): path.read_text() for path in copy.rglob("*") if path.is_file()}
    assert copied == {"known": "changed", "edge/a b.py": "3", "new": "new", ".gitignore": "ignored\n"}
    assert not list(host.out.iterdir())


def runs(pid):
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_signal_ends_everything_at_once_and_leaves_no_copy(host):
    host.put("unshare", 'while [[ $1 == --* ]]; do shift; done; "$@"')
    host.put("debootstrap", "mkdir -p ${@: -1}/usr; echo $$ >$OUT/pid; exec sleep 300")
    code = f'source "{SCRIPT}"; BINFMT={host.binfmt} REFERENCE={host.folder}; export OUT; main {host.out}'
    environment = {"PATH": str(host.commands)}
    with subprocess.Popen(["bash", "-c", code], env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (host.out / "pid").exists() or not (host.out / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1] == "check-arm64.sh: stopped by SIGTERM"
    while runs((host.out / "pid").read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert {path.name for path in host.out.iterdir()} == {"pid", "bookworm.log", "bookworm.figures"}


# ---- The script itself ----


def test_help_names_every_option():
    options = set(re.findall(r"^ +(--[a-z-]+)(?: \||\))", SCRIPT.read_text(), re.MULTILINE)) | {"--roots"}
    said = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    assert options == {"--releases", "--roots", "--no-tests"}
    assert options <= set(re.findall(r"--[a-z-]+", said))


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    said = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")
