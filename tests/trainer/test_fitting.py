from __future__ import annotations

import csv
import json
import shutil
import zipfile
from itertools import pairwise
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from maskfer_edge.dataset import read_part, record_name, split_records
from maskfer_edge.errors import InputError, OutputError
from maskfer_trainer import fitting, run_folder
from maskfer_trainer.batches import FaceBatches, validation_part
from maskfer_trainer.draw import drawn_share
from maskfer_trainer.fitting import fit
from maskfer_trainer.settings import PAPER, FitSettings
from maskfer_trainer.teachers import predict_soft_labels


class Stopped(Exception):
    """Stands for whatever ends a training in the middle."""


def tiny() -> keras.Model:
    inputs = keras.Input((48, 48, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, strides=4)(x)))
    x = keras.layers.Dropout(0.3)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(7, activation="softmax")(x))


def settings(**changes) -> FitSettings:
    paper = PAPER if changes.get("arch") == "paper" else {}
    return FitSettings(**{**paper, "epochs": 2, "batch_size": 16, "validation_share": 0.2, **changes})


@pytest.fixture(autouse=True)
def every_epoch_is_written(monkeypatch):
    monkeypatch.setattr(run_folder, "MIN_WRITE_SECONDS", 0.0)


@pytest.fixture
def tiny_networks(monkeypatch, run_eagerly):
    monkeypatch.setattr(fitting, "ARCHITECTURES", {"paper": tiny, "lean": tiny})
    monkeypatch.setattr(run_folder, "draw_curves", lambda *_: None)
    run_eagerly(monkeypatch)


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory, dataset, run_eagerly):
    """A finished run of one epoch of a tiny network. Not to be changed."""
    run = tmp_path_factory.mktemp("one-epoch") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(fitting, "ARCHITECTURES", {"lean": tiny})
        run_eagerly(monkeypatch)
        fit(dataset, run, settings(epochs=1), verbose=0)
    return run


@pytest.fixture
def tiny_run(tiny_networks, one_epoch, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(one_epoch, tmp_path / "run"))


@pytest.fixture
def prepare(tiny_networks, monkeypatch, tmp_path, dataset):
    """Does all that `fit` does before it trains; gives what it would train with: batches and validation pictures."""

    def make(name="run", *, teachers=(), **given):
        arguments = []
        monkeypatch.setattr(fitting, "_train", lambda _, *rest: arguments.extend(rest))
        with pytest.raises(ValueError, match="empty"):  # no epoch ran, so there is none to choose
            fit(dataset, tmp_path / name, settings(**given), teachers=teachers, verbose=0)
        return arguments[0], arguments[1]

    return make


@pytest.fixture
def stop_at(monkeypatch):
    """Makes training end while the curves of an epoch are drawn, that is before its state is kept."""

    def make(epoch: int) -> None:
        def draw(history, path):
            if len(history) == epoch:
                raise Stopped

        monkeypatch.setattr(run_folder, "draw_curves", draw)

    return make


def metadata(run: Path) -> dict:
    with zipfile.ZipFile(run / "model.keras") as archive:
        return json.loads(archive.read("maskfer.json"))


def history(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def epochs(run: Path) -> list[float]:
    return [row["epoch"] for row in history(run)]


def best_path(run: Path) -> Path:
    (path,) = (run / "checkpoints").glob("best*.keras")
    return path


def best(run: Path) -> keras.Model:
    return keras.models.load_model(best_path(run), compile=False)


@pytest.fixture(scope="module")
def lean_run(tmp_path_factory, dataset) -> Path:
    """Two epochs of the true lean network."""
    run = tmp_path_factory.mktemp("runs") / "lean"
    fit(dataset, run, settings(), verbose=0)
    return run


def test_a_run_leaves_its_files(lean_run):
    names = {p.relative_to(lean_run).as_posix() for p in lean_run.rglob("*") if p.is_file()}
    expected = {"run.json", "history.csv", "curves.png", "model.keras"}
    row = max(history(lean_run), key=lambda row: row["val_accuracy"])
    assert names == expected | {"checkpoints/last.keras", f"checkpoints/best-{row['epoch']:.0f}.keras"}


def test_history_has_a_row_an_epoch(lean_run):
    rows = history(lean_run)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0].keys() >= {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}


