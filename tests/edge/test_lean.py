import subprocess
import sys
from importlib.metadata import version

import cv2
import pytest

from maskfer_edge.sources import open_camera

NEW_TYPER = tuple(map(int, version("typer").split(".")[:2])) >= (0, 29)
FORBIDDEN = (
    "tensorflow",
    "keras",
    "dlib",
    "PIL",
    "sklearn",
    "matplotlib",
    "pydantic",
    "websockets",
    "paho",
    "prometheus_client",
)

PROGRAM = """
import importlib, pkgutil, sys
import maskfer_edge
from maskfer_edge.command_line import run_app

for module in pkgutil.iter_modules(maskfer_edge.__path__):
    importlib.import_module("maskfer_edge." + module.name)
from maskfer_edge.cli import app

for arguments in (["predict", sys.argv[1]], ["run", "--source", "demo", "--headless", "--max-frames", "3"]):
    sys.argv[1:] = arguments
    try:
        run_app(app, "maskfer-edge")
    except SystemExit as end:
        assert not end.code, end.code
print("modules:", *sys.modules)
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    picture = tmp_path_factory.mktemp("lean") / "face.png"
    with open_camera("demo") as camera:
        cv2.imwrite(str(picture), camera.read().image)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(picture)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_edge_is_loaded_whole(loaded):
    assert {"maskfer_edge.cli", "maskfer_edge.loop", "cv2", "numpy"} <= loaded


@pytest.mark.parametrize("module", FORBIDDEN)
def test_the_edge_never_loads_what_only_a_workstation_has(loaded, module):
    if module == "pydantic" and NEW_TYPER:
        pytest.skip("typer 0.29, which pyproject.toml excludes, brings pydantic")
    assert module not in loaded
