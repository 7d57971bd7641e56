"""README and docs/commands.md stay true to the commands."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from maskfer_converter.cli import app as converter
from maskfer_edge.cli import app as edge
from maskfer_trainer.cli import app as trainer

ROOT = Path(__file__).parents[1]
README = ROOT.joinpath("README.md").read_text()
REFERENCE = ROOT.joinpath("docs/commands.md").read_text()
APPS = {"maskfer-edge": edge, "trainer": trainer, "converter": converter}
COMMANDS = [
    (name, command, parameter)
    for name, app in APPS.items()
    for command, group in typer.main.get_command(app).commands.items()
    for parameter in group.params
]


@pytest.mark.parametrize(("name", "command", "parameter"), COMMANDS, ids=str)
def test_every_command_and_option_is_documented(name, command, parameter):
    assert f"{name} {command}" in README
    assert f"{name} {command}" in REFERENCE
    shown = (
        parameter.opts[0] if parameter.param_type_name == "option" else (parameter.metavar or parameter.name.upper())
    )
    # as a word of its own: --to is no --token
    assert re.search(rf"(?<![\w-]){re.escape(shown.removesuffix('...'))}(?![\w-])", REFERENCE)


@pytest.mark.parametrize("name", [*APPS, "maskfer-trainer", "maskfer-converter"])
def test_every_command_is_installed_and_explains_itself(name):
    result = subprocess.run(
        [Path(sys.executable).with_name(name), "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize("name", APPS)
def test_every_program_tells_the_version(name):
    command = [Path(sys.executable).with_name(name), "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"maskfer {version('maskfer')}\n", "")


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(path):
    """The anchors that GitHub gives a document's headings, and those it sets itself."""
    text = re.sub(r"(?s)```.*?```", "", path.read_text())
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*kept, *re.findall(r'<a id="([^"]+)"', text)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_within_the_repository_leads_somewhere(path):
    links = re.findall(r"\]\(((?!https?:)[^)\s]+)\)", path.read_text())
    for link in links:
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
