import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskfer_edge import model_fetch, model_install
from maskfer_edge.classifier import DEFAULT_MODEL, default_model
from maskfer_edge.errors import DependencyError, InputError, ModelError, OutputError
from maskfer_edge.learned_detector import DEFAULT_DETECTOR
from maskfer_edge.model_fetch import FetchedModel, check_sha256, check_signature, fetch
from maskfer_edge.model_file import EXPRESSION, load_detector_model, pack
from maskfer_edge.model_install import Trial, install, try_out, use
from maskfer_edge.model_state import BUNDLED
from maskfer_edge.model_store import ModelStore, model_id

DATA = Path(str(files("maskfer_edge") / "data"))
MODEL = (DATA / DEFAULT_MODEL).read_bytes()
WELL = Trial(5, 5, 1.0)

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def changed(**changes):
    """The bundled model with something else said of it."""
    return pack(default_model().flatbuffer, replace(default_model().info, **changes))


def fetched(content=MODEL, name="m", signature=None):
    return FetchedModel(content, signature, name, f"{name}.tflite", f"{name}.tflite.sig")


def goes_well(path, name):
    return WELL


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith(".lock")}


@pytest.fixture
def store(tmp_path):
    made = ModelStore(tmp_path / "models")
    made.make()
    return made


# ------------------------------------------------------------------------------------------------ fetching


def test_a_file_and_the_signature_beside_it_are_read(tmp_path):
    path = tmp_path / "Summer 2 (b).tflite"
    path.write_bytes(b"model")
    assert fetch(str(path)) == FetchedModel(b"model", None, "Summer-2-b", str(path), f"{path}.sig")
    Path(f"{path}.sig").write_bytes(b"signature")
    assert fetch(str(path)).signature == b"signature"


