import io
import json
import zipfile
from dataclasses import replace

import pytest

from maskfer_edge.contract import LABELS
from maskfer_edge.errors import InputError, ModelError
from maskfer_edge.model_file import (
    JSON_NAME,
    LABELS_NAME,
    DetectorInfo,
    ModelInfo,
    load_detector_model,
    load_model,
    pack,
    strip,
    unpack,
    unpack_detector,
)

FLATBUFFER = b"\x1c\x00\x00\x00TFL3" + bytes(range(256)) * 3


def info(**changes):
    metadata = ModelInfo(
        "lean", {"haar": 0.1}, {"name": "fer"}, {"masked test": {"int8": 0.5}}, {"format": "int8"}, "research only"
    )
    return replace(metadata, **changes)


def packed_by_hand(labels_text=None, drop=(), flatbuffer=FLATBUFFER, **changes):
    """A model file with metadata that `pack` would not write."""
    with zipfile.ZipFile(io.BytesIO(pack(FLATBUFFER, info()))) as archive:
        metadata = json.loads(archive.read(JSON_NAME))
    metadata = {key: value for key, value in {**metadata, **changes}.items() if key not in drop}
    buffer = io.BytesIO(flatbuffer)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(LABELS_NAME, labels_text or "\n".join(LABELS))
        archive.writestr(JSON_NAME, json.dumps(metadata))
    return buffer.getvalue()


def detector_info(**changes):
    metadata = DetectorInfo(
        "points", (320, 240), 8, 0.35, {"name": "scenes"}, {"recall": 0.9}, {"format": "int8"}, "research only"
    )
    return replace(metadata, **changes)


def detector_by_hand(drop=(), **changes):
    """A detector's model file with metadata that `pack` would not write."""
    with zipfile.ZipFile(io.BytesIO(pack(FLATBUFFER, detector_info()))) as archive:
        metadata = json.loads(archive.read(JSON_NAME))
    buffer = io.BytesIO(FLATBUFFER)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(
            JSON_NAME, json.dumps({key: value for key, value in {**metadata, **changes}.items() if key not in drop})
        )
    return buffer.getvalue()


def refusal(content, name="my.tflite", read=unpack):
    with pytest.raises(ModelError) as caught:
        read(content, name)
    return str(caught.value)


def test_packed_metadata_comes_back():
    unpacked = unpack(pack(FLATBUFFER, info()), "m").info
    assert replace(unpacked, flatbuffer_sha256="") == info()


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


@pytest.mark.parametrize(("place", "says"), [(42, b"\xff\xff\xff\x7f"), (0, b"no directory")])
def test_strip_leaves_alone_what_it_cannot_read(place, says):
    content = bytearray(pack(FLATBUFFER, info()))
    directory = content.index(b"PK\x01\x02") + place
    content[directory : directory + len(says)] = says
    stripped = strip(bytes(content))
    assert stripped.startswith(FLATBUFFER)


def test_a_compressed_appendix_is_refused_unread():
    buffer = io.BytesIO(FLATBUFFER)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(LABELS_NAME, "\n".join(LABELS))
        archive.writestr(JSON_NAME, " " * 1_000_000 + "{}")
    assert "lacks maskfer's metadata" in refusal(buffer.getvalue())


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
        (detector_by_hand(kind="expression"), "differs from the format in crop_margins, input_size, "),
        (packed_by_hand(input_size=224), "224 pixels; expected 48"),
        (packed_by_hand(drop=["licence_note"]), "licence_note"),
        (packed_by_hand(extra=1), "extra"),
        (packed_by_hand(crop_margins={"haar": "wide"}), "crop margins"),
        (packed_by_hand(crop_margins=[0.1]), "crop margins"),
        (packed_by_hand(crop_margins={"haar": float("nan")}), "crop margins"),
        (packed_by_hand(crop_margins={"haar": 0.9}), "crop margins"),
        (packed_by_hand(quantization=[]), "quantization []; expected an object"),
        (packed_by_hand(architecture=None), "architecture None; expected a text"),
        (packed_by_hand(flatbuffer_sha256=None), "weights are not those"),
    ],
)
def test_metadata_that_breaks_the_contract_is_refused_by_what_is_wrong(content, message):
    assert message in refusal(content)


def test_a_refusal_is_one_line_that_names_the_file():
    text = refusal(packed_by_hand(drop=["kind"]), "/models/my.tflite")
    assert text.startswith("/models/my.tflite ") and "\n" not in text


@pytest.mark.parametrize(("made", "read"), [(info(), unpack), (detector_info(), unpack_detector)])
@pytest.mark.parametrize("bits", [0x01, 0x08, 0x80, 0xFF])
def test_no_damaged_byte_of_the_appendix_raises_anything_else(bits, made, read):
    content = pack(FLATBUFFER, made)
    odd = []
    for place in range(len(FLATBUFFER), len(content)):
        damaged = bytearray(content)
        damaged[place] ^= bits
        try:
            read(bytes(damaged), "m")
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


