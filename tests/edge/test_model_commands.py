import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from maskfer_edge import model_commands, model_install
from maskfer_edge.classifier import DEFAULT_MODEL, default_model
from maskfer_edge.cli import main
from maskfer_edge.errors import ModelError
from maskfer_edge.learned_detector import DEFAULT_DETECTOR
from maskfer_edge.model_commands import model_app
from maskfer_edge.model_file import EXPRESSION, pack
from maskfer_edge.model_install import Trial
from maskfer_edge.model_state import BUNDLED, Slot
from maskfer_edge.model_store import ModelStore, model_id

DATA = Path(str(files("maskfer_edge") / "data"))
GUIDE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture
def model(monkeypatch, capfd, tmp_path):
    """Run `maskfer-edge model` in this process, without trial runs; gives (exit status, stdout, stderr)."""
    monkeypatch.setattr(model_install, "try_out", lambda path, name: Trial(5, 5, 2.345))

    def call(command, *arguments):
        place = ["--store", tmp_path / "models"]
        signers = ["--signers", tmp_path / "allowed_signers"] if command == "install" else []
        monkeypatch.setattr(sys, "argv", ["maskfer-edge", "model", command, *map(str, [*arguments, *place, *signers])])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capfd.readouterr())

    return call


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models")


@pytest.fixture
def make(tmp_path):
    """A factory of model files; gives the path and the ID."""

    def made(name, **changes):
        path = tmp_path / f"{name}.tflite"
        changes = {"architecture": name, **changes}
        path.write_bytes(pack(default_model().flatbuffer, replace(default_model().info, **changes)))
        return path, model_id(path.read_bytes())

    return made


def prove(store):
    store.change(lambda state: state.with_slot(EXPRESSION, state.expression.proved()))


def assert_one_line(answer, *parts):
    status, out, err = answer
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert err.startswith("maskfer-edge: ") and all(part in err for part in parts), err


def test_a_model_is_installed_and_used(model, store, make):
    path, name = make("summer")
    status, out, err = model("install", path, "--allow-unsigned")
    assert status == 0
    assert out == f"{name}-summer: expression model, not signed; trial run: 5 faces in 5 frames, 2.35 ms a frame\n"
    assert err.endswith(
        "without a signature\nit is on trial: if it gives no results, the bundled one comes back\n"
        f"runs with --models {store.folder} use it from their next start; the service: sudo systemctl restart maskfer\n"
    )
    assert store.state().expression.in_use == name


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_the_signer_is_shown(model, make, tmp_path):
    path, _ = make("summer")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", "maskfer-model", path], check=True)
    (tmp_path / "allowed_signers").write_text(f"ops@example.org {(tmp_path / 'key.pub').read_text()}")
    status, out, err = model("install", path)
    assert (status, "signed by ops@example.org" in out) == (0, True), err
    assert "signed by ops@example.org" in model("list")[1]
    assert json.loads(model("list", "--json")[1])["models"][0]["signed_by"] == "ops@example.org"


def test_installing_what_is_in_use_is_no_change(model, make):
    path, name = make("summer")
    model("install", path, "--allow-unsigned")
    status, out, _ = model("install", path, "--allow-unsigned")
    assert (status, out) == (0, f"{name}-summer: installed and in use already\n")


def test_it_can_be_installed_without_being_used(model, store, make):
    path, name = make("summer")
    status, _, err = model("install", path, "--allow-unsigned", "--no-use")
    assert status == 0 and err.endswith(f"maskfer-edge model use {name} --store {store.folder}\n")
    assert store.state().expression.in_use == BUNDLED


def test_a_model_for_another_detector_is_said_to_be(model, make):
    path, _ = make("summer", crop_margins={"haar": 0.0})
    assert "run with --detector haar" in model("install", path, "--allow-unsigned")[2]


def test_an_unsigned_model_is_refused_before_anything_is_made(model, store, make):
    path, _ = make("summer")
    assert_one_line(model("install", path), "summer.tflite is not signed", "--allow-unsigned")
    assert not store.folder.exists()


def test_a_file_that_is_no_model_is_refused_before_anything_is_made(model, store, tmp_path):
    (tmp_path / "m.tflite").write_text("no model")
    status, _, err = model("install", tmp_path / "m.tflite", "--allow-unsigned")
    assert status == 1 and "is not a TFLite model" in err
    assert not store.folder.exists()


def test_another_sha256_is_refused(model, make):
    path, _ = make("summer")
    assert_one_line(model("install", path, "--sha256", "0" * 64), "has the sha256")


