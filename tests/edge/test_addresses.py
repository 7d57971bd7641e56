import pytest

from maskfer_edge.addresses import without_secrets


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://user:secret@camera/stream", "rtsp://camera/stream"),
        ("RTSP://user:sec@ret@camera:554/x", "RTSP://camera:554/x"),
        ("http://camera/v.mjpg?user=a&pwd=secret", "http://camera/v.mjpg"),
        ("http://camera/v.mjpg?mail=a@secret", "http://camera/v.mjpg"),
        ("http://door:8090/?token=secret", "http://door:8090/"),
        ("https://user@host/m.tflite#secret", "https://host/m.tflite"),
        ("rtsp://admin:pass#word@camera/stream", "rtsp://…"),
        ("rtsp://admin:pass?word@camera/stream", "rtsp://…"),
        ("rtsp://admin:pa/ss@camera/stream", "rtsp://camera/stream"),
        ("rtsp://admin:p/a?ss@camera/stream", "rtsp://…"),
        ("http://camera?mail=a@secret", "http://…"),
        ("rtsp://user:secret@[fe80::1]:554/x", "rtsp://[fe80::1]:554/x"),
        ("rtsp://[fe80::1]/x", "rtsp://[fe80::1]/x"),
        ("http://camera:/x", "http://camera:/x"),
        ("usb:0", "usb:0"),
        ("a clip?.mp4", "a clip?.mp4"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(source, shown):
    assert without_secrets(source) == shown
