import socket

import pytest

from maskfer_edge.addresses import address, parse_broker, without_secrets
from maskfer_edge.errors import InputError


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
        ("rtsp://admin:1?/2@camera/stream", "rtsp://…"),
        ("rtsp://admin:1/2#@camera/stream", "rtsp://…"),
        ("rtsp://admin:p@s/s?w@camera/stream", "rtsp://…"),
        ("rtsp://user:secret@[fe80::1]:554/x", "rtsp://[fe80::1]:554/x"),
        ("rtsp://[fe80::1]/x", "rtsp://[fe80::1]/x"),
        ("http://camera:/x", "http://camera:/x"),
        ("usb:0", "usb:0"),
        ("a clip?.mp4", "a clip?.mp4"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(source, shown):
    assert without_secrets(source) == shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8090", ("127.0.0.1", 8090)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:81", ("::1", 81)),
        (":82", ("127.0.0.1", 82)),
    ],
)
def test_an_address_is_host_and_port(text, expected):
    assert address(text, "browser", 8090) == expected


@pytest.mark.parametrize("text", ["", "host", "host:", "70000", "host:-1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InputError, match="metrics must be a port or HOST:PORT"):
        address(text, "metrics", 9090)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", ("mqtt", "broker", 1883, None, None, f"maskfer/{socket.gethostname()}")),
        ("mqtts://broker/", ("mqtts", "broker", 8883, None, None, f"maskfer/{socket.gethostname()}")),
        ("mqtt://10.0.0.2:1884/a/b/", ("mqtt", "10.0.0.2", 1884, None, None, "a/b")),
        ("mqtt://me@broker/room", ("mqtt", "broker", 1883, "me", None, "room")),
        ("mqtt://me:p%40ss%23@broker/my%20room", ("mqtt", "broker", 1883, "me", "p@ss#", "my room")),
        ("mqtt://[::1]:1884/room", ("mqtt", "::1", 1884, None, None, "room")),
    ],
)
def test_an_address_is_taken_apart(url, expected, monkeypatch):
    monkeypatch.delenv("MASKFER_MQTT_PASSWORD", raising=False)
    broker = parse_broker(url)
    assert (broker.scheme, broker.host, broker.port, broker.user, broker.password, broker.prefix) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("broker", "does not begin with mqtt://"),
        ("http://me:secret@broker", "does not begin with mqtt://"),
        ("me:secret@broker", "does not begin with mqtt://"),
        ("mqtt://", "has no host"),
        ("mqtt://me:secret@", "has no host"),
        ("mqtt://me:secret@broker:0", "port 0"),
        ("mqtt://me:secret@my broker", "a blank in it"),
        ("mqtt://me:secret@broker:70000", "has a host or port that cannot be used"),
        ("mqtt://broker:secret", "has a host or port that cannot be used"),
        ("mqtt://me:secret#x@broker", "has a host or port that cannot be used"),
        ("mqtt://me:secret@a..b", "has a host or port that cannot be used"),
        ("mqtt://me:secret@[::1", "has a host or port that cannot be used"),
        ("mqtt://me:secret@broker/\udcff", "has a host or port that cannot be used"),
        ("mqtt://me:secret@broker/a/#", "has one of ? # +"),
        ("mqtt://me:secret@broker/a?b", "has one of ? # +"),
        ("mqtt://me:secret@broker/+/a", "has one of ? # +"),
        ("mqtt://me:secret@broker/a%23", "has one of ? # +"),
    ],
)
def test_a_wrong_address_is_one_line_without_the_password(url, message):
    with pytest.raises(InputError) as caught:
        parse_broker(url)
    text = str(caught.value)
    assert message in text and "give mqtt://" in text and "\n" not in text and "secret" not in text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_environment_stands_in_for_a_missing_password(monkeypatch):
    monkeypatch.setenv("MASKFER_MQTT_PASSWORD", "from outside")
    assert parse_broker("mqtt://me@broker").password == "from outside"
    assert parse_broker("mqtt://me:mine@broker").password == "mine"
