"""A model file before it is installed: fetched from a file or an address, and signed by someone who may."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import subprocess
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from maskfer_edge.addresses import without_secrets
from maskfer_edge.errors import DependencyError, InputError
from maskfer_edge.files import read_bytes
from maskfer_edge.model_store import Reporter

# Ours have less than 3 MB.
MAX_BYTES = 64_000_000
MAX_SIGNATURE_BYTES = 64_000
# Without a byte for so long a server counts as gone; a complete file must be here within the second.
READ_TIMEOUT_S, DOWNLOAD_TIMEOUT_S = 30.0, 600.0
NAMESPACE = "maskfer-model"
REVOKED_NAME = "revoked_signers"
SSH_KEYGEN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class FetchedModel:
    """A model file that has not been checked yet.

    Attributes:
        content: Its bytes.
        signature: Those of the file beside it, with `.sig` appended to the name; None if there is none.
        name: For the store.
        source: For messages.
        signature_source: Likewise.
    """

    content: bytes
    signature: bytes | None
    name: str
    source: str
    signature_source: str


def fetch(source: str) -> FetchedModel:
    """Read a model and its signature into memory, from a file or an http:// or https:// address.

    Raises:
        InputError: If the model cannot be read, ends too early, or is larger than `MAX_BYTES`.
    """
    shown = without_secrets(source)
    if re.match(r"https?://", source):
        try:
            parts = urllib.parse.urlsplit(source)
        except ValueError as error:
            raise InputError(f"{shown} is no address: {error}") from error
        if shown.endswith("://…"):
            raise InputError(f"{shown} is no address: its port is no number, or a password stands in it")
        if "@" in parts.netloc:
            raise InputError(f"{shown} cannot be fetched with a password; fetch it otherwise, and give the file")
        beside = urllib.parse.urlunsplit(parts._replace(path=parts.path + ".sig"))
        content = _download(source, MAX_BYTES)
        if content is None:
            raise InputError(f"{shown} is not there; check the address")
        name = Path(urllib.parse.unquote(parts.path)).stem
        signature = _download(beside, MAX_SIGNATURE_BYTES)
        return FetchedModel(content, signature, _safe_name(name), shown, without_secrets(beside))
    if "://" in source:
        raise InputError(f"{shown} cannot be fetched; give a file, or an address that begins with https:// or http://")
    path, signature_path = Path(source), Path(f"{source}.sig")
    content = _read(path, MAX_BYTES)
    signature = _read(signature_path, MAX_SIGNATURE_BYTES) if os.path.lexists(signature_path) else None
    return FetchedModel(content, signature, _safe_name(path.stem), source, str(signature_path))


def check_sha256(fetched: FetchedModel, expected: str) -> None:
    """Raises InputError if the model's sha256, in hexadecimal, is not the expected one."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise InputError(f"a sha256 has 64 hexadecimal digits; received {expected!r}")
    found = hashlib.sha256(fetched.content).hexdigest()
    if found != expected.lower():
        raise InputError(f"{fetched.source} has the sha256 {found}, not {expected.lower()}; nothing was changed")


def check_signature(fetched: FetchedModel, signers: Path, *, allow_unsigned: bool, report: Reporter) -> str:
    """Who signed a model, of those who may.

    Args:
        fetched: The model.
        signers: OpenSSH's file of allowed signers. Keys in a file `REVOKED_NAME` beside it count no longer.
        allow_unsigned: Whether a model without signature, or a machine without `signers`, will do. An
            invalid signature never will.
        report: Receives a line for people if a model is accepted without.

    Returns:
        The signer, as the file names them; "" if there is no signature, or nobody to check it by.

    Raises:
        InputError: If the signature is missing or not by one of them.
        DependencyError: If ssh-keygen is missing.
    """
    if fetched.signature is None:
        problem = f"{fetched.source} is not signed ({fetched.signature_source} is not there)"
        remedy = f"sign it: {_sign_command(fetched)}"
    elif not signers.exists():
        problem = f"{signers} is not there, which names who may sign models"
        remedy = "make it (docs/models.md)"
    else:
        return _signer(fetched, fetched.signature, signers)
    if not allow_unsigned:
        raise InputError(f"{problem}; nothing was changed; {remedy}, or give --allow-unsigned")
    report(f"{problem}; --allow-unsigned: going on without a signature")
    return ""


def _read(path: Path, max_bytes: int) -> bytes:
    if path.is_file() and path.stat().st_size > max_bytes:
        raise _too_large(str(path), max_bytes)
    if path.exists() and not path.is_file() and not path.is_dir():  # which may have no end
        raise InputError(f"{path} is not a file; give a model file")
    return read_bytes(path)


