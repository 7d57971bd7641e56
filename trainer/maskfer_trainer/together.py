"""Training of several networks beside each other on one GPU, which faces, their changes and teachers never leave.

On a GPU the processor cannot make batches as fast as these small networks learn from them. Here an epoch is one
compiled call (JAX): it draws the changes that `augment` draws, lets the teachers score each face just as it is
shown (Beyer and others, Knowledge distillation: a good teacher is patient and consistent, 2022), and lets every
network learn from the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import numpy.typing as npt
from jax import lax, random

from maskfer_edge.contract import INPUT_SIZE, LABELS, FloatArray, UInt8Array
from maskfer_trainer import augment
from maskfer_trainer.batches import class_weights
from maskfer_trainer.networks import ARCHITECTURES
from maskfer_trainer.settings import FitSettings

# Share of faces with a sensor's noise, and its highest standard deviation in grey levels.
NOISY, NOISE = 0.3, 8.0
# Of the running mean of weights, what a step leaves as it is.
AVERAGE = 0.9995
WARM_UP = 0.04  # share of all steps
# Networks that are slow enough on a GPU to be worth half precision, and that overfit unless regularised.
LARGE = ("large", "huge")
WEIGHT_DECAY, WEIGHT_DECAY_OF_LARGE = 0.05, 0.2
PREDICT_BATCH = 1024

State = dict[str, Any]


@dataclass(frozen=True)
class Faces:
    """Training faces.

    Attributes:
        bare: (n, 48, 48) uint8 grey.
        masked: (n, variants, 48, 48) uint8, the same faces in several masks.
        labels: (n,) int64.
    """

    bare: UInt8Array
    masked: UInt8Array
    labels: npt.NDArray[np.int64]


class MultiNetworkTrainer:
    """Trains several networks in one step, each on the same batch.

    Args:
        networks: To train, in place: `assign_averaged_weights` gives them the averaged weights.
        teachers: Networks whose scores make up `FitSettings.teacher_share` of the targets: the mean of two
            answers: of one teacher about the faces as they are shown, and of one about the bare ones, both drawn anew
            each step. Over many epochs that teaches what all of them together say, in the time of one.
        faces: To learn from.
        settings: Without `arch`, which the networks determine; `seed` is of order and changes.
    """

    def __init__(
        self, networks: Sequence[keras.Model], teachers: Sequence[keras.Model], faces: Faces, settings: FitSettings
    ) -> None:
        self.networks, self.teachers, self.settings = list(networks), list(teachers), settings
        weights = class_weights(faces.labels, settings.balance)
        self._data = {
            "pairs": (jnp.asarray(faces.bare), jnp.asarray(faces.masked)),
            "labels": jnp.asarray(faces.labels, jnp.int32),
            "weights": jnp.asarray(weights),
            "teachers": [_variables(teacher) for teacher in teachers],
        }
        self.count = len(faces.labels)
        self.steps = max(1, self.count // settings.batch_size)
        self._optimizers = []
        self._states: list[State] = []
        for network in self.networks:
            decay = WEIGHT_DECAY_OF_LARGE if network.name in LARGE else WEIGHT_DECAY
            optimizer = keras.optimizers.AdamW(1.0, weight_decay=decay, global_clipnorm=5.0)
            optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
            optimizer.build(network.trainable_variables)
            self._optimizers.append(optimizer)
            current = _variables(network)
            # copies: the buffers that a step is given are donated to it
            self._states.append(
                {"current": jax.tree.map(jnp.array, current), "averaged": jax.tree.map(jnp.array, current),
                 "optimizer": [jnp.array(v.value) for v in optimizer.variables]}
            )  # fmt: skip
        self._epoch = jax.jit(self._train_epoch, donate_argnums=0)
        self._scores = jax.jit(self._predict_all)

    def train_epoch(self, number: int, epochs: int) -> list[dict[str, float]]:
        """Learn from each face once, but for the few, others each epoch, that fill no batch.

        Args:
            number: Of the epoch, from 0.
            epochs: How many there will be, which determines the learning rate.

        Returns:
            Of each network, its loss and accuracy on the faces as they were shown.
        """
        size, seed = self.settings.batch_size, self.settings.seed
        order = np.random.default_rng([seed, number]).permutation(self.count)[: self.steps * size]
        done = (number * self.steps + np.arange(self.steps) + 1) / (epochs * self.steps)
        rates = self.settings.learning_rate * np.minimum(done / WARM_UP, 0.5 + 0.5 * np.cos(np.pi * done))
        keys = random.split(random.key(int(np.random.SeedSequence([seed, number]).generate_state(1)[0])), self.steps)
        batches = (jnp.asarray(order.reshape(self.steps, -1)), jnp.asarray(rates, jnp.float32), keys)
        self._states, metrics = self._epoch(self._states, self._data, batches)
        means = np.asarray(metrics).mean(axis=0)
        return [{"loss": float(loss), "accuracy": float(accuracy)} for loss, accuracy in means]

    def scores(self, images: UInt8Array) -> FloatArray:
        """(networks, n, 7) float32: of the running means of the networks for (n, 48, 48) uint8 faces."""
        averaged = [state["averaged"] for state in self._states]
        parts = [
            np.asarray(self._scores(averaged, jnp.asarray(images[start : start + PREDICT_BATCH])))
            for start in range(0, len(images), PREDICT_BATCH)
        ]
        return np.concatenate(parts, axis=1)

    def assign_averaged_weights(self) -> None:
        """Give the networks the running mean of their weights."""
        for network, state in zip(self.networks, self._states, strict=True):
            trainable, rest = state["averaged"]
            for variable, value in zip(network.trainable_variables, trainable, strict=True):
                variable.assign(value)
            for variable, value in zip(network.non_trainable_variables, rest, strict=True):
                variable.assign(value)

    def state(self) -> list[npt.NDArray[Any]]:
        """Where training stands: weights, their running means and the optimizers' variables."""
        return [np.asarray(value) for value in jax.tree.leaves(self._states)]

    def load_state(self, values: Sequence[npt.NDArray[Any]]) -> None:
        """Go on from what `state` gave. Raises ValueError if it is of other networks."""
        leaves, tree = jax.tree.flatten(self._states)
        if [leaf.shape for leaf in leaves] != [value.shape for value in values]:
            raise ValueError("it holds other networks")
        self._states = jax.tree.unflatten(tree, [jnp.asarray(value) for value in values])

    def _train_epoch(self, states: list[State], data: dict[str, Any], batches: Any) -> tuple[list[State], Any]:
        result: tuple[list[State], Any] = lax.scan(partial(self._step, data), states, batches)
        return result

    def _predict_all(self, averaged: list[Any], images: Any) -> Any:
        faces = images[..., None].astype(jnp.float32)
        return jnp.stack(
            [_predict(network, state, faces) for network, state in zip(self.networks, averaged, strict=True)]
        )

    def _step(self, data: dict[str, Any], states: list[State], batch: Any) -> tuple[list[State], Any]:
        indices, rate, key = batch
        inputs, targets, weights, labels = self._make_batch(data, indices, key)
        metrics, new_states = [], []
        for network, optimizer, state in zip(self.networks, self._optimizers, states, strict=True):
            (loss, (accuracy, rest)), gradients = jax.value_and_grad(_loss, has_aux=True)(
                state["current"][0], state["current"][1], network, inputs, targets, weights, labels
            )
            optimizer_variables = [
                rate if variable is optimizer._learning_rate else value
                for variable, value in zip(optimizer.variables, state["optimizer"], strict=True)
            ]
            trainable, optimizer_variables = optimizer.stateless_apply(
                optimizer_variables, gradients, state["current"][0]
            )
            current = (trainable, rest)
            share = jnp.minimum(AVERAGE, (optimizer_variables[0] + 1.0) / (optimizer_variables[0] + 10.0))
            averaged = jax.tree.map(
                lambda old, new, share=share: share * old + (1 - share) * new
                if jnp.issubdtype(new.dtype, jnp.floating) else new,
                state["averaged"], current,
            )  # fmt: skip
            new_states.append({"current": current, "averaged": averaged, "optimizer": optimizer_variables})
            metrics.append(jnp.stack([loss, accuracy]))
        return new_states, jnp.stack(metrics)

    def _make_batch(self, data: dict[str, Any], indices: Any, key: Any) -> tuple[Any, Any, Any, Any]:
        """The faces of one step as they are shown, (n, 48, 48, 1) float32, their targets, weights and labels."""
        settings, count = self.settings, len(indices)
        for_mask, for_changes, for_bare, for_cover, for_shares, for_others, for_teachers = random.split(key, 7)
        bare, masked = data["pairs"]
        variants = random.randint(for_mask, (count,), 0, masked.shape[1])
        pairs = jnp.stack([bare[indices], masked[indices, variants]], axis=-1).astype(jnp.float32)
        pairs = augment_views(pairs, for_changes, settings.augmentation)
        is_bare = random.bernoulli(for_bare, settings.bare_share, (count, 1, 1))
        inputs = cut_out(jnp.where(is_bare, pairs[..., 0], pairs[..., 1]), for_cover, settings.cutout)
        labels = data["labels"][indices]
        targets, weights = jax.nn.one_hot(labels, len(LABELS)), data["weights"][labels]
        views = jnp.stack([inputs, pairs[..., 0]])
        if settings.mixup:
            own = random.beta(for_shares, settings.mixup, settings.mixup, (count,))
            other = random.permutation(for_others, count)
            views = own[:, None, None] * views + (1 - own[:, None, None]) * views[:, other]
            labels = jnp.where(own >= 0.5, labels, labels[other])
            first, second = own * weights, (1 - own) * weights[other]
            weights = first + second
            targets = (first[:, None] * targets + second[:, None] * targets[other]) / weights[:, None]
        views = jnp.round(jnp.clip(views, 0, 255))[..., None]
        targets = (1 - settings.label_smoothing) * targets + settings.label_smoothing / len(LABELS)
        if self.teachers:
            answers = [
                partial(_predict, teacher, variables)
                for teacher, variables in zip(self.teachers, data["teachers"], strict=True)
            ]
            asked = random.randint(for_teachers, (len(views),), 0, len(answers))
            scores = [lax.switch(which, answers, faces) for which, faces in zip(asked, views, strict=True)]
            share = settings.teacher_share
            targets = (1 - share) * targets + share * jnp.mean(jnp.stack(scores), axis=0)
        return views[0], lax.stop_gradient(targets), weights, labels