def test_curves_are_a_picture(lean_run):
    assert cv2.imread(str(lean_run / "curves.png")).std() > 1


def test_the_model_says_how_it_was_trained(lean_run, dataset):
    info = metadata(lean_run)
    assert info["architecture"] == "lean"
    assert info["training_pictures"] + info["validation_pictures"] == 49
    assert info["dataset_sha256"] == json.loads((dataset / "dataset.json").read_text())["sha256"]


def test_the_model_can_be_loaded(lean_run):
    assert keras.models.load_model(lean_run / "model.keras", compile=False).name == "lean"


def test_the_network_that_is_kept_has_learned(monkeypatch, tmp_path, dataset):
    """The classes differ in brightness; in a run of few steps the mean must not be of the first weights."""

    def by_brightness() -> keras.Model:
        inputs = keras.Input((48, 48, 1))
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 32, -4)(inputs))
        return keras.Model(inputs, keras.layers.Dense(7, "softmax")(keras.layers.Dense(64, "relu")(x)))

    monkeypatch.setattr(fitting, "ARCHITECTURES", {"lean": by_brightness})
    monkeypatch.setattr(run_folder, "draw_curves", lambda *_: None)
    monkeypatch.setattr(run_folder, "MIN_WRITE_SECONDS", 1000.0)
    plain = settings(epochs=60, learning_rate=0.03, bare_share=1.0, augmentation=0.0, cutout=0.0, label_smoothing=0.0)
    kept = keras.models.load_model(fit(dataset, tmp_path / "run", plain, verbose=0))
    bare = read_part(dataset, "bare", "test")
    given = kept.predict(bare.images[..., None].astype(np.float32), verbose=0).argmax(axis=1)
    assert np.mean(given == bare.labels) > 0.9


def test_an_existing_run_is_refused(tiny_networks, tmp_path, dataset):
    (tmp_path / "run").mkdir()
    with pytest.raises(OutputError, match="run is already there; name another folder"):
        fit(dataset, tmp_path / "run", settings(), verbose=0)
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(OutputError, match="run is already there; give --resume to go on with it"):
        fit(dataset, tmp_path / "run", settings(), verbose=0)


@pytest.mark.parametrize("arch", ["lean", "paper"])
def test_a_run_that_was_cut_short_goes_on_as_if_it_had_not_been(tiny_networks, stop_at, tmp_path, dataset, arch):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    stop_at(2)
    with pytest.raises(Stopped):
        fit(dataset, cut, settings(arch=arch, epochs=3), verbose=0)
    assert not (cut / "model.keras").exists()
    stop_at(0)
    fit(dataset, cut, settings(arch=arch, epochs=3), resume=True, verbose=0)
    fit(dataset, whole, settings(arch=arch, epochs=3), verbose=0)
    assert epochs(cut) == [1, 2, 3]
    for expected, row in zip(history(whole), history(cut), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


def test_a_run_that_ended_in_its_first_epoch_goes_on(tiny_networks, stop_at, tmp_path, dataset):
    stop_at(1)
    with pytest.raises(Stopped):
        fit(dataset, tmp_path / "run", settings(), verbose=0)
    stop_at(0)
    fit(dataset, tmp_path / "run", settings(), resume=True, verbose=0)
    assert epochs(tmp_path / "run") == [1, 2]


def test_resuming_a_finished_run_changes_nothing(tiny_run, dataset, read_folder):
    before = read_folder(tiny_run)
    fit(dataset, tiny_run, settings(epochs=1), resume=True, verbose=0)
    assert read_folder(tiny_run) == before


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"epochs": 3}, {"batch_size": 8}, {"bare_share": 0.0}, {"learning_rate": 1e-3}]
)
def test_resuming_with_other_settings_is_refused(lean_run, dataset, change):
    with pytest.raises(InputError, match="started otherwise"):
        fit(dataset, lean_run, settings(**change), resume=True, verbose=0)


