"""How well a small classifier tells our pasted masks from real ones: 50 % is chance, and the best figure.

Real masks are faces cut from street photographs. They are told from bare faces that wear our masks: portraits
of other origin (nearly all are grey), and the few bare faces of the same photographs, in colour. Origin gives
pictures away as well, so the classifiers are also shown the upper face alone, above any mask: the control.

`python tests/trainer/bench_realism.py [--plain] [--sheet DIR]`, five minutes; reads MASKFER_DATA or ../shared/data.
"""

import argparse
import csv
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import keras
import numpy as np
from keras.layers import BatchNormalization, Conv2D, Dense, Dropout, GlobalAveragePooling2D, MaxPooling2D, ReLU
from scipy.sparse.csgraph import connected_components
from skimage.feature import hog
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from maskfer_edge.errors import InputError
from maskfer_trainer.landmarks import LandmarkPredictor
from maskfer_trainer.masks import KINDS
from maskfer_trainer.rendering import put_on
from maskfer_trainer.variety import draw_wearing

# Kinds in about the shares that the real crops show.
KINDS_SEEN = {"surgical": 0.62, "kn95": 0.08, "cone": 0.08, "kf94": 0.03, "cloth": 0.08, "fashion": 0.11}


def masked(image_bgr, landmarks, name, plain=False):
    """The face wearing a mask of ours; `name` seeds the choice of the mask. The one place that knows its API."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    chosen = KINDS[str(random.choice(list(KINDS_SEEN), p=list(KINDS_SEEN.values())))]
    kind, wearing = draw_wearing([chosen], ["properly"], 0, name, plain)
    is_grey = (image_bgr == image_bgr[..., :1]).all()
    image = np.ascontiguousarray(image_bgr[..., 0]) if is_grey else image_bgr
    result = put_on(image, landmarks, kind, wearing, "homography" if plain else "mesh", plain).image
    return cv2.cvtColor(result, cv2.COLOR_GRAY2BGR) if is_grey else result


DATA = Path(os.environ.get("MASKFER_DATA", Path(__file__).parents[3] / "shared" / "data"))
SMALLEST, LARGEST = 40, 128  # px: shorter side of the boxes that count, side of the squares that we work on
# The hand-made boxes begin at the brows, the detector's at the hair. The square that has the eyes at 0.37 and
# the chin at 1.0 of its height, in both: its side and how far its centre lies above the box's, in longer box sides.
FRAMES = {"masked-photos": (1.13, 0.115), "portraits": (1.0, 0.0)}
MARGIN = 0.25  # of that square, kept around it
EYES_XY, EYES_APART = (0.5, 0.32), 0.36  # where eyes lie in the pictures compared, in sides; next: what is compared
UPPER = "upper face (control)"
REGIONS = {UPPER: (0, 0.33, 0.15, 0.85), "lower face": (0.41, 0.96, 0.08, 0.92), "whole face": (0, 1, 0, 1)}
SHIFTS = ((0, 0, 1), (0.05, 0.04, 1.06), (-0.05, 0.04, 0.94), (0.05, -0.04, 0.94), (-0.05, -0.04, 1.06))
STEADY = 0.04  # by how much eyes may move between those frames; those of blurred and hidden faces move more
TWO_MEN_WH = (301, 400)  # all photographs of this size show the same two men
FOLDS, EPOCHS, PREDICT = 5, 20, LandmarkPredictor()


@dataclass(frozen=True)
class Face:
    """A face in its square with `MARGIN` around it."""

    photo: str
    two_men: bool
    crop: np.ndarray  # (n, n, 3) uint8 B,G,R
    eyes: np.ndarray | None  # (2, 2) centres, pixels of `crop`; None where they are not found with certainty

    def shrunk(self, size):
        crop = cv2.resize(self.crop, (size, size), interpolation=cv2.INTER_AREA)
        return replace(self, crop=crop, eyes=(self.eyes + 0.5) * size / len(self.crop) - 0.5)

    def framed(self, size):
        """The picture compared: (size, size, 3) uint8 with the eyes in their place."""
        side = np.linalg.norm(self.eyes[1] - self.eyes[0]) / EYES_APART
        x, y = self.eyes.mean(axis=0) + (0.5 - np.array(EYES_XY)) * side
        return cut(self.crop, x, y, side, size)


def cut(image, x, y, side, size):
    """The square around x, y, enlarged or shrunk to `size`; what lies outside repeats the edge."""
    x0, y0, n = round(x - side / 2), round(y - side / 2), max(2, round(side))
    out = max(0, -x0, -y0, x0 + n - image.shape[1], y0 + n - image.shape[0])
    image = cv2.copyMakeBorder(image, out, out, out, out, cv2.BORDER_REPLICATE)
    how = cv2.INTER_AREA if n > size else cv2.INTER_LINEAR
    return cv2.resize(image[y0 + out : y0 + out + n, x0 + out : x0 + out + n], (size, size), interpolation=how)


def landmarks_of(crop, shift=(0, 0, 1)):
    """(68, 2) landmarks in pixels of a `Face.crop`, found in its square or one a little beside it."""
    side = len(crop) / (1 + 2 * MARGIN)
    grey, size = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), round(side * shift[2])
    x, y = (round((len(crop) - size) / 2 + shift[k] * side) for k in (0, 1))
    return PREDICT(np.ascontiguousarray(grey[y : y + size, x : x + size])) + np.float32((x, y))


def find_eyes(crop):
    """Centres of the eyes, or None if they move with the frame or the head is turned or tilted far."""
    found = np.array([landmarks_of(crop, shift) for shift in SHIFTS])
    eyes = np.stack([found[:, 36:42].mean(1), found[:, 42:48].mean(1)], axis=1)
    spread = np.linalg.norm(eyes - np.median(eyes, axis=0), axis=2).mean() / len(crop) * (1 + 2 * MARGIN)
    right, left = eyes = np.median(eyes, axis=0)
    apart, nose = left - right, np.median(found[:, 27], axis=0) - right
    turned = abs(nose @ apart / (apart @ apart) - 0.5) > 0.15
    return None if spread > STEADY or turned or abs(apart[1]) > 0.3 * apart[0] else eyes


def streaked(picture):
    """Whether a picture's edge was repeated to fill the square, as in most portraits: streaks without detail."""
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32)
    bands = (band for across in (grey, grey.T) for band in (across[:8], across[-8:]))
    return any(np.abs(np.diff(band, axis=0)).mean() < 0.3 * np.abs(np.diff(band, axis=1)).mean() for band in bands)