def test_a_trial_run_that_fails_is_one_line(model, store, make, monkeypatch):
    def fails(path, name):
        raise ModelError(f"{name} crashed in its trial run (SIGSEGV); nothing was changed")

    monkeypatch.setattr(model_install, "try_out", fails)
    path, _ = make("summer")
    status, out, err = model("install", path, "--allow-unsigned")
    assert (status, out) == (1, "") and "crashed in its trial run (SIGSEGV)" in err
    assert store.models() == []


def test_list_shows_what_is_in_use(model, store, make):
    old, new = make("old"), make("new")
    model("install", old[0], "--allow-unsigned")
    prove(store)
    model("install", new[0], "--allow-unsigned")
    store.change(lambda state: state.with_slot(EXPRESSION, replace(state.expression, tries=1)))
    status, out, err = model("list")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert "bundled the one before" in lines
    assert f"{old[1]} old last good, not signed" in lines
    assert f"* {new[1]} new in use, on trial (1 of 3 tries), not signed" in lines
    assert lines.index("detector models") < lines.index("* bundled in use")


def test_list_shows_why_a_model_was_put_back(model, store, make):
    path, name = make("summer")
    model("install", path, "--allow-unsigned")
    store.change(lambda state: state.with_slot(EXPRESSION, state.expression.failed("a frame had no result")))
    assert "put back: a frame had no result" in model("list")[1]
    listed = json.loads(model("list", "--json")[1])["expression"]
    assert (listed["put_back"], listed["reason"], listed["runs"]) == (name, "a frame had no result", BUNDLED)


def test_list_names_damaged_files_and_what_runs_instead(model, store, make):
    path, name = make("summer")
    model("install", path, "--allow-unsigned")
    store.get(name).path.write_bytes(b"half")
    status, out, err = model("list")
    assert status == 0 and f"of no use: {name}-summer: " in out
    assert "the expression model used instead is the bundled one" in err
    listed = json.loads(model("list", "--json")[1])
    assert (listed["expression"]["in_use"], listed["expression"]["runs"]) == (name, BUNDLED)
    assert "is damaged" in listed["models"][0]["problem"]


@pytest.mark.parametrize("which", ["folder", "state", "model"])
def test_what_may_not_be_read_is_not_listed_as_of_no_use(model, store, make, monkeypatch, which):
    path, name = make("summer")
    model("install", path, "--allow-unsigned")
    closed = {"folder": store.folder, "state": store.folder / "state.json", "model": store.get(name).path}[which]
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed)  # as root may read anything
    assert_one_line(model("list"), f"{closed} cannot be read by you; run it with sudo")


def test_without_a_store_the_bundled_models_are_listed(model):
    status, out, err = model("list")
    assert (status, out.count("* bundled")) == (0, 2)
    assert "is not there; the bundled models are in use" in err


def test_use_switches(model, store, make):
    path, name = make("summer")
    model("install", path, "--allow-unsigned", "--no-use")
    status, out, err = model("use", "summer")
    assert status == 0 and out.startswith(f"{name}-summer: expression model; trial run:")
    assert "the bundled one comes back" in err
    assert store.state().expression.in_use == name
    assert model("use", name)[1] == f"{name}-summer: in use already\n"


@pytest.mark.parametrize(("options", "kinds"), [((), 2), (("--kind", "detector"), 1)])
def test_the_bundled_models_can_be_used_again(model, store, make, options, kinds):
    path, name = make("summer")
    model("install", path, "--allow-unsigned")
    status, out, _ = model("use", BUNDLED, *options)
    assert (status, out.count("the bundled model is in use")) == (0, kinds)
    assert store.state().expression.in_use == (BUNDLED if kinds == 2 else name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("use", "sumer"), "the nearest is"),
        (("use", "summer", "--kind", EXPRESSION), "--kind goes with bundled alone"),
        (("use", BUNDLED, "--kind", "haar"), "--kind takes expression or detector; received 'haar'"),
        (("rollback", "--kind", "haar"), "--kind takes expression or detector; received 'haar'"),
        (("rollback", "--kind", "detector"), "there is no detector model to go back to"),
    ],
)
def test_what_cannot_be_done_is_one_line(model, make, arguments, message):
    model("install", make("summer")[0], "--allow-unsigned")
    assert_one_line(model(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("use", "large"), "large is a bundled network"),
        (("use", "summer"), "holds no models"),
        (("rollback",), "holds no models; install one"),
    ],
)
def test_without_a_store_what_there_is_not_is_said_all_the_same(model, store, arguments, message):
    assert_one_line(model(*arguments), message)
    assert not store.folder.exists()


