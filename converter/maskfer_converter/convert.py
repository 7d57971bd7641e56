"""A Keras network as a TFLite flatbuffer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfer_converter.first_convolution import with_kept_sums, with_packed_input

INT8, FLOAT16, DYNAMIC, FLOAT = "int8", "float16", "dynamic", "float"
# What users choose from; all but int8 are for comparison.
FORMATS = {
    INT8: "integers throughout, weights per channel, uint8 in and out",
    FLOAT16: "weights of 16 bits, computed in float",
    DYNAMIC: "int8 weights, activations quantised as they come",
    FLOAT: "32 bits throughout",
}


def convert(network: Any, form: str, calibration: npt.NDArray[np.float32]) -> bytes:
    """Convert a network for one picture at a time.

    The batch is fixed at one: shapes are constants then, and no operator computes them at the edge. Its first
    convolution is packed, see `first_convolution.with_packed_input`; for ``int8`` it is rounded with more care, see
    `first_convolution.with_kept_sums`.

    Args:
        network: A `keras.Model` on the TensorFlow backend.
        form: One of `FORMATS`.
        calibration: (n, height, width, 1) float32, 0 to 255; sets the ranges of ``int8``, unused otherwise.

    Returns:
        The flatbuffer; the same arguments give the same bytes.
    """
    import tensorflow as tf

    def representative() -> Iterator[list[npt.NDArray[np.float32]]]:
        for picture in calibration:
            yield [picture[None]]

    one_picture = [tf.TensorSpec((1, *network.input_shape[1:]), tf.float32, name="grey")]
    if form == INT8:
        network = with_kept_sums(network)
    with tempfile.TemporaryDirectory() as folder:
        with_packed_input(network).export(folder, format="tf_saved_model", verbose=False, input_signature=one_picture)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if form != FLOAT:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if form == FLOAT16:
            converter.target_spec.supported_types = [tf.float16]
        if form == DYNAMIC:
            # with a scale a channel there, dense layers would need TFLite 2.17
            converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        if form == INT8:
            converter.representative_dataset = representative
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
            converter.inference_output_type = tf.uint8
        return bytes(converter.convert())
