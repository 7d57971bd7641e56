import os
import tempfile

import pytest

from maskfer_edge.errors import InputError
from maskfer_edge.quiet import quiet_native_libraries


@pytest.fixture(autouse=True)
def no_disk(monkeypatch):
    """There may be nowhere to write to, as on a board whose card is full."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")


@pytest.mark.parametrize("error", [None, InputError("of ours")])
def test_what_native_code_says_is_held_back(capfd, error):
    try:
        with quiet_native_libraries():
            os.write(2, b"chatter\n")
            if error:
                raise error
    except InputError:
        pass
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_it_is_said_after_all_if_something_breaks(capfd):
    with pytest.raises(ZeroDivisionError), quiet_native_libraries():
        os.write(2, b"why\n")
        _ = 1 / 0
    assert capfd.readouterr().err == "why\n"
