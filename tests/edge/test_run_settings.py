import re

import pytest

from maskfer_edge import detector, run_settings, runtime
from maskfer_edge.errors import InputError
from maskfer_edge.run_settings import RunSettings
from maskfer_edge.settings_file import as_toml, read_settings


def test_flags_win_over_the_file(tmp_path):
    (tmp_path / "run.toml").write_text('source = "usb:0"\ndetect_every = 5\nblur = true\n')
    settings = read_settings(RunSettings, tmp_path / "run.toml", {"detect_every": 2, "source": None})
    assert RunSettings(**settings) == RunSettings(source="usb:0", detect_every=2, blur=True)


@pytest.mark.parametrize(("key", "near"), [("detect-every", "detect_every"), ("jsonlines", "jsonl"), ("Blur", "blur")])
def test_an_unknown_key_is_answered_with_the_nearest(tmp_path, key, near):
    (tmp_path / "run.toml").write_text(f"{key} = 1\n")
    with pytest.raises(InputError, match=f"run.toml holds an unknown key '{key}'; the nearest known one is '{near}'"):
        read_settings(RunSettings, tmp_path / "run.toml", {})


def test_settings_printed_as_toml_are_read_back(tmp_path):
    settings = RunSettings(source='a "b" \\ ü', fps=12.5, headless=True, retries=3)
    (tmp_path / "run.toml").write_text(as_toml(settings))
    assert RunSettings(**read_settings(RunSettings, tmp_path / "run.toml", {})) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detect_every": -1}, "detect_every must be at least 0"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"retries": -2}, "retries must be at least -1"),
        ({"search_side": 10}, "search_side must be at least 64"),
        ({"fps": -1.0}, "fps must be a number that is not negative"),
        ({"budget_ms": float("nan")}, "budget_ms must be a number that is not negative"),
        ({"size": "640*480"}, "size must be such as 640x480"),
        ({"append": True, "overwrite": True}, "exclude each other"),
        ({"jsonl": "a", "csv": "a"}, "jsonl and csv are both a; give each a file of its own"),
        ({"jsonl": "-", "csv": "-"}, "jsonl and csv are both -"),
        ({"csv": "a.avi", "record": "./a.avi"}, "csv and record are both a.avi"),
        ({"jsonl": "a", "csv": "a.5", "rotate_mb": 1.0}, "csv and jsonl are both a.5"),
        ({"browser": "8090", "metrics": "127.0.0.1:8090"}, "browser and metrics both use port 8090; give each a port"),
        ({"browser": "0.0.0.0:8090", "metrics": "8090"}, "browser and metrics both use port 8090"),
        ({"source": ""}, "source is empty"),
        ({"threads": 65}, "threads must be at most 64"),
        ({"fps": float("inf")}, "fps must be a number that is not negative"),
        ({"source": "caf\udce9.mp4"}, "source is not UTF-8; give it in UTF-8"),
        ({"token": "caf\udce9"}, "^token is not UTF-8; give it in UTF-8, and rename the file if it names one$"),
        ({"jsonl": "a\0b"}, "jsonl holds a NUL character"),
        ({"blur": "yes"}, "blur must be of type bool"),
        ({"threads": True}, "threads must be of type int"),
        ({"source": 0}, "source must be of type str"),
    ],
)
def test_values_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        RunSettings(**settings)


@pytest.mark.parametrize("addresses", [("0", "0"), ("127.0.0.2:8090", "8090"), ("0.0.0.0:8090", "9090")])
def test_both_servers_may_run_where_they_do_not_meet(addresses):
    settings = RunSettings(browser=addresses[0], metrics=addresses[1])
    assert (settings.browser, settings.metrics) == addresses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "a.mp4", "jsonl": "./a.mp4"}, "jsonl would replace the source a.mp4; name another file"),
        ({"detector_model": "a.mp4", "csv": "a.mp4"}, "csv would replace the detector model a.mp4"),
        ({"model": "a.mp4.2", "csv": "a.mp4", "rotate_mb": 1.0}, "csv would replace the model a.mp4.2"),
    ],
)
def test_what_a_run_reads_it_does_not_write(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "a.mp4.2"):
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=message):
        RunSettings(**settings)


def test_a_name_of_no_file_may_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RunSettings(source="demo", jsonl="demo", model="large", csv="large").jsonl == "demo"
    assert RunSettings(source=f"rtsp://camera/{'a' * 1000}", jsonl="a.jsonl").jsonl == "a.jsonl"


def test_what_is_to_be_blurred_is_looked_for_in_each_frame_unless_told():
    assert [RunSettings(blur=blur).detection_interval for blur in (False, True)] == [3, 1]
    assert RunSettings(blur=True, detect_every=2).detection_interval == 2


def test_a_size_is_width_and_height():
    assert RunSettings(size="1280x720").size_wh == (1280, 720)
    assert RunSettings().size_wh is None


def test_installed_models_are_asked_for_by_their_folder(tmp_path):
    assert RunSettings().models == ""
    (tmp_path / "run.toml").write_text('models = "/var/lib/maskfer/models"\n')
    assert RunSettings(**read_settings(RunSettings, tmp_path / "run.toml", {})).models == "/var/lib/maskfer/models"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"detector": "nonsense"}, "unknown detector 'nonsense'; there are learned, haar, yunet"),
        ({"runtime": "none"}, "unknown runtime 'none'; there are auto, litert"),
        ({"min_confidence": 5.0}, "min_confidence must be within 0 and 1; received 5"),
        ({"min_confidence": float("nan")}, "min_confidence must be within 0 and 1; received nan"),
        ({"fps": 1e-6}, "fps must be 0, or within 0.001 and 1000; received 1e-06"),
        ({"fps": 1e9}, "fps must be 0, or within 0.001 and 1000; received 1000000000.0"),
        ({"browser": "x"}, "browser must be a port or HOST:PORT, such as 8090"),
        ({"metrics": "x"}, "metrics must be a port or HOST:PORT, such as 9090"),
        ({"rotate_mb": 1.0, "jsonl": "-"}, "rotate_mb goes with a jsonl or csv file"),
        ({"mqtt": "broker"}, "the MQTT address does not begin with mqtt://"),
    ],
)
def test_what_a_run_would_refuse_is_refused_at_once(wrong, message):
    with pytest.raises(InputError, match=re.escape(message)):
        RunSettings(**wrong)


def test_the_names_known_without_the_libraries_are_theirs():
    assert set(run_settings.DETECTORS) == set(detector.DETECTORS)
    assert (runtime.AUTO, *runtime.RUNTIMES) == run_settings.RUNTIMES


def test_what_no_settings_file_can_hold_is_one_line():
    with pytest.raises(InputError, match=r"^model is not UTF-8, as a settings file must be; rename the file"):
        as_toml(RunSettings(model="m\udce9.tflite"))
