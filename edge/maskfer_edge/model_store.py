"""Installed models: files written atomically, and one small file that records which of them runs.

STORE/<12 digits of the sha256>-<name>.tflite   a model; the digits are its ID
STORE/state.json                                see `model_state`

Whatever is missing or damaged here, `ModelStore.choose` names a model that runs, and reports one line.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from maskfer_edge.classifier import BUNDLED_MODELS
from maskfer_edge.errors import InputError, ModelError, OutputError
from maskfer_edge.files import atomic_file, read_bytes, sync_folder
from maskfer_edge.model_file import (
    DETECTOR,
    EXPRESSION,
    JSON_NAME,
    UNREADABLE,
    DetectorModel,
    Model,
    appendix,
    unpack,
    unpack_detector,
)
from maskfer_edge.model_state import BUNDLED, KINDS, Slot, State, read_state

STATE_NAME = "state.json"
ID_DIGITS = 12
MODEL_NAME = re.compile(rf"([0-9a-f]{{{ID_DIGITS}}})-(.+)\.tflite")
# Of the models that no slot names, so many of the newest are kept.
KEPT_OTHERS = 3
# The state is changed within milliseconds; longer waits are an error.
LOCK_TIMEOUT_S = 10.0
CHOOSE_AGAIN = "; choose again: maskfer-edge model use ID"

Reporter = Callable[[str], None]


def model_id(content: bytes) -> str:
    """The ID of a model file's bytes."""
    return hashlib.sha256(content).hexdigest()[:ID_DIGITS]


def read_model(content: bytes, name: str) -> Model | DetectorModel:
    """Read a model file of either kind, by the kind in its metadata. Raises ModelError as `unpack` does."""
    try:
        with appendix(content) as archive:
            kind = json.loads(archive.read(JSON_NAME))["kind"]
    except UNREADABLE:
        kind = EXPRESSION  # whose reader raises the right error
    return unpack_detector(content, name) if kind == DETECTOR else unpack(content, name)


@dataclass(frozen=True)
class StoredModel:
    """A model file of the store.

    Attributes:
        id: First digits of its sha256.
        name: What it was called when it was installed.
        path: Where it lies.
    """

    id: str
    name: str
    path: Path

    def __str__(self) -> str:
        return f"{self.id}-{self.name}"

    def read(self) -> Model | DetectorModel:
        """What is in it. Raises InputError if it cannot be read, ModelError if it is not what was installed."""
        content = read_bytes(self.path)
        if model_id(content) != self.id:
            raise ModelError(f"{self.path} is damaged")
        return read_model(content, str(self.path))


