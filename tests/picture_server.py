"""A web server on loopback that serves pictures well and badly, and remembers what it was asked for."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


def picture(kind: str = "JPEG", size: tuple[int, int] = (24, 32)) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(out, kind)
    return out.getvalue()


class PictureServer(ThreadingHTTPServer):
    """Serves /good/..., /png/..., and every fault by name; `asked` counts requests by path.

    Attributes:
        recovers_after: /flaky, /busy, /short and /broken paths are well from this request on.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.moments: list[float] = []
        self.pace = 0.0
        self.recovers_after = 2
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """Clients that hang up are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: PictureServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.server.asked[path] += 1
        self.server.moments.append(time.monotonic())
        well = self.server.asked[path] >= self.server.recovers_after
        kind = path.split("/")[0]
        time.sleep(self.server.pace)
        if kind == "good" or (well and kind in ("flaky", "busy", "short", "broken")):
            return self.give(picture())
        if kind == "png":
            return self.give(picture("PNG"))
        if kind == "html":
            return self.give(b"<html><body>Sorry! Something went wrong.</body></html>", "text/html")
        if kind == "empty":
            return self.give(b"")
        if kind in ("truncated", "broken"):  # a whole answer that holds a part of a picture
            return self.give(picture(size=(200, 200))[:1500])
        if kind == "huge":
            self.send_response(200)
            self.send_header("Content-Length", str(10**12))
            self.end_headers()
            return self.stall()
        if kind == "endless":
            return self.drip(b"\xff\xd8\xff" + b"\0" * 65_536, 0.0)
        if kind == "slow":
            return self.drip(b"\xff", 0.05)
        if kind == "headers":  # never done, and never silent
            self.close_connection = True
            while not self.server.released.wait(0.05):
                self.wfile.write(b"H")
            return None
        if kind == "short":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(picture())
            self.close_connection = True
            return None
        if kind == "drop":
            self.close_connection = True
            return self.connection.close()
        if kind == "stall":
            return self.stall()
        if kind == "halfway":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"\xff\xd8\xff")
            return self.stall()
        if kind in ("busy", "later"):
            return self.refuse(429, {"busy": "1", "later": "86400"}[kind])
        if kind == "flaky":
            return self.refuse(503)
        if kind == "to":
            return self.redirect("/" + path.removeprefix("to/"))
        if kind == "away":
            return self.redirect("http://" + path.removeprefix("away/"))
        if kind == "loop":
            return self.redirect(self.path)
        if kind == "file":
            return self.redirect("file:///etc/passwd")
        return self.refuse(int(kind) if kind.isdigit() else 404)

    def give(self, data: bytes, kind: str = "image/jpeg") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, retry_after: str = "") -> None:
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def drip(self, part: bytes, pause: float) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while not self.server.released.wait(pause):
            self.wfile.write(part)
            self.wfile.flush()

    def stall(self) -> None:
        self.close_connection = True
        self.server.released.wait(30)

    def log_message(self, *_: object) -> None:
        pass