def test_resuming_nothing_is_refused(tmp_path, dataset):
    with pytest.raises(InputError, match="no run"):
        fit(dataset, tmp_path / "run", settings(), resume=True)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="build-dataset"):
        fit(tmp_path / "data", tmp_path / "run", settings())
    assert not (tmp_path / "run").exists()


def with_records(dataset: Path, copy: Path, change) -> Path:
    """A copy of a data set with other records in its manifest."""
    shutil.copytree(dataset, copy)
    records = [json.loads(line) for line in (dataset / "manifest.jsonl").read_text().splitlines()]
    (copy / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in change(records)))
    return copy


def pixels_of(dataset):
    return [record["pixels_sha256"] for record in split_records(dataset, "train")]


def held_out_of(dataset):
    return validation_part(pixels_of(dataset), 0.2)


def make_twins(records):
    """Two training faces of sad share their pixels, for every seed to keep together."""
    sad = [r for r in records if r["class"] == "sad" and r["split"] == "train"]
    sad[1]["pixels_sha256"] = sad[0]["pixels_sha256"]
    return records


def add_variants(records):
    """Each training face has a second masked picture, here the same one."""
    return [*records, *({**r, "variant": 1, "stem": f"{r['stem']}~1"} for r in records if r["split"] == "train")]


def drop_bare(records):
    return [{key: value for key, value in record.items() if key != "bare"} for record in records]


def test_copies_of_a_picture_stand_on_one_side(tmp_path, dataset):
    twins = with_records(dataset, tmp_path / "twins", make_twins)
    records = split_records(twins, "train")
    names = [record_name(record) for record in records]
    first, second = names.index("sad/0"), names.index("sad/1")
    parts = [validation_part(pixels_of(twins), share / 20) for share in range(1, 20)]
    assert {(bool(part[first]), bool(part[second])) for part in parts} == {(False, False), (True, True)}


def test_variants_of_a_picture_stand_on_one_side(tmp_path, dataset):
    several = with_records(dataset, tmp_path / "several", add_variants)
    records = split_records(several, "train")
    part = dict(zip(map(record_name, records), validation_part(pixels_of(several), 0.5), strict=True))
    assert len(part) == 2 * 49
    assert 0 < sum(part.values()) < 2 * 49
    assert all(part[name] == part[f"{name}~1"] for name in part if "~" not in name)


def test_the_validation_part_has_about_its_share(dataset):
    parts = [validation_part(pixels_of(dataset), share) for share in (0.2, 0.4, 0.6, 0.8)]
    assert [part.mean() for part in parts] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.15)
    assert all((smaller <= larger).all() for smaller, larger in pairwise(parts))


@pytest.mark.parametrize("absent", ["source", "pixels_sha256"])
def test_an_older_data_set_is_refused(tmp_path, dataset, absent):
    def older(records):
        return [{key: value for key, value in record.items() if key != absent} for record in records]

    with pytest.raises(InputError, match="was built by an earlier version of maskfer; build it again"):
        fit(with_records(dataset, tmp_path / "older", older), tmp_path / "run", settings(), verbose=0)
    assert not (tmp_path / "run").exists()


def test_variants_are_trained_on_beside_their_bare_picture(tiny_networks, tmp_path, dataset):
    several = with_records(dataset, tmp_path / "several", add_variants)
    fit(several, tmp_path / "run", settings(epochs=1, bare_share=0.5), verbose=0)
    info = metadata(tmp_path / "run")
    assert info["training_pictures"] + info["validation_pictures"] == 2 * 49


