from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maskfer_converter.cli import main

CONVERTER = Path(sys.executable).with_name("converter")


def test_quantize_has_help(run_main):
    ran = run_main(main, "quantize", "--help")
    assert ran.code == 0
    assert "--calibrate" in ran.out


def test_the_installed_command_lists_its_commands():
    ran = subprocess.run([CONVERTER, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "quantize" in ran.stdout


def test_quantize_prints_json(run_main, keras_model, dataset, tmp_path):
    out = tmp_path / "model.tflite"
    ran = run_main(main, "quantize", keras_model, "--calibrate", dataset, "-o", out, "--per-class", 4, "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert (report["model"], report["bytes"]) == (str(out), out.stat().st_size)
    assert report["accuracy"]["masked test"]["pictures"] == 21


def test_quantize_prints_a_table(run_main, keras_model, dataset, tmp_path):
    out = tmp_path / "model.tflite"
    ran = run_main(main, "quantize", keras_model, "--calibrate", dataset, "-o", out, "--per-class", 4)
    assert "calibrated on 30 pictures" in ran.out
    assert [line.split()[0] for line in ran.out.splitlines()[2:]] == ["masked", "bare"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.keras", "-o", "out.tflite"], "missing.keras cannot be read"),
        (["text.keras", "-o", "out.tflite"], "text.keras is not a whole .keras file"),
        (["text.keras", "-o", "text.keras"], "already there"),
        (["text.keras", "-o", "nowhere/out.tflite"], "nowhere is not a folder"),
    ],
)
def test_errors_are_one_line(run_main, monkeypatch, dataset, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("text.keras").write_text("text")
    ran = run_main(main, "quantize", *arguments, "--calibrate", dataset)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith("converter: ")
    assert said in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["text.keras"]


@pytest.mark.parametrize(
    "arguments", [[], ["model.keras"], ["a.keras", "--calibrate", "d", "-o", "o", "--per-class", 0]]
)
def test_wrong_usage_exits_with_2(run_main, arguments):
    ran = run_main(main, "quantize", *arguments)
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize("blocked", ["keras", "tensorflow"])
def test_a_missing_library_gives_one_line_with_the_remedy(run_without, tmp_path, keras_model, dataset, blocked):
    out = tmp_path / "out.tflite"
    ran = run_without(blocked, "converter", "quantize", keras_model, "--calibrate", dataset, "-o", out)
    assert ran == (1, "", f"converter: {blocked} is not installed; run: pip install 'maskfer[converter]'\n")