def read_faces(folder, label=None):
    """All faces of a folder that are large and clear enough."""
    grow, rise = FRAMES[folder]
    for row in csv.DictReader((DATA / folder / "boxes.csv").read_text().splitlines()):
        x0, y0, x1, y1 = (int(row[key]) for key in ("xmin", "ymin", "xmax", "ymax"))
        if row.get("label") != label or min(x1 - x0, y1 - y0) < SMALLEST:
            continue
        image, longer = cv2.imread(str(DATA / folder / row["image"])), max(x1 - x0, y1 - y0)
        side, size = grow * longer * (1 + 2 * MARGIN), round(min(grow * longer, LARGEST) * (1 + 2 * MARGIN))
        crop = cut(image, (x0 + x1) / 2, (y0 + y1) / 2 - rise * longer, side, size)
        face = Face(row["image"], image.shape[1::-1] == TWO_MEN_WH, crop, find_eyes(crop))
        if face.eyes is not None and not streaked(face.framed(96)):
            yield face


def part(pictures, region):
    top, bottom, left, right = (round(share * pictures.shape[1]) for share in REGIONS[region])
    found = pictures[:, top:bottom, left:right].copy()
    if region == UPPER:  # masks reach up the nose
        found[:, round(0.76 * (bottom - top)) :, round(0.33 * (right - left)) : round(0.67 * (right - left))] = 0
    return found


def pictures_of(faces, size, grey):
    """(n, size, size, channels) float32, toned by the forehead and brows so that skin and light are alike."""
    pictures = np.array([face.framed(size) for face in faces]).astype(np.float32)
    pictures = pictures @ np.float32((0.114, 0.587, 0.299))[:, None] if grey else pictures
    skin = pictures[:, : size // 4, size // 6 : -size // 6]
    spread = skin.mean(3).std((1, 2))[:, None, None, None]
    return np.clip((pictures - skin.mean((1, 2), keepdims=True)) / (spread + 4), -4, 4)


def features(picture):
    """Gradients and a histogram of tones, for the classifiers that do not learn their own."""
    tones = [np.histogram(channel, 16, (-4, 4), density=True)[0] for channel in np.moveaxis(picture, 2, 0)]
    return np.concatenate([hog(picture, 9, (8, 8), (2, 2), channel_axis=2), *tones])


def pairs_of(reals, bares, plain, times, apart, kept):
    """Pairs of a real face and a bare one that looks like it above the mask, masked at the same size.

    Likeness is that of the upper face at 17x8 (light, pose, hair) and of how real a classifier takes it to be:
    matching by that propensity takes away what origin tells (Rosenbaum and Rubin, 1983). A bare face is taken
    `times` times at most, with those within `apart` places of it; `kept` is the share of closest pairs returned.
    """
    upper = part(pictures_of([*reals, *bares], 48, grey=True), UPPER)
    small = np.array([cv2.resize(u, (17, 8), interpolation=cv2.INTER_AREA).ravel() for u in upper])
    is_real, seen = np.arange(len(upper)) < len(reals), np.hstack([[features(u) for u in upper], small])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))
    chance = cross_val_predict(model, seen, is_real, cv=10, method="decision_function")
    looks, pairs, paired, taken = np.hstack([small, 10 * chance[:, None]]), [], set(), np.zeros(len(bares), int)
    distance = np.linalg.norm(looks[is_real][:, None] - looks[~is_real], axis=2)
    for r, b in zip(*np.unravel_index(np.argsort(distance, axis=None), distance.shape), strict=True):
        real, bare = reals[r], bares[b]
        if r in paired or taken[b] >= times or real.two_men != bare.two_men:
            continue
        size = min(len(real.crop), len(bare.crop))
        crop = bare.shrunk(size).crop
        with suppress(InputError):
            crop = masked(crop, landmarks_of(crop), f"{bare.photo} {taken[b]}", plain)
            if (eyes := find_eyes(crop)) is not None:
                pairs.append((real.shrunk(size), replace(bare, crop=crop, eyes=eyes)))
                paired.add(r)
                taken[max(0, b - apart) : b + apart + 1] += 1
    return pairs[: round(kept * len(pairs))]


