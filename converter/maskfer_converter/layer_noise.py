"""Which layers quantisation hurts: signal to quantisation noise of each, against the float network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskfer_converter.graph import read_graph
from maskfer_edge.contract import UInt8Array
from maskfer_edge.runtime import open_interpreter

# What a layer that is reproduced exactly is given, so that the figure stays a number.
MAX_DB = 120.0
FLOOR = 1e-30


@dataclass(frozen=True)
class LayerNoise:
    """One layer's output.

    Attributes:
        layer: Its name.
        sqnr_db: 10 log10 of the float signal's power over the power of its difference from the quantised one; what
            the layers before it have lost counts as well.
    """

    layer: str
    sqnr_db: float


def layer_noise(float_model: bytes, int8_model: bytes, faces: UInt8Array) -> list[LayerNoise]:
    """Signal to quantisation noise of all layers that both models have by name, the worst first.

    Args:
        float_model: Flatbuffer with float input.
        int8_model: Flatbuffer of the same network with uint8 input equal to the pixel.
        faces: (n, 48, 48) uint8 grey.
    """
    graphs = [read_graph(model, "model") for model in (float_model, int8_model)]
    in_float = {t.name: i for i, t in enumerate(graphs[0].tensors) if not t.bytes and i not in graphs[0].inputs}
    pairs = [
        (in_float[tensor.name], index, tensor)
        for index, tensor in enumerate(graphs[1].tensors)
        if not tensor.bytes and tensor.name in in_float and len(tensor.scales) == 1
    ]
    runs = [open_interpreter(model, keep_tensors=True) for model in (float_model, int8_model)]
    signal, noise = np.zeros(len(pairs)), np.zeros(len(pairs))
    for face in faces:
        for run in runs:
            detail = run.get_input_details()[0]
            run.set_tensor(detail["index"], face[None, ..., None].astype(detail["dtype"]))
            run.invoke()
        for place, (of_float, of_int8, tensor) in enumerate(pairs):
            exact = runs[0].get_tensor(of_float).astype(np.float64)
            # widened first: int8 arithmetic would wrap around
            rough = (runs[1].get_tensor(of_int8).astype(np.float64) - tensor.zero_points[0]) * tensor.scales[0]
            signal[place] += np.square(exact).sum()
            noise[place] += np.square(exact - rough).sum()
    decibels = 10 * (np.log10(np.maximum(signal, FLOOR)) - np.log10(np.maximum(noise, FLOOR)))
    decibels = decibels.clip(-MAX_DB, MAX_DB)
    found = [LayerNoise(pair[2].short_name, round(float(db), 1)) for pair, db in zip(pairs, decibels, strict=True)]
    return sorted(found, key=lambda layer: layer.sqnr_db)
