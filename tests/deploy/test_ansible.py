"""Whether roles, playbooks and inventory fit the program, and whether the health check tells well from unwell.

tests/deploy/try_fleet.sh plays them against machines.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from itertools import count
from pathlib import Path

import pytest

from maskfer_edge.health import Health
from maskfer_edge.metrics import MetricsServer
from maskfer_edge.run_settings import RunSettings

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; pip install pyyaml")
jinja2 = pytest.importorskip("jinja2", reason="Jinja2 is not installed; pip install jinja2")

ANSIBLE = Path(__file__).parents[2] / "deploy/ansible"
ROLE = ANSIBLE / "roles/maskfer"
needs_ansible = pytest.mark.skipif(
    shutil.which("ansible-playbook") is None, reason="Ansible is not installed; pip install ansible-core"
)
needs_lint = pytest.mark.skipif(
    shutil.which("ansible-lint") is None, reason="ansible-lint is not installed; pip install ansible-lint"
)


def read_yaml(name):
    return yaml.safe_load((ANSIBLE / name).read_text())


def rendered(template, **variables):
    return rendered_text(template.read_text(), **variables)


def rendered_text(text, **variables):
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    # Ansible's own
    environment.filters["to_json"] = json.dumps
    environment.filters["combine"] = lambda value, other: value | other
    return environment.from_string(text).render(ansible_managed="Ansible managed", **variables)


def tasks(name):
    """All tasks of a file, those in blocks too."""
    waiting, found = list(read_yaml(name)), []
    while waiting:
        task = waiting.pop(0)
        found.append(task)
        for part in ("block", "rescue", "always"):
            waiting += task.get(part, [])
    return found


def task_files():
    return [f"roles/maskfer/tasks/{path.name}" for path in sorted((ROLE / "tasks").glob("*.yml"))]


@pytest.mark.parametrize("playbook", ["site.yml", "models.yml"])
def test_a_rollout_begins_with_one_and_one_failure_ends_it(playbook):
    (play,) = read_yaml(playbook)
    assert (play["serial"], play["max_fail_percentage"]) == (
        "{{ maskfer_serial }}",
        "{{ maskfer_max_fail_percentage }}",
    )
    assert play["vars"] == {"maskfer_serial": [1, "10%", "25%"], "maskfer_max_fail_percentage": 0}


def test_every_option_is_described_and_has_a_default_or_is_required():
    said = read_yaml("roles/maskfer/meta/argument_specs.yml")["argument_specs"]
    options = {name: option for entry in said.values() for name, option in entry["options"].items()}
    assert {name for name, option in options.items() if not option.get("required")} == set(
        read_yaml("roles/maskfer/defaults/main.yml")
    )
    used = " ".join(path.read_text() for folder in ("tasks", "templates", "vars") for path in (ROLE / folder).iterdir())
    assert all(option["description"] and name in used for name, option in options.items())


def test_the_example_inventory_is_what_the_program_takes():
    group = read_yaml("inventory.example.yml")["maskfer"]
    options = set(read_yaml("roles/maskfer/meta/argument_specs.yml")["argument_specs"]["main"]["options"])
    said = group["vars"].keys() | {name for host in group["hosts"].values() for name in host}
    assert {name for name in said if name.startswith("maskfer_")} <= options
    for host in group["hosts"].values():
        RunSettings(**group["vars"]["maskfer_settings"] | host.get("maskfer_own_settings", {}))
    assert "metrics" in group["vars"]["maskfer_settings"]


def test_secrets_stay_out_of_the_log():
    secret = [task for name in task_files() for task in tasks(name) if "maskfer.env" in json.dumps(task)]
    assert secret and all(task.get("no_log") for task in secret if "ansible.builtin.template" in task)
    environment = read_yaml("roles/maskfer/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert environment["maskfer_environment"]["no_log"]


def test_whatever_fails_leads_back():
    for name in ("main", "model"):
        blocks = [task for task in read_yaml(f"roles/maskfer/tasks/{name}.yml") if "block" in task]
        assert len(blocks) == 1 and blocks[0]["rescue"]
        included = {t.get("ansible.builtin.include_tasks") for t in tasks(f"roles/maskfer/tasks/{name}.yml")}
        assert "start.yml" in included
    for back in ("go_back", "model_back"):
        # or the host would count as well
        assert "ansible.builtin.fail" in read_yaml(f"roles/maskfer/tasks/{back}.yml")[-1]


def test_the_health_check_is_asked_as_it_wants(gate):
    command = tasks("roles/maskfer/tasks/start.yml")[-1]["ansible.builtin.script"]["cmd"]
    program, *arguments = rendered_text(
        command, maskfer_gate_steady_seconds=10, maskfer_gate_seconds=120, maskfer_gate_model="abc"
    ).split()
    assert (ROLE / "files" / program).exists()
    said = gate.options().parse_args(arguments)
    assert (said.steady, said.within, said.model) == (10, 120, "abc")


def test_settings_come_through_as_they_are():
    settings = {"source": 'rtsp://u:p"\\@ä/', "realtime": True, "fps": 14.5, "retries": -1, "metrics": "0.0.0.0:9090"}
    text = rendered(ROLE / "templates/maskfer.toml.j2", maskfer_all_settings=settings)
    assert tomllib.loads(text) == settings
    RunSettings(**tomllib.loads(text))


def test_the_environment_is_quoted_as_systemd_reads_it():
    secrets = {"MASKFER_TOKEN": 'se"c\\ret $HOME # ä', "MASKFER_MQTT_PASSWORD": "plain"}
    lines = rendered(ROLE / "templates/maskfer.env.j2", maskfer_environment=secrets).splitlines()
    # systemd.exec(5): like a shell's quotes, but that nothing is expanded
    read = dict(shlex.split(line)[0].split("=", 1) for line in lines if not line.startswith("#"))
    assert read == secrets


def test_prometheus_is_told_of_every_machine():
    group = read_yaml("inventory.example.yml")["maskfer"]
    text = rendered(
        ANSIBLE / "templates/targets.yml.j2",
        groups={"maskfer": list(group["hosts"])},
        hostvars={name: group["vars"] | said for name, said in group["hosts"].items()},
    )
    targets = {target["labels"]["host"]: target["targets"] for target in yaml.safe_load(text)}
    assert targets == {
        "door": ["192.168.1.21:9090"],
        "hall": ["192.168.1.22:9090"],
        "lab": ["192.168.1.23:9090"],
    }


def test_its_own_settings_are_not_more_than_the_program_knows():
    base = (ROLE / "vars/main.yml").read_text()
    assert set(re.findall(r"'(\w+)': ", base.split("combine")[0])) <= {field.name for field in fields(RunSettings)}


@needs_ansible
def test_each_bundle_of_a_batch_is_packed(tmp_path):
    packing = [task for task in tasks("roles/maskfer/tasks/main.yml") if task["name"] == "Pack the bundles"]
    play = {"hosts": "all", "connection": "local", "gather_facts": False, "tasks": packing}
    hosts = {"door": {}, "hall": {"maskfer_bundle": "{{ inventory_dir }}/trixie"}, "lab": {}}
    common = {"maskfer_bundle": "{{ inventory_dir }}/bookworm", "ansible_python_interpreter": sys.executable}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": common}}))
    for release in ("bookworm", "trixie"):
        (tmp_path / release).mkdir()
    command = ["ansible-playbook", "-i", "hosts.yml", "play.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.glob("*.tar")} == {"bookworm.tar", "trixie.tar"}


@needs_ansible
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_unpacked_bundle_is_root_s_alone(tmp_path):
    (tmp_path / "bundle").mkdir(mode=0o777)
    (tmp_path / "bundle/install.sh").write_text("#!/bin/sh\n")
    for path in (tmp_path / "bundle", tmp_path / "bundle/install.sh"):
        os.chown(path, 1001, 1001)
    packing = next(task for task in tasks("roles/maskfer/tasks/main.yml") if task["name"] == "Pack the bundles")
    making, unpacking = (
        next(task for task in tasks("roles/maskfer/tasks/install.yml") if task["name"] == name)
        for name in ("Make a folder for the bundle", "Unpack the bundle")
    )
    making["ansible.builtin.tempfile"]["path"] = str(tmp_path)
    play = {"hosts": "all", "connection": "local", "gather_facts": False, "tasks": [packing, making, unpacking]}
    common = {"maskfer_bundle": str(tmp_path / "bundle"), "ansible_python_interpreter": sys.executable}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"door": {}}, "vars": common}}))
    command = ["ansible-playbook", "-i", "hosts.yml", "play.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.glob("maskfer-bundle.*")
    for path, mode in ((folder, 0o700), (folder / "install.sh", 0o644)):
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, mode), path


@needs_ansible
def test_ansible_reads_the_playbooks():
    command = [
        "ansible-playbook",
        "--syntax-check",
        "-i",
        "inventory.example.yml",
        "site.yml",
        "models.yml",
        "targets.yml",
    ]
    ran = subprocess.run(command, cwd=ANSIBLE, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_lint
def test_ansible_lint_is_content(tmp_path):
    command = ["ansible-lint", "--offline", "--profile", "production", "--strict"]
    ran = subprocess.run(command, cwd=ANSIBLE, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


# ---- the health check ----


@pytest.fixture(scope="module")
def gate():
    spec = importlib.util.spec_from_file_location("gate", ROLE / "files/gate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """Time that passes in sleep only."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def check(gate, monkeypatch):
    """Checks a machine whose frames, or why there are none, are told by the seconds since its start."""
    clock = Clock()
    monkeypatch.setattr(gate, "time", clock)

    def check(frames, steady_s=10.0, within_s=120.0):
        def read(url):
            said = frames(clock.now - 1000.0)
            if isinstance(said, Exception):
                raise said
            return int(said)

        monkeypatch.setattr(gate, "read_frames", read)
        return gate.wait_for_frames("where", steady_s, clock.now + within_s), clock.now - 1000.0

    return check