def by_cnn(train, labels, test, seed):
    """Chance of being real, by a small convolutional network."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input(train.shape[1:])
    for filters in (16, 32, 64):
        x = Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = MaxPooling2D()(ReLU()(BatchNormalization(momentum=0.9)(x)))
    model = keras.Model(inputs, Dense(1, activation="sigmoid")(Dropout(0.4)(GlobalAveragePooling2D()(x))))
    moves = [(turn, shift) for turn in (1, -1) for shift in ((0, 0), (1, -1), (-1, 1))]
    copies = np.concatenate([np.roll(train[:, :, ::turn], shift, (1, 2)) for turn, shift in moves])
    rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * len(copies) // 32)
    model.compile(keras.optimizers.AdamW(rate, 1e-3), "binary_crossentropy")
    model.fit(copies, np.tile(labels, len(moves)), batch_size=32, epochs=EPOCHS, verbose=0)
    return np.mean([model(turned, training=False) for turned in (test, test[:, :, ::-1])], axis=0)[:, 0]


def by_svm(train, labels, test, seed):
    """Chance of being real, by a support vector machine on `features`."""
    both = [features(picture) for pictures in (train, train[:, :, ::-1]) for picture in pictures]
    model = make_pipeline(StandardScaler(), SVC(C=3)).fit(both, np.tile(labels, 2))
    return 1 / (1 + np.exp(-model.decision_function([features(picture) for picture in test])))


def scores(pairs, pictures, classify):
    """Accuracy and area under the curve, by fold; pictures that share a photograph lie in one fold."""
    photos = [{face.photo for face in pair} for pair in pairs]
    group = connected_components(np.array([[bool(these & those) for those in photos] for these in photos]))[1]
    labels, found = np.tile((1.0, 0.0), len(pairs)), []
    for fold, (train, test) in enumerate(GroupKFold(FOLDS).split(labels, groups=np.repeat(group, 2))):
        chance = classify(pictures[train], labels[train], pictures[test], fold)
        found.append((np.mean((chance > 0.5) == labels[test]), roc_auc_score(labels[test], chance)))
    return np.array(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plain", action="store_true", help="masks as drawn: the homography, one look, no light")
    parser.add_argument("--sheet", type=Path, metavar="DIR", help="save real and pasted faces side by side")
    options = parser.parse_args()
    reals, plain = list(read_faces("masked-photos", "with_mask")), options.plain
    others, portraits = [face for face in reals if not face.two_men], list(read_faces("portraits"))
    compared = (
        ("portraits, grey", pairs_of(others, portraits, plain, times=1, apart=3, kept=0.75), 48),
        ("photographs, colour", pairs_of(reals, list(read_faces("masked-photos", "without_mask")), plain, 2, 0, 1), 64),
    )
    print(f"{'pasted on':20}pairs  {'region':21}{'CNN':>12}{'AUC':>6}{'SVM':>12}{'AUC':>6}")
    for name, pairs, size in compared:
        faces = [face for pair in pairs for face in pair]
        if options.sheet:
            options.sheet.mkdir(parents=True, exist_ok=True)
            rows = [np.hstack([face.framed(96) for face in faces[k : k + 12]]) for k in range(0, len(faces) - 11, 12)]
            cv2.imwrite(str(options.sheet / f"{name.split(',')[0]}.png"), np.vstack(rows))
        pictures = pictures_of(faces, size, name.endswith("grey"))
        for region in REGIONS:
            found = [scores(pairs, part(pictures, region), classify).T for classify in (by_cnn, by_svm)]
            figures = "".join(f"{hits.mean():7.0%} ±{hits.std():3.0%}{area.mean():6.2f}" for hits, area in found)
            print(f"{name:20}{len(pairs):5}  {region:21}{figures}", flush=True)


if __name__ == "__main__":
    main()
