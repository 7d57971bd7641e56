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
    """The settings in a TOML file and flags; flags win.

    Args:
        kind: Frozen dataclass of settings.
        config: File of its attributes, or None.
        given: Attributes by name; None counts as not given.

    Returns:
        Attribute to value, of those that were given.

    Raises:
        InputError: If the file cannot be read, or holds an unknown key or a value that is of another type.
    """
    chosen: dict[str, Any] = {}
    if config is not None:
        try:
            chosen = tomllib.loads(read_bytes(config).decode())
        except (ValueError, RecursionError) as error:  # of TOML and of UTF-8
            raise InputError(
                f'{config} is no TOML file: {error}; text needs quotes, such as source = "usb:0"'
            ) from None
        known = {field.name: field for field in _fields(kind)}
        for key, value in chosen.items():
            if isinstance(value, dict):
                raise InputError(f"{config} has a section [{key}]; settings go without sections: take that line out")
            if key not in known:
                nearest = difflib.get_close_matches(key, known, 1)
                remedy = (
                    f"the nearest known one is {nearest[0]!r}"
                    if nearest
                    else "the keys are the options that --help lists, with _ for -"
                )
                raise InputError(f"{config} holds an unknown key {key!r}; {remedy}")
            if not _is_of_type(known[key], value):
                raise InputError(f"{config}: {_type_remedy(known[key], value)}")
    return chosen | {name: value for name, value in given.items() if value is not None}


def check_types(settings: Any) -> None:
    """Check that each attribute of a dataclass of str, int, float and bool is of its type. Raises InputError."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not _is_of_type(field, value):
            raise InputError(f"{field.name} must be of type {field.type}; received {value!r}")


def as_toml(settings: Any) -> str:
    """A dataclass of str, int, float and bool as TOML, that `read_settings` reads back.

    Raises:
        InputError: If a text is not UTF-8, as a file's name may be, but TOML is.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, str) and value.encode(errors="replace").decode() != value:
            raise InputError(f"{field.name} is not UTF-8, as a settings file must be; rename the file that it names")
    # JSON writes these four kinds of values as TOML does
    return "".join(
        f"{field.name} = {json.dumps(getattr(settings, field.name), ensure_ascii=False)}\n"
        for field in fields(settings)
    )


def _is_of_type(field: Field[Any], value: Any) -> bool:
    expected: tuple[type, ...] = {"str": (str,), "int": (int,), "bool": (bool,)}.get(str(field.type), (int, float))
    return isinstance(value, expected) and (bool in expected or not isinstance(value, bool))


def _type_remedy(field: Field[Any], value: Any) -> str:
    """How a setting is to be written in TOML whose value is of another type."""
    if field.type == "bool":
        return f"{field.name} is true or false"
    if field.type == "int":
        return f"{field.name} needs a whole number without quotes, such as {field.default or 3}"
    if field.type == "float":
        return f"{field.name} needs a number without quotes, such as {field.default or 0.5}"
    if isinstance(value, list):
        return f"{field.name} is one text, in quotes"
    return f'{field.name} needs quotes: {field.name} = "{str(value).lower() if isinstance(value, bool) else value}"'


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)
