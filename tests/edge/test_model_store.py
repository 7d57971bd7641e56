import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from maskfer_edge import model_store
from maskfer_edge.errors import InputError, ModelError, OutputError
from maskfer_edge.model_fetch import FetchedModel
from maskfer_edge.model_file import DETECTOR, EXPRESSION, DetectorInfo, ModelInfo, pack
from maskfer_edge.model_install import Trial, install
from maskfer_edge.model_state import BUNDLED, KINDS, Slot, State, read_state
from maskfer_edge.model_store import ModelStore, StoredModel, model_id, read_model

FLATBUFFER = b"\x1c\x00\x00\x00TFL3" + bytes(range(256))


def expression(name):
    return pack(FLATBUFFER, ModelInfo(name, {"haar": 0.1}, {}, {}, {}, "none"))


def detector(name):
    return pack(FLATBUFFER, DetectorInfo(name, (320, 240), 8, 0.35, {}, {}, {}, "none"))


def put(store, name, *, use=True, prove=False, make=expression):
    """Install a model as `maskfer-edge model install` does, without its trial run; gives its ID."""
    fetched = FetchedModel(make(name), None, name, f"{name}.tflite", f"{name}.tflite.sig")
    stored, _ = install(store, fetched, "", use=use, try_model=lambda path, name: Trial(1, 1, 1.0))
    if prove:
        kind = stored.read().info.kind
        store.change(lambda state: state.with_slot(kind, state.slot(kind).proved()))
    return stored.id


def chosen(store, kind=EXPRESSION):
    model = store.choose(store.state().slot(kind), kind)
    return BUNDLED if model is None else model.id


@pytest.fixture
def reported():
    return []


@pytest.fixture
def store(tmp_path, reported):
    made = ModelStore(tmp_path / "models", reported.append)
    made.make()
    return made


# ------------------------------------------------------------------------------------------------ slots


def test_a_new_model_is_on_trial_and_the_last_good_one_stays_known():
    assert Slot().used("a") == Slot("a", BUNDLED, BUNDLED, on_trial=True)


def test_what_was_proved_is_the_last_good_and_the_other_the_one_before():
    assert Slot().used("a").proved().used("b").proved() == Slot("b", "b", "a")


def test_what_is_good_is_proved_once_only():
    good = Slot().used("a").proved()
    assert good.proved() == good


def test_what_failed_makes_way_for_the_last_good():
    slot = replace(Slot("a", "a").used("b"), tries=2).failed("no result")
    assert slot == Slot("a", "a", BUNDLED, put_back="b", reason="no result")


def test_the_bundled_model_needs_no_trial():
    assert Slot("a", "a").used(BUNDLED) == Slot(BUNDLED, BUNDLED, "a")


def test_the_last_good_one_needs_no_trial():
    assert Slot("a", "a", "z").used("b").used("a") == Slot("a", "a", "z")


def test_a_trial_is_not_begun_again_by_the_same_model():
    slot = replace(Slot().used("a"), tries=2)
    assert slot.used("a") == slot


def test_what_is_used_while_another_is_on_trial_takes_its_place():
    assert Slot("a", "a").used("b").used("c") == Slot("c", "a", BUNDLED, on_trial=True)


def test_rolling_back_a_trial_ends_it():
    assert Slot("a", "a", "z").used("b").rolled_back() == Slot("a", "a", "z")


def test_rolling_back_twice_comes_forward_again():
    slot = Slot("b", "b", "a")
    assert slot.rolled_back() == Slot("a", "a", "b")
    assert slot.rolled_back().rolled_back() == slot


# ------------------------------------------------------------------------------------------------ state


def test_a_state_is_read_back():
    state = State(Slot().used("a"), Slot("b", "b"), DETECTOR, {"b": "ops", "a": ""})
    again = read_state(state.to_json().encode())
    assert again == state
    assert list(again.signed_by) == ["b", "a"]


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": None},
        {"expression": {}},
        {"expression": {"in_use": 3}},
        {"expression": None},
        {"detector": {"tries": "1"}},
        {"detector": {"other": 1}},
        {"switched": "haar"},
        {"signed_by": ["a"]},
        {"signed_by": {"a": 1}},
        {"other": 1},
    ],
)
def test_what_is_no_state_is_refused(changes):
    state = json.loads(State().to_json()) | changes
    if changes == {"expression": {}}:
        assert read_state(json.dumps(state).encode()) == State()  # what is left out is as ever
        return
    with pytest.raises(ValueError):
        read_state(json.dumps(state).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b"\0" * 400, b"[" * 100_000])
