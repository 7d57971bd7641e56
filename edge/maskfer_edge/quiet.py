"""Keeps the native libraries' chatter off the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_native_libraries() -> Iterator[None]:
    """Hold back what C and C++ code prints to stderr; print it after all if the block fails unexpectedly.

    Python's own messages (warnings, errors) of the block are held back as well. For the start of a
    command, not for use beside other threads: the whole process's stderr is redirected.
    """
    from maskfer_edge.errors import MaskferError

    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    # in memory, as there may be no disk to write to
    with os.fdopen(os.memfd_create("held"), "w+b") as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (MaskferError, KeyboardInterrupt):
            raise
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