def test_masked_pictures_alone_are_enough_without_a_bare_share(tiny_networks, tmp_path, dataset):
    masked_only = with_records(dataset, tmp_path / "data", drop_bare)
    shutil.rmtree(masked_only / "bare")
    assert fit(masked_only, tmp_path / "run", settings(epochs=1, bare_share=0.0), verbose=0).is_file()


def test_a_bare_share_of_a_data_set_without_bare_pictures_is_refused(tiny_networks, tmp_path, dataset):
    with pytest.raises(InputError, match="--keep-bare"):
        fit(with_records(dataset, tmp_path / "data", drop_bare), tmp_path / "run", settings(), verbose=0)


@pytest.mark.parametrize("arch", ["lean", "paper"])
def test_only_the_papers_training_lowers_its_rate_on_a_plateau(prepare, monkeypatch, arch):
    made = []
    real = keras.callbacks.ReduceLROnPlateau
    monkeypatch.setattr(keras.callbacks, "ReduceLROnPlateau", lambda **given: made.append(given) or real(**given))
    prepare(arch=arch)
    assert [given["monitor"] for given in made] == (["val_loss"] if arch == "paper" else [])


def rates(losses: list[float], resumed_after: int) -> list[float]:
    """Learning rate in each epoch, by validation losses alone, with one resume."""
    rows, found, rate = [], [], 5e-4
    for epochs in (range(resumed_after), range(resumed_after, len(losses))):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(rate), "mse")
        callback = fitting._plateau(model, rows, 5e-4)
        callback.on_train_begin()
        for epoch in epochs:
            rows.append({"val_loss": losses[epoch]})
            found.append(float(model.optimizer.learning_rate.numpy()))
            callback.on_epoch_end(epoch, dict(rows[-1]))
        rate = float(model.optimizer.learning_rate.numpy())
    return found


LOSSES = [1.0, 0.9, *[1.0] * 16, 0.8, *[1.0] * 6]


def test_the_learning_rate_falls_after_four_epochs_without_gain():
    assert rates(LOSSES, 0) == pytest.approx([5e-4] * 6 + [1e-4] * 4 + [2e-5] * 4 + [4e-6] * 4 + [1e-6] * 7)


@pytest.mark.parametrize("resumed_after", [1, 5, 6, 8, 14, 17, 19, 22])
def test_the_plateau_is_remembered_after_a_resume(resumed_after):
    assert rates(LOSSES, resumed_after) == pytest.approx(rates(LOSSES, 0))


def test_weight_decay_spares_batch_normalization_after_a_resume(tmp_path):
    network = tiny()
    fitting._compile(network, settings(epochs=30), 10)
    network.optimizer.build(network.trainable_variables)
    network.optimizer.iterations.assign(10)
    (tmp_path / "checkpoints").mkdir()
    network.save(tmp_path / "checkpoints/last.keras")
    (tmp_path / "checkpoints/best-1.keras").touch()
    (tmp_path / "history.csv").write_text("epoch,val_accuracy\n1,0.5\n")
    resumed, _ = fitting._load_state(tmp_path, settings(epochs=30), 10)
    for _ in range(20):
        resumed.optimizer.apply([np.zeros(v.shape, dtype=np.float32) for v in resumed.trainable_variables])
    changed = {
        after.name
        for before, after in zip(network.trainable_variables, resumed.trainable_variables, strict=True)
        if not np.array_equal(before.numpy(), after.numpy())
    }
    assert changed == {"kernel"}


def test_a_run_can_start_from_the_weights_of_another(tiny_networks, one_epoch, tmp_path, dataset):
    chosen = settings(epochs=1, learning_rate=1e-12)
    fit(dataset, tmp_path / "run", chosen, initial=one_epoch / "model.keras", verbose=0)
    started, ended = one_epoch / "model.keras", best_path(tmp_path / "run")
    first, second = (keras.models.load_model(path, compile=False) for path in (started, ended))
    for before, after in zip(first.trainable_variables, second.trainable_variables, strict=True):
        assert np.allclose(before.numpy(), after.numpy(), atol=1e-3)


