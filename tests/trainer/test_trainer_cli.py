from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from maskfer_edge.dataset import manifest
from maskfer_trainer import workers
from maskfer_trainer.builder import BuildReport
from maskfer_trainer.cli import main
from maskfer_trainer.masks import KINDS

pytestmark = pytest.mark.usefixtures("one_predictor")

TRAINER = Path(sys.executable).with_name("trainer")


@pytest.fixture
def green_template(tmp_path_factory) -> Path:
    """A green rectangle as a mask of a user's own."""
    path = tmp_path_factory.mktemp("template") / "green.png"
    cv2.imwrite(str(path), np.full((200, 300, 4), (30, 220, 30, 255), dtype=np.uint8))
    points = {"nose": [150, 5], "chin": [150, 195], "left-cheek": [5, 60], "right-cheek": [295, 60]}
    path.with_suffix(".json").write_text(json.dumps(points))
    return path


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("build-dataset", "--mask"),
        ("masks", "--preview"),
        ("networks", "--help"),
        ("fit", "--resume"),
        ("evaluate", "--json"),
    ],
)
def test_every_command_has_help(run_main, command, option):
    ran = run_main(main, command, "--help")
    assert ran.code == 0
    assert option in ran.out


def test_all_commands_are_listed(run_main):
    ran = run_main(main, "--help")
    assert all(command in ran.out for command in ("build-dataset", "masks", "networks", "fit", "evaluate"))


