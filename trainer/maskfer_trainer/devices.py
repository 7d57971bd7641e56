"""What a training runs on, and how it is spread over several devices."""

from __future__ import annotations

import keras

from maskfer_edge.errors import InputError
from maskfer_edge.quiet import quiet_native_libraries


def gpus() -> list[str]:
    """Names of the GPUs that Keras' backend sees and will use."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return [device.name for device in tf.config.list_physical_devices("GPU")]
    if backend == "jax":
        import jax

        return [str(device) for device in jax.devices() if device.platform != "cpu"]
    import torch

    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def describe() -> str:
    """One line that says whether a GPU is used, and by what."""
    with quiet_native_libraries():
        found = gpus()
    backend = keras.backend.backend()
    if not found:
        return f"No GPU is used: {backend} sees none; training on the CPU."
    rest = "" if len(found) == 1 else f", of {len(found)}; all are used under JAX with --distribute"
    return f"Training on GPU {found[0]}{rest}, by {backend}."


def spread_over(batch_size: int) -> list[str]:
    """The names of all devices of this machine, over which batches of that size can be split.

    Raises:
        InputError: If the backend is not JAX, the only one for which that interface spreads data,
            there is only one device, or a batch cannot be split evenly.
    """
    if keras.backend.backend() != "jax":
        raise InputError(
            f"--distribute needs Keras' JAX backend, and this is {keras.backend.backend()}; "
            "run: pip install jax, then set KERAS_BACKEND=jax"
        )
    devices = keras.distribution.list_devices()
    if len(devices) < 2:
        raise InputError(f"--distribute needs several devices; JAX sees {', '.join(devices)} alone")
    if batch_size % len(devices):
        raise InputError(
            f"a batch of {batch_size} cannot be split evenly over {len(devices)} devices; change --batch-size"
        )
    return list(devices)


def spread(devices: list[str]) -> None:
    """Split each batch over devices from now on, by Keras' distribution API."""
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False))
