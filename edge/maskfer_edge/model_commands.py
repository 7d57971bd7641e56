"""The commands `maskfer-edge model ...`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskfer_edge.command_line import make_app, print_json, print_result, say
from maskfer_edge.errors import InputError

if TYPE_CHECKING:  # OpenCV and the runtime are loaded by the commands, so that --help needs neither
    from maskfer_edge.model_install import Trial
    from maskfer_edge.model_state import Slot, State
    from maskfer_edge.model_store import ModelStore, StoredModel

model_app = make_app("Installed models: signed, tried out before they run, and put back if they fail.")

DEFAULT_STORE = Path("/var/lib/maskfer/models")
DEFAULT_SIGNERS = Path("/etc/maskfer/allowed_signers")


def _absolute(store: Path) -> Path:
    # while the folder that we are in counts, and with the links in it, which count as well: see _become_owner
    return Path(os.path.abspath(store))  # noqa: PTH100 (Path.resolve follows them)


StoreOption = Annotated[Path, typer.Option(help="Folder of installed models.", callback=_absolute)]
KindOption = Annotated[str | None, typer.Option(help="expression or detector.", show_default=False)]


@model_app.command("install")
def install_command(
    source: Annotated[str, typer.Argument(metavar="FILE|URL", help="A model file, or its http(s) address.")],
    store: StoreOption = DEFAULT_STORE,
    signers: Annotated[
        Path, typer.Option(help="OpenSSH's file of who may sign models; revoked_signers beside it: who may no longer.")
    ] = DEFAULT_SIGNERS,
    sha256: Annotated[str | None, typer.Option(help="Refuse any other file.", show_default=False)] = None,
    allow_unsigned: Annotated[bool, typer.Option("--allow-unsigned", help="Take a model without signature.")] = False,
    no_use: Annotated[bool, typer.Option("--no-use", help="Install it only; `model use` switches to it.")] = False,
) -> None:
    """Check a model's signature (FILE.sig beside it), try it out, install it, and switch to it.

    What is refused changes nothing. It is on trial then: if runs give no results, the last good one comes back.
    """
    from maskfer_edge.model_fetch import check_sha256, check_signature, fetch
    from maskfer_edge.model_file import Model
    from maskfer_edge.model_install import install
    from maskfer_edge.model_store import ModelStore, read_model

    fetched = fetch(source)
    if sha256 is not None:
        check_sha256(fetched, sha256)
    signed_by = check_signature(fetched, signers, allow_unsigned=allow_unsigned, report=say)
    model = read_model(fetched.content, fetched.source)
    models = ModelStore(store, say)
    _become_owner(store)
    models.make()
    stored, trial = install(models, fetched, signed_by, use=not no_use)
    if trial is None:
        print_result(f"{stored}: installed and in use already")
        return
    print_result(f"{stored}: {model.info.kind} model, {_signature_text(signed_by)}; trial run: {_trial_text(trial)}")
    if no_use:
        place = "" if store == DEFAULT_STORE else f" --store {store}"
        say(f"installed, not in use; to switch to it: maskfer-edge model use {stored.id}{place}")
    else:
        _say_switched(models, model.info.kind)
    if isinstance(model, Model) and "learned" not in model.info.crop_margins:
        detectors = " or ".join(model.info.crop_margins)
        say(f"it was not made for the default detector: run with --detector {detectors}")


@model_app.command("list")
def list_command(
    store: StoreOption = DEFAULT_STORE,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the installed models and the bundled ones, and which are in use."""
    from maskfer_edge.model_state import BUNDLED, KINDS
    from maskfer_edge.model_store import STATE_NAME, ModelStore

    models = ModelStore(store, say)
    for path in (store, store / STATE_NAME, *(stored.path for stored in models.models())):
        if path.exists() and not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read by you; run it with sudo")
    state = models.state()
    found = [(stored, *_inspect(stored)) for stored in models.models()]
    chosen = models.choose_each(state, KINDS)
    if json_:
        listed = [
            {"id": m.id, "name": m.name, "kind": kind, "signed_by": state.signed_by.get(m.id, ""), "problem": problem}
            for m, kind, problem in found
        ]
        runs = {kind: model.id if model else BUNDLED for kind, model in chosen.items()}
        slots = {kind: {**asdict(state.slot(kind)), "runs": runs[kind]} for kind in KINDS}
        print_json({"store": str(store), **slots, "models": listed})
        return
    for kind in KINDS:
        rows = [(BUNDLED, "", _status(state.slot(kind), BUNDLED))]
        for stored, model_kind, _ in found:
            if model_kind == kind:
                details = [_status(state.slot(kind), stored.id), _signature_text(state.signed_by.get(stored.id, ""))]
                rows.append((stored.id, stored.name, ", ".join(filter(None, details))))
        print_result(f"{kind} models")
        for name, title, status in rows:
            print_result(
                f"  {'*' if name == state.slot(kind).in_use else ' '} {name:12}  {title:24}  {status}".rstrip()
            )
    for stored, kind, problem in found:
        if not kind:
            print_result(f"of no use: {stored}: {problem}")


