"""Training on the accelerator: the changes to faces, and whole runs in a process of their own, as they need JAX."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from maskfer_trainer.settings import FitSettings

pytest.importorskip("jax", reason="needs JAX")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Runs code under JAX; whatever it compiles is compiled once."""
    cache = tmp_path_factory.mktemp("jax")

    def run(code, *arguments):
        environment = {
            **os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True,
            check=False, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    return run


CHANGES = """
import sys, numpy as np, jax.numpy as jnp
from jax import random
from maskfer_trainer.together import changed_alike, covered
bare = np.random.default_rng(0).integers(60, 200, (64, 48, 48)).astype(np.float32)
masked = bare.copy(); masked[:, 26:] = 30
pairs, key = jnp.stack([bare, masked], axis=-1), random.key(3)
np.savez(sys.argv[1], bare=bare,
    flipped=changed_alike(pairs, key, 0.0),
    changed=changed_alike(pairs, key, 1.0), again=changed_alike(pairs, key, 1.0),
    alike=changed_alike(jnp.stack([bare, bare], axis=-1), key, 1.0),
    covered=covered(jnp.asarray(bare), key, 0.5), uncovered=covered(jnp.asarray(bare), key, 0.0))
"""


@pytest.fixture(scope="module")
def changes(together, tmp_path_factory):
    path = tmp_path_factory.mktemp("changes") / "changes.npz"
    together(CHANGES, path)
    return np.load(path)


def test_faces_are_changed_by_the_key_alone_and_stay_pixels(changes):
    assert np.array_equal(changes["changed"], changes["again"])
    changed = changes["changed"]
    assert changed.shape == (64, 48, 48, 2)
    assert changed.min() >= 0 and changed.max() <= 255
    assert np.abs(changed[..., 0] - changes["bare"]).mean() > 5


def test_without_strength_faces_are_flipped_at_most(changes):
    flipped, bare = changes["flipped"][..., 0], changes["bare"]
    as_it_was = np.abs(flipped - bare).max(axis=(1, 2)) < 1e-3
    mirrored = np.abs(flipped - bare[:, :, ::-1]).max(axis=(1, 2)) < 1e-3
    assert (as_it_was | mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_both_views_of_a_face_are_changed_alike(changes):
    assert np.allclose(changes["alike"][..., 0], changes["alike"][..., 1])


def test_some_lower_halves_are_covered_by_one_grey(changes):
    assert np.array_equal(changes["uncovered"], changes["bare"])
    differs = changes["covered"] != changes["bare"]
    assert not differs[:, :24].any()
    of_face = differs.any(axis=(1, 2))
    assert 16 < of_face.sum() < 48
    for face, where in zip(changes["covered"][of_face], differs[of_face], strict=True):
        assert np.ptp(face[where]) < 1e-3


# small, as compiling is most of the time
TINY = """
from maskfer_trainer.networks import ARCHITECTURES, _residual
ARCHITECTURES["tiny"] = lambda: _residual("tiny", stem=((4, 4, 4),), blocks=((8, 2),))
"""

TRAIN = f"""
{TINY}
import sys
from pathlib import Path
from maskfer_edge.errors import OutputError
from maskfer_trainer.fit_together import fit_together
from maskfer_trainer.settings import FitSettings
settings = FitSettings(epochs=2, batch_size=8, mixup=0.2, validation_share=0.2)
class Killed(Exception): pass
def kill(said):
    if said.startswith("epoch 1/2"):
        try: train(sys.argv[3], resume=True)
        except OutputError as error: print(error)
        raise Killed
def train(out, networks=("tiny:0",), **more):
    return fit_together(Path(sys.argv[1]), Path(out), networks, settings, **more)
first = train(sys.argv[2], ["tiny:0", "tiny:1"])
try: train(sys.argv[3], say=kill)
except Killed: print("killed")
train(sys.argv[3], resume=True)
taught = train(sys.argv[4], teachers=first)
"""


@pytest.fixture(scope="module")
def runs(together, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    outs = [folder / name for name in ("straight", "killed", "taught")]
    done = together(TRAIN, dataset, *outs)
    assert "killed" in done.stdout
    assert f"another run is writing {outs[1]}; name another output" in done.stdout
    return outs


def weights(path):
    import keras

    return keras.models.load_model(path, compile=False).get_weights()


def test_each_network_gets_a_run_of_its_own(runs):
    from maskfer_trainer.keras_file import says_of_itself

    straight = runs[0]
    for seed in (0, 1):
        run = straight / f"tiny-{seed}"
        with (run / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert (run / "curves.png").stat().st_size > 1000
        said = says_of_itself(run / "model.keras")
        assert (said["architecture"], said["weights_seed"], said["backend"]) == ("tiny", seed, "jax")
        assert said["validation_pictures"] > 0
        assert FitSettings(**said["settings"]).batch_size == 8
    first, second = (weights(straight / f"tiny-{seed}" / "model.keras") for seed in (0, 1))
    assert not np.allclose(first[0], second[0])
    assert json.loads((straight / "run.json").read_text())["networks"] == ["tiny:0", "tiny:1"]


def test_a_killed_run_goes_on_to_the_same_end(runs):
    straight, killed, _ = runs
    # what stands beside a network changes nothing for it
    for one, other in zip(*(weights(run / "tiny-0" / "model.keras") for run in (straight, killed)), strict=True):
        assert np.allclose(one, other, atol=1e-5)


def test_teachers_change_what_is_learned(runs):
    straight, _, taught = runs
    one, other = (weights(run / "tiny-0" / "model.keras") for run in (straight, taught))
    assert not np.allclose(one[0], other[0], atol=1e-5)
    assert len(json.loads((taught / "run.json").read_text())["teachers_sha256"]) == 2


GROUPED = """
import numpy as np
from maskfer_edge.dataset import PictureSet
from maskfer_trainer.fit_together import _grouped
shown = np.array([4, 7, 7, 7, 9, 9])  # which face each of six pictures shows
masked = PictureSet(np.arange(6)[:, None, None], shown, ("",) * 6)
print(_grouped(masked, masked, shown).masked[..., 0, 0].tolist())
"""


def test_all_masks_of_a_face_are_shown(together):
    assert json.loads(together(GROUPED).stdout) == [[0, 0, 0], [1, 2, 3], [4, 5, 4]]


REFUSED = f"""
{TINY}
import sys
from pathlib import Path
from maskfer_edge.errors import MaskferError
from maskfer_trainer.fit_together import fit_together
from maskfer_trainer.settings import FitSettings
data, out, model, damaged = map(Path, sys.argv[1:])
small = ["tiny:0"]
for networks, more in (
    (["lean"], {{}}), (["leaner:0"], {{}}), (["lean:4294967296"], {{}}), ([*small, "tiny:00"], {{}}),
    (small, {{"teachers": [model]}}), (small, {{"resume": True}}), (small, {{"out": damaged, "resume": True}}),
    (small, {{"arch": "large"}}), (small, {{"teachers": [damaged / "tiny-0" / "model.keras"], "share": 0.3}}),
):
    arch = more.pop("arch", "lean")
    share = more.pop("share", 0.2)
    settings = FitSettings(arch=arch, epochs=2, batch_size=8, mixup=0.2, validation_share=share)
    try: fit_together(data, more.pop("out", out), networks, settings, **more)
    except MaskferError as error: print(error)
"""


def test_what_cannot_be_trained_is_said_in_a_line(together, dataset, keras_model, runs, tmp_path):
    damaged = runs[1]
    (damaged / "checkpoints" / "state.npz").write_bytes(b"PK")
    said = together(REFUSED, dataset, tmp_path / "out", keras_model, damaged).stdout.splitlines()
    expected = [
        "'lean' names no network", "'leaner:0' names no network", "'lean:4294967296' names no network",
        "give each network once, such as lean:0", "it must be a network of trainer fit, of masked and bare faces",
        "holds no run to go on with",
        "cannot be gone on with, it is damaged", "the settings are of architecture large; leave it out",
        "model.keras has learned from faces that would be validated on; use a validation share of 0.2 or less",
    ]  # fmt: skip
    assert len(said) == len(expected)
    for line, part in zip(said, expected, strict=True):
        assert part in line
    assert not (tmp_path / "out").exists()


def test_another_backend_is_refused(dataset, tmp_path, monkeypatch, capsys):
    from maskfer_edge.command_line import run_app
    from maskfer_trainer.cli import app

    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.setattr(sys, "argv", ["trainer", "fit-together", str(dataset), "--out", str(tmp_path / "out"),
                                      "--network", "lean:0"])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        run_app(app, "trainer")
    assert ended.value.code == 1
    assert "KERAS_BACKEND=jax" in capsys.readouterr().err