@pytest.mark.parametrize("fps", [0.5, 15, 400])
def test_a_machine_whose_frames_grow_is_well(check, fps):
    frames, took_s = check(lambda s: fps * s)
    assert frames == pytest.approx(fps * took_s, abs=1) and took_s < 14


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        (lambda s: 0, "0 frames so far"),
        (lambda s: 7, "7 frames so far"),
        (lambda s: min(15 * s, 100), "100 frames so far"),
        (lambda s: 15 * (s % 8), "frames so far, but not 10 s without a break"),
        (lambda s: ConnectionRefusedError(111, "Connection refused"), "where: [Errno 111] Connection refused"),
        (lambda s: 15 * s if s % 9 else ValueError("the camera is lost"), "frames so far, but not 10 s without"),
        (lambda s: ValueError("the camera is lost"), "where: the camera is lost"),
    ],
    ids=[
        "no frame",
        "no more",
        "they stop",
        "starts again and again",
        "no answer",
        "camera comes and goes",
        "no camera",
    ],
)
def test_a_machine_whose_frames_do_not_flow_is_not(gate, check, frames, why):
    with pytest.raises(gate.UnwellError, match=re.escape(why)):
        check(frames)


def test_a_camera_that_comes_late_is_waited_for(check):
    frames, took_s = check(lambda s: 15 * (s - 60) if s > 60 else ValueError("not there yet"))
    assert 150 <= frames < 180 and 70 <= took_s < 73


