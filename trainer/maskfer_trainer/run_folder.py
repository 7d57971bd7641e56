"""The folder of a training run: what it holds, and how it is kept whole whenever it is cut short.

RUN/run.json                settings, data set
RUN/history.csv             a row an epoch
RUN/curves.png              loss and accuracy, drawn anew each epoch
RUN/checkpoints/last.keras  the whole state of training after the last epoch
RUN/checkpoints/best.keras  the network of the epoch with the best accuracy on validation faces
RUN/model.keras             that network, calibrated
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import keras

from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import whole_file, write_whole
from maskfer_trainer.curves import draw_curves

History = list[dict[str, float]]


class RunFolder(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes what a run leaves after each epoch, and ends it when the loss is no number any more."""

    def __init__(self, run: Path, history: History) -> None:
        super().__init__()
        self.run, self.history = run, history

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Keras calls this after each batch."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            kept = f"the state after epoch {len(self.history)} is kept" if self.history else "no epoch was finished"
            raise InputError(
                f"the loss became {loss} in epoch {len(self.history) + 1}, batch {batch + 1}; {kept} in {self.run}; "
                "train again with a lower --learning-rate"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keras calls this after each epoch."""
        logs = logs or {}
        before = max((row["val_accuracy"] for row in self.history), default=-1.0)
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.history.append({"epoch": epoch + 1, "learning_rate": rate, **logs})
        if logs["val_accuracy"] > before:
            self._save("best.keras")
        _write_history(self.run / "history.csv", self.history)
        draw_curves(self.history, self.run / "curves.png")
        # last, as resuming starts from it: whatever was cut short before is done again
        self._save("last.keras")

    def _save(self, name: str) -> None:
        with whole_file(self.run / "checkpoints" / name, overwrite=True) as partial:
            self.model.save(partial)


def open_run(run: Path, config: dict[str, Any], resume: bool) -> None:
    """Make the folder of a run, or check that it holds the run that is to go on.

    Raises:
        InputError: If there is no run to go on with, or it has another configuration.
        OutputError: If there is one already, or the folder cannot be made.
    """
    if not resume:
        if run.exists():
            raise OutputError(f"{run} is already there; give --resume to go on with it, or name another folder")
        try:
            (run / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{run} cannot be made: {error.strerror}") from error
        write_whole(run / "run.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        return
    try:
        started = json.loads((run / "run.json").read_bytes())
    except FileNotFoundError:
        raise InputError(f"{run} holds no run to go on with; leave out --resume to start one") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{run / 'run.json'} cannot be read: {error}") from None
    if started != config:
        raise InputError(
            f"{run} was started otherwise: {_difference(started, config)}; repeat that, or start a new run"
        )


def read_history(run: Path) -> History:
    """The rows of history.csv."""
    with (run / "history.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _write_history(path: Path, history: History) -> None:
    with whole_file(path, overwrite=True) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def _difference(started: Any, config: dict[str, Any]) -> str:
    """The first thing in which two configurations differ, in words."""

    def flat(said: Any) -> dict[str, Any]:
        rest = {**said} if isinstance(said, dict) else {}
        settings = rest.pop("settings", {})
        return {**(settings if isinstance(settings, dict) else {}), **rest}

    before, now = flat(started), flat(config)
    key = next(key for key in (*now, *before) if before.get(key) != now.get(key))
    return f"with {key} {before.get(key)!r}, not {now.get(key)!r}"
