import subprocess
import sys

import pytest

from maskfer_edge.dependencies import extra
from maskfer_edge.errors import DependencyError

LIBGL = "libGL.so.1: cannot open shared object file: No such file or directory"


def run_with_cv2(tmp_path, source):
    """Run a command that needs OpenCV with a module `cv2` of this source in its place."""
    (tmp_path / "cv2.py").write_text(source)
    program = "import sys; from maskfer_edge.cli import main; sys.argv[1:] = ['predict', 'x.png']; main()"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            f"raise ImportError({LIBGL!r})",
            "the system library libGL.so.1 is missing; run: sudo apt install -y libgl1 libglib2.0-0 libxcb1",
        ),
        (
            "__version__ = '5.0.0'",
            "OpenCV 5.0.0 has no Haar cascades; run: pip install 'opencv-python>=4.8,<5'",
        ),
        (
            "raise ImportError('broken\\nbuild')",
            "OpenCV cannot be imported (broken build); run: pip install 'opencv-python>=4.8,<5'",
        ),
    ],
    ids=["system library", "version 5", "broken"],
)
def test_an_opencv_that_does_not_work_is_one_line_with_the_remedy(tmp_path, source, message):
    done = run_with_cv2(tmp_path, source)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("maskfer-edge: ") and message in done.stderr


def test_a_missing_module_of_an_extra_names_the_pip_line():
    message = r"nosuchmodule is not installed; run: pip install 'maskfer\[trainer\]'"
    with pytest.raises(DependencyError, match=message), extra("trainer"):
        import nosuchmodule  # noqa: F401


def test_an_extra_that_is_there_and_fails_is_told_so():
    with pytest.raises(DependencyError, match=r"what it needs cannot be loaded \(no symbol\); run"), extra("trainer"):
        raise ImportError("no symbol")


def test_of_an_interrupted_import_the_interruption_counts():
    with pytest.raises(KeyboardInterrupt), extra("trainer"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error


def test_an_extra_lets_other_errors_through():
    with pytest.raises(ZeroDivisionError), extra("trainer"):
        raise ZeroDivisionError
