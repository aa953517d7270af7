"""Serves the dream page to a browser on this machine.

The server listens on 127.0.0.1 only. All addresses begin with a random token; it serves three files of the page and nothing else from
the disk. Requests must name this server as their host, which keeps out other sites, and are limited in size and rate.
"""

import hmac
import json
import pathlib
import secrets
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from play.session import Session
from storage import files

HOST = "127.0.0.1"
PAGE = pathlib.Path(__file__).parent / "page"
FILES = {"": ("index.html", "text/html"), "style.css": ("style.css", "text/css"), "dream.js": ("dream.js", "text/javascript")}
LARGEST = 2**18  # bytes of a request's body
RATE, BURST = 100.0, 200.0  # requests per second, and at once
CONNECTIONS = 16  # at the same time
IDLE = 60.0  # seconds after which a connection without requests is closed
PATIENCE = 10.0  # seconds that the end of the server waits for a request that is being answered
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """A server of one session. `serve_forever` answers requests until `shutdown`; `handle_request` answers one, if there is one.

    Args:
        session: what is played in.
        port: of the address; 0 for a free one.
    Attributes:
        url: the address of the page.
    Raises:
        OSError: if the port is taken.
    """

    daemon_threads = True
    timeout = 0.2  # seconds that `handle_request` waits for a request
    allow_reuse_address = True

    def __init__(self, session: Session, port: int = 0):
        self.session, self.token, self.lock = session, secrets.token_urlsafe(16), threading.Lock()
        self._allowance, self._asked, self._rate_lock = BURST, time.monotonic(), threading.Lock()
        self._free, self.answering = threading.BoundedSemaphore(CONNECTIONS), threading.Semaphore(CONNECTIONS)
        super().__init__((HOST, port), Handler)
        self.url = f"http://{HOST}:{self.server_port}/{self.token}/"
        self.hosts = {f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"}

    def within_rate(self) -> bool:
        """Counts a request; returns whether it is within the rate."""
        with self._rate_lock:
            now = time.monotonic()
            self._allowance = min(BURST, self._allowance + RATE * (now - self._asked))
            self._asked = now
            if self._allowance < 1.0:
                return False
            self._allowance -= 1.0
            return True

    def process_request(self, request, client_address) -> None:
        """Starts a thread for a connection, or closes it if there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        """Answers the requests of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def server_close(self) -> None:
        """Stops listening, and waits until no request is being answered, since the end of the process would abort PyTorch amid it."""
        super().server_close()
        until = time.monotonic() + PATIENCE
        for _ in range(CONNECTIONS):
            self.answering.acquire(timeout=max(0.0, until - time.monotonic()))

    def handle_error(self, request, client_address) -> None:
        """Prints an error, unless it is a browser that has left."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hDreamer", ""
    timeout = IDLE
    wbufsize = -1  # head and body go out together
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Serves the page, and what it must know at first."""
        name = self._name()
        if name is not None:
            with self.server.answering:
                self._serve(name)

    def _serve(self, name: str) -> None:
        if name in FILES:
            file, kind = FILES[name]
            self._answer(200, (PAGE / file).read_bytes(), f"{kind}; charset=utf-8")
        elif name == "about":
            with self.server.lock:
                about = self.server.session.about()
            self._answer(200, files.json_text(about).encode(), "application/json")
        elif name == "pictures":
            self._answer(200, self.server.session.pictures(), "application/octet-stream")
        else:
            self._refuse(404, "there is nothing here")

    def do_POST(self) -> None:
        """Does what the page asks for: `do` changes the dream, `gif` films it, `link` saves it."""
        name = self._name()
        if name is None or (body := self._body()) is None:
            return
        with self.server.answering:
            self._do(name, body)

    def _do(self, name: str, body: dict) -> None:
        session = self.server.session
        try:
            with self.server.lock:
                if name == "do":
                    content, kind = session.do(body), "application/octet-stream"
                elif name == "gif":
                    content, kind = session.gif(body.get("fps")), "image/gif"
                elif name == "link":
                    content, kind = session.dream.save().encode(), "text/plain"
                else:
                    return self._refuse(404, "there is nothing here")
        except ValueError as error:
            return self._refuse(400, str(error))
        self._answer(200, content, kind)

    def _name(self) -> str | None:
        """What is asked for, below the token; None if the request was refused."""
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in self.server.hosts or (origin and origin.removeprefix("http://") not in self.server.hosts):
            return self._refuse(403, "this address is not of this server")
        empty, token, *rest = self.path.split("/")
        if empty or not rest or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            return self._refuse(404, "there is nothing here; the address is the one that was printed")
        if not self.server.within_rate():
            return self._refuse(429, "too many requests")
        return "/".join(rest)

    def _body(self) -> dict | None:
        """The JSON object that was sent; None if the request was refused."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or self.headers.get("Transfer-Encoding"):
            return self._refuse(415, "requests are JSON")
        if not (length.isascii() and length.isdecimal()) or len(length) > 9 or int(length) > LARGEST:
            return self._refuse(413, f"requests have at most {LARGEST:,} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
            if isinstance(body, dict):
                return body
        except (ValueError, RecursionError):
            pass
        return self._refuse(400, "this is no JSON object")

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, reason: str) -> None:
        self.close_connection = status != 400  # what was sent with the request may be unread
        self._answer(status, reason.encode(), "text/plain; charset=utf-8")

    def log_message(self, *args) -> None:
        """Logs nothing."""
