import os
import tempfile

import pytest

from maskfer_edge.errors import InputError
from maskfer_edge.quiet import quiet_native_libraries


def say(text, error=None):
    """What native code may do, where there is nowhere to write to, as on a board whose card is full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/nowhere")
        with quiet_native_libraries():
            os.write(2, text)
            if error:
                raise error


def test_what_native_code_says_is_held_back(capfd):
    say(b"chatter\n")
    with pytest.raises(InputError):
        say(b"more chatter\n", InputError("of ours"))
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_it_is_said_after_all_if_something_breaks(capfd):
    with pytest.raises(ZeroDivisionError):
        say(b"why\n", ZeroDivisionError())
    assert capfd.readouterr().err == "why\n"
