"""What the tests of several packages share: tiny pictures, data sets and networks."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import io
import socketserver
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

CLASSES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
TRAIN_PICTURES, TEST_PICTURES = 7, 3
# Brightness (0 to 1) at which the hand-made network is surest of each class.
CENTRES = np.linspace(0.2, 0.8, len(CLASSES))


def pytest_configure(config: pytest.Config) -> None:
    # how often the standard library's servers look whether they are to end: half a second else, at each end
    serve = socketserver.BaseServer.serve_forever
    serve.__defaults__ = (0.02,)
    # TensorFlow's variables under numpy 2, in Keras' convert_to_numpy; nothing of ours
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    )


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """The whole public-domain portrait, whose one face `astronaut` shows: (512, 512, 3) uint8, B,G,R."""
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[..., ::-1])


@pytest.fixture(scope="session")
def astronaut(portrait: np.ndarray) -> np.ndarray:
    """The public-domain portrait's face: (128, 128, 3) uint8, B,G,R."""
    return portrait[60:188, 160:288].copy()


@pytest.fixture(scope="session")
def grey_face(astronaut: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY)


@pytest.fixture(scope="session")
def astronaut_landmarks(grey_face: np.ndarray) -> np.ndarray:
    """(68, 2) float32 pixels of `astronaut`."""
    return np.asarray(loaded_predictor()(grey_face))


@pytest.fixture(scope="session")
def make_landmarks() -> Callable[..., np.ndarray]:
    """A factory of the landmarks of a simple 3-D face: (68, 2) float32 pixels.

    Seen from the front, its nose's tip lies on the middle of a square picture, and 0.28 of that
    picture's side is one face unit. Yaw is positive towards the right of the picture, roll clockwise;
    both in degrees.
    """
    from maskfer_trainer.placement import canonical_landmarks

    def make(side: int = 120, roll: float = 0.0, yaw: float = 0.0) -> np.ndarray:
        x, y = canonical_landmarks().astype(np.float64).T
        depth = np.zeros(68)
        depth[:17] = 0.75 * np.sqrt(1 - (x[:17] / 1.06) ** 2)
        depth[27:31], depth[36:48], depth[48:] = (0.8, 0.9, 1.02, 1.15), 0.6, 0.85
        angle, lean = np.radians(yaw), np.radians(roll)
        x, y = x * np.cos(angle) + depth * np.sin(angle), y - 0.53
        turned = np.stack([x * np.cos(lean) - y * np.sin(lean), x * np.sin(lean) + y * np.cos(lean)], axis=1)
        return (0.28 * side * turned + (side - 1) / 2).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def vary(grey_face: np.ndarray) -> Callable[[int, float], np.ndarray]:
    """A factory of variations of one face: (48, 48) uint8 of about the brightness asked for."""

    def make(seed: int, brightness: float = 0.45) -> np.ndarray:
        random = np.random.default_rng(seed)
        dx, dy = random.uniform(-4, 4, 2)
        picture = cv2.warpAffine(
            grey_face, np.float32([[1, 0, dx], [0, 1, dy]]), (128, 128), borderMode=cv2.BORDER_REPLICATE
        )
        if random.random() < 0.5:
            picture = picture[:, ::-1]
        picture = cv2.resize(picture, (48, 48), interpolation=cv2.INTER_AREA).astype(np.float64)
        picture += 255 * brightness - picture.mean() + random.normal(0, 3, picture.shape)
        return np.clip(picture, 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def make_source(vary: Callable[[int, float], np.ndarray]) -> Callable[..., Path]:
    """A factory of source folders; the last test picture of happy is a copy of its first training picture."""

    def make(folder: Path, train: int = TRAIN_PICTURES, test: int = TEST_PICTURES) -> Path:
        for label, name in enumerate(CLASSES):
            for split, count in (("train", train), ("test", test)):
                (folder / split / name).mkdir(parents=True)
                for i in range(count):
                    seed = 1000 * label + 100 * (split == "test") + i
                    if (split, name, i) == ("test", "happy", count - 1):
                        seed = 1000 * label
                    cv2.imwrite(str(folder / split / name / f"{i}.png"), vary(seed, CENTRES[label]))
        return folder

    return make


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, make_source: Callable[..., Path]) -> Path:
    """Seven training and three test faces of each class."""
    return make_source(tmp_path_factory.mktemp("source") / "faces")


@pytest.fixture(scope="session")
def odd_files(astronaut: np.ndarray) -> dict[str, bytes]:
    """`astronaut` in the rarer kinds of picture files, by file name; all look alike when decoded well."""
    from PIL import Image

    upright = Image.fromarray(astronaut[..., ::-1])
    frame = Image.new("RGB", upright.size, "red")
    rotated = upright.transpose(Image.Transpose.ROTATE_90)  # as a camera held upright stores it
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    corner = upright.convert("RGBA")
    corner.paste((255, 0, 255, 0), (0, 0, 20, 20))

    def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        return file.getvalue()

    moving = {"save_all": True, "append_images": [frame], "duration": 100}
    files = {
        "moving.png": saved(upright, "PNG", **moving),
        "moving.webp": saved(upright, "WEBP", lossless=True, **moving),
        "two-pages.tif": saved(upright, "TIFF", save_all=True, append_images=[frame]),
        "16-bit.png": cv2.imencode(".png", astronaut.astype(np.uint16) * 257)[1].tobytes(),
        "16-bit.tif": cv2.imencode(".tif", astronaut.astype(np.uint16) * 257)[1].tobytes(),
        "cmyk.jpg": saved(upright.convert("CMYK"), "JPEG", quality=95),
        "progressive.jpeg": saved(upright, "JPEG", quality=95, progressive=True),
        "palette.png": saved(upright.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        "turned.jpg": saved(rotated, "JPEG", quality=95, exif=exif),
        "transparent.png": saved(corner, "PNG"),
        "UPPER.BMP": saved(upright, "BMP"),
    }
    if tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 11):
        del files["moving.webp"]  # which OpenCV cannot read yet
    return files