def test_the_installed_command_runs():
    ran = subprocess.run([TRAINER, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_build_dataset_prints_its_report_as_json(run_main, make_source, tmp_path):
    source = make_source(tmp_path / "faces", train=1, test=1)
    ran = run_main(main, "build-dataset", source, tmp_path / "out", "--mask", "cloth", "--json", "--workers", 1)
    assert ran.code == 0
    assert json.loads(ran.out)["pictures"] == 14
    assert ran.err == ""


def test_build_dataset_takes_all_its_options(run_main, make_source, green_template, tmp_path):
    source = make_source(tmp_path / "faces", train=1, test=1)
    ran = run_main(
        main, "build-dataset", source, tmp_path / "out", "--mask", "cloth", "--mask", "kn95",
        "--template", green_template, "--worn", "properly", "--worn", "chin", "--variants", 3, "--fit", "homography",
        "--plain", "--protocol", "all", "--faces", "largest", "--no-keep-bare", "--ground-truth", "--coco", "--seed", 5,
        "--workers", 1, "--json",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["pictures"] == 7 * (3 + 1)
    info = json.loads((tmp_path / "out/dataset.json").read_text())
    expected = {
        "kinds": ["cloth", "kn95"], "worn": ["properly", "chin"], "variants": 3, "fit": "homography", "plain": True,
        "protocol": "all", "faces": "largest", "keep_bare": False, "ground_truth": True, "coco": True, "seed": 5,
    }  # fmt: skip
    assert {name: info[name] for name in expected} == expected
    assert list(info["templates"]) == ["green"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "masked", "truth", "manifest.jsonl", "dataset.json", "skipped.csv", "contact-sheet.png", "coco-train.json",
        "coco-test.json",
    }  # fmt: skip


def test_build_dataset_uses_all_kinds_unless_told_otherwise(run_main, make_source, tmp_path):
    source = make_source(tmp_path / "faces", train=1, test=1)
    run_main(main, "build-dataset", source, tmp_path / "out", "--workers", 1)
    info = json.loads((tmp_path / "out/dataset.json").read_text())
    assert info["kinds"] == list(KINDS)
    assert (info["worn"], info["variants"], info["fit"], info["keep_bare"]) == (["properly"], 1, "mesh", True)


def test_a_template_alone_is_the_only_kind(run_main, make_source, green_template, tmp_path):
    source = make_source(tmp_path / "faces", train=1, test=1)
    run_main(main, "build-dataset", source, tmp_path / "out", "--template", green_template, "--workers", 1)
    assert {record["mask"]["kind"] for record in manifest(tmp_path / "out")} == {"green"}


@pytest.mark.parametrize(
    ("options", "message"), [([], "marked in the manifest; --dedupe leaves them out"), (["--dedupe"], "left out")]
)
def test_build_dataset_says_what_becomes_of_duplicates(run_main, monkeypatch, tmp_path, options, message):
    report = BuildReport(30, 3, {"blank": 3}, {}, 2, 4, 1.5)
    monkeypatch.setattr("maskfer_trainer.builder.build_dataset", lambda *_: report)
    ran = run_main(main, "build-dataset", tmp_path, tmp_path / "out", *options)
    assert f"2 test faces are duplicated in train, 4 more with small changes ({message})" in ran.out


def test_build_dataset_says_what_it_did(run_main, make_source, tmp_path):
    source = make_source(tmp_path / "faces", train=1, test=1)
    (source / "train/sad/empty.png").write_bytes(b"")
    ran = run_main(main, "build-dataset", source, tmp_path / "out")
    assert "14 faces masked" in ran.out
    assert "skipped 1 × is empty" in ran.out


@pytest.mark.parametrize("own", [False, True])
def test_masks_lists_every_kind(run_main, green_template, own):
    ran = run_main(main, "masks", *(["--template", green_template] if own else []))
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()] == [*KINDS, *(["green"] if own else [])]
    assert all(kind.about in ran.out for kind in KINDS.values())


def test_masks_writes_a_preview(run_main, tmp_path):
    ran = run_main(main, "masks", "--preview", tmp_path / "masks.png")
    assert f"look at {tmp_path / 'masks.png'}" in ran.out
    with Image.open(tmp_path / "masks.png") as preview:
        assert (preview.format, preview.size) == ("PNG", (4 * 326, 2 * 350))
    assert [p.name for p in tmp_path.iterdir()] == ["masks.png"]


def test_masks_draws_on_a_photograph(run_main, portrait, green_template, tmp_path):
    cv2.imwrite(str(tmp_path / "portrait.png"), portrait)
    ran = run_main(
        main, "masks", "--preview", tmp_path / "on.png", "--on", tmp_path / "portrait.png", "--template", green_template
    )
    assert (ran.code, ran.err) == (0, "")
    with Image.open(tmp_path / "on.png") as preview:
        assert preview.size == (4 * 326, 3 * 350)


def test_masks_keeps_an_existing_file(run_main, tmp_path):
    (tmp_path / "mine.png").write_bytes(b"mine")
    ran = run_main(main, "masks", "--preview", tmp_path / "mine.png")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith("is already there; name another output or give --overwrite\n")
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_masks_replaces_an_existing_file_when_asked(run_main, tmp_path):
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert run_main(main, "masks", "--preview", tmp_path / "mine.png", "--overwrite").code == 0
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_a_photograph_to_draw_on_asks_for_a_preview(run_main, tmp_path):
    ran = run_main(main, "masks", "--on", tmp_path / "portrait.jpg")
    assert (ran.code, ran.out) in ((1, ""), (2, ""))
    assert "--preview" in ran.err


def test_evaluate_prints_json(run_main, keras_model, dataset):
    ran = run_main(main, "evaluate", keras_model, dataset, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["parts"]["masked"]["pictures"] == 21


def test_evaluate_prints_tables(run_main, keras_model, dataset, tmp_path):
    ran = run_main(main, "evaluate", keras_model, dataset, "--out", tmp_path / "drawn")
    assert f"wrote {tmp_path / 'drawn'}\n" in ran.err
    assert ran.out.count("Surprise") == 5
    assert "accuracy: of one class against the rest" in ran.out


def test_fit_prints_the_models_path(run_main, monkeypatch, dataset, tmp_path):
    from maskfer_trainer import fitting

    asked = []
    monkeypatch.setattr(fitting, "fit", lambda *arguments, **_: asked.append(arguments) or tmp_path / "model.keras")
    ran = run_main(main, "fit", dataset, "--out", tmp_path / "run", "--arch", "paper", "--seed", 3)
    assert ran.out == f"{tmp_path / 'model.keras'}\n"
    chosen = asked[0][2]
    assert (chosen.arch, chosen.epochs, chosen.bare_share, chosen.seed) == ("paper", 250, 0.0, 3)


@pytest.mark.parametrize(
    ("command", "module", "kept", "how"),
    [
        (("build-dataset", "S", "O"), "builder.build_dataset", "O.partial", "the same command"),
        (("fit", "D", "--out", "O"), "fitting.fit", "O", "--resume"),
        (("fit-together", "D", "--out", "O", "--network", "lean:3"), "fit_together.fit_together", "O", "--resume"),
        (("fit-detector", "S", "--out", "O"), "fit_detector.fit_detector", "O", "--resume"),
        (("fit-rescorer", "d.tflite", "S", "P", "--out", "O"), "fit_rescorer.fit_rescorer", "O", "--resume"),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
def test_on_ctrl_c_it_says_how_to_go_on(run_main, monkeypatch, tmp_path, command, module, kept, how, begun):
    def stop(*_, **__):
        if begun:
            Path(kept).mkdir()
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax" if command[0] == "fit-together" else "tensorflow")
    monkeypatch.setattr(f"maskfer_trainer.{module}", stop)
    monkeypatch.setattr("maskfer_trainer.cli._check_inputs", lambda *_, **__: None)
    ran = run_main(main, *command)
    message = [f"what is done is kept in {kept}; {how} goes on from it"] if begun else []
    assert (ran.code, ran.out, ran.err.splitlines()) == (130, "", [*message, "trainer: interrupted"])


def test_a_run_that_could_not_be_kept_is_refused_before_anything_is_read(run_main, monkeypatch, dataset, tmp_path):
    from maskfer_trainer import fitting

    monkeypatch.setattr(fitting, "read_parts", lambda *_, **__: pytest.fail("read"))
    (tmp_path / "file").write_text("")
    ran = run_main(main, "fit", dataset, "--out", tmp_path / "file/run")
    assert ran.code == 1 and f"cannot be made: {tmp_path / 'file'} is no folder; name another" in ran.err


@pytest.mark.parametrize(
    ("command", "module", "options", "expected"),
    [
        (("fit", "D"), "fitting.fit", ["--initial", "i.keras", "--teacher", "t.keras", "--resume", "--distribute"],
         {"initial": Path("i.keras"), "teachers": [Path("t.keras")], "resume": True, "distribute": True}),
        (("fit", "D"), "fitting.fit", [], {"initial": None, "teachers": (), "resume": False, "distribute": False}),
        (("fit-together", "D", "--network", "lean:3"), "fit_together.fit_together",
         ["--teacher", "t.keras", "--resume"], {"teachers": [Path("t.keras")], "resume": True}),
        (("fit-detector", "S"), "fit_detector.fit_detector", ["--initial", "i.keras", "--workers", 3, "--resume"],
         {"initial": Path("i.keras"), "workers": 3, "resume": True}),
        (("fit-rescorer", "d.tflite", "S", "P"), "fit_rescorer.fit_rescorer", ["--resume"], {"resume": True}),
        (("evaluate", "m.keras", "D"), "evaluation.evaluate", ["--no-mirror"], {"mirror": False, "detector": ""}),
        (("evaluate", "m.keras", "D"), "evaluation.evaluate", ["--through-detector", "--detector", "haar"],
         {"mirror": True, "detector": "haar"}),
    ],
)  # fmt: skip
def test_what_is_asked_for_arrives(run_main, monkeypatch, tmp_path, command, module, options, expected):
    class Asked(Exception):
        pass

    def take(*_, **keywords):
        assert {key: keywords[key] for key in expected} == expected
        raise Asked

    monkeypatch.setenv("KERAS_BACKEND", "jax" if command[0] == "fit-together" else "tensorflow")
    monkeypatch.setattr(f"maskfer_trainer.{module}", take)
    monkeypatch.setattr("maskfer_trainer.cli._check_inputs", lambda *_, **__: None)
    monkeypatch.setattr("maskfer_trainer.cli.dataset_info", lambda _: None)
    with pytest.raises(Asked):
        run_main(main, *command, *([] if command[0] == "evaluate" else ["--out", tmp_path / "run"]), *options)


@pytest.mark.parametrize("half", ["testing", "tuning"])
def test_evaluate_detector_takes_half_and_threshold(run_main, monkeypatch, tmp_path, half):
    from maskfer_edge.learned_detector import LearnedDetector
    from maskfer_trainer import detector_evaluation

    class Asked(Exception):
        pass

    def take(finder, photos, **_):
        assert isinstance(finder, LearnedDetector) and finder.score_threshold == 0.7
        assert photos and {detector_evaluation.half(photo.path.name) for photo in photos} == {half}
        raise Asked

    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), np.zeros((60, 60, 3), np.uint8))
    rows = [f"{number}.jpg,with_mask,5,5,45,45\n" for number in range(6)]
    (tmp_path / "boxes.csv").write_text("image,label,xmin,ymin,xmax,ymax\n" + "".join(rows))
    monkeypatch.setattr(detector_evaluation, "evaluate_detector", take)
    with pytest.raises(Asked):
        run_main(main, "evaluate-detector", "learned", tmp_path, "--half", half, "--threshold", 0.7)


def test_fit_takes_a_file_of_settings(run_main, monkeypatch, dataset, tmp_path):
    from maskfer_trainer import fitting

    asked = []
    monkeypatch.setattr(fitting, "fit", lambda *arguments, **_: asked.append(arguments) or tmp_path / "model.keras")
    (tmp_path / "run.toml").write_text('arch = "lean-small"\nmixup = 0.2\nseed = 5\n')
    flags = ["--seed", 4, "--cutout", 0.5, "--label-smoothing", 0, "--balance", 1, "--teacher-share", 0.7]
    run_main(main, "fit", dataset, "--out", tmp_path / "run", "--config", tmp_path / "run.toml", *flags)
    chosen = asked[0][2]
    assert (chosen.arch, chosen.mixup, chosen.seed, chosen.cutout) == ("lean-small", 0.2, 4, 0.5)
    assert (chosen.label_smoothing, chosen.balance, chosen.teacher_share) == (0, 1, 0.7)


@pytest.mark.parametrize(
    ("backend", "message"), [("theano", "there are tensorflow, torch and jax"), ("torch", "pip install torch")]
)
def test_a_backend_that_is_not_there_is_one_line(run_main, monkeypatch, tmp_path, backend, message):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for command in (("fit", tmp_path, "--out", tmp_path / "run"), ("networks",), ("evaluate", "a.keras", tmp_path)):
        ran = run_main(main, *command)
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert message in ran.err


def test_networks_are_listed_with_their_size(run_main):
    ran = run_main(main, "networks")
    assert ran.code == 0
    rows = {line.split()[0]: line for line in ran.out.splitlines()}
    assert set(rows) == {"paper", "lean", "lean-small", "large", "huge"}
    assert "4.48 M parameters  290.5 M multiply-accumulates" in rows["paper"]


def test_evaluate_can_look_through_the_detector(run_main, keras_model, dataset):
    ran = run_main(main, "evaluate", keras_model, dataset, "--through-detector", "--json")
    assert json.loads(ran.out)["detected"]["bare"]["pictures"] == 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build-dataset", "missing", "out"], "missing does not exist"),
        (["build-dataset", ".", "out", "--mask", "tartan"], "unknown mask kind tartan; there are surgical, kn95"),
        (["build-dataset", ".", "out", "--worn", "sideways"], "unknown way of wearing sideways; there are properly"),
        (["build-dataset", ".", "out", "--fit", "affine"], "unknown fit affine; there are mesh, homography"),
        (["build-dataset", ".", "out", "--protocol", "some"], "unknown protocol some; there are all, detected"),
        (["build-dataset", ".", "out", "--faces", "two"], "unknown choice of faces two; there are largest, all"),
        (["build-dataset", ".", "out", "--faces", "all"], "--faces all needs --protocol detected"),
        (["build-dataset", ".", "out", "--variants", "0"], "0 variants make no data set; give 1 or more"),
        (["build-dataset", ".", "out", "--template", "missing.png"], "missing.png cannot be read"),
        (["build-dataset", "SOURCE", "out", "--scheduler", "nonsense"], "nonsense is no address of a Dask scheduler"),
        (["masks", "--preview", "masks.png", "--on", "missing.jpg"], "missing.jpg cannot be read"),
        (["masks", "--preview", "masks.png", "--on", "text.jpg"], "text.jpg is not a picture"),
        (["masks", "--preview", "masks.png", "--on", "sky.png"], "sky.png: no face detected; give a photograph"),
        (["masks", "--preview", "nowhere/masks.png"], "nowhere is not a folder"),
        (["masks", "--preview", "."], "is a folder"),
        (["masks", "--template", "missing.png"], "missing.png cannot be read"),
        (["build-dataset", ".", "."], "already there"),
        (["build-dataset", ".", "out"], "no class folders"),
        (["masks", "--preview", "x.jpg"], "--preview x.jpg: the picture is a PNG; name it x.png"),
        (["fit", "missing", "--out", "run"], "missing is not a folder"),
        (["fit", "DATASET", "--out", "run", "--resume"], "run holds no run to go on with"),
        (["fit", "DATASET", "--out", "."], ". is already there; name another folder"),
        (["fit", "DATASET", "--out", "DATASET"], "/masked is already there; name another folder"),
        (["fit", "DATASET", "--out", "run", "--teacher", "missing.keras"], "missing.keras cannot be read"),
        (
            ["fit", "DATASET", "--out", "run", "--teacher", "x.tflite"],
            "x.tflite is a .tflite file; a teacher is a model.keras of trainer fit",
        ),
        (
            ["fit", "DATASET", "--out", "run", "--initial", "text.keras"],
            "text.keras is no whole .keras file; start from a model.keras of trainer fit",
        ),
        (["fit", "DATASET", "--out", "run", "--distribute"], "--distribute needs Keras' JAX backend"),
        (["fit", "DATASET", "--out", "run", "--arch", "vast"], "unknown architecture 'vast'"),
        (["fit", "DATASET", "--out", "run", "--epochs", "0"], "at least 1"),
        (["fit", "DATASET", "--out", "run", "--config", "none.toml"], "none.toml cannot be read"),
        (["fit-detector", ".", "--out", "run"], ". holds no readable scenes.json"),
        (["fit-rescorer", "no.tflite", ".", ".", "--out", "run"], ". holds no readable scenes.json"),
        (
            ["evaluate", "text.keras", "DATASET"],
            "text.keras is no whole .keras file; give a model.keras of trainer fit or a .tflite of converter quantize",
        ),
        (["evaluate", "missing.keras", "missing"], "missing is not a folder; make a data set with: trainer build-data"),
        (
            ["evaluate", "missing.keras", "DATASET", "--through-detector", "--detector", "eyes"],
            "unknown detector 'eyes'",
        ),
        (["evaluate", "missing.keras", "DATASET"], "missing.keras cannot be read"),
        (["evaluate", "missing.keras", "missing", "--detector", "haar"], "--detector goes with --through-detector"),
        (["build-dataset", ".", "out", "--scheduler", "tcp://h:1", "--workers", "2"], "leave one out"),
        (["evaluate", "missing.keras", "DATASET", "--out", "."], "already there"),
    ],
)
def test_errors_are_one_line(run_main, monkeypatch, tmp_path, source, dataset, portrait, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.5)
    for name in ("text.jpg", "text.keras", "x.tflite"):
        Path(name).write_text("text")
    places = {"SOURCE": source, "DATASET": dataset}
    cv2.imwrite("sky.png", portrait[:200, 330:])
    ran = run_main(main, *(places.get(word, word) for word in arguments))
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith("trainer: ")
    assert message in ran.err
    assert {p.name for p in tmp_path.iterdir()} == {"text.jpg", "text.keras", "x.tflite", "sky.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nodata", "--out", "OUT"], "nodata is not a folder"),
        (["fit-detector", "nodata", "--out", "OUT"], "nodata holds no readable scenes.json"),
        (["fit-detector", "SCENES", "--out", "SCENES"], "already there; name another folder"),
        (["fit-detector", "SCENES", "--out", "OUT", "--initial", "no.keras"], "no.keras cannot be read"),
        (["fit-rescorer", "no.tflite", "nodata", ".", "--out", "OUT"], "nodata holds no readable scenes.json"),
        (["fit-rescorer", "no.tflite", "SCENES", ".", "--out", "OUT"], "no.tflite cannot be read"),
        (["evaluate", "no.keras", "nodata"], "nodata is not a folder"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_keras_is_loaded(run_without, tmp_path, arguments, message):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes/scenes.json").write_text("{}")
    places = {"SCENES": tmp_path / "scenes", "OUT": tmp_path / "run"}
    ran = run_without("keras", "trainer", *(places.get(word, word) for word in arguments))
    assert (ran.code, ran.err.count("\n"), message in ran.err) == (1, 1, True)


@pytest.mark.parametrize(
    "arguments", [["build-dataset"], ["fit", "data"], ["evaluate", "model.keras"], ["nothing"],
                  ["build-dataset", "a", "b", "--workers", "-1"], ["build-dataset", "a", "b", "--variants", "two"],
                  ["build-dataset", "a", "b", "--seed", "1.5"], ["masks", "extra"]],
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
        ("imagehash", ["build-dataset", "SOURCE", "OUT"]),
        ("PIL", ["masks"]),
        ("dlib", ["masks", "--preview", "PREVIEW", "--on", "PHOTOGRAPH"]),
        ("keras", ["fit", "DATASET", "--out", "OUT"]),
        ("tensorflow", ["fit", "DATASET", "--out", "OUT"]),
        ("sklearn", ["evaluate", "SOURCE", "DATASET"]),
    ],
)
def test_a_missing_library_gives_one_line_with_the_remedy(
    run_without, tmp_path, source, dataset, portrait, blocked, arguments
):
    cv2.imwrite(str(tmp_path / "portrait.png"), portrait)
    places = {
        "SOURCE": source, "DATASET": dataset, "OUT": tmp_path / "out", "PREVIEW": tmp_path / "masks.png",
        "PHOTOGRAPH": tmp_path / "portrait.png",
    }  # fmt: skip
    given = [str(places.get(word, word)) for word in arguments]
    ran = run_without(blocked, "trainer", *given)
    assert ran == (1, "", f"trainer: {blocked} is not installed; run: pip install 'maskfer[trainer]'\n")


