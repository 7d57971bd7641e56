"""Where to serve and where to publish, out of what a person wrote, and how addresses are shown."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from maskfer_edge.errors import InputError

PASSWORD_VARIABLE = "MASKFER_MQTT_PASSWORD"
PORTS = {"mqtt": 1883, "mqtts": 8883}


def without_secrets(source: str) -> str:
    """A source or address as it may stand in a log: without user, password, query and fragment.

    What is no address stays as it is. Where a password holds characters that end an address, so that nobody can tell
    where it ends, nothing but the scheme is shown.
    """
    scheme, mark, rest = source.partition("://")
    if not mark:
        return source
    before, _, after = rest.replace("#", "?").partition("?")
    place = before.rpartition("@")[2]
    host, _, port = place.partition("/")[0].rpartition(":")
    unclear = bool(host) and not (port.isdigit() or not port or port.endswith("]"))
    # a password may hold all of ?, #, / and @; before a mere host none has begun
    host_alone = "/" in before and not set(":@") & set(before.partition("/")[0])
    if unclear or ("@" in after and not host_alone):
        return f"{scheme}://…"
    return f"{scheme}://{place}"


def address(text: str, name: str, example_port: int) -> tuple[str, int]:
    """Host and port to serve at.

    Args:
        text: ``PORT`` or ``HOST:PORT``; the host is this machine by default.
        name: Of the setting, for messages.
        example_port: A port that messages give as an example.

    Raises:
        InputError: If it is neither.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise InputError(
            f"{name} must be a port or HOST:PORT, such as {example_port} or 0.0.0.0:{example_port}; received {text!r}"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


@dataclass(frozen=True)
class Broker:
    """Where and as whom to publish.

    Attributes:
        scheme: ``mqtt``, or ``mqtts`` for TLS.
        host: Name or address.
        port: TCP port.
        user: None: anonymous.
        password: None: without.
        prefix: What all topics but Home Assistant's begin with, without a slash at its ends.
    """

    scheme: str
    host: str
    port: int
    user: str | None
    password: str | None = field(repr=False)
    prefix: str

    def __str__(self) -> str:
        """For messages: neither user nor password."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_broker(url: str) -> Broker:
    """Take an address apart.

    Args:
        url: ``mqtt://[user[:password]@]host[:port][/prefix]``, or ``mqtts://`` for TLS with the system's certificates.
            The environment's `PASSWORD_VARIABLE` stands in for a missing password.

    Raises:
        InputError: If it cannot be used. The text never holds any of the address, as that may hold a password.
    """
    try:
        url.encode()
        parts = urlsplit(url)
        host, port, prefix = parts.hostname or "", parts.port, unquote(parts.path).strip("/")
        # as the connection will do, in a thread that must not die of it
        host.encode("idna")
    except ValueError:
        raise _address_error("has a host or port that cannot be used") from None
    if parts.scheme not in PORTS:
        raise _address_error("does not begin with mqtt:// or mqtts://")
    if not host or port == 0 or any(letter.isspace() for letter in host):
        raise _address_error("has no host, a blank in it, or port 0")
    if set("?#") & set(url) or set("+#\0") & set(prefix):
        raise _address_error("has one of ? # + where MQTT allows none")
    user, password = parts.username, parts.password
    return Broker(
        scheme=parts.scheme,
        host=host,
        port=port or PORTS[parts.scheme],
        user=None if user is None else unquote(user),
        password=os.environ.get(PASSWORD_VARIABLE) if password is None else unquote(password),
        prefix=prefix or f"maskfer/{socket.gethostname()}",
    )


def _address_error(problem: str) -> InputError:
    return InputError(
        f"the MQTT address {problem}; give mqtt://[user[:password]@]host[:port][/prefix], or mqtts:// for TLS; "
        f"leave a password with special characters to the environment variable {PASSWORD_VARIABLE}"
    )
