"""What keeps these tests short: one conversion of a network serves all that only look at what is made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from maskfer_converter import quantize, quantize_detector
from maskfer_converter.convert import INT8, convert

_DONE: dict[tuple[Any, ...], bytes] = {}


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converts for real, whatever was converted before."""
    _convert_by(monkeypatch, convert)


@pytest.fixture(autouse=True)
def one_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    _convert_by(monkeypatch, _remembered)


@pytest.fixture
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times models hardly, and their memory, which takes two processes, not at all."""
    for module in (quantize, quantize_detector):
        monkeypatch.setattr(module, "LATENCY_RUNS", 3)
    monkeypatch.setattr("maskfer_converter.benchmark.memory_of", lambda *_: 1.0)


def _convert_by(monkeypatch: pytest.MonkeyPatch, how: Callable[..., bytes]) -> None:
    for module in (quantize, quantize_detector):
        monkeypatch.setattr(module, "convert", how)


def _remembered(network: Any, form: str, calibration: np.ndarray) -> bytes:
    weights = b"".join(array.tobytes() for array in network.get_weights())
    key = (form, network.to_json(), weights, calibration.tobytes() if form == INT8 else b"")
    if key not in _DONE:
        _DONE[key] = convert(network, form, calibration)
    return _DONE[key]
