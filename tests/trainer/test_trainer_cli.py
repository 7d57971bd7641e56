from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maskfer_trainer.cli import main

TRAINER = Path(sys.executable).with_name("trainer")


@pytest.mark.parametrize(
    ("command", "option"), [("build-dataset", "--mask"), ("fit", "--resume"), ("evaluate", "--json")]
)
def test_every_command_has_help(run_main, command, option):
    ran = run_main(main, command, "--help")
    assert ran.code == 0
    assert option in ran.out


def test_all_commands_are_listed(run_main):
    ran = run_main(main, "--help")
    assert all(command in ran.out for command in ("build-dataset", "fit", "evaluate"))


def test_the_installed_command_runs():
    ran = subprocess.run([TRAINER, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_build_dataset_prints_its_report_as_json(run_main, make_source, tmp_path):
    source = make_source(tmp_path / "faces", train=1, test=1)
    ran = run_main(main, "build-dataset", source, tmp_path / "out", "--mask", "cloth-red", "--json", "--workers", 1)
    assert ran.code == 0
    assert json.loads(ran.out)["pictures"] == 14
    assert ran.err == ""


def test_build_dataset_says_what_it_did(run_main, make_source, tmp_path):
    source = make_source(tmp_path / "faces", train=1, test=1)
    (source / "train/sad/empty.png").write_bytes(b"")
    ran = run_main(main, "build-dataset", source, tmp_path / "out")
    assert "14 faces masked" in ran.out
    assert "skipped 1 × is empty" in ran.out


def test_evaluate_prints_json(run_main, keras_model, dataset):
    ran = run_main(main, "evaluate", keras_model, dataset, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["parts"]["masked"]["pictures"] == 21


def test_evaluate_prints_tables(run_main, keras_model, dataset):
    ran = run_main(main, "evaluate", keras_model, dataset)
    assert ran.out.count("Surprise") == 5


def test_fit_prints_the_models_path(run_main, monkeypatch, dataset, tmp_path):
    from maskfer_trainer import fitting

    asked = []
    monkeypatch.setattr(fitting, "fit", lambda *arguments, **_: asked.append(arguments) or tmp_path / "model.keras")
    ran = run_main(main, "fit", dataset, "--out", tmp_path / "run", "--arch", "paper", "--seed", 3)
    assert ran.out == f"{tmp_path / 'model.keras'}\n"
    chosen = asked[0][2]
    assert (chosen.arch, chosen.epochs, chosen.bare_share, chosen.seed) == ("paper", 250, 0.0, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build-dataset", "missing", "out"], "missing does not exist"),
        (["build-dataset", ".", "out", "--mask", "tartan"], "unknown mask kind tartan"),
        (["build-dataset", ".", "."], "already there"),
        (["build-dataset", ".", "out"], "no class folders"),
        (["fit", "missing", "--out", "run"], "missing is not a folder"),
        (["fit", "missing", "--out", "run", "--arch", "huge"], "unknown architecture 'huge'"),
        (["fit", "missing", "--out", "run", "--epochs", "0"], "at least 1"),
        (["evaluate", "missing.keras", "missing"], "missing.keras cannot be read"),
        (["evaluate", "missing.keras", "missing", "--out", "."], "already there"),
    ],
)
def test_errors_are_one_line(run_main, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    ran = run_main(main, *arguments)
    lines = [line for line in ran.err.splitlines() if not line.startswith("Training ")]
    assert (ran.code, ran.out, len(lines)) == (1, "", 1)
    assert lines[0].startswith("trainer: ")
    assert said in lines[0]


@pytest.mark.parametrize(
    "arguments", [["build-dataset"], ["fit", "data"], ["evaluate", "model.keras"], ["nothing"],
                  ["build-dataset", "a", "b", "--workers", "-1"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(run_main, arguments):
    ran = run_main(main, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("blocked", "arguments"),
    [
        ("dlib", ["build-dataset", "SOURCE", "OUT"]),
        ("PIL", ["build-dataset", "SOURCE", "OUT"]),
        ("keras", ["fit", "SOURCE", "--out", "OUT"]),
        ("tensorflow", ["fit", "SOURCE", "--out", "OUT"]),
        ("sklearn", ["evaluate", "SOURCE", "OUT"]),
    ],
)
def test_a_missing_library_gives_one_line_with_the_remedy(run_without, tmp_path, source, blocked, arguments):
    given = [{"SOURCE": str(source), "OUT": str(tmp_path / "out")}.get(word, word) for word in arguments]
    ran = run_without(blocked, "trainer", *given)
    assert ran == (1, "", f"trainer: {blocked} is not installed; run: pip install 'maskfer[trainer]'\n")


def test_help_needs_no_extra(run_without):
    assert run_without("tensorflow", "trainer", "fit", "--help").code == 0