def augment_views(pairs: Any, key: Any, strength: float) -> Any:
    """Flip, turn, scale, shift, light and blur faces at random, as `augment.augment` does, and add noise.

    The views of a face are changed alike.

    Args:
        pairs: (n, 48, 48, views) float32, 0 to 255.
        key: Source of randomness.
        strength: 1 for the full ranges, 0 for flips alone.

    Returns:
        The same shape, 0 to 255.
    """
    count, size = len(pairs), INPUT_SIZE
    keys = random.split(key, 10)

    def drawn(number: int, between: tuple[float, float]) -> Any:
        low, high = between
        return strength * random.uniform(keys[number], (count, 1), minval=low, maxval=high)

    # where each pixel comes from
    middle = (size - 1) / 2
    ys, xs = (axis.reshape(1, -1) - middle for axis in jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij"))
    angle, scale = jnp.deg2rad(drawn(0, augment.DEGREES)), 1 + drawn(1, augment.ENLARGED)
    xs, ys = xs - size * drawn(2, augment.MOVED), ys - size * drawn(3, augment.MOVED)
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    flip = jnp.where(random.bernoulli(keys[4], 0.5, (count, 1)), -1, 1)
    from_x = jnp.clip(flip * (cos * xs - sin * ys) + middle, 0, size - 1)
    from_y = jnp.clip(sin * xs + cos * ys + middle, 0, size - 1)
    left, top = jnp.floor(from_x), jnp.floor(from_y)
    right_share, low_share = (from_x - left)[..., None], (from_y - top)[..., None]
    flat = pairs.reshape(count, size * size, -1)

    def at(x: Any, y: Any) -> Any:
        places = jnp.minimum(y, size - 1) * size + jnp.minimum(x, size - 1)
        return jnp.take_along_axis(flat, places.astype(jnp.int32)[..., None], axis=1)

    upper = at(left, top) * (1 - right_share) + at(left + 1, top) * right_share
    lower = at(left, top + 1) * (1 - right_share) + at(left + 1, top + 1) * right_share
    images = (upper * (1 - low_share) + lower * low_share).reshape(pairs.shape)

    # of no width for those that are not blurred
    is_blurred = random.bernoulli(keys[5], augment.BLURRED * strength, (count,))
    width = jnp.where(
        is_blurred, random.uniform(keys[6], (count,), minval=augment.BLUR[0], maxval=augment.BLUR[1]), 0.1
    )
    taps = jnp.exp(-0.5 * (jnp.arange(-2, 3) / width[:, None]) ** 2)
    taps = (taps / taps.sum(axis=1, keepdims=True))[:, :, None, None, None]
    padded = jnp.pad(images, ((0, 0), (2, 2), (0, 0), (0, 0)), mode="edge")
    images = sum(taps[:, k] * padded[:, k : k + size] for k in range(5))
    padded = jnp.pad(images, ((0, 0), (0, 0), (2, 2), (0, 0)), mode="edge")
    images = sum(taps[:, k] * padded[:, :, k : k + size] for k in range(5))

    contrast, brightness = (
        (1 + drawn(7, augment.CONTRAST))[..., None, None],
        drawn(8, augment.BRIGHTNESS)[..., None, None],
    )
    mean = images.mean(axis=(1, 2), keepdims=True)
    images = (images - mean) * contrast + mean + brightness
    noise_keys = random.split(keys[9], 3)
    is_noisy = random.bernoulli(noise_keys[0], NOISY * strength, (count, 1, 1, 1))
    deviation = random.uniform(noise_keys[1], (count, 1, 1, 1), maxval=NOISE) * is_noisy
    return jnp.clip(images + deviation * random.normal(noise_keys[2], (*pairs.shape[:3], 1)), 0, 255)


def cut_out(images: Any, key: Any, share: float) -> Any:
    """Lay a patch of one grey over the lower half of some faces, as `augment.cut_out` does.

    Args:
        images: (n, 48, 48) float32, 0 to 255.
        key: Source of randomness.
        share: Share of faces that get one, 0 to 1.

    Returns:
        The same, some covered.
    """
    count, size = len(images), INPUT_SIZE
    keys = random.split(key, 5)

    def edge(number: int, between: tuple[float, float]) -> Any:
        low, high = between
        return jnp.round(random.uniform(keys[number], (count, 1, 1), minval=low, maxval=high) * size)

    places = jnp.arange(size)
    inside = (
        (places[:, None] >= edge(0, augment.PATCH_TOP))
        & (places >= edge(1, augment.PATCH_LEFT))
        & (places < edge(2, augment.PATCH_RIGHT))
    )
    inside &= random.bernoulli(keys[3], share, (count, 1, 1))
    return jnp.where(inside, random.uniform(keys[4], (count, 1, 1), maxval=255), images)


def build_mixed_precision(architecture: str) -> keras.Model:
    """A network that computes in bfloat16, which halves a large one's time on a GPU; its weights are float32.

    On a processor nothing is gained by it, and JAX 0.11 makes NaN of a depthwise layer in float32 that follows.
    """
    if jax.default_backend() == "cpu":
        return ARCHITECTURES[architecture]()
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return ARCHITECTURES[architecture]()
    finally:
        keras.config.set_dtype_policy(policy)


def _variables(network: keras.Model) -> tuple[list[Any], list[Any]]:
    return [v.value for v in network.trainable_variables], [v.value for v in network.non_trainable_variables]


def _predict(network: keras.Model, variables: tuple[list[Any], list[Any]], faces: Any) -> Any:
    scores, _ = network.stateless_call(*variables, faces, training=False)
    return scores.astype(jnp.float32)


def _loss(
    trainable: list[Any], rest: list[Any], network: keras.Model, faces: Any, targets: Any, weights: Any, labels: Any
) -> tuple[Any, tuple[Any, list[Any]]]:
    scores, rest = network.stateless_call(trainable, rest, faces, training=True)
    scores = scores.astype(jnp.float32)
    losses = -(targets * jnp.log(jnp.clip(scores, 1e-7, 1))).sum(axis=-1)
    correct = (scores.argmax(axis=-1) == labels).astype(jnp.float32)
    return (weights * losses).mean(), (correct.mean(), rest)
