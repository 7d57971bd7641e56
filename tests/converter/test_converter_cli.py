from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from maskfer_converter.cli import main
from maskfer_edge.model_file import load_model

pytestmark = pytest.mark.usefixtures("few_runs")

CONVERTER = Path(sys.executable).with_name("converter")


@pytest.mark.parametrize("command", ["quantize", "verify", "inspect", "benchmark"])
def test_every_command_has_help(run_main, command):
    ran = run_main(main, command, "--help")
    assert ran.code == 0
    assert "Usage" in ran.out


def test_the_installed_command_lists_its_commands():
    ran = subprocess.run([CONVERTER, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    for command in ("quantize", "verify", "inspect", "benchmark"):
        assert command in ran.stdout


def test_quantize_prints_json(run_main, keras_model, dataset, tmp_path):
    out = tmp_path / "model.tflite"
    ran = run_main(main, "quantize", keras_model, "--calibrate", dataset, "-o", out, "--per-class", 4, "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert report == json.loads((tmp_path / "model.report.json").read_text())
    assert (report["model"], report["bytes"]) == (str(out), out.stat().st_size)
    assert report["comparison"]["masked test"]["pictures"] == 21


def test_quantize_prints_tables(run_main, keras_model, dataset, tmp_path):
    out = tmp_path / "model.tflite"
    ran = run_main(main, "quantize", keras_model, "--calibrate", dataset, "-o", out, "--per-class", 4)
    assert (ran.code, ran.err) == (0, "")
    assert "calibrated on 28 pictures" in ran.out
    first = [line.split()[0] for line in ran.out.splitlines() if line]
    for word in ("masked", "bare", "recall", "Angry", "worst", "ok"):
        assert word in first
    assert "FAILED" not in ran.out
    assert ran.out.endswith(f"\nwrote {out} and {tmp_path / 'model.report.json'}\n")


def test_quantize_takes_another_format(run_main, keras_model, dataset, tmp_path):
    out = tmp_path / "model.tflite"
    options = ["--format", "float16", "--seed", 1, "--per-class", 4]
    ran = run_main(main, "quantize", keras_model, "--calibrate", dataset, "-o", out, *options)
    assert (ran.code, "float16" in ran.out, "calibrated" in ran.out) == (0, True, False)
    assert load_model(out).info.quantization["seed"] == 1


def test_a_refused_model_leaves_the_table_and_one_line(run_main, one_class_model, dataset, tmp_path):
    out = tmp_path / "model.tflite"
    ran = run_main(main, "quantize", one_class_model, "--calibrate", dataset, "-o", out, "--per-class", 4)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "was not written" in ran.err
    assert "FAILED  masked test: more than one class given" in ran.out
    assert "wrote" not in ran.out and not list(tmp_path.iterdir())


def test_a_forced_model_is_written_and_said_to_fail(run_main, one_class_model, dataset, tmp_path):
    out = tmp_path / "model.tflite"
    ran = run_main(main, "quantize", one_class_model, "--calibrate", dataset, "-o", out, "--per-class", 4, "--force")
    assert (ran.code, out.exists()) == (0, True)
    assert "written because of --force" in ran.err


def test_limits_are_taken_from_the_options(run_main, keras_model, dataset, tmp_path):
    out = tmp_path / "model.tflite"
    limits = ["--max-drop", 100, "--min-agreement", 12]
    ran = run_main(main, "quantize", keras_model, "--calibrate", dataset, "-o", out, "--per-class", 4, *limits)
    assert "at most 100 points lost" in ran.out
    assert "12 % agree" in ran.out


def test_verify_prints_each_check(run_main, tflite_model, dataset):
    ran = run_main(main, "verify", tflite_model, dataset)
    assert (ran.code, ran.err) == (0, "")
    assert "ok      integers throughout" in ran.out
    assert ("-       runs on tflite-runtime (not installed here" in ran.out) == (find_spec("tflite_runtime") is None)
    assert "% right" in ran.out


def test_verify_prints_json(run_main, tflite_model, dataset):
    found = json.loads(run_main(main, "verify", tflite_model, dataset, "--json").out)
    assert found["same_pictures"] is True
    assert all(check["passed"] for check in found["checks"] if check["what"] != "runs on tflite-runtime")
    assert not any(check["passed"] is False for check in found["checks"])


def test_verify_exits_with_1_where_a_check_fails(run_main, tmp_path, one_class_model, dataset):
    out = tmp_path / "model.tflite"
    run_main(main, "quantize", one_class_model, "--calibrate", dataset, "-o", out, "--per-class", 4, "--force")
    ran = run_main(main, "verify", out, dataset)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "fails 2 of" in ran.err
    assert "FAILED" in ran.out


def test_inspect_prints_metadata_operators_and_tensors(run_main, tflite_model):
    ran = run_main(main, "inspect", tflite_model)
    assert ran.code == 0
    for word in ("Angry, Disgust, Fear", "FULLY_CONNECTED", "7 channels", "format int8", "1, 0"):
        assert word in ran.out


def test_inspect_prints_json(run_main, tflite_model):
    found = json.loads(run_main(main, "inspect", tflite_model, "--json").out)
    assert found["metadata"]["architecture"] == "tiny"
    assert found["graph"]["operators"]


def test_inspect_says_why_there_is_no_metadata(run_main, tmp_path, tflite_model):
    (tmp_path / "other.tflite").write_bytes(load_model(tflite_model).flatbuffer)
    ran = run_main(main, "inspect", tmp_path / "other.tflite")
    assert (ran.code, "no metadata: " in ran.out) == (0, True)


def test_benchmark_prints_a_row_a_setting(run_main, tflite_model):
    options = ["--threads", 1, "--threads", 2, "--runtime", "litert", "--runs", 3, "--warm-up", 1]
    ran = run_main(main, "benchmark", tflite_model, *options)
    assert ran.code == 0
    assert [line.split()[2] for line in ran.out.splitlines()[2:]] == ["1", "2"]


def test_benchmark_prints_json(run_main, tflite_model):
    ran = run_main(main, "benchmark", tflite_model, "--runtime", "litert", "--runs", 3, "--json")
    (timing,) = json.loads(ran.out)["timings"]
    assert timing["runs"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.keras", "-o", "out.tflite"], "missing.keras cannot be read"),
        (["text.keras", "-o", "out.tflite"], "text.keras is not a whole .keras file"),
        (["text.keras", "-o", "./text.keras"], "text.keras is the network itself; name another file: -o text.tflite"),
        (["any.keras", "--rescorer", "text.keras", "-o", "text.keras", "--overwrite"], "is the network itself"),
        (["any.keras", "-o", "text.keras"], "text.keras is already there"),
        (["any.keras", "-o", "text.keras", "--overwrite"], "text.keras must end in .tflite"),
        (["text.keras", "-o", "m3"], "m3 must end in .tflite"),
        (["text.keras", "-o", "."], ". is a folder; name a file in it"),
        (["text.keras", "-o", "/"], "/ is a folder; name a file in it"),
        (["text.keras", "-o", "nowhere/out.tflite"], "nowhere is not a folder"),
        (["text.keras", "-o", "out.tflite", "--format", "int3"], "unknown format 'int3'"),
    ],
)
def test_errors_are_one_line(run_main, monkeypatch, dataset, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("text.keras").write_text("text")
    ran = run_main(main, "quantize", *arguments, "--calibrate", dataset)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith("converter: ")
    assert message in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["text.keras"]


@pytest.mark.parametrize(
    "command", [["verify", "no.tflite", "."], ["inspect", "no.tflite"], ["benchmark", "no.tflite"]]
)
def test_a_missing_model_is_one_line(run_main, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    ran = run_main(main, *command)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "converter: no.tflite cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize"],
        ["quantize", "model.keras"],
        ["quantize", "a.keras", "--calibrate", "d", "-o", "o", "--per-class", 0],
        ["quantize", "a.keras", "--calibrate", "d", "-o", "o", "--max-drop", -1],
        ["verify", "m.tflite"],
        ["benchmark"],
        ["benchmark", "m.tflite", "--threads", 0],
    ],
)
def test_wrong_usage_exits_with_2(run_main, arguments):
    ran = run_main(main, *arguments)
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize("blocked", ["keras", "tensorflow"])
def test_a_missing_library_gives_one_line_with_the_remedy(run_without, tmp_path, keras_model, dataset, blocked):
    out = tmp_path / "out.tflite"
    ran = run_without(blocked, "converter", "quantize", keras_model, "--calibrate", dataset, "-o", out)
    assert ran == (1, "", f"converter: {blocked} is not installed; run: pip install 'maskfer[converter]'\n")


@pytest.mark.parametrize("command", ["verify", "inspect", "benchmark"])
def test_only_quantize_needs_tensorflow(run_without, tflite_model, dataset, command):
    arguments = {"verify": [dataset], "inspect": [], "benchmark": ["--runs", 2, "--runtime", "litert"]}[command]
    assert run_without("tensorflow", "converter", command, tflite_model, *arguments).code == 0