@pytest.mark.parametrize(
    ("name", "plain"),
    [("m.tflite", "m"), ("..tflite", "model"), ("ü.tflite", "model"), ("x" * 90 + ".tflite", "x" * 40), ("a/", "a")],
)
def test_names_are_plain(name, plain):
    assert model_fetch._safe_name(Path(name).stem) == plain


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.tflite", "none.tflite cannot be read: No such file"),
        (".", ". is a folder"),
        ("/dev/zero", "/dev/zero is not a file"),
        ("ftp://host/m.tflite", "an address that begins with https://"),
        ("http://127.0.0.1:1/m.tflite", "cannot be fetched: Connection refused; try again"),
        ("http://127.0.0.1:port/m.tflite", "http://… is no address"),
        ("https://user:sec#ret@127.0.0.1:1/m.tflite", "https://… is no address"),
        ("http://127.0.0.1:1/m.tflite?token=secret x", "http://127.0.0.1:1/m.tflite is no address"),
        ("http://[::1/m.tflite", "is no address"),
        ("https://user:secret@127.0.0.1:1/m.tflite", "https://127.0.0.1:1/m.tflite cannot be fetched with a password"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(source, message):
    with pytest.raises(InputError) as caught:
        fetch(source)
    assert message in str(caught.value) and not any(part in str(caught.value) for part in ("\n", "sec"))


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(model_fetch, "MAX_BYTES", 4)
    (tmp_path / "m.tflite").write_bytes(b"12345")
    with pytest.raises(InputError, match="more than"):
        fetch(str(tmp_path / "m.tflite"))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.pages`: path to a content, a status, or what writes the answer."""

    def do_GET(self):
        page = self.server.pages.get(self.path, 404)
        if callable(page):
            with suppress(OSError):  # the client has gone
                page(self)
        elif isinstance(page, int):
            self.send_error(page)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pages, server.over = {}, threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield SimpleNamespace(pages=server.pages, url=f"http://127.0.0.1:{server.server_port}")
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_and_the_signature_beside_it_are_fetched(web):
    web.pages |= {"/a/my%20model.tflite": MODEL, "/a/my%20model.tflite.sig": b"signature"}
    url = f"{web.url}/a/my%20model.tflite"
    assert fetch(url) == FetchedModel(MODEL, b"signature", "my-model", url, f"{url}.sig")


@pytest.mark.parametrize("status", [403, 404, 410])
def test_no_signature_at_an_address_is_none(web, status):
    web.pages |= {"/m.tflite": MODEL, "/m.tflite.sig": status}
    assert fetch(f"{web.url}/m.tflite").signature is None


def test_the_query_of_an_address_stays_and_is_not_shown(web):
    web.pages |= {"/m.tflite?token=s3cret": MODEL, "/m.tflite.sig?token=s3cret": b"signature"}
    got = fetch(f"{web.url}/m.tflite?token=s3cret")
    assert (got.name, got.signature) == ("m", b"signature")
    assert "s3cret" not in got.source + got.signature_source


def test_a_redirection_is_followed(web):
    def elsewhere(handler):
        handler.send_response(302)
        handler.send_header("Location", "/there")
        handler.end_headers()

    web.pages |= {"/m.tflite": elsewhere, "/there": MODEL}
    assert fetch(f"{web.url}/m.tflite").content == MODEL


def unknown_length(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"x" * 100)


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 100)


def silent(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.server.over.wait(30)


def dripping(handler):
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b"x")


def dripping_headers(handler):
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b"x")


def no_http(handler):
    handler.wfile.write(b"\x00\x01\x02 nonsense\r\n\r\n")


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (404, "m.tflite is not there; check the address"),
        (500, "cannot be fetched: the server answers 500"),
        (b"x" * 100, "more than the"),
        (unknown_length, "more than the"),
        (cut_off, "broke off after 100 of 1000 bytes"),
        (silent, "cannot be fetched: timed out"),
        (dripping, "is not here after 0.1 s"),
        (dripping_headers, "is not here after 0.1 s"),
        (no_http, "cannot be fetched: "),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_line(web, monkeypatch, page, message):
    monkeypatch.setattr(model_fetch, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(model_fetch, "DOWNLOAD_TIMEOUT_S", 0.1 if "after 0.1" in message else 5.0)
    monkeypatch.setattr(model_fetch, "MAX_BYTES", 50 if "more" in message else 2000)
    web.pages["/m.tflite"] = page
    with pytest.raises(InputError) as caught:
        fetch(f"{web.url}/m.tflite")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_fails_at_the_signature_is_not_taken_for_none(web):
    web.pages |= {"/m.tflite": MODEL, "/m.tflite.sig": 500}
    with pytest.raises(InputError, match=r"m\.tflite\.sig cannot be fetched: the server answers 500"):
        fetch(f"{web.url}/m.tflite")


def test_the_sha256_may_be_said():
    digest = hashlib.sha256(MODEL).hexdigest()
    check_sha256(fetched(), digest)
    check_sha256(fetched(), digest.upper())


@pytest.mark.parametrize(
    ("sha256", "refusal"), [("0" * 64, "m.tflite has the sha256"), ("abc", "64 hexadecimal digits")]
)
def test_another_sha256_is_refused(sha256, refusal):
    with pytest.raises(InputError, match=refusal):
        check_sha256(fetched(), sha256)


# ------------------------------------------------------------------------------------------------ signatures


class Signers:
    """A folder with keys, a file of allowed signers, and what signs."""

    def __init__(self, folder):
        self.folder, self.allowed = folder, folder / "allowed_signers"

    def key(self, name):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", self.folder / name], check=True
        )
        return (self.folder / f"{name}.pub").read_text()

    def allow(self, who, key, options='namespaces="maskfer-model"'):
        with self.allowed.open("a") as file:
            file.write(f"{who} {options} {key}")

    def sign(self, key, content=MODEL, namespace="maskfer-model"):
        command = ["ssh-keygen", "-q", "-Y", "sign", "-f", self.folder / key, "-n", namespace]
        return subprocess.run(command, input=content, capture_output=True, check=True).stdout

    def check(self, signature, content=MODEL, **options):
        reported = []
        options = {"allow_unsigned": False, **options}
        return check_signature(
            fetched(content, signature=signature), self.allowed, report=reported.append, **options
        ), reported


@pytest.fixture
def signers(tmp_path):
    made = Signers(tmp_path)
    made.allow("ops@example.org", made.key("ops"))
    return made


@needs_ssh_keygen
def test_who_signed_is_said(signers):
    assert signers.check(signers.sign("ops")) == ("ops@example.org", [])


@needs_ssh_keygen
@pytest.mark.parametrize("old_line_goes", [False, True])
def test_keys_rotate(signers, old_line_goes):
    old, new = signers.sign("ops"), signers.key("new")
    if old_line_goes:
        signers.allowed.write_text("")
    signers.allow("ops@example.org", new)
    assert signers.check(signers.sign("new"))[0] == "ops@example.org"
    if old_line_goes:
        with pytest.raises(InputError, match="by nobody in"):
            signers.check(old)
    else:
        assert signers.check(old)[0] == "ops@example.org"


@needs_ssh_keygen
@pytest.mark.parametrize("options", [{}, {"allow_unsigned": True}])
def test_a_wrong_signature_is_refused_whatever_is_allowed(signers, options):
    signers.key("stranger")
    wrong = {
        f"is by nobody in {signers.allowed}; nothing was changed; append the signer's line to {signers.allowed} (":
            signers.sign("stranger"),
        "does not hold (incorrect signature); nothing was changed": signers.sign("ops", MODEL + b"x"),
        "does not hold (namespace does not match); nothing was changed; sign it with -n maskfer-model":
            signers.sign("ops", namespace="file"),
        "m.tflite.sig is not an OpenSSH signature; nothing was changed; sign again: ssh-keygen -Y sign -f KEY": b"none",
        "sign again: ssh-keygen -Y sign -f KEY -n maskfer-model m.tflite": b"",
        "is not an OpenSSH signature":
            b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n",
    }  # fmt: skip
    for message, signature in wrong.items():
        with pytest.raises(InputError) as caught:
            signers.check(signature, **options)
        assert message in str(caught.value) and "\n" not in str(caught.value)


@needs_ssh_keygen
def test_a_spoiled_model_has_a_wrong_signature(signers):
    spoiled = bytearray(MODEL)
    spoiled[50_000] ^= 1
    with pytest.raises(InputError, match="does not hold"):
        signers.check(signers.sign("ops"), bytes(spoiled))


@needs_ssh_keygen
@pytest.mark.parametrize("as_list", [False, True], ids=["public key", "revocation list"])
def test_a_revoked_key_counts_no_longer(signers, as_list):
    signature, revoked = signers.sign("ops"), signers.folder / "revoked_signers"
    signers.allow("late@example.org", signers.key("late"))
    if as_list:
        subprocess.run(["ssh-keygen", "-q", "-k", "-f", revoked, signers.folder / "ops.pub"], check=True)
    else:
        shutil.copy(signers.folder / "ops.pub", revoked)
    with pytest.raises(InputError, match=r"does not hold .its key is in .*revoked_signers"):
        signers.check(signature)
    assert signers.check(signers.sign("late"))[0] == "late@example.org"


@needs_ssh_keygen
def test_a_revocation_that_cannot_be_read_refuses_everything(signers):
    (signers.folder / "revoked_signers").symlink_to(signers.folder / "nowhere")
    with pytest.raises(InputError, match="does not hold"):
        signers.check(signers.sign("ops"))


@needs_ssh_keygen
def test_a_key_may_stand_on_another_line_for_something_else(signers):
    signers.allowed.write_text("")
    key = (signers.folder / "ops.pub").read_text()
    signers.allow("git@example.org", key, 'namespaces="git"')
    with pytest.raises(InputError, match=r"by git@example.org does not hold"):
        signers.check(signers.sign("ops"))
    signers.allow("ops@example.org", key)
    assert signers.check(signers.sign("ops"))[0] == "ops@example.org"


@needs_ssh_keygen
def test_a_key_whose_time_is_over_counts_no_longer(signers):
    signers.allow("past@example.org", signers.key("past"), 'valid-before="20200101"')
    with pytest.raises(
        InputError, match=r"by nobody in .* line 2 does not count .key has expired.*; append the signer"
    ):
        signers.check(signers.sign("past"))


@needs_ssh_keygen
def test_damaged_signers_allow_nobody(signers):
    signature = signers.sign("ops")
    signers.allowed.write_bytes(b"\x00\xff garbage\n")
    with pytest.raises(InputError, match="by nobody in"):
        signers.check(signature)


@needs_ssh_keygen
@pytest.mark.parametrize(
    "line", ["two words", "ops@example.org", 'ops@example.org namespaces="maskfer-model ssh-ed25519']
)
def test_a_damaged_line_of_the_signers_is_named(signers, line):
    signature = signers.sign("ops")
    signers.allowed.write_text(f"# who may\n{line}\n")
    with pytest.raises(InputError) as caught:
        signers.check(signature)
    assert f"by nobody in {signers.allowed}, whose line 2 does not count (" in str(caught.value)
    assert str(caught.value).endswith('; a line has the form NAME namespaces="maskfer-model" ssh-ed25519 KEY')


def test_an_unsigned_model_is_refused_unless_that_is_allowed(tmp_path):
    signers = Signers(tmp_path)
    signers.allowed.write_text("")
    with pytest.raises(
        InputError, match=r"m\.tflite is not signed \(m\.tflite\.sig is not there\); nothing was changed; sign"
    ):
        signers.check(None)
    signer, reported = signers.check(None, allow_unsigned=True)
    assert (
        signer == "" and len(reported) == 1 and reported[0].endswith("; --allow-unsigned: going on without a signature")
    )


def test_without_a_file_of_signers_nothing_is_signed(tmp_path):
    signers = Signers(tmp_path)
    with pytest.raises(InputError, match=r"allowed_signers is not there.*--allow-unsigned"):
        signers.check(b"signature")
    assert signers.check(b"signature", allow_unsigned=True)[0] == ""


def test_without_ssh_keygen_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    signers = Signers(tmp_path)
    signers.allowed.write_text("")
    with pytest.raises(DependencyError, match="sudo apt install -y openssh-client"):
        signers.check(b"signature")


def test_an_ssh_keygen_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "ssh-keygen").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "ssh-keygen").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(model_fetch, "SSH_KEYGEN_TIMEOUT_S", 0.1)
    signers = Signers(tmp_path)
    signers.allowed.write_text("")
    with pytest.raises(InputError, match="ssh-keygen did not answer"):
        signers.check(b"signature")


# ------------------------------------------------------------------------------------------------ trial runs


@pytest.mark.parametrize("name", [DEFAULT_MODEL, DEFAULT_DETECTOR])
def test_the_bundled_models_pass_their_trial_run(name):
    trial = try_out(DATA / name, "m")
    assert trial.frames == model_install.TRIAL_FRAMES and trial.faces >= trial.frames and trial.ms > 0


def test_a_model_for_another_detector_is_tried_with_that(tmp_path):
    (tmp_path / "m.tflite").write_bytes(changed(crop_margins={"haar": 0.0}))
    assert try_out(tmp_path / "m.tflite", "m").faces > 0


def test_a_detector_that_finds_nothing_fails_its_trial_run(tmp_path):
    model = load_detector_model(DATA / DEFAULT_DETECTOR)
    (tmp_path / "m.tflite").write_bytes(pack(model.flatbuffer, replace(model.info, score_threshold=1.0)))
    with pytest.raises(ModelError, match="m failed in its trial run: finds no face in the demonstration; nothing was"):
        try_out(tmp_path / "m.tflite", "m")


def test_a_model_that_the_runtime_refuses_fails_its_trial_run(tmp_path):
    (tmp_path / "m.tflite").write_bytes(pack(b"\x1c\x00\x00\x00TFL3" + bytes(300), default_model().info))
    with pytest.raises(ModelError, match=r"^m (failed|crashed) in its trial run"):
        try_out(tmp_path / "m.tflite", "m")


def fails_by(monkeypatch, statement):
    """The process of a trial run does this instead of showing frames to a model."""
    monkeypatch.setattr(
        model_install,
        "TRIAL_PROGRAM",
        f"import os, sys, numpy, signal, time\nfrom maskfer_edge import classifier, model_install\n"
        f"def instead(*_): {statement}\n"
        "classifier.Classifier.__call__ = instead\n"
        "model_install.trial_process()",
    )


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "m crashed in its trial run (SIGSEGV); nothing was changed"),
        ("os.abort()", "m crashed in its trial run (SIGABRT); nothing was changed"),
        ("raise ZeroDivisionError('so it is')", "m failed in its trial run: ZeroDivisionError: so it is; nothing"),
        ("os._exit(3)", "m failed in its trial run: without a word; nothing was changed"),
        ("time.sleep(60)", "m did not end its trial run within"),
        ("return numpy.full(7, 1 / 7, numpy.float32)", "m failed in its trial run: gives every expression the same"),
    ],
)
def test_whatever_a_model_does_in_its_trial_run_is_one_line(monkeypatch, statement, message):
    fails_by(monkeypatch, statement)
    monkeypatch.setattr(model_install, "TRIAL_TIMEOUT_S", 2.0 if "sleep" in statement else 60.0)
    with pytest.raises(ModelError) as caught:
        try_out(DATA / DEFAULT_MODEL, "m")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_python_that_the_owner_may_not_run_is_named(monkeypatch, tmp_path):
    (tmp_path / "python").touch(mode=0o600)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DependencyError, match=r"python cannot be run by .*: Permission denied; .* /opt/maskfer$"):
        try_out(DATA / DEFAULT_MODEL, "m")


# ------------------------------------------------------------------------------------------------ installing


def test_a_model_that_goes_well_is_installed_and_used(store):
    stored, trial = install(store, fetched(), "ops", use=True, try_model=goes_well)
    assert (stored.id, stored.name, trial) == (model_id(MODEL), "m", WELL)
    assert stored.path.read_bytes() == MODEL
    state = store.state()
    assert (state.expression.in_use, state.expression.on_trial, state.signed_by) == (
        stored.id,
        True,
        {stored.id: "ops"},
    )


def test_it_is_tried_out_before_it_has_its_name(store):
    seen = []

    def look(path, name):
        seen.append((path.read_bytes() == MODEL, name, [m.path for m in store.models()], store.state().expression))
        return WELL

    install(store, fetched(), "", use=True, try_model=look)
    assert [(whole, name, found, slot.in_use) for whole, name, found, slot in seen] == [(True, "m.tflite", [], BUNDLED)]


def test_the_real_trial_run_is_the_default(store):
    _, trial = install(store, fetched(), "", use=False)
    assert trial is not None and trial.faces > 0
    assert store.state().expression.in_use == BUNDLED


def test_a_model_in_use_is_not_installed_again(store):
    install(store, fetched(), "", use=True, try_model=goes_well)
    before = contents(store.folder)
    stored, trial = install(store, fetched(), "", use=True, try_model=None)
    assert (stored.id, trial) == (model_id(MODEL), None)
    assert contents(store.folder) == before


def test_an_installed_model_is_used_under_its_first_name(store):
    install(store, fetched(), "", use=False, try_model=goes_well)
    stored, _ = install(store, fetched(name="other"), "ops", use=True, try_model=goes_well)
    assert (stored.name, len(store.models()), store.state().signed_by) == ("m", 1, {stored.id: "ops"})


def test_a_damaged_one_is_mended(store):
    stored, _ = install(store, fetched(), "", use=True, try_model=goes_well)
    stored.path.write_bytes(b"half")
    install(store, fetched(), "", use=True, try_model=goes_well)
    assert stored.path.read_bytes() == MODEL


def fails(path, name):
    raise ModelError("it fails")


@pytest.mark.parametrize(
    ("content", "try_model", "error"),
    [
        (b"no model", goes_well, "is not a TFLite model"),
        (MODEL[:-100], goes_well, "lacks maskfer's metadata"),
        (changed(kind="segmenter"), goes_well, "of kind 'segmenter'"),
        (changed(architecture="new"), fails, "it fails"),
    ],
)
def test_what_is_refused_changes_nothing(store, content, try_model, error):
    install(store, fetched(), "", use=True, try_model=goes_well)
    before = contents(store.folder)
    with pytest.raises(ModelError, match=error):
        install(store, fetched(content), "", use=True, try_model=try_model)
    assert contents(store.folder) == before


def test_a_full_disk_is_refused_first(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(10_000))
    with pytest.raises(OutputError, match="free some space"):
        install(store, fetched(), "", use=True, try_model=fails)
    assert store.models() == []


def test_a_disk_that_is_full_at_the_last_write_leaves_nothing(store, monkeypatch):
    install(store, fetched(changed(architecture="old")), "", use=True, try_model=goes_well)
    before = contents(store.folder)

    def full(*arguments, **options):
        raise OutputError("state.json cannot be written: No space left on device")

    monkeypatch.setattr("maskfer_edge.model_store.atomic_file", full)
    with pytest.raises(OutputError, match="No space"):
        install(store, fetched(), "", use=True, try_model=goes_well)
    assert contents(store.folder) == before


def test_everybody_may_see_what_is_in_use_whatever_the_service_s_umask(store):
    before = os.umask(0o077)
    try:
        install(store, fetched(), "", use=True, try_model=goes_well)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (store.folder / "state.json", store.models()[0].path)} == {0o644}


def test_while_a_model_is_switched_to_no_installation_removes_it(store):
    install(store, fetched(), "", use=False, try_model=goes_well)

    def meanwhile(path, name):
        with pytest.raises(OutputError, match="another program installs"):
            install(ModelStore(store.folder), fetched(changed(architecture="new")), "", use=True, try_model=fails)
        return goes_well(path, name)

    assert use(store, store.models()[0].id, try_model=meanwhile)[2] is not None


def test_what_a_killed_installation_left_is_removed(store):
    (store.folder / ".0123-m.abcd.partial.tflite").write_bytes(b"half")
    install(store, fetched(), "", use=True, try_model=goes_well)
    assert not list(store.folder.glob(".*.partial*"))


def test_of_two_installations_at_once_one_is_refused(store):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom maskfer_edge.model_store import ModelStore\n"
        "with ModelStore(Path(sys.argv[1])).installing():\n    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(store.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(OutputError, match="another program installs a model"):
            install(store, fetched(), "", use=True, try_model=goes_well)
        other.stdin.close()
    install(store, fetched(), "", use=True, try_model=goes_well)


def test_use_tries_the_model_again_and_switches(store):
    stored, _ = install(store, fetched(), "", use=False, try_model=goes_well)
    with pytest.raises(ModelError, match="it fails"):
        use(store, "m", try_model=fails)
    assert store.state().expression.in_use == BUNDLED
    assert use(store, "m", try_model=goes_well) == (stored, EXPRESSION, WELL)
    assert store.state().expression.in_use == stored.id
    assert use(store, "m", try_model=fails) == (stored, EXPRESSION, None)


def test_a_damaged_model_is_not_used(store):
    stored, _ = install(store, fetched(), "", use=False, try_model=goes_well)
    stored.path.write_bytes(b"half")
    with pytest.raises(ModelError, match="is damaged"):
        use(store, "m", try_model=goes_well)
