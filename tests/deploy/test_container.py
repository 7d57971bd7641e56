"""What can be said of the container file without an engine; `podman build` and `docker build` do the rest."""

import fnmatch
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from maskfer_edge.addresses import address
from maskfer_edge.health import Health
from maskfer_edge.metrics import MetricsServer
from maskfer_edge.run_settings import RunSettings

ROOT = Path(__file__).parents[2]
HEALTH = Health(9.0, 120, 14.9, 2, 0.02, 3, 1, "", {}, {})


def instructions():
    """(word, rest) of each instruction, continued lines joined."""
    lines = [line for line in (ROOT / "deploy/Containerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def the(word):
    (found,) = [rest for instruction, rest in instructions() if instruction == word]
    return found


def test_it_is_made_of_a_slim_debian():
    assert re.fullmatch(r"docker\.io/library/debian:(bookworm|trixie)-slim", the("FROM"))


def test_it_installs_as_on_a_machine_and_keeps_no_lists():
    steps = [step.strip() for step in the("RUN").split("&&")]
    assert steps[0].endswith("/src/deploy/install.sh --no-service")
    assert "rm -rf /var/lib/apt/lists/*" in steps
    assert not re.search(r"gcc|g\+\+|build-essential|-dev\b", the("RUN"))


def test_it_does_not_run_as_root():
    words = [word for word, _ in instructions()]
    assert the("USER") == "maskfer" and words.index("USER") > words.index("RUN")
    assert "useradd --system" in the("RUN")


def test_its_command_is_what_the_program_takes():
    assert json.loads(the("ENTRYPOINT")) == ["maskfer-edge"]
    command, *options = json.loads(the("CMD"))
    assert command == "run"
    known = {f"--{field.name.replace('_', '-')}": field for field in fields(RunSettings)}
    assert {option for option in options if option.startswith("--")} <= known.keys()
    host, port = address(options[options.index("--metrics") + 1], "metrics", 9090)
    assert host == "0.0.0.0" and str(port) in the("EXPOSE").split()
    assert options[options.index("--models") + 1].startswith(the("VOLUME"))


@pytest.mark.parametrize(
    ("said", "healthy"),
    [({}, True), ({"frame_age_s": 9.9}, True), ({"frame_age_s": 10.1}, False), ({"frame_age_s": None}, False)],
    ids=["fresh", "not so fresh", "old", "no result yet"],
)
def test_it_is_healthy_while_results_are_fresh(said, healthy):
    with MetricsServer(lambda: replace(HEALTH, **said), 0) as server:
        assert health_check(server.port) is healthy


def test_it_is_unhealthy_when_nothing_answers():
    with MetricsServer(lambda: HEALTH, 0) as server:
        pass
    assert health_check(server.port) is False


def health_check(port):
    command = the("HEALTHCHECK").partition("CMD ")[2]
    for there, here in (("/opt/maskfer/env/bin/python", sys.executable), (":9090/", f":{port}/")):
        assert command.count(there) == 1
        command = command.replace(there, here)
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode in (0, 1)
    return ran.returncode == 0


def test_only_what_it_is_made_of_goes_into_the_context():
    """By the rules that .dockerignore has in use here: the last one that matches counts."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]

    def goes_in(path):
        said = False
        for rule in rules:
            pattern = rule.removeprefix("!")
            names = [path, *map(str, Path(path).parents)]
            if any(
                fnmatch.fnmatch(name, pattern.removeprefix("**/")) or name.endswith(pattern.removeprefix("**"))
                for name in names
            ):
                said = rule.startswith("!")
        return said

    needed = ["pyproject.toml", "README.md", "deploy/install.sh", "deploy/constraints-bookworm.txt"]
    needed += [
        "edge/maskfer_edge/data/demo.mp4",
        "trainer/maskfer_trainer/cli.py",
        "converter/maskfer_converter/cli.py",
    ]
    assert all((ROOT / path).exists() and goes_in(path) for path in needed)
    unwanted = [".git/config", ".venv/bin/python", "tests/conftest.py", "deploy/monitoring/secrets/mosquitto_passwd"]
    unwanted += ["edge/maskfer_edge/__pycache__/cli.cpython-311.pyc", "deploy/ansible/inventory.yml"]
    assert not any(map(goes_in, unwanted))
