"""bundle.sh with a pip that fetches nothing; try_install.sh makes a real bundle and installs from it."""

import os
import re
import subprocess

import pytest

PIP = """#!/bin/bash
echo "$*" >>"$PIP_CALLS"
[[ $3 != --version ]] || exit 0
[[ ! -e $PIP_CALLS.fails ]] || exit 1
while (($#)); do
  case $1 in
    --wheel-dir) touch "$2/maskfer-1.0-py3-none-any.whl" ;;
    --dest) touch "$2/numpy-1.26.4-cp311-abi.whl" ;;
  esac
  shift
done
"""


@pytest.fixture
def bundle(machine, tmp_path):
    """Runs bundle.sh of the machine's checkout; gives exit status, what it said, and pip's calls."""
    python = tmp_path / "python"
    python.write_text(PIP)
    python.chmod(0o755)
    calls = tmp_path / "pip-calls"
    calls.touch()

    def run(*arguments, path=None, script=machine.checkout / "deploy/bundle.sh"):
        environment = {"PATH": path or os.environ["PATH"], "FAKE": str(machine.fake)}
        environment |= {"PYTHON": str(python), "PIP_CALLS": str(calls)}
        ran = subprocess.run(
            [script, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        return ran.returncode, ran.stderr, calls.read_text().splitlines()

    return run


def test_install_sh_takes_what_bundle_sh_makes(machine, bundle, tmp_path):
    code, said, _ = bundle("--arch", "amd64", "out")
    assert code == 0, said
    assert "sudo out/install.sh" in said
    ran = machine.run(script=tmp_path / "out/install.sh")
    assert ran.code == 0, ran.said
    assert "maskfer 1.0 is installed." in ran.said


@pytest.mark.parametrize(
    ("arguments", "python", "newest", "constrained"),
    [
        ([], "3.11", "manylinux_2_36_aarch64", True),
        (["--release", "trixie"], "3.13", "manylinux_2_41_aarch64", False),
        (["--release", "noble", "--arch", "amd64"], "3.12", "manylinux_2_39_x86_64", False),
    ],
)
def test_wheels_are_those_of_the_machine(bundle, arguments, python, newest, constrained):
    call = bundle(*arguments, "out")[2][-1]
    assert f"--python-version {python} " in call
    assert re.findall(r"--platform (\S+)", call)[-1] == newest
    assert ("--constraint" in call) is constrained
    assert call.endswith("maskfer-1.0-py3-none-any.whl[browser,mqtt,metrics]")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "which folder?"),
        (["--release", "jessie", "out"], "--release takes bookworm, trixie or noble; received jessie"),
        (["--arch", "armhf", "out"], "--arch takes arm64 or amd64; received armhf"),
        (["--extras", "trainer", "out"], "received trainer"),
        (["--unknown", "out"], "unknown option --unknown"),
        (["one", "two"], "one folder"),
        (["checkout"], "exists; give another name"),
        (["--packages", "checkout"], "is no bundle"),
    ],
)
def test_wrong_options_are_named(bundle, tmp_path, arguments, line):
    code, said, _ = bundle(*arguments)
    assert (code, len(said.splitlines())) == (1, 1)
    assert line in said
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_cannot_be_fetched_leaves_nothing(bundle, tmp_path):
    (tmp_path / "pip-calls.fails").touch()
    assert bundle("out")[0] == 1
    assert not list(tmp_path.glob("out*"))


def test_packages_are_added_on_a_fresh_machine(machine, bundle, tmp_path):
    bundle("--arch", "amd64", "out")
    stand_ins = f"{machine.commands}:{os.environ['PATH']}"
    script = tmp_path / "out/bundle.sh"
    (machine.commands / "apt-get").write_text(
        '#!/bin/bash\nif [[ $1 == -s ]]; then echo "Inst libgl1 (1 [amd64])"; else touch libgl1.deb; fi\n'
    )
    code, said, _ = bundle("--packages", "out", path=stand_ins, script=script)
    assert code == 0, said
    assert (tmp_path / "out/debs/libgl1.deb").exists()
    assert "debs/libgl1.deb" in (tmp_path / "out/SHA256SUMS").read_text()