def test_a_missing_dask_gives_the_pip_line_of_its_extra(run_without, tmp_path, source):
    ran = run_without("distributed", "trainer", "build-dataset", source, tmp_path / "out", "--scheduler", "tcp://h:1")
    assert ran == (1, "", "trainer: distributed is not installed; run: pip install 'maskfer[cluster]'\n")


def test_masks_are_listed_without_dlib(run_without):
    assert run_without("dlib", "trainer", "masks").code == 0


def test_help_needs_no_extra(run_without):
    assert run_without("tensorflow", "trainer", "fit", "--help").code == 0


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, portrait):
    """The portrait, twice, with the place of its face."""
    folder = tmp_path_factory.mktemp("photographs")
    rows = ["image,label,xmin,ymin,xmax,ymax"]
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), portrait)
        rows.append(f"{name},without_mask,176,65,273,180")
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_evaluate_detector_prints_a_table_and_draws_the_curve(run_main, photographs, tmp_path):
    ran = run_main(main, "evaluate-detector", "haar", photographs, "--out", tmp_path / "curve.png")
    assert (ran.code, "false boxes a picture" in ran.out) == (0, True)
    assert (tmp_path / "curve.png").exists() and f"wrote {tmp_path / 'curve.png'}\n" in ran.err


def test_evaluate_detector_prints_json(run_main, photographs):
    found = json.loads(run_main(main, "evaluate-detector", "haar", photographs, "--json").out)
    assert (found["pictures"], found["sizes"][1]["recall_bare"]) == (2, 1.0)


