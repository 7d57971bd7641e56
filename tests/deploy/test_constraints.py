import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def requirements(lines):
    return {r.name: r for r in map(Requirement, lines)}


@pytest.mark.parametrize(
    ("package", "version", "allowed"),
    [("numpy", "1.24.2", True), ("numpy", "2.0.0", False), ("opencv-python", "4.11.0.86", True),
     ("opencv-python", "4.12.0.88", False)],
)  # fmt: skip
def test_bookworm_keeps_what_picamera2_needs(package, version, allowed):
    lines = (ROOT / "deploy/constraints-bookworm.txt").read_text().splitlines()
    constraints = requirements(line for line in lines if not line.startswith("#"))
    ours = requirements(
        line for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if "armv7l" not in line
    )  # fmt: skip
    assert constraints[package].specifier.contains(version) is allowed
    assert ours[package].specifier.contains(version)