def test_damaged_bytes_are_no_state(content):
    with pytest.raises(ValueError):
        read_state(content)


# ------------------------------------------------------------------------------------------------ store


def test_an_empty_store_means_the_bundled_models(store, reported):
    assert (store.state(), chosen(store), reported) == (State(), BUNDLED, [])


def test_the_model_in_use_is_chosen(store, reported):
    model = put(store, "a")
    assert (chosen(store), reported) == (model, [])
    assert chosen(store, DETECTOR) == BUNDLED


def test_each_kind_has_a_model_of_its_own(store):
    one, other = put(store, "a"), put(store, "a", make=detector)
    assert (chosen(store), chosen(store, DETECTOR)) == (one, other)


def test_files_are_named_by_their_hash_and_name(store):
    model = put(store, "a")
    assert store.get(model) == StoredModel(model, "a", store.folder / f"{model_id(expression('a'))}-a.tflite")


@pytest.mark.parametrize("spoil", [b"", b"half", None])
def test_a_model_that_is_not_whole_makes_way_for_the_last_good(store, reported, spoil):
    good, bad = put(store, "good", prove=True), put(store, "bad")
    path = store.get(bad).path
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil)
    assert chosen(store) == good
    assert len(reported) == 1 and f"the expression model used instead is {good}-good" in reported[0]
    assert ("is not in" if spoil is None else "is damaged") in reported[0]


def test_without_any_whole_model_the_bundled_one_runs(store, reported):
    good, bad = put(store, "good", prove=True), put(store, "bad")
    for model in (good, bad):
        store.get(model).path.write_bytes(b"")
    assert chosen(store) == BUNDLED
    assert len(reported) == 1 and reported[0].endswith("the expression model used instead is the bundled one")


def test_a_model_of_another_kind_is_not_used(store, reported):
    model = put(store, "a", make=detector)
    store.change(lambda state: state.with_slot(EXPRESSION, Slot(model, model)))
    assert chosen(store) == BUNDLED
    assert "is of kind 'detector', not 'expression'" in reported[0]


def unreadable(store):
    path = store.folder / "state.json"
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda store: shutil.rmtree(store.folder), "models, the folder of installed models, is not there"),
        (
            lambda store: (store.folder / "state.json").unlink(),
            "state.json is missing; the bundled models are in use; ch",
        ),
        (lambda store: (store.folder / "state.json").write_bytes(b""), "state.json is damaged"),
        (lambda store: (store.folder / "state.json").write_bytes(b"{"), "; choose again: maskfer-edge model use ID"),
        (lambda store: (store.folder / "state.json").write_text('{"version": 9}'), "it is of another version"),
        (unreadable, "state.json cannot be read: Is a directory"),
    ],
)
def test_what_is_wrong_with_the_store_is_one_line_and_the_bundled_model_runs(store, reported, harm, message):
    put(store, "a", prove=True)
    harm(store)
    assert (chosen(store), chosen(store), chosen(store, DETECTOR)) == (BUNDLED,) * 3
    assert len(reported) == 1 and message in reported[0] and "the bundled models are in use" in reported[0]


def test_after_a_damaged_state_the_models_can_be_used_again(store):
    model = put(store, "a", prove=True)
    (store.folder / "state.json").write_bytes(b"{")
    store.use(model, EXPRESSION)
    assert chosen(store) == model


def test_a_model_is_found_by_its_id_the_beginning_of_it_or_its_name(store):
    model = put(store, "summer")
    for query in (model, model[:4], "summer", f"{model}-summer"):
        assert store.find(query).id == model


