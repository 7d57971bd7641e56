"""How addresses are shown."""

from __future__ import annotations


def without_secrets(source: str) -> str:
    """A source or address as it may stand in a log: without user, password, query and fragment.

    What is no address stays as it is. Where a password holds characters that end an address, so that nobody can tell
    where it ends, nothing but the scheme is shown.
    """
    scheme, mark, rest = source.partition("://")
    if not mark:
        return source
    place = rest.partition("?")[0].partition("#")[0].rpartition("@")[2]
    host, _, port = place.partition("/")[0].rpartition(":")
    unclear = bool(host) and not (port.isdigit() or not port or port.endswith("]"))
    if unclear or "@" in rest.partition("/")[0].replace("#", "?").partition("?")[2]:
        return f"{scheme}://…"
    return f"{scheme}://{place}"
