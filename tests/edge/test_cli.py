import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge import bench, camera_list, doctor, outputs, running
from maskfer_edge.classifier import default_model
from maskfer_edge.cli import app, main
from maskfer_edge.contract import LABELS
from maskfer_edge.errors import InputError
from maskfer_edge.health import Latency
from maskfer_edge.sources import open_camera

COMMAND = [sys.executable, "-c", "from maskfer_edge.cli import main; main()"]
RUN_DEMO = ("run", "--source", "demo", "--headless")


@pytest.fixture
def edge(monkeypatch, capfd):
    """Run the command in this process; gives (exit status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["maskfer-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def portrait(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "portrait.png"
    with open_camera("demo") as camera:
        cv2.imwrite(str(path), camera.read().image)
    return path


@pytest.fixture
def black(tmp_path):
    path = tmp_path / "black.png"
    cv2.imwrite(str(path), np.zeros((64, 64, 3), np.uint8))
    return path


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def assert_one_line(answer, *parts):
    status, out, err = answer
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert err.startswith("maskfer-edge: ") and all(part in err for part in parts), err


def test_run_prints_a_json_line_a_frame(edge):
    status, out, _ = edge(*RUN_DEMO, "--max-frames", 8, "--jsonl", "-")
    assert (status, [line["frame"] for line in json_lines(out)]) == (0, list(range(8)))


def test_run_finds_the_face_of_the_demonstration(edge):
    _, out, _ = edge(*RUN_DEMO, "--max-frames", 2, "--jsonl", "-")
    face = json_lines(out)[0]["faces"][0]
    assert sum(face["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert list(face["scores"]) == list(LABELS)


def test_what_the_network_is_not_sure_of_is_unsure(edge, portrait):
    _, out, err = edge(*RUN_DEMO, "--max-frames", 2, "--jsonl", "-", "--min-confidence", 1, "--detector", "haar")
    assert {face["expression"] for line in json_lines(out) for face in line["faces"]} == {"Unsure"}
    assert "Unsure 2" in err
    assert "Unsure" in edge("predict", portrait, "--min-confidence", 1, "--detector", "haar")[1]


def test_run_sums_up_on_stderr(edge):
    _, out, err = edge(*RUN_DEMO, "--max-frames", 2)
    assert out == "" and "demo: 2 frames in" in err


def test_run_writes_the_files_that_it_is_asked_for(edge, tmp_path):
    status, _, err = edge(*RUN_DEMO, "--max-frames", 3, "--jsonl", tmp_path / "a.jsonl", "--record", tmp_path / "a.mp4")
    assert (status, sorted(p.name for p in tmp_path.iterdir())) == (0, ["a.jsonl", "a.mp4"])
    assert f"wrote {tmp_path / 'a.mp4'}" in err


def test_run_stores_nothing_unasked(edge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edge(*RUN_DEMO, "--max-frames", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "name"), [("--jsonl", "a.jsonl"), ("--record", "a.mp4")])
def test_an_existing_output_is_refused_and_kept(edge, tmp_path, option, name):
    (tmp_path / name).write_text("old")
    assert_one_line(edge(*RUN_DEMO, option, tmp_path / name), name, "already there")
    assert (tmp_path / name).read_text() == "old"


def test_a_refused_output_leaves_no_other_behind(edge, tmp_path):
    (tmp_path / "a.mp4").write_text("old")
    edge(*RUN_DEMO, "--jsonl", tmp_path / "a.jsonl", "--record", tmp_path / "a.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(("option", "name"), [("--jsonl", "a.jsonl"), ("--record", "a.mp4")])
def test_overwrite_replaces_an_output(edge, tmp_path, option, name):
    (tmp_path / name).write_text("old")
    status, *_ = edge(*RUN_DEMO, "--max-frames", 1, option, tmp_path / name, "--overwrite")
    assert status == 0 and (tmp_path / name).read_bytes()[:3] != b"old"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "--source", "none.mp4"), "'none.mp4' does not exist"),
        (("run", "--source", "usb:99"), "usb:99 cannot be opened"),
        ((*RUN_DEMO, "--detector", "yolo"), "unknown detector 'yolo'"),
        ((*RUN_DEMO, "--runtime", "onnx"), "unknown runtime 'onnx'"),
        ((*RUN_DEMO, "--model", "none.tflite"), "none.tflite cannot be read"),
        ((*RUN_DEMO, "--jsonl", "/dev/full"), "/dev/full cannot be written"),
        ((*RUN_DEMO, "--record", "a.gif"), "must end in .mp4 or .avi"),
        (("predict", "none.png"), "none.png cannot be read"),
    ],
)
def test_what_cannot_be_used_is_one_line(edge, arguments, part):
    assert_one_line(edge(*arguments), part)


@pytest.mark.parametrize("command", [RUN_DEMO, ("predict", "x.png")], ids=["run", "predict"])
def test_a_foreign_model_is_one_line_with_the_remedy(edge, tmp_path, command):
    path = tmp_path / "foreign.tflite"
    path.write_bytes(default_model().flatbuffer)
    assert_one_line(edge(*command, "--model", path), "foreign.tflite", "converter quantize")


@pytest.mark.parametrize("command", [("predict",), ("run", "--headless", "--source")], ids=["predict", "run"])
def test_a_damaged_picture_is_one_line_in_spite_of_opencv_s_chatter(tmp_path, portrait, command):
    path = tmp_path / "cut.png"
    path.write_bytes(portrait.read_bytes()[:5000])
    done = subprocess.run([*COMMAND, *command, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert_one_line((done.returncode, done.stdout, done.stderr), "cut.png is not a picture")


def test_a_damaged_video_says_nothing_beyond_the_summary(tmp_path):
    path = tmp_path / "damaged.mp4"
    with open_camera("demo") as demo:
        content = bytearray(Path(demo.name).read_bytes())
    rng = np.random.default_rng(0)
    content[len(content) // 9 : len(content) // 9 + 3000] = rng.bytes(3000)
    path.write_bytes(content)
    command = [*COMMAND, "run", "--headless", "--max-frames", "30", "--source", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.startswith(str(path)) and done.stderr.count("\n") == 2, done.stderr


@pytest.mark.parametrize(("options", "expected"), [((), 1), (("--realtime",), 1), (("--loop", "--max-frames", 3), 0)])
def test_a_source_that_ends_without_a_face_ends_with_status_1(edge, black, options, expected):
    status, _, err = edge("run", "--source", black, "--headless", *options)
    assert (status, "no face found in 1 frame of" in err) == (expected, bool(expected))


def test_predict_prints_a_line_a_face(edge, portrait):
    status, out, err = edge("predict", portrait, "--detector", "haar")
    assert (status, out.count("\n"), err) == (0, 1, "")
    assert str(portrait) in out and any(label in out for label in LABELS)


def test_predict_without_a_face_ends_with_status_1(edge, black):
    status, out, err = edge("predict", black)
    assert (status, out) == (1, "")
    assert f"{black}: no face found" in err


def test_predict_goes_on_after_a_picture_without_a_face(edge, black, portrait):
    status, out, _ = edge("predict", black, portrait, "--detector", "haar")
    assert (status, out.count("\n")) == (0, 1)


@pytest.mark.parametrize("json_", [False, True])
def test_predict_goes_on_after_a_picture_that_cannot_be_read(edge, portrait, json_):
    status, out, err = edge("predict", "none.png", portrait, "--detector", "haar", *["--json"] * json_)
    assert status == 1 and str(portrait) in out
    assert err.count("\n") == 1 and err.startswith("maskfer-edge: none.png cannot be read")


@pytest.mark.parametrize("name", ["", "clip.mp4"])
def test_predict_says_which_command_takes_folders_and_videos(edge, tmp_path, name):
    (tmp_path / "clip.mp4").write_text("no picture")
    assert_one_line(
        edge("predict", tmp_path / name), f"; for folders and videos: maskfer-edge run --source {tmp_path / name}"
    )


@pytest.mark.parametrize("options", [("--detector", "haar"), ("--detector-model", "x.tflite")])
def test_predict_looks_for_nothing_in_a_crop(edge, black, options):
    assert_one_line(edge("predict", "--crop", black, *options), "leave out --detector and --detector-model")


def test_a_name_that_the_terminal_cannot_show_is_shown_all_the_same(tmp_path, portrait):
    path = tmp_path / "caf\udce9.png"
    path.symlink_to(portrait)
    command, environment = [*COMMAND, "predict", str(path)], {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(os.fsencode(tmp_path) + b"/caf\\udce9.png  ")


def test_closed_streams_are_no_matter(tmp_path):
    program = (
        "import os; from maskfer_edge import cli\n"
        f"def seen(*given): open({str(tmp_path / 'links')!r}, 'w').write("
        "' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)))\n"
        "cli._say_summary = seen; cli.main()"
    )
    options = [*RUN_DEMO, "--max-frames", "2", "--jsonl", str(tmp_path / "a.jsonl")]
    command = shlex.join([sys.executable, "-c", program, *options])
    assert subprocess.run(f"exec {command} <&- >&- 2>&-", shell=True, timeout=60, check=False).returncode == 0
    assert len(json_lines((tmp_path / "a.jsonl").read_text())) == 2
    assert (tmp_path / "links").read_text() == "/dev/null /dev/null /dev/null"


def test_a_thread_that_hangs_does_not_change_how_it_ends():
    program = (
        "import threading; from maskfer_edge import __main__, cli\n"
        "thread = threading.Thread(target=threading.Event().wait, daemon=True)\n"
        "def hang(*given): thread.start(); print('left', end='')\n"
        "import atexit; atexit.register(print, 'torn down'); cli._say_summary = hang; __main__.main()"
    )
    command = [sys.executable, "-c", program, *RUN_DEMO, "--max-frames", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "left")


def test_while_it_loads_it_is_stopped_in_one_line():
    program = (
        "import sys\n"
        "class Stopped:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'maskfer_edge.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stopped())\n"
        "from maskfer_edge.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "maskfer-edge: interrupted\n")


def test_predict_crop_takes_the_whole_picture_as_a_face(edge, black):
    status, out, _ = edge("predict", "--crop", "--json", black)
    faces = json.loads(out)[str(black)]
    assert (status, [face["box"] for face in faces]) == (0, [[0, 0, 64, 64]])


@pytest.mark.parametrize("arguments", [[], *([name.name] for name in app.registered_commands)])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_exits_0(edge, arguments, option):
    status, out, _ = edge(*arguments, option)
    assert status == 0 and "Usage: maskfer-edge" in out


def test_an_unknown_option_ends_with_status_2(edge):
    assert edge("run", "--nosuch")[0] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_in_order(tmp_path, portrait, number):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3000):
        (pictures / f"{index:05}.png").symlink_to(portrait)
    lines = tmp_path / "a.jsonl"
    command = [*COMMAND, "run", "--source", str(pictures), "--headless", "--jsonl", str(lines)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (lines.exists() and lines.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        status = process.wait(timeout=30)
        err = process.stderr.read()
    assert (status, lines.read_bytes()[-1:]) == (130, b"\n"), err
    assert len(json_lines(lines.read_text())) > 0 and "stopped before the end" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_opens_leaves_nothing(edge, tmp_path, monkeypatch, number):
    def killed(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(5)

    def close(output, failed=False):
        os.kill(os.getpid(), number)  # once more, while it is closed again
        real(output, failed)

    real = outputs.JsonLines.close
    monkeypatch.setattr(outputs.JsonLines, "close", close)
    monkeypatch.setattr(running, "MqttOutput", killed)
    before = signal.getsignal(number)
    answer = edge(*RUN_DEMO, "--jsonl", tmp_path / "a.jsonl", "--record", tmp_path / "a.mp4", "--mqtt", "mqtt://broker")
    assert answer == (130, "", "maskfer-edge: interrupted\n")
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(number) is before


def test_nohup_is_obeyed(edge, monkeypatch):
    def hangs_up(self, frame, result, annotated):
        os.kill(os.getpid(), signal.SIGHUP)
        return True

    monkeypatch.setattr(outputs.JsonLines, "write", hangs_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert edge(*RUN_DEMO, "--jsonl", "-", "--max-frames", 3)[0] == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_ends_no_run(tmp_path):
    lines, reader = tmp_path / "a.jsonl", os.pipe()
    os.close(reader[0])
    command = [*COMMAND, *RUN_DEMO, "--jsonl", str(lines), "--mqtt", "mqtt://127.0.0.1:9"]
    done = subprocess.run(command, stderr=reader[1], check=False)
    os.close(reader[1])
    assert (done.returncode, len(json_lines(lines.read_text()))) == (0, 108)


def test_a_mistake_in_a_later_output_costs_no_older_results(edge, tmp_path):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_text("old")
    files = ("--jsonl", tmp_path / "a.jsonl", "--csv", tmp_path / "a.csv", "--overwrite")
    assert_one_line(edge(*RUN_DEMO, *files, "--record", "a.mov"), "must end in .mp4 or .avi")
    assert [(tmp_path / name).read_text() for name in ("a.jsonl", "a.csv")] == ["old"] * 2


def test_the_settings_file_is_not_replaced(edge, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('source = "demo"\n')
    assert_one_line(edge("run", "--config", path, "--jsonl", path, "--overwrite"), "jsonl would replace the settings")
    assert path.read_text() == 'source = "demo"\n'


def test_a_damaged_picture_of_a_folder_leaves_the_same_results_everywhere(edge, tmp_path, portrait):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(5):
        (pictures / f"{index}.png").symlink_to(portrait)
    (pictures / "5.png").write_bytes(b"damaged")
    files = ("--jsonl", tmp_path / "a.jsonl", "--csv", tmp_path / "a.csv")
    assert_one_line(edge("run", "--source", pictures, "--headless", *files), "5.png is not a picture")
    in_json = [line["frame"] for line in json_lines((tmp_path / "a.jsonl").read_text())]
    in_csv = [int(line.split(",")[1]) for line in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    assert in_json == in_csv == list(range(5))


def test_a_signal_leaves_a_whole_recording(tmp_path):
    video = tmp_path / "a.avi"
    command = [*COMMAND, *RUN_DEMO, "--jsonl", "-", "--record", str(video)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        shown = 1 + len(process.stdout.readlines())
    recording = cv2.VideoCapture(str(video))
    assert recording.get(cv2.CAP_PROP_FRAME_COUNT) == shown
    recording.release()


def test_a_reader_that_goes_away_ends_the_run_silently():
    command = [*COMMAND, *RUN_DEMO, "--loop", "--jsonl", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode in (1, 141) and err == ""


def test_config_prints_the_effective_settings_as_a_file_that_run_takes(edge, tmp_path):
    (tmp_path / "a.toml").write_text("detect_every = 7\nblur = true\n")
    status, out, _ = edge("config", "--config", tmp_path / "a.toml", "--source", "demo", "--no-blur", "--headless")
    assert status == 0
    for line in ('source = "demo"', "detect_every = 7", "blur = false", "headless = true"):
        assert line in out.splitlines()
    (tmp_path / "b.toml").write_text(out)
    assert edge("run", "--config", tmp_path / "b.toml", "--max-frames", 1)[0] == 0


def test_an_unknown_key_of_the_file_is_one_line(edge, tmp_path):
    (tmp_path / "a.toml").write_text("sorce = 'demo'\n")
    assert_one_line(edge("run", "--config", tmp_path / "a.toml"), "'sorce'", "'source'")


def test_cameras_lists_what_source_takes(edge, monkeypatch):
    monkeypatch.setattr(camera_list, "list_cameras", lambda: [camera_list.CameraInfo("usb:0", "Webcam", "640x480")])
    assert edge("cameras") == (0, "usb:0        Webcam  640x480\n", "")
    assert json.loads(edge("cameras", "--json")[1])["cameras"][0]["source"] == "usb:0"


def test_without_a_camera_cameras_says_so(edge, monkeypatch):
    monkeypatch.setattr(camera_list, "list_cameras", list)
    status, out, err = edge("cameras")
    assert (status, out) == (1, "")
    assert "no camera found" in err


@pytest.mark.parametrize(("good", "status"), [(True, 0), (False, 1)])
def test_doctor_prints_what_it_found_and_what_to_do(edge, monkeypatch, good, status):
    found = [doctor.Finding("numpy", good, "2.0", "" if good else "pip install numpy")]
    monkeypatch.setattr(doctor, "examine", lambda model: found)
    code, out, _ = edge("doctor")
    assert code == status
    assert out.splitlines()[0].split() == ["ok" if good else "BAD", "numpy:", "2.0"]
    assert ("pip install numpy" in out) is not good
    assert json.loads(edge("doctor", "--json")[1])["findings"][0]["good"] is good


def test_bench_prints_a_line_a_figure(edge, monkeypatch):
    latency = {"detect": Latency(1.0, 2.0)}
    report = bench.BenchReport("demo", (6, 480, 360), 1.0, 50.0, latency, 0.5, 90.0, 0.3, 15.0, 5.0, "CPU", "", None)
    monkeypatch.setattr(bench, "bench", lambda settings, naive: report)
    status, out, _ = edge("bench", "--against", "naive", "--naive-model", "x.tflite")
    assert status == 0
    assert "(10.0 times slower)" in out
    assert json.loads(edge("bench", "--json")[1])["fps"] == 50.0


def test_bench_takes_the_source_of_a_file_and_else_the_demonstration(edge, monkeypatch, tmp_path):
    sources = []

    def measured(settings, naive):
        sources.append(settings.source)
        raise InputError("enough")

    monkeypatch.setattr(bench, "bench", measured)
    (tmp_path / "run.toml").write_text('source = "clip.mp4"\n')
    for options in ((), ("--config", tmp_path / "run.toml"), ("--source", "other.mp4")):
        edge("bench", *options)
    assert sources == ["demo", "clip.mp4", "other.mp4"]


def test_a_default_is_shown_in_the_help(edge):
    assert re.search(r"Default:\s*1\.", edge("run", "--help")[1])


@pytest.mark.parametrize(("command", "source"), [("run", "auto"), ("bench", "demo")])
def test_the_help_names_the_default_source_of_the_command(edge, command, source):
    words = re.sub(r"[│\s]+", " ", edge(command, "--help")[1])
    assert f"a folder, demo. Default: {source}." in words


@pytest.mark.parametrize("options", [("--against", "naive"), ("--naive-model", "x"), ("--against", "fer")])
def test_bench_says_what_it_can_be_measured_against(edge, options):
    assert_one_line(edge("bench", *options), "naive")