def test_an_unknown_model_is_answered_with_the_nearest(store):
    model = put(store, "summer")
    with pytest.raises(InputError, match=f"no model 'sumer'; the nearest is {model}-summer"):
        store.find("sumer")
    with pytest.raises(InputError, match="the nearest is bundled"):
        store.find("bundle")


def test_an_empty_store_says_how_to_install(store):
    with pytest.raises(InputError, match="holds no models; install one"):
        store.find("summer")


@pytest.mark.parametrize("installed", [[], ["summer"]])
def test_a_bundled_network_is_named_by_the_settings_of_a_run(store, installed):
    for name in installed:
        put(store, name)
    with pytest.raises(InputError, match=r'^large is a bundled network, .* --model large, or model = "large" in mask'):
        store.find("large")
    assert put(store, "large") == store.find("large").id


def test_a_name_of_two_models_is_not_guessed(store):
    put(store, "summer")
    put(store, "summer", make=detector)
    with pytest.raises(InputError, match=r"'summer' may be .* or .*; give the ID"):
        store.find("summer")


def test_rollback_is_of_the_kind_that_was_switched_last(store):
    put(store, "a", prove=True)
    model = put(store, "b", make=detector)
    kind, before, after = store.rollback()
    assert (kind, before.in_use, after.in_use) == (DETECTOR, model, BUNDLED)
    assert store.rollback(EXPRESSION)[2].in_use == BUNDLED


def test_rollback_leads_to_the_good_one_before(store):
    first, second = put(store, "a", prove=True), put(store, "b", prove=True)
    assert store.rollback()[2] == Slot(first, first, second)
    assert chosen(store) == first


def test_without_another_model_rollback_is_refused(store):
    with pytest.raises(InputError, match="there is no expression model to go back to"):
        store.rollback()


def test_what_did_not_change_was_not_switched_last(store):
    model = put(store, "a", prove=True)
    for kind in KINDS:
        store.use(BUNDLED, kind)
    assert store.rollback()[::2] == (EXPRESSION, Slot(model, model, BUNDLED))


def test_where_another_kind_can_go_back_that_is_said(store):
    put(store, "a", prove=True)
    message = "no detector model to go back to from the bundled one; nothing was changed; "
    with pytest.raises(InputError, match=f"{message}rollback --kind expression goes back to the bundled one$"):
        store.rollback(DETECTOR)


def test_rollback_to_what_is_not_whole_changes_nothing(store):
    first, second = put(store, "a", prove=True), put(store, "b", prove=True)
    store.get(first).path.write_bytes(b"")
    with pytest.raises(ModelError, match="is damaged"):
        store.rollback()
    assert chosen(store) == second


def test_old_models_are_removed_but_those_that_may_be_needed(store):
    before, good = put(store, "before", prove=True), put(store, "good", prove=True)
    finder = put(store, "finder", make=detector)
    others = [put(store, f"other{i}", use=False) for i in range(5)]
    trial = put(store, "trial")
    assert {m.id for m in store.models()} == {before, good, finder, trial, *others[-3:]}
    assert set(store.state().signed_by) == {m.id for m in store.models()}


def test_models_that_a_lost_state_has_forgotten_go_first(store):
    forgotten = [put(store, f"old{i}", use=False) for i in range(3)]
    (store.folder / "state.json").unlink()
    new = [put(store, f"new{i}", use=False) for i in range(3)]
    assert {m.id for m in store.models()} == {*new}
    assert not {m.id for m in store.models()} & {*forgotten}


def test_only_one_installation_at_a_time(store):
    with store.installing(), pytest.raises(OutputError, match="another program installs a model"):
        put(store, "a")
    assert store.models() == []
    put(store, "a")


def test_a_run_may_change_the_state_while_a_model_is_installed(store):
    with store.installing():
        store.use(BUNDLED, EXPRESSION)


