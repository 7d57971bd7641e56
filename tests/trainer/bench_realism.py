"""How well a small classifier tells our pasted masks from real ones: 50 % is chance, and the best figure.

Real masks are faces cut from street photographs. They are told from bare faces that wear our masks: portraits
of other origin (nearly all are grey), and the few bare faces of the same photographs, in colour. Origin gives
pictures away as well, so the classifiers are also shown the upper face alone, above any mask: the control.

    python tests/trainer/bench_realism.py [--plain] [--sheet DIR]

It reads MASKFER_DATA or ../shared/data (its README.md says what); some five minutes on two cores.
"""

import argparse
import csv
import os
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from maskfer_edge.errors import InputError
from maskfer_trainer.landmarks import LandmarkPredictor
from maskfer_trainer.masks import KINDS
from maskfer_trainer.rendering import put_on
from maskfer_trainer.variety import draw_wearing

# Kinds in about the shares that the real crops show.
KINDS_SEEN = {
    "surgical": 0.62,
    "kn95": 0.08,
    "cone": 0.08,
    "kf94": 0.03,
    "cloth": 0.08,
    "fashion": 0.11,
}


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
# The pictures compared: where the eyes' middle lies and how far apart they are, in sides; and their parts.
EYES_XY, EYES_APART = (0.5, 0.32), 0.36
UPPER, LOWER, WHOLE = "upper face (control)", "lower face", "whole face"
REGIONS = {UPPER: (0.0, 0.33, 0.15, 0.85), LOWER: (0.41, 0.96, 0.08, 0.92), WHOLE: (0.0, 1.0, 0.0, 1.0)}
NOSE_PIECE = (0.25, 0.33, 0.38, 0.62)  # where masks reach into the upper face: hidden there
SHIFTS = ((0, 0, 1), (0.05, 0.04, 1.06), (-0.05, 0.04, 0.94), (0.05, -0.04, 0.94), (-0.05, -0.04, 1.06))
STEADY = 0.04  # by how much eyes may move between those frames; those of blurred and hidden faces move more
TWO_MEN_WH = (301, 400)  # all photographs of this size show the same two men
FOLDS, EPOCHS = 5, 25
PREDICT = LandmarkPredictor()


@dataclass(frozen=True)
class Face:
    """A face in its square with `MARGIN` around it.

    Attributes:
        photo: File name; the same picture never stands in training and in test.
        number: Place in its list; neighbours among the portraits often show one person.
        two_men: Whether it is one of the two men.
        crop: (n, n, 3) uint8 B,G,R.
        eyes: (2, 2) centres of the eyes, pixels of `crop`; None where they are not found with certainty.
    """

    photo: str
    number: int
    two_men: bool
    crop: np.ndarray
    eyes: np.ndarray | None

    def shrunk(self, size):
        scale = size / len(self.crop)
        if scale >= 1:
            return self
        crop = cv2.resize(self.crop, (size, size), interpolation=cv2.INTER_AREA)
        return replace(self, crop=crop, eyes=(self.eyes + 0.5) * scale - 0.5)

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
    square = image[y0 + out : y0 + out + n, x0 + out : x0 + out + n]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if n > size else cv2.INTER_LINEAR)


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
    with (DATA / folder / "boxes.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("label") == label]
    for number, row in enumerate(rows):
        x0, y0, x1, y1 = (int(row[key]) for key in ("xmin", "ymin", "xmax", "ymax"))
        if min(x1 - x0, y1 - y0) < SMALLEST:
            continue
        image, longer = cv2.imread(str(DATA / folder / row["image"])), max(x1 - x0, y1 - y0)
        side, size = grow * longer * (1 + 2 * MARGIN), round(min(grow * longer, LARGEST) * (1 + 2 * MARGIN))
        crop = cut(image, (x0 + x1) / 2, (y0 + y1) / 2 - rise * longer, side, size)
        face = Face(row["image"], number, image.shape[1::-1] == TWO_MEN_WH, crop, find_eyes(crop))
        if face.eyes is not None and not streaked(face.framed(96)):
            yield face


def part(pictures, region):
    top, bottom, left, right = (round(share * pictures.shape[1]) for share in region)
    return pictures[:, top:bottom, left:right]


def pictures_of(faces, size, grey):
    """(n, size, size, channels) float32, toned by the brows' surroundings so that skin and light are alike."""
    pictures = np.array([face.framed(size) for face in faces]).astype(np.float32)
    if grey:
        pictures = pictures @ np.float32((0.114, 0.587, 0.299))[:, None]
    skin = part(pictures, (0.0, NOSE_PIECE[0], *REGIONS[UPPER][2:]))
    spread = skin.mean(3).std((1, 2))[:, None, None, None]
    return np.clip((pictures - skin.mean((1, 2), keepdims=True)) / (spread + 4), -4, 4)


def region_of(pictures, name):
    if name == UPPER:
        pictures = pictures.copy()
        part(pictures, NOSE_PIECE)[:] = 0
    return part(pictures, REGIONS[name])


def features(pictures):
    """Gradients and a histogram of tones, for the classifiers that do not learn their own."""
    from skimage.feature import hog

    def tones(picture):
        return [np.histogram(channel, 16, (-4, 4), density=True)[0] for channel in np.moveaxis(picture, 2, 0)]

    return [np.concatenate([hog(picture, 9, (8, 8), (2, 2), channel_axis=2), *tones(picture)]) for picture in pictures]


def linear():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))


