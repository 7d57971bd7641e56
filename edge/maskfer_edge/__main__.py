"""Entry point of the program `maskfer-edge`: how it begins and ends as a process."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress


def main() -> None:
    """Load the program and run it."""
    try:
        from maskfer_edge import cli
    except KeyboardInterrupt:  # loading takes seconds on small boards
        sys.stderr.write("maskfer-edge: interrupted\n")
        sys.exit(130)
    try:
        cli.main()
    except SystemExit as end:
        if not isinstance(end.code, str) and any(thread.daemon for thread in threading.enumerate()):
            _exit_at_once(end.code or 0)
        raise


def _exit_at_once(status: int) -> None:
    """Without Python's own end, in which a thread that was left in native code aborts the process."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