def test_a_change_waits_for_another(store):
    with (store.folder / ".state.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.1, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        store.use(BUNDLED, EXPRESSION)


def test_a_lock_that_is_kept_is_said(store, monkeypatch):
    monkeypatch.setattr(model_store, "LOCK_TIMEOUT_S", 0.05)
    with (store.folder / ".state.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=r"keeps the state of .* locked"):
            store.use(BUNDLED, EXPRESSION)


def test_a_lock_is_never_opened_through_a_link(store, tmp_path):
    (store.folder / ".state.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="cannot be written"):
        store.use(BUNDLED, EXPRESSION)
    assert not (tmp_path / "elsewhere").exists()


def test_changes_by_two_programs_are_both_kept(store, monkeypatch):
    monkeypatch.setattr(model_store, "LOCK_TIMEOUT_S", 100.0)  # one may have the lock twenty times before another
    models = [put(store, f"{i}", use=False) for i in range(3)]

    def note(model):
        for _ in range(20):
            ModelStore(store.folder).change(
                lambda state: replace(state, signed_by={**state.signed_by, model: state.signed_by[model] + "x"})
            )

    threads = [threading.Thread(target=note, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.state().signed_by == dict.fromkeys(models, "x" * 20)


@pytest.mark.parametrize(
    "change", [lambda s: s.use(BUNDLED, EXPRESSION), lambda s: put(s, "b"), lambda s: s.rollback()]
)
def test_a_store_that_may_not_be_written_is_one_line(store, monkeypatch, change):
    put(store, "a")
    before = {path: path.read_bytes() for path in store.folder.iterdir()}
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root may write anywhere
    with pytest.raises(OutputError, match=r"models cannot be written: .*read-only disk; run it with sudo"):
        change(store)
    assert {path: path.read_bytes() for path in store.folder.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        ModelStore(tmp_path / "file" / "models").make()


@pytest.mark.parametrize(("content", "kind"), [(expression("a"), EXPRESSION), (detector("a"), DETECTOR)])
def test_a_model_is_read_as_what_it_says_it_is(content, kind):
    assert read_model(content, "m").info.kind == kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no model", "not a TFLite model"),
        (detector("a")[:-30], "lacks maskfer's metadata"),
        (pack(FLATBUFFER, replace(ModelInfo("a", {}, {}, {}, {}, ""), kind="segmenter")), "of kind 'segmenter'"),
        (pack(FLATBUFFER, DetectorInfo("a", (320, 240), 0, 0.3, {}, {}, {}, "")), "stride"),
    ],
)
def test_what_is_no_model_is_refused_for_what_is_wrong_with_it(content, message):
    with pytest.raises(ModelError, match=message):
        read_model(content, "m")


# ------------------------------------------------------------------------------------------------ crashes


def fresh(store):
    """Nothing was ever installed."""


def in_service(store):
    """A good model is in use, and there are so many others that the next installation removes one."""
    for i in range(3):
        put(store, f"other{i}", use=False)
    put(store, "before", prove=True)
    put(store, "old", prove=True)


def install_new(store):
    put(store, "new")


def roll_back(store):
    store.rollback()


def put_back(store):
    store.change(lambda state: state.with_slot(EXPRESSION, state.expression.failed("no result")))


def on_trial(store):
    in_service(store)
    put(store, "new")


# Of a file that was not synchronised, so many parts may be there.
TEARS = 64
SCENES = [(fresh, install_new), (in_service, install_new), (in_service, roll_back), (on_trial, put_back)]


def check_whole(store, reported, allowed):
    """The store names one of the models that are allowed, whole, and complains of nothing."""
    found = chosen(store)
    assert reported == []
    assert found in allowed
    return found


class Recorder:
    """Notes what the modules do to a folder's files.

    Attributes:
        done: The operations in their order: ("write", path, bytes), ("fsync", path), ("link", old, new),
            ("rename", old, new), ("unlink", path), ("sync", folder).
    """

    def __init__(self, monkeypatch, folder):
        self.done, self._folder = [], folder
        self._wrap(monkeypatch, Path, "write_bytes", lambda path, content: ("write", path, bytes(content)))
        self._wrap(monkeypatch, os, "link", lambda old, new: ("link", old, new))
        self._wrap(monkeypatch, os, "replace", lambda old, new: ("rename", old, new))
        self._wrap(monkeypatch, os, "rename", lambda old, new: ("rename", old, new))
        self._wrap(monkeypatch, os, "unlink", lambda path: ("unlink", path))
        self._wrap(monkeypatch, os, "fsync", self._fsynced)

    def _wrap(self, monkeypatch, where, name, say):
        real = getattr(where, name)

        def wrapped(*arguments, **options):
            record = say(*arguments)
            answer = real(*arguments, **options)  # what fails is not done
            kind, *rest = record
            self.done.append((kind, *(Path(part).name if isinstance(part, str | Path) else part for part in rest)))
            return answer

        monkeypatch.setattr(where, name, wrapped)

    def _fsynced(self, descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return ("sync", path) if path == self._folder else ("fsync", path)


def disks(before, done):
    """What may lie on the disk if the power fails after these operations: dicts of name to content.

    Names: whatever was done to them since the folder was last synchronised happened or did not, each for itself.
    Contents: of a file that was not synchronised there is nothing, a part, zeros, or all.
    """
    contents = dict(enumerate(before.values()))
    safe = set(contents)
    names = dict(zip(before, contents, strict=True))  # as the program sees them
    settled, pending = dict(names), []
    for kind, *what in done:
        if kind == "write":
            number = len(contents)
            contents[number] = what[1]
            names[what[0]] = number
            pending.append({what[0]: number})
        elif kind == "fsync":
            safe.add(names[what[0]])
        elif kind == "link":
            names[what[1]] = names[what[0]]
            pending.append({what[1]: names[what[0]]})
        elif kind == "rename":
            names[what[1]] = names.pop(what[0])
            pending.append({what[0]: None, what[1]: names[what[1]]})
        elif kind == "unlink":
            del names[what[0]]
            pending.append({what[0]: None})
        else:
            settled, pending = dict(names), []
    for happened in itertools.product((False, True), repeat=len(pending)):
        found = dict(settled)
        for change in itertools.compress(pending, happened):
            found |= change
        found = {name: number for name, number in found.items() if number is not None}
        loose = sorted(set(found.values()) - safe)
        for parts in itertools.product(*(torn(contents[number]) for number in loose)):
            kept = dict(zip(loose, parts, strict=True))
            yield {name: kept.get(number, contents[number]) for name, number in found.items()}


def torn(content):
    """What may be left of a file that was not synchronised."""
    step = max(1, len(content) // TEARS)
    return [bytes(len(content)), *(content[:size] for size in range(0, len(content), step)), content]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def power_cuts(monkeypatch, store, prepare, act):
    """The disks, each once, that a power cut during `act` can leave, and whether `act` had ended."""
    prepare(store)
    # the locks are made, so that what is left to record is what matters
    store.use(store.state().expression.in_use, EXPRESSION)
    with store.installing():
        before = contents(store.folder)
    with monkeypatch.context() as patch:
        recorder = Recorder(patch, store.folder)
        act(store)
    assert contents(store.folder) in list(disks(before, recorder.done)), "something was done that is not recorded"
    ended = {tuple(sorted(disk.items())) for disk in disks(before, recorder.done)}
    counts = range(len(recorder.done) + 1)
    found = {tuple(sorted(disk.items())) for count in counts for disk in disks(before, recorder.done[:count])}
    return [(dict(disk), disk in ended) for disk in found]


def restored(folder, disk, reported):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in disk.items():
        (folder / name).write_bytes(content)
    return ModelStore(folder, reported.append)


@pytest.mark.parametrize(("prepare", "act"), SCENES, ids=lambda part: part.__name__)
def test_a_power_cut_leaves_the_old_model_or_the_new_one_whole(monkeypatch, store, tmp_path, reported, prepare, act):
    twin = ModelStore(tmp_path / "twin")
    twin.make()
    prepare(twin)
    old = chosen(twin)
    found, cuts = Counter(), power_cuts(monkeypatch, store, prepare, act)
    new = chosen(store)
    for disk, ended in cuts:
        # once the command has ended nothing takes it back
        allowed = {new} if ended else {old, new}
        found[check_whole(restored(tmp_path / "cut", disk, reported), reported, allowed)] += 1
    print(f"{prepare.__name__}, {act.__name__}: {len(cuts)} crash states")
    assert set(found) == {old, new} and len(cuts) > TEARS


def test_the_simulated_power_cuts_find_a_folder_that_was_not_synchronised(monkeypatch, store, tmp_path, reported):
    monkeypatch.setattr("maskfer_edge.files.sync_folder", lambda folder: None)
    for disk, _ in power_cuts(monkeypatch, store, in_service, install_new):
        chosen(restored(tmp_path / "cut", disk, reported))
    assert any("is not in" in line for line in reported)


SERVER = """
import ctypes, os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_model_store as tests
from maskfer_edge.model_store import ModelStore

warm = ModelStore(Path(sys.argv[2]))
warm.make()
for prepare, act in tests.SCENES:  # whatever is imported late is imported now
    for path in warm.folder.iterdir():
        path.unlink()
    prepare(warm)
    act(warm)
print("ready", flush=True)
for line in sys.stdin:
    name, folder = line.split()
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: any
        os.kill(os.getpid(), signal.SIGSTOP)
        getattr(tests, name)(ModelStore(Path(folder)))
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)  # it has stopped: a SIGCONT that came before would leave it so for ever
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
CALLS = "write pwrite64 fsync fdatasync rename renameat renameat2 link linkat unlink unlinkat openat mkdir ftruncate"


class Killer:
    """Runs a change in a process that strace kills at a system call of choice."""

    def __init__(self, folder):
        command = [sys.executable, "-c", SERVER, str(Path(__file__).parent), str(folder / "warm")]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout.readline() == "ready\n"
        self._log = folder / "strace.log"

    def run(self, act, folder, *options):
        """Gives the exit status, and the system calls that were made, each as its name and its arguments."""
        self._server.stdin.write(f"{act} {folder}\n")
        self._server.stdin.flush()
        child = int(self._server.stdout.readline())
        trace = "trace=" + ",".join(f"?{call}" for call in CALLS.split())
        command = ["strace", "-p", str(child), "-o", str(self._log), "-e", trace, *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            line = strace.stderr.readline()
            os.kill(child, signal.SIGCONT)
            if "attached" not in line:
                self._server.stdout.readline()
                pytest.skip(f"strace may not look at processes here: {line.strip()}")
            status = int(self._server.stdout.readline())
        return status, re.findall(r"^(\w+)\((.*)", self._log.read_text(), re.MULTILINE)

    def close(self):
        self._server.stdin.close()
        self._server.wait(10)
        self._server.stdout.close()


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    if shutil.which("strace") is None:
        pytest.skip("strace, which kills at a system call of choice, is not installed: apt install strace")
    made = Killer(tmp_path_factory.mktemp("killer"))
    yield made
    made.close()


@pytest.mark.parametrize(("prepare", "act"), SCENES, ids=lambda part: part.__name__)
def test_a_kill_at_any_system_call_leaves_the_old_model_or_the_new_one_whole(killer, tmp_path, prepare, act):
    reported = []
    store, prepared = ModelStore(tmp_path / "models", reported.append), tmp_path / "prepared"
    store.make()
    prepare(store)
    old = chosen(store)
    shutil.copytree(store.folder, prepared)
    status, made = killer.run(act.__name__, store.folder)
    new = chosen(store)
    assert status == 0 and new != old
    found, counts = Counter(), Counter()
    for call, arguments in made:
        counts[call] += 1
        if call == "openat" and "O_CREAT" not in arguments:  # changes nothing
            continue
        shutil.rmtree(store.folder)
        shutil.copytree(prepared, store.folder)
        status, _ = killer.run(act.__name__, store.folder, "-e", f"inject={call}:signal=SIGKILL:when={counts[call]}")
        assert status == -signal.SIGKILL
        found[check_whole(store, reported, {old, new})] += 1
        put(store, "next")  # which goes as ever
        assert not list(store.folder.glob(".*.partial*"))
        assert all(stored.read() for stored in store.models())
    print(f"{prepare.__name__}, {act.__name__}: killed at {found.total()} system calls")
    assert set(found) == {old, new} and found.total() > 5