def test_rollback_goes_back_and_comes_forward_again(model, store, make):
    old, new = make("old"), make("new")
    for path, _ in (old, new):
        model("install", path, "--allow-unsigned")
        prove(store)
    status, out, err = model("rollback")
    assert (status, out) == (0, f"expression: back from {new[1]}-new to {old[1]}-old\n")
    assert "systemctl restart maskfer" in err
    assert model("rollback", "--kind", EXPRESSION)[1] == f"expression: back from {old[1]}-old to {new[1]}-new\n"
    assert store.state().expression == Slot(new[1], new[1], old[1])


@pytest.mark.parametrize("arguments", [[], *([command.name] for command in model_app.registered_commands)])
def test_help_exits_0(monkeypatch, capfd, arguments):
    monkeypatch.setattr(sys, "argv", ["maskfer-edge", "model", *arguments, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code and "Usage: maskfer-edge model" in capfd.readouterr().out


def test_every_command_and_option_stands_in_the_guide():
    guide = GUIDE.read_text().replace("\\|", "|")
    for name, command in typer.main.get_command(model_app).commands.items():
        assert f"maskfer-edge model {name}" in guide
        for parameter in command.params:
            shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
            assert shown in guide, (name, shown)


def test_all_of_it_goes_with_real_trial_runs(tmp_path):
    command = [sys.executable, "-c", "from maskfer_edge.cli import main; main()", "model"]
    place = ["--store", tmp_path / "models"]
    source = tmp_path / "finder.tflite"
    shutil.copy(DATA / DEFAULT_DETECTOR, source)
    install = [*command, "install", source, *place, "--signers", tmp_path / "none", "--allow-unsigned"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "finder: detector model" in done.stdout, done.stderr
    assert ModelStore(tmp_path / "models").state().detector.on_trial


# The libraries lie where root alone may read them on some machines, so they are loaded before.
AS_ROOT = """
import os, pathlib
from maskfer_edge import cli, drawing, model_install

def try_out(path, name):
    pathlib.Path("demo").exists()  # which a source may be, and raises in a folder that is closed
    print(os.getresuid(), os.getresgid(), os.getgroups())
    return model_install.Trial(5, 5, 1.0)

model_install.try_out = try_out
cli.main()
"""


@pytest.mark.parametrize(
    ("owners", "targets", "expected"),
    [
        ({}, {}, None),
        ({"/srv/a": 7}, {}, 7),
        ({"/srv/a": 7, "/srv/a/models": 8}, {}, 7),
        ({"/srv/a/models": 7}, {}, 7),  # a link that someone has put there
        ({}, {"/srv": 7}, 7),  # a link of root's
        ({"/srv/a/models": 7}, {"/srv": None}, None),
    ],
)
def test_root_gives_its_rights_up_to_the_first_owner_on_the_way(monkeypatch, owners, targets, expected):
    taken = []

    def look(path, known):
        if known.get(str(path), 0) is None:
            raise FileNotFoundError
        return SimpleNamespace(st_uid=known.get(str(path), 0), st_gid=9)

    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 0)
        for name in ("chdir", "setgroups", "setgid", "setuid"):
            patch.setattr(os, name, lambda value, name=name: taken.append((name, value)))
        patch.setattr(Path, "lstat", lambda path: look(path, owners))
        patch.setattr(Path, "stat", lambda path: look(path, owners | targets))
        model_commands._become_owner(Path("/srv/a/models"))
    assert taken == ([("chdir", "/"), ("setgroups", []), ("setgid", 9), ("setuid", 7)] if expected else [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("link", [False, True])
def test_root_works_as_the_store_s_owner(link):
    user, group = 65534, 65533
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = ModelStore(Path(folder) / "lib" / "models")
        store.folder.parent.mkdir()
        os.chown(store.folder.parent, user, group)
        if link:  # by which the owner would have root write elsewhere
            (Path(folder) / "root").mkdir()
            store.folder.symlink_to("../root")
            os.chown(store.folder, user, group, follow_symlinks=False)
        private = Path(folder) / "private"
        private.mkdir(mode=0o700)  # which only root can read
        shutil.copy(DATA / DEFAULT_MODEL, private / "m.tflite")
        command = [sys.executable, "-c", AS_ROOT, "model", "install", "m.tflite", "--store", "../lib/models"]
        options = ["--signers", "none", "--allow-unsigned"]
        done = subprocess.run(
            [*command, *options], cwd=private, capture_output=True, text=True, timeout=120, check=False
        )
        if link:
            assert done.returncode == 1 and "models cannot be written: Permission denied" in done.stderr
            assert not list((Path(folder) / "root").iterdir())
            return
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{(user,) * 3} {(group,) * 3} []")
        owners = {(path.stat().st_uid, path.stat().st_gid) for path in [store.folder, *store.folder.iterdir()]}
        assert owners == {(user, group)}
        assert store.state().expression.on_trial
