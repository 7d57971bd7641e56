import io
import json
import zipfile
from dataclasses import replace

import pytest

from maskfer_edge.contract import LABELS
from maskfer_edge.errors import InputError, ModelError
from maskfer_edge.model_file import JSON_NAME, LABELS_NAME, ModelInfo, load_model, pack, strip, unpack

FLATBUFFER = b"\x1c\x00\x00\x00TFL3" + bytes(range(256)) * 3


def info(**changes):
    said = ModelInfo(
        "lean", {"haar": 0.1}, {"name": "fer"}, {"masked test": {"int8": 0.5}}, {"format": "int8"}, "research only"
    )
    return replace(said, **changes)


def packed_by_hand(labels_text=None, drop=(), flatbuffer=FLATBUFFER, **changes):
    """A model file with metadata that `pack` would not write."""
    with zipfile.ZipFile(io.BytesIO(pack(FLATBUFFER, info()))) as archive:
        said = json.loads(archive.read(JSON_NAME))
    said = {key: value for key, value in {**said, **changes}.items() if key not in drop}
    buffer = io.BytesIO(flatbuffer)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(LABELS_NAME, labels_text or "\n".join(LABELS))
        archive.writestr(JSON_NAME, json.dumps(said))
    return buffer.getvalue()


def refusal(content, name="my.tflite"):
    with pytest.raises(ModelError) as caught:
        unpack(content, name)
    return str(caught.value)


def test_packed_metadata_comes_back():
    said = unpack(pack(FLATBUFFER, info()), "m").info
    assert replace(said, flatbuffer_sha256="") == info()


def test_the_flatbuffer_comes_back_byte_for_byte():
    assert unpack(pack(FLATBUFFER, info()), "m").flatbuffer == FLATBUFFER


def test_the_file_starts_with_the_flatbuffer():
    assert pack(FLATBUFFER, info()).startswith(FLATBUFFER)


def test_strip_leaves_a_plain_flatbuffer_alone():
    assert strip(FLATBUFFER) == FLATBUFFER


def test_strip_takes_several_appendices_off():
    buffer = io.BytesIO(pack(FLATBUFFER, info()))
    buffer.seek(0, io.SEEK_END)
    second = io.BytesIO()
    with zipfile.ZipFile(second, "w") as archive:
        archive.writestr("note.txt", "x")
    assert strip(buffer.getvalue() + second.getvalue()) == FLATBUFFER


def test_packing_twice_leaves_one_appendix():
    assert pack(pack(FLATBUFFER, info(architecture="old")), info()) == pack(FLATBUFFER, info())


def test_the_same_arguments_give_the_same_bytes():
    assert pack(FLATBUFFER, info()) == pack(FLATBUFFER, info())


def test_the_appendix_holds_no_date():
    with zipfile.ZipFile(io.BytesIO(pack(FLATBUFFER, info()))) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_any_zip_reader_sees_labels_and_metadata():
    with zipfile.ZipFile(io.BytesIO(pack(FLATBUFFER, info()))) as archive:
        assert archive.read(LABELS_NAME).decode().split() == list(LABELS)
        assert json.loads(archive.read(JSON_NAME))["architecture"] == "lean"


@pytest.mark.parametrize("share", [0.0, 0.005, 0.3, 0.6, 0.9, 0.999])
def test_a_file_cut_short_is_refused(share):
    content = pack(FLATBUFFER, info())
    assert "my.tflite" in refusal(content[: int(len(content) * share)])


@pytest.mark.parametrize("content", [b"", b"GIF89a" * 99, b"PK\x05\x06" + bytes(18)])
def test_a_foreign_file_is_refused(content):
    assert refusal(content).startswith("my.tflite is not a TFLite model; make it with: converter quantize")


def test_a_model_without_metadata_is_refused():
    assert "lacks maskfer's metadata" in refusal(FLATBUFFER)


@pytest.mark.parametrize("place", [9, 300, len(FLATBUFFER) - 1])
def test_tampered_weights_are_refused(place):
    content = bytearray(pack(FLATBUFFER, info()))
    content[place] ^= 1
    assert "weights are not those" in refusal(bytes(content))


def test_weights_that_lost_bytes_are_refused():
    content = pack(FLATBUFFER, info())
    assert "my.tflite" in refusal(content[:100] + content[130:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed_by_hand(format_version=1), "format version 1; this program reads 2"),
        (packed_by_hand(drop=["format_version"]), "format version None"),
        (packed_by_hand(kind="detector"), "kind 'detector'"),
        (packed_by_hand(labels=list(reversed(LABELS))), "other labels"),
        (packed_by_hand(labels=None), "other labels"),
        (packed_by_hand(labels_text="Angry\nHappy"), "other labels"),
        (packed_by_hand(input_size=224), "224 pixels; expected 48"),
        (packed_by_hand(drop=["licence_note"]), "licence_note"),
        (packed_by_hand(extra=1), "extra"),
        (packed_by_hand(crop_margins={"haar": "wide"}), "crop margins"),
        (packed_by_hand(crop_margins=[0.1]), "crop margins"),
        (packed_by_hand(crop_margins={"haar": float("nan")}), "crop margins"),
        (packed_by_hand(crop_margins={"haar": 0.9}), "crop margins"),
        (packed_by_hand(flatbuffer_sha256=None), "weights are not those"),
    ],
)
def test_metadata_that_breaks_the_contract_is_refused_by_what_is_wrong(content, message):
    assert message in refusal(content)


def test_a_refusal_is_one_line_that_names_the_file():
    text = refusal(packed_by_hand(drop=["kind"]), "/models/my.tflite")
    assert text.startswith("/models/my.tflite ") and "\n" not in text


@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_no_damaged_byte_of_the_appendix_raises_anything_else(bits):
    content = pack(FLATBUFFER, info())
    odd = []
    for place in range(len(FLATBUFFER), len(content)):
        damaged = bytearray(content)
        damaged[place] ^= bits
        try:
            unpack(bytes(damaged), "m")
        except ModelError:
            continue
        except Exception as error:  # noqa: BLE001
            odd.append((place - len(FLATBUFFER), repr(error)))
    assert odd == []


def test_metadata_that_is_no_object_is_refused():
    buffer = io.BytesIO(FLATBUFFER)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(LABELS_NAME, "x")
        archive.writestr(JSON_NAME, "[]")
    assert "damaged metadata" in refusal(buffer.getvalue())


def test_load_model_reads_a_file_and_keeps_its_name(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(pack(FLATBUFFER, info()))
    assert load_model(path).name == str(path)


def test_load_model_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.tflite cannot be read"):
        load_model(tmp_path / "none.tflite")
