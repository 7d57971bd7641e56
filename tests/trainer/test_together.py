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
pytestmark = pytest.mark.timeout(900)


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
            check=False, timeout=800,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    return run


CHANGES = """
import sys, cv2, jax, keras, numpy as np, jax.numpy as jnp
from jax import random
from maskfer_edge.dataset import PictureSet
from maskfer_trainer import augment, together
from maskfer_trainer.fit_together import _group_faces
from maskfer_trainer.settings import FitSettings
augment_views, cut_out = jax.jit(together.augment_views), jax.jit(together.cut_out)
bare = np.random.default_rng(0).integers(60, 200, (64, 48, 48)).astype(np.float32)
masked = bare.copy(); masked[:, 26:] = 30
pairs, key = jnp.stack([bare, masked], axis=-1), random.key(3)
shown = np.array([4, 7, 7, 7, 9, 9])  # which face each of six pictures shows
six = PictureSet(np.arange(6)[:, None, None], shown, ("",) * 6)
greys = np.tile(36 * np.arange(7, dtype=np.uint8)[:, None, None], (1, 48, 48))
every_class = keras.layers.Dense(7, "softmax", kernel_initializer="zeros")
teacher = keras.Sequential([keras.Input((48, 48, 1)), keras.layers.Flatten(), every_class])
plain, shows = {"augmentation": 0.0, "cutout": 0.0, "label_smoothing": 0.0, "balance": 0.0}, {}
for how, teachers, more in (
    ("mixed", [], {"mixup": 1.0}), ("taught", [teacher], {"teacher_share": 0.7}),
    ("smoothed", [], {"label_smoothing": 0.7}),
):
    settings = FitSettings(**{**plain, **more})
    trainer = together.MultiNetworkTrainer([], teachers, together.Faces(greys, greys[:, None], np.arange(7)), settings)
    names, given = ("shown", "targets", "weights"), jax.jit(trainer._make_batch)(trainer._data, jnp.arange(7), key)
    shows |= {f"{how}_{name}": value for name, value in zip(names, given)}
sure = []  # one teacher says Angry of all faces, the other one Disgust
for label in (0, 1):
    sure.append(keras.Sequential([keras.Input((48, 48, 1)), keras.layers.Flatten(), keras.layers.Dense(7, "softmax")]))
    sure[-1].set_weights([np.zeros((2304, 7)), 50.0 * np.eye(7)[label]])
settings = FitSettings(**plain, teacher_share=1.0)
two = together.MultiNetworkTrainer([], sure, together.Faces(greys, greys[:, None], np.arange(7)), settings)
make_batch = jax.jit(two._make_batch)
shows["said"] = np.stack([make_batch(two._data, jnp.arange(7), random.key(k))[1] for k in range(24)])
backend, together.ARCHITECTURES["tiny"] = jax.default_backend, lambda: keras.Sequential([keras.layers.Dense(1)])
for name in ("cpu", "gpu"):
    jax.default_backend = lambda name=name: name
    shows[f"on_{name}"] = together.build_mixed_precision("tiny").layers[0].compute_dtype
jax.default_backend = backend
noise = np.random.default_rng(0).integers(40, 200, (16, 48, 48)).astype(np.uint8)
smooth = np.stack([cv2.GaussianBlur(face, (0, 0), 2.5) for face in noise])
def alike():  # nothing is left to chance but flips; the last that is computed, as it stays so
    augment.DEGREES, augment.ENLARGED, augment.MOVED = (10, 10), (0.1, 0.1), (0.05, 0.05)
    augment.CONTRAST, augment.BRIGHTNESS, augment.BLURRED, together.NOISY = (0.2, 0.2), (10, 10), 0, 0
    here = jax.jit(lambda faces: together.augment_views(faces, key, 1.0))(jnp.asarray(smooth, jnp.float32)[..., None])
    faces = smooth, np.ascontiguousarray(smooth[:, :, ::-1])
    there = [augment.augment(each, np.random.default_rng(1)).astype(np.float32) for each in faces]
    return {"as_here": here[..., 0], "as_there": there}
np.savez(sys.argv[1], **shows, bare=bare,
    flipped=augment_views(pairs, key, 0.0),
    changed=augment_views(pairs, key, 1.0), again=augment_views(pairs, key, 1.0),
    alike=augment_views(jnp.stack([bare, bare], axis=-1), key, 1.0),
    covered=cut_out(jnp.asarray(bare), key, 0.5), uncovered=cut_out(jnp.asarray(bare), key, 0.0),
    grouped=_group_faces(six, six, shown).masked[..., 0, 0], **alike())
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


def test_each_step_asks_a_teacher_drawn_anew_about_either_view(changes):
    said = changes["said"]
    assert np.allclose(said[..., 0] + said[..., 1], 1, atol=1e-5)
    assert set(np.round(said[:, 0, 0], 2)) == {0.0, 0.5, 1.0}
    assert np.allclose(said, said[:, :1], atol=1e-5)  # all faces of a step ask the same


def test_half_precision_is_for_gpus(changes):
    assert (str(changes["on_cpu"]), str(changes["on_gpu"])) == ("float32", "bfloat16")


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


def test_all_masks_of_a_face_are_shown(changes):
    assert changes["grouped"].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 4]]


def test_faces_are_changed_as_augment_changes_them(changes):
    as_there = np.abs(changes["as_here"] - changes["as_there"]).max(axis=(2, 3)).min(axis=0)  # mirrored or not
    assert as_there.max() < 2  # OpenCV rounds places to 1/32 of a pixel, and pixels before light


def test_targets_are_mixed_as_faces_are_taught_and_smoothed(changes):
    mixed, targets, weights = (changes[f"mixed_{name}"] for name in ("shown", "targets", "weights"))
    # face k is of grey 36 k and of class k
    assert mixed[:, 0, 0, 0] == pytest.approx(targets @ np.arange(7) * 36, abs=0.51)
    assert ((targets > 0.01).sum(axis=1) == 2).any()
    assert weights == pytest.approx(np.ones(7))
    for how in ("taught", "smoothed"):
        assert changes[f"{how}_shown"][:, 0, 0, 0].tolist() == [36 * k for k in range(7)]
        assert changes[f"{how}_targets"] == pytest.approx(0.3 * np.eye(7) + 0.1, abs=1e-3)


# small, as compiling is most of the time
TINY = """
from maskfer_trainer.networks import ARCHITECTURES, _residual
ARCHITECTURES["tiny"] = lambda: _residual("tiny", stem=((4, 4, 4),), blocks=((8, 2),))
"""

# in one process, as loading JAX is a large part of the time, too
TRAIN = f"""
{TINY}
import sys
from dataclasses import replace
from pathlib import Path
from maskfer_edge.errors import MaskferError, OutputError
from maskfer_trainer.fit_together import fit_together
from maskfer_trainer.settings import FitSettings
settings = FitSettings(epochs=2, batch_size=8, mixup=0.2, validation_share=0.2)
class Killed(Exception): pass
def kill(message):
    if message.startswith("epoch 1/2"):
        try: train(sys.argv[3], resume=True)
        except OutputError as error: print(error)
        raise Killed