def test_tune_haar_lists_settings_within_the_limits(run_main, photographs):
    listed = run_main(main, "tune-haar", photographs, "--max-slowdown", 1000)
    assert (listed.code, len(listed.out.splitlines())) == (0, 11)
    assert listed.out.splitlines()[1].split()[-3] == "100.0%"
    settings = json.loads(run_main(main, "tune-haar", photographs, "--max-slowdown", 1000, "--json").out)["settings"]
    assert (settings[0]["recall_masked"], settings[0]["recall_bare"]) == (None, 1.0)
    refused = run_main(main, "tune-haar", photographs, "--max-slowdown", 0)
    assert (refused.code, refused.out, refused.err.splitlines()[-1].startswith("trainer: no setting of the")) == (
        1,
        "",
        True,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["haar", "none"], "No such file or directory; see docs/detecting.md#photographs"),
        (["lerned", "."], "lerned cannot be read; give haar, learned, yunet or a model file"),
        (["haar", ".", "--out", "curve.jpg"], "--out curve.jpg: the picture is a PNG; name it curve.png"),
        (["haar", ".", "--half", "third"], "--half takes all, tuning or testing"),
        (["haar", ".", "--threshold", 0.5], "--threshold is of the learned detector alone"),
        (["yunet", "."], "yunet"),
    ],
)
def test_evaluate_detector_says_in_one_line_what_is_wrong(run_main, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    ran = run_main(main, "evaluate-detector", *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert message in ran.err


def test_scenes_are_made_of_portraits(run_main, photographs, tmp_path):
    ran = run_main(main, "build-scenes", photographs, tmp_path / "scenes", "--count", 3, "--workers", 1, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["count"] == len(list((tmp_path / "scenes/scenes").iterdir())) == 3


def test_scenes_of_crops_that_are_no_data_set_are_refused(run_main, photographs, tmp_path):
    ran = run_main(main, "build-scenes", photographs, tmp_path / "scenes", "--crops", tmp_path)
    assert (ran.code, ran.err.count("\n"), list(tmp_path.iterdir())) == (1, 1, [])
    assert "is no data set" in ran.err


def test_scenes_of_too_few_portraits_say_that_figures_on_them_are_too_good(run_main, photographs, tmp_path):
    ran = run_main(main, "build-scenes", photographs, tmp_path / "scenes", "--count", 3, "--workers", 1)
    assert ran.code == 0 and "3 scenes of" in ran.out and "figures on it are too good" in ran.err


def test_build_scenes_that_is_told_to_end_leaves_nothing(photographs, tmp_path):
    command = [TRAINER, "build-scenes", photographs, tmp_path / "scenes", "--count", "100000", "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "finding landmarks on 2 portraits\n"
        process.terminate()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_fit_detector_needs_scenes(run_main, tmp_path):
    ran = run_main(main, "fit-detector", tmp_path, "--out", tmp_path / "run")
    assert (ran.code, ran.err.splitlines()[-1].count("build-scenes")) == (1, 1)


def test_fit_rescorer_needs_scenes_and_a_detector(run_main, tmp_path):
    ran = run_main(main, "fit-rescorer", "no.tflite", tmp_path, tmp_path, "--out", tmp_path / "run")
    assert (ran.code, "build-scenes" in ran.err, (tmp_path / "run").exists()) == (1, True, False)
    (tmp_path / "scenes.json").write_text("{}")
    ran = run_main(main, "fit-rescorer", "no.tflite", tmp_path, tmp_path, "--out", tmp_path / "run")
    assert (ran.code, "no.tflite cannot be read" in ran.err, (tmp_path / "run").exists()) == (1, True, False)


@pytest.mark.parametrize(
    "command",
    [("build-scenes", ".", "out"), ("fit-detector", ".", "--out", "run"), ("fit-rescorer", *"...", "--out", "run")],
)
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_refused(run_main, command, seed):
    ran = run_main(main, *command, "--seed", seed)
    assert (ran.code, "--seed" in ran.err) == (2, True)