def test_a_detectors_metadata_comes_back():
    unpacked = unpack_detector(pack(FLATBUFFER, detector_info()), "m").info
    assert replace(unpacked, flatbuffer_sha256="") == detector_info()


def test_a_detectors_flatbuffer_comes_back_byte_for_byte():
    assert unpack_detector(pack(FLATBUFFER, detector_info()), "m").flatbuffer == FLATBUFFER


def test_a_detector_has_no_labels():
    with zipfile.ZipFile(io.BytesIO(pack(FLATBUFFER, detector_info()))) as archive:
        assert archive.namelist() == [JSON_NAME]


def test_a_detector_is_refused_as_an_expression_model():
    text = refusal(pack(FLATBUFFER, detector_info()))
    assert text == "my.tflite is of kind 'detector'; a model of kind 'expression' is needed"


def test_an_expression_model_is_refused_as_a_detector():
    text = refusal(pack(FLATBUFFER, info()), read=unpack_detector)
    assert text == "my.tflite is of kind 'expression'; a model of kind 'detector' is needed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format version 1; this program reads 2"),
        ({"drop": ["stride"]}, "differs from the format in stride"),
        ({"drop": ["kind"]}, "differs from the format in kind"),
        ({"extra": 1}, "differs from the format in extra"),
        ({"architecture": 1}, "architecture 1; expected a text"),
        ({"licence_note": None}, "licence_note None; expected a text"),
        ({"training_data": []}, "training_data []; expected an object"),
        ({"accuracy": 0.9}, "accuracy 0.9; expected an object"),
        ({"quantization": "int8"}, "quantization 'int8'; expected an object"),
        ({"stride": 0}, "stride 0; expected a whole number from 1"),
        ({"stride": 8.0}, "stride 8.0; expected a whole number"),
        ({"stride": True}, "stride True; expected a whole number"),
        ({"input_size_wh": 320}, "input_size_wh 320; expected width and height from 32 to 1024, multiples of 8"),
        ({"input_size_wh": [320]}, "input_size_wh [320]; expected width and height"),
        ({"input_size_wh": [320, 244]}, "input_size_wh [320, 244]; expected width and height"),
        ({"input_size_wh": [24, 240]}, "input_size_wh [24, 240]; expected width and height"),
        ({"input_size_wh": [320, 1032]}, "input_size_wh [320, 1032]; expected width and height"),
        ({"input_size_wh": [320.0, 240]}, "input_size_wh [320.0, 240]; expected width and height"),
        ({"score_threshold": 1.01}, "score_threshold 1.01; expected a number from 0 to 1"),
        ({"score_threshold": -0.1}, "score_threshold -0.1; expected a number from 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold nan; expected a number from 0 to 1"),
        ({"score_threshold": "0.5"}, "score_threshold '0.5'; expected a number from 0 to 1"),
        ({"score_threshold": True}, "score_threshold True; expected a number from 0 to 1"),
        ({"flatbuffer_sha256": None}, "weights are not those"),
    ],
)
def test_a_detectors_metadata_that_breaks_the_contract_is_refused_by_what_is_wrong(changes, message):
    assert message in refusal(detector_by_hand(**changes), read=unpack_detector)


@pytest.mark.parametrize("size_wh", [(32, 1024), (1024, 32)])
def test_a_detectors_smallest_and_largest_sides_are_taken(size_wh):
    content = pack(FLATBUFFER, detector_info(input_size_wh=size_wh))
    assert unpack_detector(content, "m").info.input_size_wh == size_wh


@pytest.mark.parametrize("threshold", [0, 1, 0.5])
def test_a_detectors_threshold_is_a_float(threshold):
    unpacked = unpack_detector(detector_by_hand(score_threshold=threshold), "m").info.score_threshold
    assert (unpacked, type(unpacked)) == (threshold, float)


def test_tampered_weights_of_a_detector_are_refused():
    content = bytearray(pack(FLATBUFFER, detector_info()))
    content[300] ^= 1
    assert "weights are not those" in refusal(bytes(content), read=unpack_detector)


def test_load_detector_model_reads_a_file_and_keeps_its_name(tmp_path):
    path = tmp_path / "d.tflite"
    path.write_bytes(pack(FLATBUFFER, detector_info()))
    assert load_detector_model(path).name == str(path)


def test_load_detector_model_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.tflite cannot be read"):
        load_detector_model(tmp_path / "none.tflite")


def test_a_rescorer_comes_back():
    content = pack(FLATBUFFER, detector_info(), b"second network")
    model = unpack_detector(content, "d.tflite")
    assert (model.rescorer, model.flatbuffer, strip(content)) == (b"second network", FLATBUFFER, FLATBUFFER)
    assert unpack_detector(pack(FLATBUFFER, detector_info()), "d.tflite").rescorer == b""


def test_a_damaged_rescorer_is_refused():
    content = bytearray(pack(FLATBUFFER, detector_info(), b"second network"))
    content[content.index(b"second network")] ^= 1
    with pytest.raises(ModelError, match="metadata"):
        unpack_detector(bytes(content), "d.tflite")
