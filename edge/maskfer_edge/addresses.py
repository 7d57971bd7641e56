"""How addresses are shown."""

from __future__ import annotations


def without_secrets(source: str) -> str:
    """A source or address as it may stand in a log: without user, password, query and fragment.

    What is no address stays as it is.
    """
    scheme, mark, rest = source.partition("://")
    if not mark:
        return source
    place = rest.partition("?")[0].partition("#")[0]
    return f"{scheme}://{place.rpartition('@')[2]}"
