"""One small server for a page and its WebSockets, that lets in only whom it should.

``/`` is the page, over plain HTTP; what uses the server adds other paths. Each page has one slot for what goes to it,
which the newest replaces, so that no page can stall the loop or another page.
"""

from __future__ import annotations

import errno
import hmac
import ipaddress
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from maskfer_edge.dependencies import extra
from maskfer_edge.drawing import COLOURS
from maskfer_edge.errors import InputError, OutputError

if TYPE_CHECKING:
    from websockets.http11 import Request, Response
    from websockets.sync.server import ServerConnection

# A page's picture: its file, and each of its sides.
MAX_BYTES, MAX_SIDE_PX = 2 * 2**20, 1920
# A page that takes longer to receive one message is cut off.
SEND_TIMEOUT_S = 10.0
# Between two health reports to a page; also how soon a page that left is noticed.
HEALTH_S = 1.0
CLOSE_TIMEOUT_S = 1.0
# Until connections are taken again, after one could not be.
RETRY_PAUSE_S = 0.2
# Codes with which a WebSocket is closed (RFC 6455 and its registry).
GOING_AWAY, UNSUPPORTED, TRY_AGAIN_LATER = 1001, 1003, 1013
ENDED = "the program has ended"
# A page of our own and nothing else: no foreign scripts, frames, forms or pictures, nothing kept, no token passed on.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Client:
    """A page's WebSocket, with one slot for the newest message to it.

    Attributes:
        connection: To receive from.
        ended: Whether it is to be closed.
        closing: Code and reason to close it with.
    """

    def __init__(self, connection: ServerConnection) -> None:
        self.connection, self.ended = connection, False
        self.closing = (GOING_AWAY, ENDED)
        self._changed = threading.Condition()
        self._slot: Any = None
        self._sending_since = 0.0

    def post(self, item: object) -> None:
        """Put something into the slot; never waits."""
        with self._changed:
            self._slot = item
            self._changed.notify()
        self.disconnect_if_stuck()

    def send_newest(self, message: Callable[[Any], bytes | str | None]) -> None:
        """Send what is posted until the page leaves or `end` is called.

        Args:
            message: Makes the message of what was posted, or of None after a second in which nothing was.
        """
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):
            while True:
                with self._changed:
                    self._sending_since = 0.0
                    self._changed.wait_for(lambda: self.ended or self._slot is not None, HEALTH_S)
                    if self.ended:
                        return
                    item, self._slot = self._slot, None
                    self._sending_since = time.monotonic()
                payload = message(item)
                if payload is not None:
                    self.connection.send(payload)

    def end(self, code: int = GOING_AWAY, reason: str = ENDED) -> None:
        """Have it closed by the thread that serves it; the first reason counts, of at most 123 bytes."""
        with self._changed:
            if not self.ended:
                self.ended, self.closing = True, (code, reason)
            self._changed.notify()
            if self._sending_since:
                self._disconnect()

    def disconnect_if_stuck(self) -> None:
        """Cut off a page that has not received a message for too long."""
        since = self._sending_since
        if since and time.monotonic() - since > SEND_TIMEOUT_S:
            self._disconnect()

    def _disconnect(self) -> None:
        with suppress(OSError):  # gone already
            self.connection.socket.shutdown(socket.SHUT_RDWR)