@pytest.fixture
def one_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads the 100 MB of the landmark model and dlib's detector once a run, not once for each setting."""
    from maskfer_trainer import faces

    monkeypatch.setattr(faces, "LandmarkPredictor", loaded_predictor)
    detector = loaded_detector()
    monkeypatch.setattr("dlib.get_frontal_face_detector", lambda: detector)


@pytest.fixture(scope="session")
def predictor() -> Any:
    """A `LandmarkPredictor`."""
    return loaded_predictor()


@lru_cache
def loaded_predictor() -> Any:
    from maskfer_trainer.landmarks import LandmarkPredictor

    return LandmarkPredictor()


@lru_cache
def loaded_detector() -> Any:
    import dlib

    return dlib.get_frontal_face_detector()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """The data set of `source`, seed 0, built in one process."""
    from maskfer_trainer.builder import build_dataset
    from maskfer_trainer.picture import BuildSettings

    out = tmp_path_factory.mktemp("dataset") / "masked"
    build_dataset(source, out, BuildSettings(), workers=1)
    return out


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Any]:
    """A factory of the contract's smallest network: the class goes by mean brightness, or is always `only`."""

    def make(only: int | None = None) -> Any:
        import keras

        layers = keras.layers
        inputs = keras.Input((48, 48, 1))
        x = layers.Dense(6, activation="relu6")(layers.Flatten()(inputs))
        network = keras.Model(inputs, layers.Dense(7, activation="softmax")(x), name="by-brightness")
        # hidden unit k goes from 0 to 6 where brightness passes from class k to the next; in integers that is exact
        edges = (CENTRES[:-1] + CENTRES[1:]) / 2
        steps = np.full((48 * 48, 6), 200 / 255 / 48**2), 3 - 200 * edges
        if only is None:
            scores = np.eye(7)[1:] - np.eye(7)[:-1], 6.0 * np.eye(7)[0]
        else:
            scores = np.zeros((6, 7)), 5.0 * np.eye(7)[only]
        network.set_weights([weights.astype(np.float32) for weights in (*steps, *scores)])
        return network

    return make


@pytest.fixture(scope="session")
def run_eagerly() -> Callable[[pytest.MonkeyPatch], None]:
    """Has TensorFlow run networks as they are written: compiling a tiny one takes longer than all that it does."""
    import keras

    eager = property(lambda _: True, lambda *_: None)
    return lambda monkeypatch: monkeypatch.setattr(keras.Model, "run_eagerly", eager)


@pytest.fixture(scope="session")
def save_network(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """Saves a network as `trainer fit` does, in a folder of its own."""

    def save(network: Any) -> Path:
        from maskfer_trainer.keras_file import embed_metadata

        folder = tmp_path_factory.mktemp("network")
        network.save(folder / "bare.keras")
        said = {"architecture": "tiny", "dataset": "faces", "dataset_sha256": "ab" * 32, "training_pictures": 49}
        embed_metadata(folder / "bare.keras", folder / "model.keras", said)
        return folder / "model.keras"

    return save


@pytest.fixture(scope="session")
def keras_model(make_network: Callable[..., Any], save_network: Callable[[Any], Path]) -> Path:
    """A `.keras` whose class goes by mean brightness."""
    return save_network(make_network())


@pytest.fixture(scope="session")
def one_class_model(make_network: Callable[..., Any], save_network: Callable[[Any], Path]) -> Path:
    """A `.keras` that always says Happy."""
    return save_network(make_network(only=3))


@pytest.fixture(scope="session")
def tflite_model(tmp_path_factory: pytest.TempPathFactory, keras_model: Path, dataset: Path) -> Path:
    """`keras_model`, quantised."""
    from maskfer_converter.quantize import quantize

    out = tmp_path_factory.mktemp("tflite") / "model.tflite"
    quantize(keras_model, dataset, out, per_class=4)
    return out


@pytest.fixture
def run_without(tmp_path: Path) -> Callable[..., Ran]:
    """Runs an installed command in an interpreter that cannot import a library."""

    def run(blocked: str, command: str, *arguments: object) -> Ran:
        folder = tmp_path / "blocked"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import sys\n"
            "class Blocker:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name.partition('.')[0] == {blocked!r}:\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "sys.meta_path.insert(0, Blocker())\n"
        )
        ran = subprocess.run(
            [Path(sys.executable).with_name(command), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command's entry point in this process."""

    def run(main: Callable[[], None], *arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        out, err = capsys.readouterr()
        return Ran(code if isinstance(code, int) else int(code is not None), out, err)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def read_folder() -> Callable[[Path], dict[str, bytes]]:
    return contents
