"""A machine for the tests of install.sh: a folder for its root, and stand-ins for what would change a real one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRIPTS = ("install.sh", "bundle.sh", "maskfer.service", "maskfer-pauses.conf", "constraints-bookworm.txt")
# ID and VERSION_ID to VERSION_CODENAME and PRETTY_NAME
SYSTEMS = {
    "debian 11": ("bullseye", "Debian GNU/Linux 11 (bullseye)"),
    "debian 12": ("bookworm", "Debian GNU/Linux 12 (bookworm)"),
    "debian 13": ("trixie", "Debian GNU/Linux 13 (trixie)"),
    "raspbian 12": ("bookworm", "Raspbian GNU/Linux 12 (bookworm)"),
    "ubuntu 20.04": ("focal", "Ubuntu 20.04 LTS"),
    "ubuntu 22.04": ("jammy", "Ubuntu 22.04 LTS"),
    "ubuntu 24.04": ("noble", "Ubuntu 24.04 LTS"),
    "fedora 42": ("", "Fedora Linux 42"),
}

# $FAKE holds what the machine is: a file a fact. Each stand-in notes how it was called.
NOTE = '#!/bin/bash\necho "${0##*/} $*" >>"$FAKE/calls"\n'
COMMANDS = {
    "id": 'case $1 in -u) cat "$FAKE/uid" ;; *) echo 0 ;; esac',
    "dpkg": 'cat "$FAKE/architecture"',
    "dpkg-query": 'shift 3; printf "%s\\n" "$@" | grep -xFf "$FAKE/installed" | sed "s/$/ ii /"',
    "dpkg-deb": 'case $3 in Package) basename "$2" .deb ;; *) echo 1024 ;; esac',
    "df": 'echo Avail; cat "$FAKE/free_mb"',
    "apt-get": """
words=()
simulated=no verb= files=
while (($#)); do
  case $1 in
    -o) shift ;;
    -s) simulated=yes ;;
    -*) ;;
    *)
      if [[ -z $verb ]]; then verb=$1; else words+=("$(basename "$1" .deb)"); fi
      [[ $1 != *.deb ]] || files+=" $(basename "$1" .deb) "
      ;;
  esac
  shift
done
if [[ -e $FAKE/apt-is-locked ]]; then
  echo "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 4711 (unattended-upgr)"
  exit 100
fi
case $verb in
  install)
    for name in "${words[@]}"; do
      if ! grep -qxF "$name" "$FAKE/installed"; then
        [[ $files == *" $name "* ]] && from=", local-deb" || from=""
        echo "Inst $name (1.0 Debian:12/stable$from [amd64])"
        [[ $simulated == yes ]] || { [[ -e $FAKE/apt-fails ]] && echo "E: Failed to fetch $name" && exit 100; }
        [[ $simulated == yes ]] || echo "$name" | tee -a "$FAKE/manual" >>"$FAKE/installed"
      fi
    done
    [[ ! -e $FAKE/apt-is-slow || $simulated == yes ]] || sleep 2
    ;;
  autoremove)
    grep -vxFf "$FAKE/manual" "$FAKE/installed" | grep -vxFf "$FAKE/needed-by-others" | sed 's/.*/Purg & [1.0]/'
    ;;
  purge)
    for name in "${words[@]}"; do
      echo "Purg $name [1.0]"
      ! grep -qxF "$name" "$FAKE/needed-by-others" || echo "Purg another [1.0]"
      [[ $simulated == yes ]] || sed -i "/^$name$/d" "$FAKE/installed"
    done
    ;;
esac
""",
    "apt-mark": """
verb=$1
shift
case $verb in
  showmanual) printf '%s\\n' "$@" | grep -xFf "$FAKE/manual" ;;
  auto) for name in "$@"; do sed -i "/^$name$/d" "$FAKE/manual"; done ;;
  manual) printf '%s\\n' "$@" >>"$FAKE/manual" ;;
esac
""",
    "apt-cache": 'shift 2; printf "Package: %s\\nInstalled-Size: 102400\\nSize: 1048576\\n\\n" "$@"',
    "getent": 'grep -qxF "$2" "$FAKE/accounts"',
    "useradd": 'echo "${@: -1}" >>"$FAKE/accounts"',
    "userdel": 'sed -i "/^$1$/d" "$FAKE/accounts"',
    "groupdel": ":",
    "chown": ":",
    "setpriv": 'until [[ $1 == -- ]]; do shift; done; shift; exec "$@"',
    "systemctl": """
[[ $1 != --version ]] || { echo "systemd $(cat "$FAKE/systemd") (made up)"; exit; }
case $1 in
  start | restart) [[ -e $FAKE/camera ]] ;;
  show) [[ ! -e $FAKE/process ]] || cat "$FAKE/process" ;;
esac
""",
    # python3 of the system, and of the environments that it makes
    "python3": """
case "$1 $2" in
  "-m venv")
    folder=${@: -1}
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python"
    ;;
  "-m pip")
    [[ ! -e $FAKE/pip-is-slow ]] || sleep 30
    if [[ -e $FAKE/pip-fails ]]; then
      cat "$FAKE/pip-fails"
      exit 1
    fi
    cp "$FAKE/bin/maskfer-edge" "${0%/*}/maskfer-edge"
    ;;
  -c*) [[ $2 != *print* ]] || echo 3.11; [[ ! -e $FAKE/python-is-old ]] ;;
esac
""",
    "maskfer-edge": """
case $1 in
  run) [[ ! -e $FAKE/demonstration-fails ]] || { echo "maskfer-edge: no TFLite runtime is installed"; exit 1; } ;;
  config) [[ $# == 1 || ! -e $FAKE/settings-are-refused ]] || { echo "maskfer-edge: unknown key 'size'"; exit 1; } ;;
  doctor) echo "ok   all"; [[ ! -e $FAKE/doctor-finds ]] ;;
  cameras) [[ -e $FAKE/camera ]] ;;
