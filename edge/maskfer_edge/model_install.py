"""From a fetched model to an installed one: tried out on this machine, then stored and switched to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from maskfer_edge.errors import DependencyError, InputError, MaskferError, ModelError
from maskfer_edge.files import atomic_file, check_space, read_bytes
from maskfer_edge.model_fetch import FetchedModel
from maskfer_edge.model_file import DetectorModel
from maskfer_edge.model_store import ModelStore, StoredModel, model_id, read_model
from maskfer_edge.quiet import quiet_native_libraries

# The oldest boards need some 10 s for the libraries alone.
TRIAL_TIMEOUT_S = 60.0
TRIAL_FRAMES = 5
# Room for the state file, and for whoever else writes to that disk.
SPARE_BYTES = 1_000_000
TRIAL_PROGRAM = "from maskfer_edge.model_install import trial_process; trial_process()"


@dataclass(frozen=True)
class Trial:
    """What a model did with the demonstration's frames.

    Attributes:
        frames: Shown to it.
        faces: Found in them, and classified.
        ms: A frame took, with both networks; the median.
    """

    frames: int
    faces: int
    ms: float


TryModel = Callable[[Path, str], Trial]


def install(
    store: ModelStore, fetched: FetchedModel, signed_by: str, *, use: bool, try_model: TryModel | None = None
) -> tuple[StoredModel, Trial | None]:
    """Try a model out and put it into the store; whatever fails, the store stays as it was.

    Args:
        store: Its folder must be there.
        fetched: The model, of which origin and signature were checked.
        signed_by: See `check_signature`.
        use: Whether to switch to it.
        try_model: None: `try_out`.

    Returns:
        The model and what its trial run showed; None if it is in use already and nothing was done.

    Raises:
        ModelError: If it does not keep the contract, or its trial run fails.
        OutputError: If the disk is full, the store cannot be written, or another installation is at work.
    """
    kind = read_model(fetched.content, fetched.source).info.kind
    model, try_model = model_id(fetched.content), try_model or try_out
    with store.installing():
        stored = store.get(model) or StoredModel(model, fetched.name, store.folder / f"{model}-{fetched.name}.tflite")
        intact = _is_intact(stored)
        if intact and store.state().slot(kind).in_use == model:
            return stored, None
        if intact:
            trial = try_model(stored.path, fetched.source)
            store.installed(stored, kind, signed_by, use=use)
            return stored, trial
        check_space(store.folder, len(fetched.content) + SPARE_BYTES)
        with atomic_file(stored.path, overwrite=True) as partial:
            partial.write_bytes(fetched.content)
            # as for the state, whatever the umask
            partial.chmod(0o644)
            trial = try_model(partial, fetched.source)
        try:
            store.installed(stored, kind, signed_by, use=use)
        except BaseException:
            if model not in store.state().signed_by:
                stored.path.unlink(missing_ok=True)
            raise
    return stored, trial


def use(store: ModelStore, query: str, *, try_model: TryModel | None = None) -> tuple[StoredModel, str, Trial | None]:
    """Switch to an installed model, after another trial run.

    Args:
        store: Where it is.
        query: See `ModelStore.find`.
        try_model: None: `try_out`.

    Returns:
        The model, its kind and what its trial run showed; None if it is in use already.

    Raises:
        InputError: If there is no such model; ModelError if it is damaged or its trial run fails.
        OutputError: If the store cannot be written, or an installation is at work, which may remove the model.
    """
    store.find(query)  # a missing model is reported to users without write permission, too
    with store.installing():
        stored = store.find(query)
        kind = stored.read().info.kind
        if store.state().slot(kind).in_use == stored.id:
            return stored, kind, None
        trial = (try_model or try_out)(stored.path, str(stored.path))
        store.use(stored.id, kind)
    return stored, kind, trial


def try_out(path: Path, name: str) -> Trial:
    """Run a model on a few frames of the demonstration in a process of its own, which may crash or hang.

    Args:
        path: The model file.
        name: For messages.

    Raises:
        ModelError: If it crashes, hangs, fails, or gives no useful results.
        DependencyError: If its process cannot be started.
    """
    command = [sys.executable, "-P", "-c", TRIAL_PROGRAM, str(path), name]
    try:
        completed = subprocess.run(
            command, capture_output=True, text=True, timeout=TRIAL_TIMEOUT_S, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{name} did not end its trial run within {TRIAL_TIMEOUT_S:g} s; nothing was changed"
        ) from None
    except OSError as error:  # as root this has become the store's owner, to whom others' homes are closed
        raise DependencyError(
            f"{sys.executable} cannot be run by the store's owner: {error.strerror or error}; nothing was changed; "
            "install maskfer where they can read it, such as in /opt/maskfer"
        ) from error
    if completed.returncode < 0:
        crash = signal.Signals(-completed.returncode).name
        raise ModelError(f"{name} crashed in its trial run ({crash}); nothing was changed")
    if completed.returncode:
        reason = (completed.stderr.strip().splitlines() or ["without a word"])[-1]
        raise ModelError(f"{name} failed in its trial run: {reason.removeprefix(f'{name} ')}; nothing was changed")
    return Trial(**json.loads(completed.stdout.splitlines()[-1]))


def trial_process() -> None:
    """What the process of `try_out` does: print a `Trial`, or a one-line error."""
    path, name = sys.argv[1:]
    try:
        with quiet_native_libraries():
            trial = _trial(Path(path), name)
        sys.stdout.write(json.dumps(asdict(trial)))
    except MaskferError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


def _trial(path: Path, name: str) -> Trial:
    # the libraries are loaded here only, as a store is kept without them
    from maskfer_edge.classifier import Classifier, default_model
    from maskfer_edge.detector import Detector, open_detector
    from maskfer_edge.learned_detector import LearnedDetector
    from maskfer_edge.loop import Pipeline
    from maskfer_edge.sources import open_camera
    from maskfer_edge.tracker import Tracker

    model = read_model(read_bytes(path), name)
    if isinstance(model, DetectorModel):
        classifier = Classifier(default_model())
        detector: Detector = LearnedDetector(model)
    else:
        classifier = Classifier(model)
        # one that it was made for
        detector = open_detector("learned" if "learned" in model.info.crop_margins else "haar")
    margin = classifier.model.info.crop_margins.get(detector.name, 0.0)
    with open_camera("demo") as camera:
        frames = list(islice(iter(camera.read, None), TRIAL_FRAMES))
    pipeline = Pipeline(detector, classifier, Tracker(), margin)
    results = [pipeline.process(frame) for frame in frames]
    faces = [face for result in results for face in result.faces]
    if not faces:
        raise ModelError(f"{name} finds no face in the demonstration")
    # the classifier makes equal scores of what are no numbers
    if all(len(set(face.scores.values())) == 1 for face in faces):
        raise ModelError(f"{name} gives every expression the same score")
    return Trial(len(frames), len(faces), median(result.latency_ms for result in results))


def _is_intact(stored: StoredModel) -> bool:
    try:
        stored.read()
    except InputError:
        return False
    return True
