"""What `decode` makes of the kinds of picture files that there are."""

import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest

from maskfer_edge.decoding import PICTURE_SUFFIXES, decode
from maskfer_edge.errors import InputError

OPENCV = tuple(map(int, cv2.__version__.split(".")[:2]))
RGB, PALETTE, GREY_ALPHA, RGBA = 2, 3, 4, 6  # colour types of PNG
LOSSLESS_WEBP = (cv2.IMWRITE_WEBP_QUALITY, 101)

rows, columns = np.mgrid[:24, :36]
IMAGE = np.stack([7 * columns, 10 * rows, 120 - 2 * rows + columns], axis=-1).astype(np.uint8)
# opaque, half transparent, and an arbitrary colour that nobody sees
ALPHA = np.repeat(np.uint8([255, 128, 0]), 12)[None].repeat(24, axis=0)
HIDDEN = np.where(ALPHA[..., None] == 0, np.uint8([255, 0, 255]), IMAGE)

TURNS = {  # by EXIF orientation: how to turn what is stored
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def on_white(image):
    share = ALPHA[..., None] / 255
    return np.round(image * share + 255 * (1 - share))


def encoded(suffix, image, *options):
    return cv2.imencode(suffix, image, options)[1].tobytes()


def noise(suffix):
    return encoded(suffix, np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(samples, kind, *extra, size=None):
    """A PNG of (height, width, ...) samples with a colour type that OpenCV does not write."""
    height, width = size or samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, kind, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(samples.dtype.newbyteorder(">")).tobytes() for line in samples)
    chunks = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def rgba_png(image=HIDDEN, *extra):
    return png(np.dstack([image[..., ::-1], ALPHA]), RGBA, *extra)


def exif(orientation):
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HHI", orientation, 0, 0)


def with_segment(jpeg, content):
    """A JPEG with an EXIF segment (APP1)."""
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def pillow(suffix, mode="RGB", more=(), **options):
    """IMAGE (and frames of one grey each) as Pillow writes it."""
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    frames = [image.new(mode, IMAGE.shape[1::-1], value) for value in more]
    if frames:
        options |= {"save_all": True, "append_images": frames, "duration": 100}
    image.fromarray(np.ascontiguousarray(IMAGE[..., ::-1])).convert(mode).save(file, suffix, **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_decode_reads_every_suffix_of_the_list(suffix):
    np.testing.assert_allclose(decode(encoded(suffix, IMAGE), "x").astype(int), IMAGE, atol=40)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("image", [IMAGE, IMAGE[..., 0]], ids=["colour", "grey"])
def test_decode_scales_16_bits_to_8(suffix, image):
    expected = image if image.ndim == 3 else np.dstack([image] * 3)
    np.testing.assert_array_equal(decode(encoded(suffix, image.astype(np.uint16) * 257), "x"), expected)


@pytest.mark.parametrize(
    ("suffix", "mode", "options"),
    [
        ("png", "P", {}),
        ("jpeg", "RGB", {"progressive": True, "quality": 95}),
        ("jpeg", "CMYK", {"quality": 95}),
        ("tiff", "CMYK", {}),
        ("tiff", "RGB", {"compression": "tiff_lzw"}),
    ],
)
def test_decode_gives_the_colours(suffix, mode, options):
    image = decode(pillow(suffix, mode, **options), "x").astype(int)
    assert np.abs(image - IMAGE).mean() < (20 if mode == "P" else 4)


@pytest.mark.parametrize(("suffix", "mode"), [("png", "L"), ("png", "1"), ("jpeg", "L"), ("tiff", "L"), ("tiff", "1")])
def test_decode_gives_grey_as_three_channels(suffix, mode):
    image = decode(pillow(suffix, mode), "x")
    assert image.shape == IMAGE.shape
    assert set(np.unique(image)) <= {0, 255} or mode == "L"
    np.testing.assert_array_equal(image, np.dstack([image[..., 0]] * 3))


@pytest.mark.parametrize(
    "data",
    [
        rgba_png(),
        png(np.dstack([HIDDEN[..., ::-1], ALPHA]).astype(np.uint16) * 257, RGBA),
        encoded(".webp", np.dstack([HIDDEN, ALPHA]), *LOSSLESS_WEBP),
    ],
    ids=["png", "png-16-bit", "webp"],
)
def test_decode_lays_transparent_pictures_on_white(data):
    np.testing.assert_allclose(decode(data, "x"), on_white(IMAGE), atol=1)


def test_decode_lays_grey_with_alpha_on_white():
    grey = HIDDEN[..., 1]
    image = decode(png(np.dstack([grey, ALPHA]), GREY_ALPHA), "x")
    np.testing.assert_allclose(image, on_white(np.dstack([grey] * 3)), atol=1)


def test_decode_lays_a_palette_with_a_transparent_colour_on_white():
    indices = (ALPHA == 0).astype(np.uint8)
    data = png(indices, PALETTE, chunk(b"PLTE", bytes([1, 2, 3, 255, 0, 255])), chunk(b"tRNS", b"\xff\0"))
    np.testing.assert_array_equal(decode(data, "x"), np.where(indices[..., None], 255, np.uint8([3, 2, 1])))


def test_decode_keeps_an_opaque_picture_with_alpha():
    opaque = png(np.dstack([IMAGE[..., ::-1], np.full_like(ALPHA, 255)]), RGBA)
    np.testing.assert_array_equal(decode(opaque, "x"), IMAGE)


def test_decode_ignores_the_fourth_byte_of_a_bmp():
    # most programs leave it 0 in opaque pictures
    np.testing.assert_array_equal(decode(encoded(".bmp", np.dstack([IMAGE, np.zeros_like(ALPHA)])), "x"), IMAGE)


@pytest.mark.parametrize("orientation", TURNS)
def test_decode_turns_a_jpeg_by_its_exif(orientation):
    upright = encoded(".jpg", IMAGE)
    turned = decode(with_segment(upright, b"Exif\0\0" + exif(orientation)), "x")
    np.testing.assert_array_equal(turned, TURNS[orientation](decode(upright, "x")))


@pytest.mark.parametrize("orientation", TURNS)
def test_decode_turns_transparency_with_the_picture(orientation):
    image = decode(rgba_png(HIDDEN, chunk(b"eXIf", exif(orientation))), "x")
    np.testing.assert_allclose(image, TURNS[orientation](on_white(IMAGE)), atol=1)


@pytest.mark.parametrize(("suffix", "since"), [("png", (4, 8)), ("tiff", (4, 8)), ("webp", (4, 11)), ("gif", (4, 12))])
def test_decode_gives_the_first_frame(suffix, since):
    if since > OPENCV:
        pytest.skip(f"OpenCV reads no animated {suffix} before {since}")
    data = pillow(suffix, more=["white", "black"], **({"lossless": True} if suffix == "webp" else {}))
    assert np.abs(decode(data, "x").astype(int) - IMAGE).mean() < 10


def test_decode_survives_a_damaged_animation(tmp_path):
    # OpenCV 4.12 to 4.14 would crash, so in a process of its own
    still = rgba_png(IMAGE, chunk(b"acTL", struct.pack(">II", 2, 0)))
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 36, 24, 0, 0, 1, 10, 0, 0))
    data = still[:-12] + frame + chunk(b"fd\0T", bytes(100)) + still[-12:]
    (tmp_path / "moving.png").write_bytes(data)
    program = "import sys; from pathlib import Path; from maskfer_edge.decoding import read_picture as read\n"
    done = subprocess.run(
        [sys.executable, "-c", program + "print(read(Path(sys.argv[1])).shape)", str(tmp_path / "moving.png")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode >= 0, "crashed"
    assert "is not a picture" in done.stderr or "(24, 36, 3)" in done.stdout


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 1])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_decode_refuses_a_file_that_is_cut(suffix, share):
    whole = noise(suffix)
    with pytest.raises(InputError, match=r"^my\.file is not a picture .* cut short"):
        decode(whole[: int(share * len(whole)) - 2], "my.file")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_decode_refuses_a_cut_file_without_a_word_from_the_libraries(suffix, capfd):
    with pytest.raises(InputError):
        decode(noise(suffix)[:-20], "x")
    assert capfd.readouterr().err == ""


