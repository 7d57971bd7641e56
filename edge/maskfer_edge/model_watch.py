"""Proves installed models while they run: good ones stay, bad ones make way for the last good.

start ──► models opened ──► first frame ──► results for 10 s, or an end in order ──► good
  │                             └──(a frame without a result for 60 s)──► put back, the run ends
  └──(for the fourth time in a row without having come to good)──► put back, the last good one runs at once

What ends between "models opened" and "first frame", by the camera's fault, or while no frame comes, counts for nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from maskfer_edge.cameras import Frame
from maskfer_edge.capture import Capture
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import INPUT_SIZE
from maskfer_edge.errors import MaskferError, ModelError, OutputError
from maskfer_edge.model_file import EXPRESSION
from maskfer_edge.model_state import MAX_TRIES, Slot, State
from maskfer_edge.model_store import ModelStore, StoredModel

# A frame without a result for so long, and the model on trial has failed.
RESULT_TIMEOUT_S = 60.0
# Results for so long, and it is good.
PROVED_S = 10.0
# Without a frame in work for so long, what ends the process is not the model's fault.
IDLE_S = 5.0
# For a loop that goes on after all to end in order.
GRACE_S = 2.0

Terminate = Callable[[MaskferError], object]


def start(
    store: ModelStore, kinds: Sequence[str], terminate: Terminate
) -> tuple[Mapping[str, StoredModel | None], TrialWatch]:
    """What a run is to begin with, and what watches it. A model on trial has one more try noted.

    Never raises for errors of the store: the last good model runs then, else the bundled one.

    Args:
        store: Of installed models.
        kinds: Of models that the run takes from there.
        terminate: See `TrialWatch`.

    Returns:
        Kind to the model (None: the bundled one), and the watch.
    """
    state = store.state()
    if any(state.slot(kind).on_trial for kind in kinds):
        try:
            state = store.change(lambda state: _count_tries(store, state, kinds))
        except (OutputError, OSError) as error:
            # a try that cannot be noted would be repeated for ever
            store.report(f"{error}; the last good models are used, not those on trial")
            for kind in kinds:
                good = state.slot(kind).last_good
                state = state.with_slot(kind, Slot(good, good))
    chosen = store.choose_each(state, kinds)
    on_trial = {
        kind: model.id
        for kind, model in chosen.items()
        if model is not None and state.slot(kind).on_trial and state.slot(kind).in_use == model.id
    }
    return chosen, TrialWatch(store, on_trial, terminate, tuple(kind for kind in kinds if state.slot(kind).put_back))


def _count_tries(store: ModelStore, state: State, kinds: Sequence[str]) -> State:
    for kind in kinds:
        slot = state.slot(kind)
        if slot.on_trial and slot.tries < MAX_TRIES:
            state = state.with_slot(kind, replace(slot, tries=slot.tries + 1))
        elif slot.on_trial:
            reason = f"{slot.tries} starts in a row ended before it was proved"
            store.report(f"{store.title(slot.in_use)}: {reason}; {store.title(slot.last_good)} is put back")
            state = state.with_slot(kind, slot.failed(reason))
    return state


class TrialWatch:
    """Judges the models on trial of a run; does nothing if there are none.

    Attributes:
        put_back: Kinds of which the run has the last good model, as the newest has failed before.
        source_failed: Whether what ends the run is the source's error: a camera's, or a picture's that is damaged.
    """

    source_failed = False

    def __init__(
        self,
        store: ModelStore | None,
        on_trial: Mapping[str, str],
        terminate: Terminate,
        put_back: tuple[str, ...] = (),
    ) -> None:
        """Set up.

        Args:
            store: To note the judgement in.
            on_trial: Kind to the ID of each model on trial.
            terminate: Called, by another thread, with the error when a loop hangs in native code, so that no
                exception can end it: only the end of the process does.
            put_back: See the attributes.
        """
        self.put_back = put_back
        self._store, self._on_trial, self._terminate = store, dict(on_trial), terminate
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model trial", daemon=True)
        self._try_counted = False
        self._busy_since: float | None = None
        self._idle_since = 0.0
        self._first_result: float | None = None
        self._error: ModelError | None = None
        self._when_proved: list[Callable[[], None]] = []

    @property
    def on(self) -> bool:
        """Whether there is anything left to judge."""
        return bool(self._on_trial)

    def when_proved(self, action: Callable[[], None]) -> None:
        """Do something in the loop's thread once the models are good; at once, if none is on trial."""
        if self.on:
            self._when_proved.append(action)
        else:
            action()

    def models_opened(self) -> None:
        """The models could be opened; whether there is a camera is not their business."""
        self._record_try(-1)

    def frame(self) -> None:
        """A frame comes to the loop."""
        if not self.on:
            return
        with self._lock:
            self._busy_since = time.monotonic()
            if not self._try_counted:
                self._record_try(+1)
        if self._thread.ident is None:
            self._thread.start()

    def result(self, classifier: Classifier) -> None:
        """The loop has made something of the frame.

        Args:
            classifier: Run on an empty picture, once, as there may be no face in view for hours.

        Raises:
            ModelError: If the models on trial have failed meanwhile.
        """
        if self._error is not None:
            self._closed.set()
            raise self._error
        if not self.on:
            return
        now = time.monotonic()
        if self._first_result is None:
            if EXPRESSION in self._on_trial:
                classifier(np.zeros((INPUT_SIZE, INPUT_SIZE), dtype=np.uint8))
            self._first_result = now
        self._busy_since, self._idle_since = None, now
        if now - self._first_result >= PROVED_S:
            self._prove()
            for action in self._when_proved:
                action()

    def close(self, *, innocent: bool) -> None:
        """The run ends.

        Args:
            innocent: Whether that is in order, or for a reason that has nothing to do with models; then the results so
                far, if there are any, are proof.
        """
        self._closed.set()
        innocent = innocent or self.source_failed
        if self.on and innocent and self._first_result is not None and self._error is None:
            self._prove()

    def _record_try(self, delta: int) -> None:
        self._try_counted = delta > 0
        self._change(lambda slot: replace(slot, tries=max(0, slot.tries + delta)))

    def _prove(self) -> None:
        with self._lock:
            if self._error is None:
                self._change(Slot.proved)
                self._on_trial = {}
                self._closed.set()

    def _change(self, update: Callable[[Slot], Slot]) -> None:
        """Change the slots of the models that this run has on trial."""
        if self._store is None or not self.on:
            return

        def change(state: State) -> State:
            for kind, model in self._on_trial.items():
                slot = state.slot(kind)
                if slot.on_trial and slot.in_use == model:  # someone may have chosen another one meanwhile
                    state = state.with_slot(kind, update(slot))
            return state

        try:
            self._store.change(change)
        except (OutputError, OSError) as error:
            self._store.report(f"what the trial of {self._titles()} showed cannot be noted: {error}")

    def _titles(self) -> str:
        assert self._store is not None
        return " and ".join(map(self._store.title, self._on_trial.values()))

    def _watch(self) -> None:
        """Runs beside the loop, as a loop that hangs cannot watch itself."""
        while not self._closed.wait(min(1.0, RESULT_TIMEOUT_S / 10)):
            since, now = self._busy_since, time.monotonic()
            if since is not None and now - since > RESULT_TIMEOUT_S:
                break
            with self._lock:
                if self._try_counted and self._busy_since is None and now - self._idle_since > IDLE_S:
                    self._record_try(-1)
        with self._lock:
            if self._closed.is_set():
                return
            reason = f"a frame had no result within {RESULT_TIMEOUT_S:g} s"
            error = ModelError(f"{self._titles()}: {reason}; the last good model is put back, start again")
            self._change(lambda slot: slot.failed(reason))
            self._error = error  # not before that is noted, as it may end the program
        if not self._closed.wait(GRACE_S):
            self._terminate(error)


class WatchedCapture(Capture):
    """Notifies a watch of each frame that it hands over, and if the source fails."""

    def __init__(self, watch: TrialWatch, *arguments: Any, **options: Any) -> None:
        """As `Capture`, with the watch before."""
        super().__init__(*arguments, **options)
        self._watch = watch

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames as `Capture` does."""
        frames = super().__iter__()
        while True:
            try:
                frame = next(frames, None)
            except Exception:
                self._watch.source_failed = True
                raise
            if frame is None:
                return
            self._watch.frame()
            yield frame