def test_weights_of_another_architecture_are_refused(tiny_networks, lean_run, tmp_path, dataset):
    with pytest.raises(InputError, match=r"model\.keras is not a network of architecture \S+; .* or give its --arch$"):
        fit(dataset, tmp_path / "run", settings(), initial=lean_run / "model.keras", verbose=0)


def test_that_it_trains_is_said_last_and_only_once_it_does(tiny_networks, dataset, tmp_path, monkeypatch):
    messages: list[str] = []
    with pytest.raises(InputError, match="holds no run"):
        fit(dataset, tmp_path / "run", settings(), resume=True, log=messages.append)
    assert messages == []
    monkeypatch.setattr(fitting, "_train", lambda *_: pytest.fail(messages[-1]))
    with pytest.raises(pytest.fail.Exception, match=r"^Training lean, epochs: \d+; watch .*run/curves\.png$"):
        fit(dataset, tmp_path / "run", settings(), log=messages.append)
    assert "GPU" in messages[0]


@pytest.mark.parametrize("as_what", ["initial", "teacher"])
def test_what_has_learned_from_faces_that_would_judge_is_refused(tmp_path, dataset, lean_run, as_what):
    known = lean_run / "model.keras"
    given = {"initial": known} if as_what == "initial" else {"teachers": [known]}
    more = settings(validation_share=settings().validation_share + 0.1)
    with pytest.raises(InputError, match=r"model\.keras has learned from faces.*share of 0\.\d+ or less"):
        fit(dataset, tmp_path / "run", more, **given, verbose=0)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_says_by_its_run_what_it_has_seen(tmp_path, dataset, lean_run):
    for checkpoint in (best_path(lean_run), lean_run / "checkpoints/last.keras"):
        with pytest.raises(InputError, match="has learned from faces that would be validated on"):
            fit(
                dataset,
                tmp_path / "run",
                settings(validation_share=0.9),
                initial=checkpoint,
            )


def test_resuming_from_other_first_weights_is_refused(lean_run, dataset):
    with pytest.raises(InputError, match="started otherwise"):
        fit(dataset, lean_run, settings(), initial=lean_run / "model.keras", resume=True, verbose=0)


def test_a_network_learns_from_its_teachers(prepare, monkeypatch, tmp_path, dataset, lean_run):
    seen, teachers = [], [lean_run / "model.keras"]
    monkeypatch.setattr(fitting, "FaceBatches", lambda *given: seen.append(given[4]) or FaceBatches(*given))
    prepare(teachers=teachers)
    kept = ~held_out_of(dataset)
    masked, bare = (read_part(dataset, part, "train").take(kept) for part in ("masked", "bare"))
    expected = predict_soft_labels(
        teachers, masked, bare, np.arange(len(masked)), lambda parts: np.ones(len(masked), np.int64)
    )
    assert np.allclose(seen[0].masked, expected.masked, atol=1e-5)
    assert np.allclose(seen[0].bare, expected.bare, atol=1e-5)
    assert len(json.loads((tmp_path / "run/run.json").read_text())["teachers_sha256"]) == 1


def test_parts_that_are_left_out_make_up_all_faces(prepare):
    parts = ("", "1/2", "2/2")
    everything, one, other = (set(prepare(f"run{part[:1]}", leave_out=part)[0].masked.names) for part in parts)
    assert one | other == everything
    assert not one & other
    assert min(len(one), len(other)) > 5


@pytest.mark.parametrize(("share", "part"), [(1.0, "bare"), (0.9, "masked")])
def test_a_network_of_bare_faces_alone_is_judged_on_bare_faces(prepare, dataset, share, part):
    _, judged = prepare(bare_share=share)
    of_part = read_part(dataset, part, "train")
    assert np.array_equal(judged.images, of_part.take(held_out_of(dataset)).images)