@model_app.command("use")
def use_command(
    model: Annotated[str, typer.Argument(metavar="ID|bundled", help="An ID of `model list`, or a name.")],
    store: StoreOption = DEFAULT_STORE,
    kind: KindOption = None,
) -> None:
    """Try an installed model out again and switch to it, or back to the bundled ones (of both kinds, or of --kind)."""
    from maskfer_edge.errors import InputError
    from maskfer_edge.model_install import use
    from maskfer_edge.model_state import BUNDLED, KINDS
    from maskfer_edge.model_store import ModelStore

    _check_kind(kind)
    models = ModelStore(store, say)
    _become_owner(store)
    if model == BUNDLED:
        for chosen in KINDS if kind is None else [kind]:
            models.use(BUNDLED, chosen)
            print_result(f"{chosen}: the bundled model is in use")
        _say_restart(store)
        return
    if kind is not None:
        raise InputError("--kind goes with bundled alone, as each model has its own kind; leave it out")
    stored, model_kind, trial = use(models, model)
    if trial is None:
        print_result(f"{stored}: in use already")
        return
    print_result(f"{stored}: {model_kind} model; trial run: {_trial_text(trial)}")
    _say_switched(models, model_kind)


@model_app.command("rollback")
def rollback_command(store: StoreOption = DEFAULT_STORE, kind: KindOption = None) -> None:
    """Go back by one model: from one on trial to the last good one, else to the good one before it.

    Of the kind that was switched last, or of --kind. A second time it comes forward again.
    """
    from maskfer_edge.model_store import ModelStore

    _check_kind(kind)
    models = ModelStore(store, say)
    _become_owner(store)
    model_kind, before, after = models.rollback(kind)
    print_result(f"{model_kind}: back from {models.title(before.in_use)} to {models.title(after.in_use)}")
    _say_restart(store)


def _check_kind(kind: str | None) -> None:
    from maskfer_edge.errors import InputError
    from maskfer_edge.model_state import KINDS

    if kind is not None and kind not in KINDS:
        raise InputError(f"--kind takes {' or '.join(KINDS)}; received {kind!r}")


def _become_owner(store: Path) -> None:
    """Go on as the store's owner, for good, if this is root.

    So whoever runs the models can read and change what is made here, a new model's first run is not root's, and no
    link that the owner has put into the path leads root astray.
    """
    if os.geteuid() == 0 and (owner := _owner(store)) is not None:
        # the folder that root is in, such as /root, may be closed to the owner
        os.chdir("/")
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _owner(path: Path) -> os.stat_result | None:
    """Of the first part of an absolute path that is not root's; None if all that is there is."""
    with suppress(OSError):  # the rest is not there
        for ancestor in (*reversed(path.parents), path):
            for stat in (Path.lstat, Path.stat):  # a link of root's may lead to what is another's
                if (found := stat(ancestor)).st_uid:
                    return found
    return None


def _inspect(stored: StoredModel) -> tuple[str, str]:
    """Kind of a stored model, "" if it is of no use, and why."""
    from maskfer_edge.errors import InputError

    try:
        return stored.read().info.kind, ""
    except InputError as error:
        return "", str(error)


def _status(slot: Slot, model: str) -> str:
    from maskfer_edge.model_state import MAX_TRIES

    tries = f" ({slot.tries} of {MAX_TRIES} tries)" if slot.tries else ""
    conditions = {
        f"in use, on trial{tries}" if slot.on_trial else "in use": model == slot.in_use,
        "last good": model == slot.last_good and slot.on_trial,
        "the one before": model == slot.previous and model not in (slot.in_use, slot.last_good),
        f"put back: {slot.reason}": model == slot.put_back,
    }
    return ", ".join(text for text, holds in conditions.items() if holds)


def _signature_text(by: str) -> str:
    return f"signed by {by}" if by else "not signed"


def _trial_text(trial: Trial) -> str:
    return f"{trial.faces} faces in {trial.frames} frames, {trial.ms:.3g} ms a frame"


def _say_switched(models: ModelStore, kind: str) -> None:
    state: State = models.state()
    slot = state.slot(kind)
    if slot.on_trial:
        say(f"it is on trial: if it gives no results, {models.title(slot.last_good)} comes back")
    _say_restart(models.folder)


def _say_restart(store: Path) -> None:
    say(f"runs with --models {store} use it from their next start; the service: sudo systemctl restart maskfer")
