from __future__ import annotations

import keras
import pytest

from maskfer_edge.errors import InputError
from maskfer_trainer import devices


@pytest.mark.parametrize(
    ("found", "message"),
    [([], "No GPU is used: .* sees none; training on the CPU"), (["Card A"], "on GPU Card A, by"),
     (["Card A", "Card B"], "Card A, of 2; all .* --distribute")],
)  # fmt: skip
def test_it_says_whether_a_gpu_is_used(monkeypatch, found, message):
    import re

    monkeypatch.setattr(devices, "gpus", lambda: found)
    assert re.search(message, devices.describe())


def test_a_machine_without_gpu_has_none(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert devices.gpus() == []


def test_spreading_needs_jax(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(InputError, match=r"JAX.*tensorflow.*KERAS_BACKEND=jax"):
        devices.spread_over(32)


def test_one_device_is_nothing_to_spread_over(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0"])
    with pytest.raises(InputError, match=r"several devices.*cpu:0"):
        devices.spread_over(32)


def test_a_batch_must_split_evenly(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0", "cpu:1", "cpu:2"])
    with pytest.raises(InputError, match="32 cannot be split evenly over 3"):
        devices.spread_over(32)