def _download(url: str, max_bytes: int) -> bytes | None:
    """What an address gives, within `DOWNLOAD_TIMEOUT_S`; None if the server says that it has nothing there."""
    answers: list[bytes | Exception | None] = []

    def fetch() -> None:
        try:
            answers.append(_get(url, max_bytes))
        except Exception as error:  # noqa: BLE001 (raised below)
            answers.append(error)

    # a server that sends a byte now and then keeps a read busy for ever, before the first line too
    thread = threading.Thread(target=fetch, name="download", daemon=True)
    thread.start()
    thread.join(DOWNLOAD_TIMEOUT_S)
    if not answers:
        raise InputError(f"{without_secrets(url)} is not here after {DOWNLOAD_TIMEOUT_S:g} s; try again")
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def _get(url: str, max_bytes: int) -> bytes | None:
    content, shown = bytearray(), without_secrets(url)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "maskfer-edge"})
        with urllib.request.urlopen(request, timeout=READ_TIMEOUT_S) as response:
            length = response.headers.get("Content-Length", "")
            expected = int(length) if length.isdecimal() else None
            if expected is not None and expected > max_bytes:
                raise _too_large(shown, max_bytes)
            while chunk := response.read1(1 << 16):
                content += chunk
                if len(content) > max_bytes:
                    raise _too_large(shown, max_bytes)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (403, 404, 410):
            return None
        raise InputError(f"{shown} cannot be fetched: the server answers {error.code}; try again") from None
    except http.client.InvalidURL:  # whose text holds the whole address
        raise InputError(f"{shown} is no address; blanks and the like are written as %20") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        detail = getattr(reason, "strerror", None) or " ".join(str(reason).split()) or type(reason).__name__
        raise InputError(f"{shown} cannot be fetched: {detail}; try again") from None
    if expected is not None and len(content) < expected:
        raise InputError(f"{shown} broke off after {len(content)} of {expected} bytes; try again")
    return bytes(content)


def _too_large(source: str, max_bytes: int) -> InputError:
    return InputError(f"{source} has more than the {max_bytes / 1e6:g} MB that it may have")


def _safe_name(name: str) -> str:
    """A name that is a file's in any file system, and no other's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:40] or "model"


def _signer(fetched: FetchedModel, signature: bytes, signers: Path) -> str:
    revoked = signers.with_name(REVOKED_NAME)
    # a file that is there in name only must not count as none: ssh-keygen refuses everything then
    revocation = ["-r", str(revoked)] if os.path.lexists(revoked) else []
    problem = ""
    with tempfile.TemporaryDirectory() as folder:
        signature_path, single_signer = Path(folder) / "model.sig", Path(folder) / "signers"
        signature_path.write_bytes(signature)
        # ssh-keygen looks no further than the first line with a key; another may allow it models
        for line in (None, *read_bytes(signers).splitlines()):
            if line is not None:
                single_signer.write_bytes(line + b"\n")
            options = ["-s", str(signature_path), "-f", str(signers if line is None else single_signer)]
            found, reason = _ssh_keygen(["find-principals", *options], b"")
            if not found and line is None:
                raise _unknown_signer(fetched, signers, reason)
            for signer in found:
                good, reason = _ssh_keygen(
                    ["verify", *options, "-n", NAMESPACE, *revocation, "-I", signer], fetched.content
                )
                if good:
                    return signer
                reason = (
                    reason.rpartition("ignature: ")[2].rpartition("failed: ")[2]
                    or f"its key is in {revoked}, or that file is damaged"
                )
                problem = problem or f"by {signer} does not hold ({reason})"
    remedy = f"; sign it with -n {NAMESPACE}" if "namespace does not match" in problem else ""
    raise InputError(f"the signature {fetched.signature_source} {problem}; nothing was changed{remedy}")


def _unknown_signer(fetched: FetchedModel, signers: Path, reason: str) -> InputError:
    """What ssh-keygen means if it knows no signer."""
    at_line = re.fullmatch(rf"{re.escape(str(signers))}:(\d+): (.+)", reason)
    if at_line is None and "ignature: " in reason:
        problem, remedy = "not an OpenSSH signature", f"sign again: {_sign_command(fetched)}"
    else:
        problem, remedy = f"by nobody in {signers}", f"append the signer's line to {signers} (docs/models.md)"
    if at_line is not None:
        problem = f"{problem}, whose line {at_line[1]} does not count ({at_line[2]})"
        if "verify time" not in at_line[2]:  # which is that of a whole line
            remedy = f'a line has the form NAME namespaces="{NAMESPACE}" ssh-ed25519 KEY'
    return InputError(f"{fetched.signature_source} is {problem}; nothing was changed; {remedy}")


def _sign_command(fetched: FetchedModel) -> str:
    return f"ssh-keygen -Y sign -f KEY -n {NAMESPACE} {Path(fetched.source).name}"


def _ssh_keygen(arguments: list[str], content: bytes) -> tuple[list[str], str]:
    """The lines of its output, none if it fails, and its error message if it gives one."""
    command = ["ssh-keygen", "-Y", *arguments]
    try:
        completed = subprocess.run(
            command, input=content, capture_output=True, timeout=SSH_KEYGEN_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise DependencyError("ssh-keygen is not installed; run: sudo apt install -y openssh-client") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"ssh-keygen did not answer within {SSH_KEYGEN_TIMEOUT_S:g} s; try again") from None
    out, err = (text.decode(errors="replace").strip().splitlines() for text in (completed.stdout, completed.stderr))
    return (out, "") if completed.returncode == 0 else ([], err[0] if err else "")