def test_the_confidence_is_calibrated_on_validation_faces(lean_run, dataset):
    info = metadata(lean_run)
    model = keras.models.load_model(lean_run / "model.keras", compile=False)
    assert info["temperature"] != 1
    for before, after in zip(best(lean_run).layers[-1].get_weights(), model.layers[-1].get_weights(), strict=True):
        assert np.allclose(before, after * info["temperature"], atol=1e-4)
    assert set(info["validation_calibration_error"]) == {"before", "after"}


def test_a_class_that_is_to_be_lifted_is_so_before_the_temperature(tiny_networks, monkeypatch, tmp_path, dataset):
    asked = []
    monkeypatch.setattr(fitting, "lift", lambda *given: asked.append(given) or np.eye(7)[1] * 1.5)
    fit(dataset, tmp_path / "run", settings(epochs=1, least_recall=0.4), verbose=0)
    assert asked[0][2] == 0.4
    training = read_part(dataset, "masked", "train")
    assert asked[0][3].sum() == (~held_out_of(dataset)).sum()
    info = metadata(tmp_path / "run")
    assert info["lifted"] == {"Disgust": 1.5}
    model = keras.models.load_model(tmp_path / "run/model.keras", compile=False)
    judged = training.take(held_out_of(dataset))
    right = model.predict(judged.images[..., None], verbose=0).argmax(axis=1) == judged.labels
    assert info["validation_accuracy"] == pytest.approx(right.mean(), abs=1e-4)
    before, after = (network.layers[-1].get_weights()[1] for network in (best(tmp_path / "run"), model))
    assert np.allclose(after * info["temperature"] - before, np.eye(7)[1] * 1.5, atol=1e-4)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_state(
    tiny_networks, monkeypatch, tmp_path, dataset, read_folder
):
    run, real = tmp_path / "run", fitting.FaceBatches.__getitem__
    kept = {}

    def poisoned(self, index):
        faces, targets, weights = real(self, index)
        if self.epoch == 1:
            kept.update(read_folder(run))
            targets = targets * np.float32("nan")
        return faces, targets, weights

    monkeypatch.setattr(fitting.FaceBatches, "__getitem__", poisoned)
    with pytest.raises(InputError, match=r"loss became nan at batch 1 in epoch 2; .*epoch 1 is kept.*--learning-rate"):
        fit(dataset, run, settings(), verbose=0)
    assert read_folder(run) == kept
    monkeypatch.setattr(fitting.FaceBatches, "__getitem__", real)
    fit(dataset, run, settings(), resume=True, verbose=0)
    assert epochs(run) == [1, 2]


def test_a_class_that_validation_leaves_nothing_of_is_named(tiny_networks, tmp_path, dataset):
    kept = {}

    def one_disgust(records):
        of_class = [r for r in records if r["split"] == "train" and r["class"] == "disgust"]
        first = min(of_class, key=lambda r: drawn_share("validation", 0, r["pixels_sha256"]))
        kept["share"] = drawn_share("validation", 0, first["pixels_sha256"]) + 1e-6
        return [r for r in records if r not in of_class or r is first]

    few = with_records(dataset, tmp_path / "few", one_disgust)
    with pytest.raises(InputError, match="too few pictures of Disgust"):
        fit(few, tmp_path / "run", settings(validation_share=kept["share"]), verbose=0)