def reported(**said):
    health = Health(9.0, 120, 14.9, 2, 0.02, 3, 1, "", {}, {})
    return MetricsServer(lambda: replace(health, **said), 0)


def test_frames_are_read_from_the_metrics(gate):
    with reported() as server:
        assert gate.read_frames(f"http://127.0.0.1:{server.port}/metrics") == 120
    with pytest.raises(OSError, match="refused"):
        gate.read_frames(f"http://127.0.0.1:{server.port}/metrics")


def test_a_lost_camera_is_read_from_the_metrics(gate):
    with reported(lost="unplugged") as server, pytest.raises(ValueError, match="the camera is lost"):
        gate.read_frames(f"http://127.0.0.1:{server.port}/metrics")


@pytest.mark.parametrize(
    ("metrics", "url"),
    [
        ("9090", "http://127.0.0.1:9090/metrics"),
        ("0.0.0.0:9100", "http://127.0.0.1:9100/metrics"),
        ("[::]:9090", "http://[::1]:9090/metrics"),
        ("192.168.1.21:9090", "http://192.168.1.21:9090/metrics"),
    ],
)
def test_the_settings_tell_where_to_ask(gate, tmp_path, metrics, url):
    (tmp_path / "maskfer.toml").write_text(f'metrics = "{metrics}"\n')
    assert gate.metrics_url(tmp_path / "maskfer.toml") == url


def test_without_metrics_it_says_what_is_missing(gate, tmp_path):
    (tmp_path / "maskfer.toml").write_text("headless = true\n")
    with pytest.raises(gate.UnwellError, match="does not set metrics"):
        gate.metrics_url(tmp_path / "maskfer.toml")


@pytest.mark.parametrize(
    ("slot", "why"),
    [
        ({"in_use": "abc"}, None),
        ({"in_use": "abc", "on_trial": True}, "abc has not passed its trial yet"),
        ({"in_use": "bundled", "put_back": "abc", "reason": "it hung"}, "abc was put back: it hung"),
        ({"in_use": "def"}, "abc is not in use"),
    ],
    ids=["good", "on trial", "put back", "another"],
)
@pytest.mark.parametrize("kind", ["expression", "detector"])
def test_a_model_is_well_when_its_trial_is_over(gate, check, monkeypatch, tmp_path, slot, kind, why):
    empty = {"in_use": "bundled", "on_trial": False, "put_back": "", "reason": ""}
    listed = {"expression": empty, "detector": empty} | {kind: empty | slot}
    program = tmp_path / "maskfer-edge"
    program.write_text(f"#!/bin/sh\ntest \"$*\" = 'model list --json' && echo '{json.dumps(listed)}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(gate, "PROGRAM", str(program))
    if why is None:
        gate.wait_for_model("abc", 1001.0)
    else:
        with pytest.raises(gate.UnwellError, match=why):
            gate.wait_for_model("abc", 1001.0)


def test_as_a_program_it_says_one_line(tmp_path):
    command = [sys.executable, ROLE / "files/gate.py", "--config", tmp_path / "maskfer.toml", "--steady", "1"]

    def ran(within):
        return subprocess.run([*command, "--within", within], capture_output=True, text=True, timeout=60, check=False)

    frames = count()
    health = Health(9.0, 120, 14.9, 2, 0.02, 3, 1, "", {}, {})
    with MetricsServer(lambda: replace(health, frames=next(frames)), 0) as server:
        (tmp_path / "maskfer.toml").write_text(f'metrics = "{server.port}"\n')
        well = ran("50")
    unwell = ran("1")
    assert (well.returncode, well.stderr) == (0, "") and well.stdout.endswith("frames, and more come\n")
    assert (unwell.returncode, unwell.stderr) == (1, "") and unwell.stdout.startswith("not well within 1 s: http://")
    assert unwell.stdout.count("\n") == 1