class BrowserServer:
    """Serves the page; a context manager.

    Attributes:
        port: On which it listens.
        url: Address of the page, with the token.
        pages: What answers a path over plain HTTP: status and one line of JSON.
        sockets: What serves a WebSocket of a path until it returns.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8090, token: str = "") -> None:
        """Start serving in a thread.

        Args:
            host: Name or address to listen on; others reach it only if it is not a loopback address.
            port: 0 for any free one.
            token: What every request must carry as ``?token=``; "" for none, on a loopback address only.

        Raises:
            InputError: If others could reach it without a token.
            OutputError: If it cannot listen there.
            DependencyError: If websockets is not installed.
        """
        with extra("browser"):
            from websockets.sync.server import serve
        self.pages: dict[str, Callable[[], tuple[HTTPStatus, str]]] = {}
        self.sockets: dict[str, Callable[[Client], None]] = {}
        self._token = token.encode()
        self._page = (files("maskfer_edge") / "data" / "browser.html").read_text(encoding="utf-8")
        self._clients: set[Client] = set()
        self._closing = False
        self._lock = threading.Lock()
        listening, address = _listen(host, port, token)
        self.port = int(listening.getsockname()[1])
        shown = f"[{address}]" if address.version == 6 else str(address)
        self._own_hosts: set[str] = set()
        if address.is_loopback:
            names = ("localhost", "127.0.0.1", "[::1]", shown)
            self._own_hosts = {f"{name}:{self.port}" for name in names} | {n for n in names if self.port == 80}
        name = socket.gethostname() if address.is_unspecified else shown
        self.url = f"http://{name}:{self.port}/" + (f"?token={quote(token, safe='')}" if token else "")
        self._new_server = partial(
            serve,
            self._serve,
            sock=listening,
            process_request=self._answer,
            compression=None,  # pictures are compressed already, and what is sent here cannot swell
            max_size=MAX_BYTES,
            open_timeout=5,
            close_timeout=1,
            ping_interval=5,
            ping_timeout=10,
            # others' broken requests are no news for this terminal
            logger=logging.Logger("maskfer browser", logging.CRITICAL),
        )
        self._server = self._new_server()
        threading.Thread(target=self._serve_on, name="browser", daemon=True).start()

    def _serve_on(self) -> None:
        """Serve until `close`; go on anew after a connection could not be taken for want of threads or files."""
        while True:
            with suppress(RuntimeError):
                self._server.serve_forever()
            while True:
                time.sleep(RETRY_PAUSE_S)
                with self._lock:
                    if self._closing:
                        return
                    with suppress(OSError):  # there are still no files for it
                        self._server = self._new_server()
                        break

    def close(self) -> None:
        """End every connection and free the port, within 2 s; may be called twice."""
        with self._lock:
            self._closing = True
            clients = list(self._clients)
        for client in clients:
            client.end()
        # it waits for those who connected and never asked for anything
        ending = threading.Thread(target=self._server.shutdown, name="browser end", daemon=True)
        ending.start()
        ending.join(CLOSE_TIMEOUT_S)

    def __enter__(self) -> BrowserServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a plain request, or refuse; None lets a WebSocket through."""
        path, _, query = request.path.partition("?")
        refusal = self._refusal(request, parse_qs(query).get("token", [""])[0])
        if refusal:
            return _text(connection, HTTPStatus.FORBIDDEN, refusal)
        if path in self.sockets:
            return None
        if path in self.pages:
            return _text(connection, *self.pages[path](), kind="application/json")
        if path == "/":
            return self._answer_page(connection)
        return _text(connection, HTTPStatus.NOT_FOUND, "nothing is served here")

    def _refusal(self, request: Request, token: str) -> str:
        """Why a request is refused; "" if it is not."""
        host = ",".join(request.headers.get_all("Host")).lower()
        # a foreign name that leads to this machine is how a foreign page would read ours (DNS rebinding)
        if self._own_hosts and host not in self._own_hosts:
            return f"open this page as localhost:{self.port}"
        if self._token and not hmac.compare_digest(token.encode(), self._token):
            return "the address lacks its token: add ?token=... to it"
        if not {origin.lower() for origin in request.headers.get_all("Origin")} <= {
            f"http://{host}",
            f"https://{host}",
        }:
            return "pages of other sites are not let in"
        return ""

    def _answer_page(self, connection: ServerConnection) -> Response:
        nonce = secrets.token_urlsafe(16)
        colours = {label: f"#{r:02x}{g:02x}{b:02x}" for label, (b, g, r) in COLOURS.items()}
        config = json.dumps({"camera": "/camera" in self.sockets, "colours": colours})
        page = self._page.replace("{{nonce}}", nonce).replace("{{config}}", config)
        response = _text(connection, HTTPStatus.OK, page, kind="text/html; charset=utf-8")
        for header, value in PAGE_HEADERS.items():
            response.headers[header] = value.replace("{nonce}", nonce)
        return response

    def _serve(self, connection: ServerConnection) -> None:
        """Serve one WebSocket, in its own thread."""
        from websockets.exceptions import ConnectionClosed

        assert connection.request is not None
        serve = self.sockets.get(connection.request.path.partition("?")[0])
        client = Client(connection)
        with self._lock:
            self._clients.add(client)
            refused = self._closing or serve is None
        try:
            with suppress(ConnectionClosed):
                if serve is not None and not refused:
                    serve(client)
                connection.close(*client.closing)
        finally:
            with self._lock:
                self._clients.discard(client)


def _text(connection: ServerConnection, status: HTTPStatus, text: str, kind: str = "text/plain") -> Response:
    response = connection.respond(status, text + "\n")
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    return response


def _listen(host: str, port: int, token: str) -> tuple[socket.socket, ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Open the listening socket; gives its address as well."""
    if not 0 <= port <= 65535:
        raise OutputError(f"port {port} does not exist; name one from 1024 to 65535, or 0 for any free one")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise OutputError(f"{host!r} is no name or address of this machine; name another, such as 127.0.0.1") from None
    family, *_, sockaddr = min(found, key=lambda info: info[0] != socket.AF_INET)
    address = ipaddress.ip_address(sockaddr[0])
    if not (token or address.is_loopback):
        raise InputError(
            f"others can reach {host or address}; give --token {secrets.token_urlsafe(9)} or the like, or use 127.0.0.1"
        )
    try:
        return socket.create_server(sockaddr[:2], family=family), address
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = "name another port, or 0 for any free one"
        if error.errno == errno.EADDRNOTAVAIL:
            remedy = "name an address of this machine, or 0.0.0.0 for all of them"
        raise OutputError(f"the browser view cannot listen on {host}:{port} ({reason.lower()}); {remedy}") from error