def test_decode_refuses_a_cut_jpeg_whose_thumbnail_is_whole():
    data = with_segment(noise(".jpg"), b"Exif\0\0" + exif(1) + encoded(".jpg", IMAGE))
    decode(data, "x")
    with pytest.raises(InputError, match="cut short"):
        decode(data[:-100], "x")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_decode_allows_bytes_after_the_end(suffix):
    # as phones do with the film of a "live" picture
    np.testing.assert_array_equal(decode(noise(suffix) + b"\xff\xd8\xff\xda..", "x"), decode(noise(suffix), "x"))


def test_decode_allows_padding_before_a_segment():
    data = noise(".jpg")
    np.testing.assert_array_equal(decode(data[:2] + 3 * b"\xff" + data[2:], "x"), decode(data, "x"))


def huge_jpeg():
    data = noise(".jpg")
    size = data.index(b"\xff\xc0") + 5
    return data[:size] + struct.pack(">HH", 65500, 65500) + data[size + 4 :]


@pytest.mark.parametrize("data", [png(IMAGE, RGB, size=(60000, 60000)), huge_jpeg()], ids=["png", "jpeg"])
def test_decode_refuses_a_picture_of_too_many_pixels(data):
    with pytest.raises(InputError, match=r"^big is too large; scale it down"):
        decode(data, "big")


def test_decode_says_that_memory_is_too_small(monkeypatch):
    def fail(*_):
        error = cv2.error("Failed to allocate 2700000000 bytes")
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(InputError, match=r"^big is too large; scale it down"):
        decode(noise(".jpg"), "big")


def test_decode_says_what_to_do_with_heic():
    with pytest.raises(InputError, match="convert HEIC and others to JPEG"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500), "IMG_0001.HEIC")