def pairs_of(reals, bares, put, times, apart):
    """Pairs of a real face and a bare one that looks like it above the mask, masked at the same size.

    Likeness is the face itself at 10x5 (light, pose, hair) and how real a classifier would take the upper
    face to be: matching on that propensity takes away what it can be told by (Rosenbaum and Rubin, 1983).
    A bare face is taken `times` times at most, and none within `apart` places of one taken.
    """
    from sklearn.model_selection import cross_val_predict

    upper = region_of(pictures_of([*reals, *bares], 48, grey=True), UPPER)
    labels = np.arange(len(upper)) < len(reals)
    chance = cross_val_predict(linear(), features(upper), labels, cv=10, method="decision_function")
    looks = np.array(
        [
            np.append(cv2.resize(u, (10, 5), interpolation=cv2.INTER_AREA), 4 * c)
            for u, c in zip(upper, chance, strict=True)
        ]
    )
    distance = np.linalg.norm(looks[labels][:, None] - looks[~labels], axis=2)
    numbers, pairs, paired, taken = np.array([bare.number for bare in bares]), [], set(), np.zeros(len(bares), int)
    for r, b in zip(*np.unravel_index(np.argsort(distance, axis=None), distance.shape), strict=True):
        real, bare = reals[r], bares[b]
        if r in paired or taken[b] >= times or real.two_men != bare.two_men:
            continue
        size = min(len(real.crop), len(bare.crop))
        bare = bare.shrunk(size)
        try:
            crop = put(bare.crop, landmarks_of(bare.crop), f"{bare.photo} {taken[b]}")
        except InputError:
            continue
        pasted = replace(bare, crop=crop, eyes=find_eyes(crop))
        if pasted.eyes is not None:
            pairs.append((real.shrunk(size), pasted))
            paired.add(r)
            taken[np.abs(numbers - numbers[b]) <= apart] += 1
    return pairs


def cnn(train, labels, test, seed):
    """Chance of being real, by a small convolutional network."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input(train.shape[1:])
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x)))
    x = layers.Dropout(0.4)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
    shifted = [np.roll(train, shift, (1, 2)) for shift in ((0, 0), (1, -1), (-1, 1))]
    copies = np.concatenate([*shifted, *(picture[:, :, ::-1] for picture in shifted)])
    rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * len(copies) // 32)
    model.compile(keras.optimizers.AdamW(rate, 1e-3), "binary_crossentropy")
    model.fit(copies, np.tile(labels, 6), batch_size=32, epochs=EPOCHS, verbose=0)
    return np.mean([model(turned, training=False) for turned in (test, test[:, :, ::-1])], axis=0)[:, 0]


def svm(train, labels, test, seed):
    """Chance of being real, by a support vector machine on gradients and tones."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    both = np.concatenate([train, train[:, :, ::-1]])
    model = make_pipeline(StandardScaler(), SVC(C=3)).fit(features(both), np.tile(labels, 2))
    return 1 / (1 + np.exp(-model.decision_function(features(test))))


def scores(pairs, pictures, classify):
    """Accuracy and area under the curve, by fold; pictures that share a photograph lie in one fold."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    group, photos = np.arange(len(pairs)), [{face.photo for face in pair} for pair in pairs]
    for i in range(len(pairs)):
        for k in range(i):
            if photos[i] & photos[k]:
                group[group == group[i]] = group[k]
    labels, found = np.tile((1.0, 0.0), len(pairs)), []
    for fold, (train, test) in enumerate(GroupKFold(FOLDS).split(labels, groups=np.repeat(group, 2))):
        chance = classify(pictures[train], labels[train], pictures[test], fold)
        found.append((np.mean((chance > 0.5) == labels[test]), roc_auc_score(labels[test], chance)))
    return np.array(found)


def save_sheet(path, pairs, columns=6, rows=12, size=96):
    """Real and pasted side by side, pair by pair."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = [np.hstack([face.framed(size) for face in pair]) for pair in pairs[: columns * rows]]
    tiles = [cv2.copyMakeBorder(tile, 1, 1, 1, 5, cv2.BORDER_CONSTANT) for tile in tiles]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    cv2.imwrite(str(path), np.vstack([np.hstack(tiles[k : k + columns]) for k in range(0, len(tiles), columns)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--plain", action="store_true", help="measure masks as drawn: the homography, one look, no light"
    )
    parser.add_argument("--sheet", type=Path, metavar="DIR", help="save real and pasted faces side by side")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    put = partial(masked, plain=options.plain)
    reals = list(read_faces("masked-photos", "with_mask"))
    strangers = [face for face in reals if not face.two_men]
    compared = (
        ("portraits", pairs_of(strangers, list(read_faces("portraits")), put, 1, 12), 48, True),
        ("photographs", pairs_of(reals, list(read_faces("masked-photos", "without_mask")), put, 2, 0), 64, False),
    )
    print(f"{'pasted on':24}{'pairs':>5}  {'region':22}{'CNN':>11}{'AUC':>6}{'SVM':>11}{'AUC':>6}")
    for name, pairs, size, grey in compared:
        if options.sheet:
            save_sheet(options.sheet / f"{name}.png", pairs)
        pictures = pictures_of([face for pair in pairs for face in pair], size, grey)
        for region in REGIONS:
            line = f"{name}, {size}x{size} {'grey' if grey else 'colour':6}{len(pairs):5}  {region:22}"
            for classify in (cnn, svm):
                accuracy, area = scores(pairs, region_of(pictures, region), classify).T
                line += f"{accuracy.mean():7.0%} ±{accuracy.std():3.0%}{area.mean():6.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
