"""Settings by a TOML file and by flags: the same names, types checked, unknown keys answered with the nearest."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar

from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], config: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a TOML file and flags say; flags win.

    Args:
        kind: Frozen dataclass of settings.
        config: File of its attributes, or None.
        given: Attributes by name; None counts as not given.

    Returns:
        Attribute to value, of those that were said.

    Raises:
        InputError: If the file cannot be read or holds an unknown key.
    """
    chosen: dict[str, Any] = {}
    if config is not None:
        try:
            chosen = tomllib.loads(read_bytes(config).decode())
        except (ValueError, RecursionError) as error:  # of TOML and of UTF-8
            raise InputError(f"{config} is no TOML file: {error}") from None
        known = [field.name for field in _fields(kind)]
        for key in chosen:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, 0.0)[0]
                raise InputError(f"{config} holds an unknown key {key!r}; the nearest known one is {near!r}")
    return chosen | {name: value for name, value in given.items() if value is not None}


def check_types(settings: Any) -> None:
    """Check that each attribute of a dataclass of str, int, float and bool is of its type. Raises InputError."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        expected: tuple[type, ...] = {"str": (str,), "int": (int,), "bool": (bool,)}.get(str(field.type), (int, float))
        if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
            raise InputError(f"{field.name} must be of type {field.type}; received {value!r}")


def as_toml(settings: Any) -> str:
    """A dataclass of str, int, float and bool as TOML, that `read_settings` reads back."""
    # JSON writes these four kinds of values as TOML does
    return "".join(
        f"{field.name} = {json.dumps(getattr(settings, field.name), ensure_ascii=False)}\n"
        for field in fields(settings)
    )


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)