esac
""",
}


class Ran(NamedTuple):
    """What a script did."""

    code: int
    said: str


class Machine:
    """A fresh Debian 12 with systemd and a camera, and a checkout of maskfer.

    Attributes:
        root: Its file system.
        fake: What it is and what became of it, a file a fact.
        checkout: Of maskfer, with empty packages.
    """

    def __init__(self, folder: Path) -> None:
        """Make it in an empty folder."""
        self.root, self.fake, self.checkout = folder / "root", folder / "fake", folder / "checkout"
        for path in ("opt", "usr/bin", "usr/local/bin", "etc", "var/lib", "run/systemd/system"):
            (self.root / path).mkdir(parents=True)
        self.commands = self.fake / "bin"
        self.commands.mkdir(parents=True)
        for name, text in COMMANDS.items():
            (self.commands / name).write_text(NOTE + text + "\n")
            (self.commands / name).chmod(0o755)
        shutil.copy(self.commands / "python3", self.root / "usr/bin/python3")
        for name, text in {
            "uid": "0", "architecture": "amd64", "installed": "bash\n", "needed-by-others": "bash\n", "manual": "\n",
            "free_mb": "9000", "accounts": "root\n", "systemd": "252", "camera": "", "calls": "",
        }.items():  # fmt: skip
            self.set(name, text)
        self.be("debian 12")
        for path in ("edge", "trainer", "converter", "deploy"):
            (self.checkout / path).mkdir(parents=True)
        for path in ("README.md", "edge/a.py"):
            (self.checkout / path).write_text("text\n")
        for name in SCRIPTS:
            shutil.copy(DEPLOY / name, self.checkout / "deploy" / name)
        self.release("1.0")

    def be(self, system: str) -> None:
        """Become one of `SYSTEMS`."""
        name, version = system.split()
        codename, full = SYSTEMS[system]
        lines = f"ID={name}\nVERSION_ID={version}\nVERSION_CODENAME={codename}\nPRETTY_NAME='{full}'\n"
        (self.root / "etc/os-release").write_text(lines)

    def release(self, version: str) -> None:
        """Let the checkout be of another version."""
        (self.checkout / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')

    def set(self, fact: str, text: str = "") -> None:
        """Make a fact true."""
        (self.fake / fact).write_text(text)

    def unset(self, fact: str) -> None:
        """Make a fact untrue."""
        (self.fake / fact).unlink()

    def lines(self, fact: str) -> list[str]:
        """What a file of facts says."""
        return (self.fake / fact).read_text().splitlines()

    def calls(self, name: str) -> list[str]:
        """How a command was called since `forget`."""
        return [line for line in self.lines("calls") if re.match(rf"{re.escape(name)}\b", line)]

    def forget(self) -> None:
        """Forget the calls so far."""
        self.set("calls")

    def state(self) -> dict[str, str]:
        """All that install.sh may change: files with their text, links, folders, packages, accounts."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink():
                found[name] = "-> " + str(path.readlink())
            else:
                found[name] = path.read_text() if path.is_file() else "folder"
        found["packages"] = " ".join(sorted(self.lines("installed")))
        found["accounts"] = " ".join(self.lines("accounts"))
        return found

    def start(
        self, *arguments: str, script: Path | None = None, told: int = subprocess.PIPE, **environment: str
    ) -> subprocess.Popen[str]:
        """Start install.sh on this machine, with a short patience for apt's lock; `told` takes what it says."""
        script = script or self.checkout / "deploy/install.sh"
        code = 'source "$1"; locate "$2"; LOCK_WAIT_S=1 START_WAIT_S=1; shift 2; main "$@"'
        given = {"PATH": f"{self.commands}:{os.environ['PATH']}", "FAKE": str(self.fake), **environment}
        return subprocess.Popen(
            ["bash", "-c", code, "install.sh", str(script), str(self.root), *arguments],
            env=given, stdout=told, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def run(self, *arguments: str, script: Path | None = None, **environment: str) -> Ran:
        """Run install.sh on this machine to its end."""
        process = self.start(*arguments, script=script, **environment)
        said, _ = process.communicate(timeout=60)
        return Ran(process.returncode, said)

    def stop(self, process: subprocess.Popen[str], call: str, number: signal.Signals) -> Ran:
        """Send install.sh a signal as soon as it has made a call."""
        deadline = time.monotonic() + 20
        while not any(call in line for line in self.lines("calls")):
            assert time.monotonic() < deadline, f"{call!r} was never called"
            time.sleep(0.02)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        return Ran(process.returncode, said)

    @property
    def link(self) -> Path:
        """What points to the environment in use."""
        return self.root / "opt/maskfer/env"

    def bundle(self, release: str = "bookworm", architecture: str = "amd64") -> Path:
        """A folder as bundle.sh makes it, with a wheel that is none."""
        folder = self.checkout.with_name("bundle")
        (folder / "wheels").mkdir(parents=True)
        for name in SCRIPTS:
            shutil.copy(DEPLOY / name, folder / name)
        (folder / "wheels/maskfer-2.0-py3-none-any.whl").write_text("wheel")
        (folder / "bundle.txt").write_text(f"release={release}\narchitecture={architecture}\nextras=mqtt\n")
        sums = "find . -type f -print0 | xargs -0 sha256sum >../sums && mv ../sums SHA256SUMS"
        subprocess.run(sums, cwd=folder, shell=True, check=True)
        return folder


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A fresh Debian 12 on which install.sh may do what it likes."""
    return Machine(tmp_path)