class ModelStore:
    """A folder of installed models; several programs may use it at a time."""

    def __init__(self, folder: Path, report: Reporter = lambda text: None) -> None:
        """Name the folder, which need not be there.

        Args:
            folder: The store.
            report: Receives a line for people when something here is not as it should be.
        """
        self.folder, self.report = folder, report
        self._reported_problem = ""

    def make(self) -> None:
        """Make the folder if it is not there. Raises OutputError."""
        if self.folder.is_dir():
            return
        with _write_errors(self.folder):
            self.folder.mkdir(parents=True)
            sync_folder(self.folder.parent)

    def models(self) -> list[StoredModel]:
        """The files that are there, by ID; they may be damaged."""
        try:
            found = [(MODEL_NAME.fullmatch(path.name), path) for path in sorted(self.folder.iterdir())]
        except OSError:  # which `state` reports
            return []
        return [StoredModel(match[1], match[2], path) for match, path in found if match]

    def get(self, model: str) -> StoredModel | None:
        """The file of an ID, if there is one."""
        return next((stored for stored in self.models() if stored.id == model), None)

    def title(self, model: str) -> str:
        """A model by its ID and name, for people."""
        return "the bundled one" if model == BUNDLED else str(self.get(model) or model)

    def find(self, query: str) -> StoredModel:
        """The model that a person means: by its ID or the beginning of it, or by its name.

        Raises:
            InputError: If there is none, or more than one.
        """
        models = self.models()
        found = [m for m in models if query in (m.id, m.name, str(m)) or (len(query) >= 4 and m.id.startswith(query))]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{query!r} may be {' or '.join(map(str, found))}; give the ID, the digits before the -")
        if query in BUNDLED_MODELS:
            raise InputError(
                f"{query} is a bundled network, not an installed model: "
                f'run with --model {query}, or model = "{query}" in maskfer.toml'
            )
        if not models:
            raise self._no_models()
        known = {BUNDLED: BUNDLED} | {text: str(m) for m in models for text in (m.id, m.name, str(m))}
        nearest = known[difflib.get_close_matches(query, known, 1, 0.0)[0]]
        raise InputError(f"{self.folder} holds no model {query!r}; the nearest is {nearest}")

    def _no_models(self) -> InputError:
        return InputError(f"{self.folder} holds no models; install one: maskfer-edge model install FILE")

    def state(self) -> State:
        """What is in use; if that cannot be read it is the bundled models, and a line is reported."""
        path, remedy = self.folder / STATE_NAME, ""
        if self.folder.is_file():
            raise InputError(f"{self.folder} is no folder of installed models; for one file give --model {self.folder}")
        try:
            return read_state(path.read_bytes())
        except FileNotFoundError:
            if not self.folder.is_dir():
                problem = f"{self.folder}, the folder of installed models, is not there"
            elif self.models():
                problem, remedy = f"{path} is missing", CHOOSE_AGAIN
            else:
                return State()
        except OSError as error:
            problem = f"{path} cannot be read: {error.strerror or error}"
        except ValueError as error:
            problem, remedy = f"{path} is damaged ({error})", CHOOSE_AGAIN
        if problem != self._reported_problem:  # once is enough
            self._reported_problem = problem
            self.report(f"{problem}; the bundled models are in use{remedy}")
        return State()

    def change(self, update: Callable[[State], State]) -> State:
        """Replace the state by what `update` makes of it, atomically; `update` may raise.

        Returns:
            The new state.

        Raises:
            OutputError: If it cannot be written, or others keep it locked.
        """
        with self._state_lock():
            before = self.state()
            after = update(before)
            if after != before:
                self._write(after)
        return after

    def _write(self, state: State) -> None:
        with atomic_file(self.folder / STATE_NAME, overwrite=True) as partial:
            partial.write_bytes(state.to_json().encode())
            # the service, which may write it too, has a strict umask; `model list` is for everybody
            partial.chmod(0o644)

    @contextmanager
    def installing(self) -> Iterator[None]:
        """Only one installation at a time. There is a state from now on, and what a killed one left is removed.

        Raises:
            OutputError: If another one is at work, or the folder cannot be written.
        """
        busy = f"another program installs a model in {self.folder}; wait until it is done"
        with self._lock(".install.lock", 0.0, busy):
            with self._state_lock(), _write_errors(self.folder):
                for leftover in self.folder.glob(".*.partial*"):
                    leftover.unlink(missing_ok=True)
                if not (self.folder / STATE_NAME).exists():
                    self._write(self.state())
            yield

    def installed(self, stored: StoredModel, kind: str, signed_by: str, *, use: bool) -> State:
        """Record a model whose file is there, and switch to it if `use`; the oldest that nobody needs are removed.

        Raises:
            OutputError: As `change`.
        """
        kept: set[str] = set()

        def update(state: State) -> State:
            signed = {model: signer for model, signer in state.signed_by.items() if model != stored.id}
            signed[stored.id] = signed_by
            if use:
                state = state.switched_to(kind, state.slot(kind).used(stored.id))
            # what a lost state has forgotten counts as older than all
            ids = [*(m.id for m in self.models() if m.id not in signed), *signed]
            named = state.named()
            kept.update(named, [model for model in ids if model not in named][-KEPT_OTHERS:])
            return replace(state, signed_by={model: signer for model, signer in signed.items() if model in kept})

        state = self.change(update)
        for old in self.models():
            if old.id not in kept:
                with suppress(OSError):  # it only takes up space
                    old.path.unlink()
        return state

    def use(self, model: str, kind: str) -> State:
        """Switch a kind to an installed model that was checked already, or to `BUNDLED`. Raises OutputError."""
        return self.change(lambda state: state.switched_to(kind, state.slot(kind).used(model)))

    def rollback(self, kind: str | None = None) -> tuple[str, Slot, Slot]:
        """Go back by one model; see `Slot.rolled_back`.

        Args:
            kind: None: the one that was switched last.

        Returns:
            The kind, its slot before and its slot now.

        Raises:
            InputError: If there is nothing to go back to, or it is damaged.
            OutputError: As `change`.
        """
        if not self.folder.is_dir():
            raise self._no_models()
        done: list[tuple[str, Slot, Slot]] = []

        def update(state: State) -> State:
            chosen = kind or state.switched
            before, after = state.slot(chosen), state.slot(chosen).rolled_back()
            if after.in_use == before.in_use:
                others = [
                    f"; rollback --kind {other} goes back to {self.title(earlier)}"
                    for other in KINDS
                    if (earlier := state.slot(other).rolled_back().in_use) != state.slot(other).in_use
                ]
                now = self.title(before.in_use)
                raise InputError(
                    f"there is no {chosen} model to go back to from {now}; nothing was changed{''.join(others)}"
                )
            self._checked(after.in_use, chosen)
            done.append((chosen, before, after))
            return state.switched_to(chosen, after)

        self.change(update)
        return done[0]

    def choose(self, slot: Slot, kind: str) -> StoredModel | None:
        """The model in use if it is intact, else the last good one, else the bundled one (None), which is reported."""
        problems = []
        for model in dict.fromkeys((slot.in_use, slot.last_good, BUNDLED)):
            try:
                chosen = self._checked(model, kind)
            except InputError as error:
                problems.append(str(error))
                continue
            break
        if problems:
            self.report(f"{'; '.join(problems)}; the {kind} model used instead is {self.title(model)}")
        return chosen

    def choose_each(self, state: State, kinds: Iterable[str]) -> dict[str, StoredModel | None]:
        """`choose` for each of some kinds."""
        return {kind: self.choose(state.slot(kind), kind) for kind in kinds}

    def _checked(self, model: str, kind: str) -> StoredModel | None:
        """An installed model, intact and of a kind; None: the bundled one. Raises InputError."""
        if model == BUNDLED:
            return None
        stored = self.get(model)
        if stored is None:
            raise InputError(f"model {model} is not in {self.folder} any more")
        found_kind = stored.read().info.kind
        if found_kind != kind:
            raise InputError(f"{stored.path} is of kind {found_kind!r}, not {kind!r}")
        return stored

    @contextmanager
    def _state_lock(self) -> Iterator[None]:
        busy = f"another program keeps the state of {self.folder} locked; try again"
        with self._lock(".state.lock", LOCK_TIMEOUT_S, busy):
            yield

    @contextmanager
    def _lock(self, name: str, wait_s: float, busy: str) -> Iterator[None]:
        with _write_errors(self.folder):
            # never through a link that someone has put there
            lock = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            if not os.access(self.folder, os.W_OK):
                os.close(lock)
                raise PermissionError(errno.EACCES, "may not be changed by this user, or is on a read-only disk")
        try:
            deadline = time.monotonic() + wait_s
            while not _try_flock(lock):
                if time.monotonic() >= deadline:
                    raise OutputError(busy)
                time.sleep(0.02)
            yield
        finally:
            os.close(lock)


def _try_flock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "; run it with sudo, or as the folder's owner" if isinstance(error, PermissionError) else ""
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}{remedy}") from error
