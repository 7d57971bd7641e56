"""What the three commands share: errors as one line, and figures as JSON."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

from maskfer_edge.errors import MaskferError


def make_app(help_text: str) -> typer.Typer:
    """A typer application as all three commands are made, with --version."""
    app = typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options_of_all)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print_result(f"maskfer {version('maskfer')}")
        raise typer.Exit


def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def run_app(app: typer.Typer, name: str) -> None:
    """Run a command; a MaskferError becomes one line on stderr and exit status 1, without traceback."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # it was closed by whoever started this: else the next file takes its number
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    # a file's name may hold what the terminal's encoding has no character for
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app(prog_name=name)
    except MaskferError as error:
        say(f"{name}: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say(f"{name}: interrupted")
        sys.exit(130)
    except SystemExit as end:
        # typer makes of Ctrl-C an exit status that says nothing
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            say(f"{name}: interrupted")
        raise
    except OSError as error:  # a full disk, a lost mount: whatever no writer has named already
        prefix = f"{error.filename}: " if error.filename else ""
        say(f"{name}: {prefix}{error.strerror or error}")
        sys.exit(1)


def say(text: str) -> None:
    """A message for the person at the terminal: stderr. That nobody can read it any more ends no run."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")


def print_result(text: str) -> None:
    """A result: stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(figures: Any) -> None:
    """One JSON object on stdout, from a dict or a dataclass."""
    plain = asdict(figures) if is_dataclass(figures) and not isinstance(figures, type) else figures
    print_result(json.dumps(plain, indent=2))
