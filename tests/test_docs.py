"""The README stays true to the commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from maskfer_converter.cli import app as converter
from maskfer_edge.cli import app as edge
from maskfer_trainer.cli import app as trainer

README = Path(__file__).parents[1].joinpath("README.md").read_text()
APPS = {"maskfer-edge": edge, "trainer": trainer, "converter": converter}
COMMANDS = [
    (name, command, parameter)
    for name, app in APPS.items()
    for command, group in typer.main.get_command(app).commands.items()
    for parameter in group.params
]


@pytest.mark.parametrize(("name", "command", "parameter"), COMMANDS, ids=str)
def test_every_command_and_option_stands_in_the_readme(name, command, parameter):
    assert f"{name} {command}" in README
    shown = (
        parameter.opts[0] if parameter.param_type_name == "option" else (parameter.metavar or parameter.name.upper())
    )
    # as a word of its own: --to is no --token
    assert re.search(rf"(?<![\w-]){re.escape(shown.removesuffix('...'))}(?![\w-])", README)


@pytest.mark.parametrize("name", [*APPS, "maskfer-trainer", "maskfer-converter"])
def test_every_command_is_installed_and_explains_itself(name):
    result = subprocess.run(
        [Path(sys.executable).with_name(name), "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "Usage" in result.stdout