def train(out, networks=("tiny:0",), **more):
    return fit_together(Path(sys.argv[1]), Path(out), networks, settings, **more)
first = train(sys.argv[2], ["tiny:0", "tiny:1"])
try: train(sys.argv[3], log=kill)
except Killed: print("killed")
train(sys.argv[3], resume=True)
taught = train(sys.argv[4], teachers=first)
print("refused:")
data, damaged, model, out = (Path(sys.argv[place]) for place in (1, 3, 5, 6))
(damaged / "checkpoints" / "state.npz").write_bytes(b"PK")
small = ["tiny:0"]
for networks, more in (
    (["lean"], {{}}), (["leaner:0"], {{}}), (["lean:4294967296"], {{}}), ([*small, "tiny:00"], {{}}),
    (small, {{"teachers": [model]}}), (small, {{"resume": True}}), (small, {{"out": damaged, "resume": True}}),
    (small, {{"arch": "large"}}), (small, {{"teachers": [damaged / "tiny-0" / "model.keras"], "share": 0.3}}),
):
    chosen = replace(settings, arch=more.pop("arch", "lean"), validation_share=more.pop("share", 0.2))
    try: fit_together(data, more.pop("out", out), networks, chosen, **more)
    except MaskferError as error: print(error)
"""


@pytest.fixture(scope="module")
def trained(together, dataset, keras_model, tmp_path_factory):
    """The folders of three runs, and the lines that were said of what cannot be trained."""
    folder = tmp_path_factory.mktemp("runs")
    outs = [folder / name for name in ("straight", "killed", "taught")]
    output, _, refused = together(TRAIN, dataset, *outs, keras_model, folder / "refused").stdout.partition("refused:\n")
    assert "killed" in output
    assert f"another run is writing {outs[1]}; name another output" in output
    return outs, refused.splitlines()


@pytest.fixture(scope="module")
def runs(trained):
    return trained[0]


def weights(path):
    import keras

    return keras.models.load_model(path, compile=False).get_weights()


def test_each_network_gets_a_run_of_its_own(runs):
    from maskfer_trainer.keras_file import read_metadata

    straight = runs[0]
    for seed in (0, 1):
        run = straight / f"tiny-{seed}"
        with (run / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert (run / "curves.png").stat().st_size > 1000
        info = read_metadata(run / "model.keras")
        assert (info["architecture"], info["weights_seed"], info["backend"]) == ("tiny", seed, "jax")
        assert info["validation_pictures"] > 0
        assert FitSettings(**info["settings"]).batch_size == 8
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


def test_what_cannot_be_trained_is_said_in_a_line(trained):
    runs, lines = trained
    expected = [
        "'lean' names no network", "'leaner:0' names no network", "'lean:4294967296' names no network",
        "give each network once, such as lean:0", "it must be a network of trainer fit, of masked and bare faces",
        "holds no run to go on with",
        "cannot be gone on with, it is damaged", "the settings are of architecture large; leave it out",
        "model.keras has learned from faces that would be validated on; use a validation share of 0.2 or less",
    ]  # fmt: skip
    assert len(lines) == len(expected)
    for line, part in zip(lines, expected, strict=True):
        assert part in line
    assert not (runs[0].parent / "refused").exists()


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
