from __future__ import annotations

from pathlib import Path

import pytest

from maskfer_edge.errors import InputError
from maskfer_trainer.settings import PAPER, FitSettings, fit_settings


def config(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    found = fit_settings(config(tmp_path, 'arch = "lean-small"\nepochs = 7\nseed = 3\n'), {"epochs": 9, "cutout": None})
    assert found == FitSettings(arch="lean-small", epochs=9, seed=3)


def test_the_paper_s_network_has_defaults_of_its_own():
    assert fit_settings(None, {"arch": "paper"}) == FitSettings(arch="paper", **PAPER)


def test_the_paper_s_defaults_hold_for_a_file_too(tmp_path):
    found = fit_settings(config(tmp_path, 'arch = "paper"\nepochs = 3\n'), {})
    assert (found.epochs, found.bare_share) == (3, 0.0)


@pytest.mark.parametrize(
    ("key", "near"), [("epoch", "epochs"), ("learning-rate", "learning_rate"), ("mix_up", "mixup")]
)
def test_an_unknown_key_is_answered_with_the_nearest(tmp_path, key, near):
    with pytest.raises(InputError, match=f"run.toml.*'{key}'.*'{near}'"):
        fit_settings(config(tmp_path, f"{key} = 1\n"), {})


@pytest.mark.parametrize("content", [b"epochs = ", b"\xff\xfe", b"epochs"])
def test_a_file_that_is_no_toml_is_named(tmp_path, content):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"run\.toml is no TOML file"):
        fit_settings(tmp_path / "run.toml", {})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml"):
        fit_settings(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"arch": "vast"}, "'vast'.*paper, lean"), ({"epochs": 0}, "epochs.*0"), ({"batch_size": 0}, "batch_size"),
     ({"bare_share": 1.5}, "bare_share.*1.5"), ({"bare_share": -0.1}, "bare_share"), ({"validation_share": 0}, "0"),
     ({"validation_share": 1}, "validation_share"), ({"learning_rate": 0}, "learning_rate must be"),
     ({"seed": -1}, "seed"),
     ({"seed": 2**32}, "seed"),
     ({"augmentation": 2}, "augmentation"), ({"cutout": 2}, "cutout"), ({"mixup": -1}, "mixup"),
     ({"mixup": float("inf")}, "mixup"), ({"label_smoothing": 1.1}, "label_smoothing"), ({"balance": -1}, "balance"),
     ({"teacher_share": 1.1}, "teacher_share"), ({"leave_out": "3/2"}, "leave_out"),
     ({"leave_out": "half"}, "leave_out"), ({"least_recall": 1.1}, "least_recall"),
     ({"epochs": 2.5}, "epochs.*int.*2.5"), ({"epochs": True}, "epochs"),
     ({"seed": "1"}, "seed.*int.*'1'"), ({"arch": 4}, "arch"), ({"arch": "paper"}, "as they are"),
     ({"learning_rate": 20.0}, "and 1 at most"),
     ({"learning_rate": float("nan")}, "learning_rate must be"), ({"bare_share": float("nan")}, "bare_share")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        FitSettings(**change)