def test_a_picture_that_cannot_be_read_is_named_before_training(tiny_networks, tmp_path, dataset):
    shutil.copytree(dataset, tmp_path / "data")
    (tmp_path / "data/masked/train/sad/3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"sad/3\.png"):
        fit(tmp_path / "data", tmp_path / "run", settings(), verbose=0)
    assert not (tmp_path / "run/history.csv").exists()


def test_another_architecture_is_named_on_resume(lean_run, dataset):
    with pytest.raises(InputError, match="with arch 'lean', not 'lean-small'"):
        fit(dataset, lean_run, settings(arch="lean-small"), resume=True, verbose=0)


def test_a_damaged_run_json_is_named(lean_run, tmp_path, dataset):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        fit(dataset, tmp_path / "run", settings(), resume=True, verbose=0)


def test_spreading_over_devices_is_refused_before_anything_is_made(tmp_path, dataset):
    with pytest.raises(InputError, match="--distribute needs"):
        fit(dataset, tmp_path / "run", settings(), distribute=True, verbose=0)
    assert not (tmp_path / "run").exists()


def test_more_devices_than_validation_pictures_are_refused(tiny_networks, monkeypatch, tmp_path, dataset):
    monkeypatch.setattr(fitting, "spread_over", lambda batch_size: [f"cpu:{k}" for k in range(48)])
    monkeypatch.setattr(fitting, "spread", lambda devices: None)
    with pytest.raises(InputError, match=r"^\d+ validation pictures cannot be split over 48 devices; raise valid"):
        fit(dataset, tmp_path / "run", settings(epochs=1), distribute=True, verbose=0)
    assert not (tmp_path / "run").exists()


def test_an_epoch_s_figures_are_the_mean_over_its_batches(tiny_networks, monkeypatch, tmp_path, dataset):
    batch_logs, real = [], keras.Model.train_on_batch

    def train_on_batch(self, *batch, **options):
        batch_logs.append(real(self, *batch, **options))
        return batch_logs[-1]

    monkeypatch.setattr(keras.Model, "train_on_batch", train_on_batch)
    fit(dataset, tmp_path / "run", settings(epochs=1, batch_size=8), verbose=0)
    assert len(batch_logs) == 4  # of 39 or so faces
    row = history(tmp_path / "run")[0]
    for name in ("loss", "accuracy"):
        of_batches = [float(logs[name]) for logs in batch_logs]
        assert row[name] == pytest.approx(np.mean(of_batches), rel=1e-5)
        assert len(set(of_batches)) > 1


def test_a_validation_loss_that_is_no_number_is_not_kept(tiny_networks, monkeypatch, tmp_path, dataset):
    monkeypatch.setattr(keras.Model, "evaluate", lambda *_, **__: {"loss": float("nan"), "accuracy": 0.5})
    with pytest.raises(InputError, match="validation loss became nan in epoch 1; no epoch was finished"):
        fit(dataset, tmp_path / "run", settings(), verbose=0)
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_of_a_run_killed_while_several_epochs_are_written_the_best_is_kept(
    tiny_networks, monkeypatch, tmp_path, dataset
):
    monkeypatch.setattr(run_folder, "MIN_WRITE_SECONDS", 3600.0)
    real, saved = run_folder.save_network, []

    def stopped(model, path):
        saved.append(path.stem)
        if saved.count("last") == 2:  # the first is of epoch 1, this one of epochs 2 and 3
            raise Stopped
        real(model, path)

    runs = [tmp_path / "uncut", tmp_path / "cut"]
    fit(dataset, runs[0], settings(epochs=3), verbose=0)
    monkeypatch.setattr(run_folder, "save_network", stopped)
    with pytest.raises(Stopped):
        fit(dataset, runs[1], settings(epochs=3), verbose=0)
    monkeypatch.setattr(run_folder, "save_network", real)
    fit(dataset, runs[1], settings(epochs=3), resume=True, verbose=0)
    assert epochs(runs[1]) == [1, 2, 3]
    weights = [best(run).get_weights() for run in runs]
    for one, other in zip(*weights, strict=True):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_the_best_network_is_of_the_history_s_best_epoch_when_epochs_that_are_done_again_turn_out_worse(
    tiny_networks, monkeypatch, tmp_path, dataset
):
    real, bests = run_folder.save_network, []

    def stopped(model, path):
        if path.stem != "last":
            bests.append(model.get_weights())
        elif len(bests) == 2:  # epoch 2, which was better than the first
            raise Stopped
        real(model, path)

    def judge(*right):
        results = iter([{"loss": 1.0, "accuracy": share} for share in right])
        monkeypatch.setattr(keras.Model, "evaluate", lambda *_, **__: next(results))

    judge(0.5, 0.9)
    monkeypatch.setattr(run_folder, "save_network", stopped)
    with pytest.raises(Stopped):
        fit(dataset, tmp_path / "run", settings(epochs=3), verbose=0)
    monkeypatch.setattr(run_folder, "save_network", real)
    judge(0.3, 0.3)
    fit(dataset, tmp_path / "run", settings(epochs=3), resume=True, verbose=0)
    assert metadata(tmp_path / "run")["best_epoch"] == 1
    for kept, first in zip(best(tmp_path / "run").get_weights(), bests[0], strict=True):
        assert np.array_equal(kept, first)


def test_fast_epochs_are_written_together(tiny_networks, monkeypatch, tmp_path, dataset):
    monkeypatch.setattr(run_folder, "MIN_WRITE_SECONDS", 3600.0)
    real, written = run_folder.save_network, []
    monkeypatch.setattr(run_folder, "save_network", lambda *given: written.append(given[1].stem) or real(*given))
    fit(dataset, tmp_path / "run", settings(epochs=3), verbose=0)
    assert written.count("last") == 2  # the first and the last
    rows = history(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    held_out = held_out_of(dataset)
    judged = read_part(dataset, "masked", "train").take(held_out)
    right = best(tmp_path / "run").predict(judged.images[..., None], verbose=0).argmax(axis=1) == judged.labels
    assert right.mean() == pytest.approx(max(row["val_accuracy"] for row in rows))


def test_a_run_at_work_keeps_others_off(tiny_networks, monkeypatch, tmp_path, dataset):
    left, kept = tmp_path / "run/checkpoints/.last.1234abcd.partial.keras", []

    def draw(history, path):
        left.write_bytes(b"half")
        with pytest.raises(OutputError, match=r"another run is writing .*/run; name another output"):
            fit(dataset, tmp_path / "run", settings(epochs=1), resume=True, verbose=0)
        kept.append(left.exists())

    monkeypatch.setattr(run_folder, "draw_curves", draw)
    fit(dataset, tmp_path / "run", settings(epochs=1), verbose=0)
    assert kept == [True]


@pytest.mark.parametrize("name", ["checkpoints/.last.1234abcd.partial.keras", "lean-0/.history.1234abcd.partial.csv"])
def test_what_a_killed_run_left_half_written_is_removed_on_resume(tiny_run, dataset, name):
    left = tiny_run / name
    left.parent.mkdir(exist_ok=True)  # fit-together has a folder a network
    left.write_bytes(b"half")
    fit(dataset, tiny_run, settings(epochs=1), resume=True, verbose=0)
    assert not left.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("checkpoints/last.keras", b"damaged"),
        ("history.csv", b""),
        ("history.csv", b"a,b\n1,x\n"),
        ("checkpoints/best-1.keras", None),
    ],
)
def test_a_damaged_run_is_named_on_resume(tiny_run, dataset, name, content):
    (tiny_run / "model.keras").unlink()
    (tiny_run / name).unlink()
    if content is not None:
        (tiny_run / name).write_bytes(content)
    with pytest.raises(InputError, match="it is damaged"):
        fit(dataset, tiny_run, settings(epochs=1), resume=True, verbose=0)


@pytest.mark.parametrize("wrong", ["initial", "teachers"])
def test_a_mistake_leaves_no_run_behind(tiny_networks, tmp_path, dataset, wrong):
    path = dataset / "dataset.json"
    with pytest.raises(InputError):
        fit(dataset, tmp_path / "run", settings(), verbose=0, **{wrong: [path] if wrong == "teachers" else path})
    assert not (tmp_path / "run").exists()
    assert [p.name for p in tmp_path.iterdir()] == []
