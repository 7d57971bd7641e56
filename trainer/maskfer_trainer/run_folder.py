"""The folder of a training run: what it holds, and how it is kept whole whenever it is cut short.

RUN/run.json                  settings, data set
RUN/history.csv               a row an epoch, written like the rest every `MIN_WRITE_SECONDS` and at the end
RUN/curves.png                loss and accuracy
RUN/checkpoints/last.keras    the whole state of training when it was last written
RUN/checkpoints/best-7.keras  the network of the epoch with the best accuracy on validation faces, here the seventh
RUN/model.keras               that network, calibrated
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from maskfer_edge.contract import FloatArray
from maskfer_edge.errors import InputError
from maskfer_edge.files import atomic_file, atomic_folder, lock, write_atomically
from maskfer_trainer.checks import check_run
from maskfer_trainer.curves import draw_curves

History = list[dict[str, float]]
LAST, AVERAGED = "checkpoints/last.keras", "checkpoints/averaged.npz"
# An epoch is written at once if the last one was written so long ago; on a GPU writing would take longer than learning.
MIN_WRITE_SECONDS = 10.0


class RunFolder(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes what a run leaves after epochs, and ends it when the loss is no number any more.

    Attributes:
        trained: The weights that training goes on with, if they are not the model's, which are validated and kept.
    """

    def __init__(self, run: Path, history: History, epochs: int) -> None:
        super().__init__()
        self.run, self.history, self.epochs = run, history, epochs
        self._written, self._written_at = len(history), -math.inf
        self._best: list[FloatArray] | None = None
        self.trained: list[FloatArray] | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Keras calls this after each batch."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            self._refuse(f"the loss became {loss} at batch {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keras calls this after each epoch."""
        logs = logs or {}
        if not math.isfinite(logs["val_loss"]):
            self._refuse(f"the validation loss became {logs['val_loss']}")
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.history.append({"epoch": epoch + 1, "learning_rate": rate, **logs})
        if best_of(self.history) is self.history[-1]:
            self._best = weights_of(self.model)
        if time.monotonic() >= self._written_at + MIN_WRITE_SECONDS or len(self.history) == self.epochs:
            self._write()

    def _write(self) -> None:
        write_history(self.run / "history.csv", self.history)
        draw_curves(self.history, self.run / "curves.png")
        best = best_path(self.run, self.history)
        if self._best is not None:
            self._save_with(self._best, best)
            self._best = None
        # resuming starts from last.keras, so it comes last: whatever was cut short before is done again
        if self.trained is None:
            save_network(self.model, self.run / LAST)
        else:
            with atomic_file(self.run / AVERAGED, overwrite=True) as partial:
                np.savez(partial, *weights_of(self.model), epochs=len(self.history))
            self._save_with(self.trained, self.run / LAST)
        for other in best.parent.glob("best-*.keras"):  # not before: last.keras of an earlier epoch needs its own
            if other != best:
                other.unlink()
        self._written, self._written_at = len(self.history), time.monotonic()

    def _save_with(self, weights: list[FloatArray], path: Path) -> None:
        own = weights_of(self.model)
        self.model.set_weights(weights)
        save_network(self.model, path)
        self.model.set_weights(own)

    def _refuse(self, what: str) -> None:
        kept = f"the state after epoch {self._written} is kept" if self._written else "no epoch was finished"
        raise InputError(
            f"{what} in epoch {len(self.history) + 1}; {kept} in {self.run}; "
            "train again with a lower --learning-rate, into another folder"
        )


@contextmanager
def open_run(run: Path, config: dict[str, Any], resume: bool) -> Iterator[Callable[[], None]]:
    """Keep other runs off a folder, be it a new one or that of a run that is to go on.

    Yields:
        What makes a new folder, whole or not at all, to be called once all else was found right. It raises OutputError
        if that cannot be made.

    Raises:
        InputError: If there is no run to go on with, or it has another configuration.
        OutputError: If there is one already, or another process goes on with it.
    """
    with ExitStack() as stack:
        check_run(run, resume)
        if resume:
            _reopen(run, config, stack)
            yield lambda: None
            return
        yield lambda: _create(run, config, stack)


def _reopen(run: Path, config: dict[str, Any], stack: ExitStack) -> None:
    try:
        file = stack.enter_context((run / "run.json").open("rb+"))
        lock(file, run)
        started = json.loads(file.read())
    except (OSError, ValueError) as error:
        raise InputError(f"{run / 'run.json'} cannot be read: {error}") from None
    if started != config:
        raise InputError(
            f"{run} was started otherwise: {_difference(started, config)}; repeat that, or start a new run"
        )
    for partial in [*run.rglob(".*.partial*")]:  # of a run that was killed while it wrote
        partial.unlink()


def _create(run: Path, config: dict[str, Any], stack: ExitStack) -> None:
    with atomic_folder(run) as folder:
        (folder / "checkpoints").mkdir()
        write_atomically(folder / "run.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        lock(stack.enter_context((folder / "run.json").open("rb+")), run)


def save_network(model: keras.Model, path: Path) -> None:
    """Write a `.keras` file; an existing one is replaced when the new one is whole."""
    with atomic_file(path, overwrite=True) as partial:
        model.save(partial)


def best_of(history: History) -> dict[str, float]:
    """The row of the first epoch with the best accuracy on the validation part."""
    return max(history, key=lambda row: row["val_accuracy"])


def best_path(run: Path, history: History) -> Path:
    """Where the network of the epoch that `best_of` gives is kept."""
    return run / f"checkpoints/best-{best_of(history)['epoch']:.0f}.keras"


@contextmanager
def reading_run(run: Path) -> Iterator[None]:
    """Raise InputError, which names the run, where reading what it keeps fails."""
    try:
        yield
    except Exception as error:  # Keras and numpy raise many kinds for files that they cannot read
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{run} cannot be gone on with, it is damaged: {reason}; start a new run") from error


def history_of(model: keras.Model, run: Path, steps: int) -> History:
    """The rows of history.csv of the epochs, of so many steps each, that a kept model has behind it.

    Raises:
        OSError, TypeError, ValueError: If the file cannot be read, or lacks some.
    """
    done = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) // steps
    with (run / "history.csv").open(newline="") as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)][:done]
    if not 0 < done == len(history):
        raise ValueError(f"history.csv has {len(history)} epochs, last.keras {done}")
    return history


def load_last(run: Path, steps: int, custom_objects: Mapping[str, Any] | None = None) -> tuple[keras.Model, History]:
    """The model of last.keras, with its optimizer, and its history; see `history_of`.

    Raises:
        InputError: If the run is damaged.
    """
    with reading_run(run):
        model = keras.models.load_model(run / LAST, custom_objects=custom_objects)
        history = history_of(model, run, steps)
        best_path(run, history).stat()
        return model, history


def load_averaged(run: Path, model: keras.Model, epochs: int) -> list[FloatArray]:
    """The mean of the weights after so many epochs; the model's own weights if that was not written any more."""
    with reading_run(run), np.load(run / AVERAGED) as kept:
        if int(kept["epochs"]) == epochs:
            return [kept[f"arr_{place}"] for place in range(len(model.weights))]
    return weights_of(model)


def weights_of(model: keras.Model) -> list[FloatArray]:
    """Copies, as a backend may use the memory of its own again."""
    return [np.array(weights) for weights in model.get_weights()]


def seed_dropout(model: keras.Model, seed: int, epoch: int) -> None:
    """Let dropout depend on seed and epoch alone; Keras does not keep where its generators stand."""
    if keras.backend.backend() == "torch":  # where it does not ask them
        keras.utils.set_random_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
    for index, layer in enumerate(model.layers):
        if generator := getattr(layer, "seed_generator", None):
            state = np.random.SeedSequence([seed, epoch, index]).generate_state(2)
            generator.state.assign(state.astype(generator.state.dtype))


def write_history(path: Path, history: History) -> None:
    """Write a CSV file with a row an epoch; an existing one is replaced."""
    with atomic_file(path, overwrite=True) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def _difference(started: Any, config: dict[str, Any]) -> str:
    """The first thing in which two configurations differ, in words."""

    def flat(config: Any) -> dict[str, Any]:
        rest = {**config} if isinstance(config, dict) else {}
        settings = rest.pop("settings", {})
        return {**(settings if isinstance(settings, dict) else {}), **rest}

    before, now = flat(started), flat(config)
    key = next(key for key in (*now, *before) if before.get(key) != now.get(key))
    return f"with {key} {before.get(key)!r}, not {now.get(key)!r}"
