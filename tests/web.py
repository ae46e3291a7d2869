"""A web server on this machine that can break a download, count requests and send what it should not."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """`files`: path -> bytes. `breaks`: bytes after which the next answers end; `ranges`: as HTTP allows,
    or not.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""
        self.headers: dict[str, str] = {}


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            content = site.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append((self.path, wanted))
            content = site.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and site.ranges else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.end_headers()
            end = start + site.breaks.pop(0) if site.breaks else len(content)
            self.wfile.write(content[start:end])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
