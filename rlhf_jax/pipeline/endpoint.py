"""An OpenAI-compatible endpoint on this machine's loopback, one answer at a time.

    GET /v1/models          POST /v1/completions          POST /v1/chat/completions

The standard library serves it: no TLS, no keys, no batching, no queue but a lock. Requests that name another
host, or that a page of another origin sends, are refused, so that no web page reaches it (DNS rebinding).
"""

import json
import re
import sys
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rlhf_jax.pipeline import completion_requests, completions
from rlhf_jax.pipeline.completion_requests import Json, RefusedError
from rlhf_jax.pipeline.speakers import Speaker

LOOPBACK = "127.0.0.1"
HOSTS = r"(127\.0\.0\.1|localhost)(:\d+)?"
BODY = 4 * 2**20
"""Bytes that a request may carry."""
PATHS = {"/v1/completions": False, "/v1/chat/completions": True}
"""Paths of completions, and which of them is that of chats."""
GONE = (ConnectionError, TimeoutError)


def bound(speakers: list[Speaker], port: int) -> ThreadingHTTPServer:
    """A server of these policies, which listens. Raises ValueError for a port that cannot be used."""
    named = {x.name: x for x in speakers}
    handler = type("Handler", (Handler,), {"speakers": named, "lock": threading.Lock()})
    try:
        return Server((LOOPBACK, port), handler)
    except OSError as error:
        raise ValueError(
            f"port = {port} cannot be used ({error.strerror}): name another one, or 0 for any free one"
        ) from None


class Server(ThreadingHTTPServer):
    """A server whose threads end with the program."""

    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """Prints the traceback of a failure, but not where the caller has gone."""
        if not isinstance(sys.exception(), GONE):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """A connection: requests one after another."""

    speakers: dict[str, Speaker]
    lock: threading.Lock  # held while an answer is sampled
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a word of the caller

    def do_GET(self):
        """Answers with the list of models."""
        self.answer(self.list_models)

    def do_POST(self):
        """Answers a request for completions."""
        self.answer(self.complete)

    def log_message(self, format, *args) -> None:
        """Writes a line to standard error, at once."""
        super().log_message(format, *args)
        sys.stderr.flush()

    def answer(self, work: Callable[[bytes], None]) -> None:
        """Does the work of a request on its body, or says why not."""
        try:
            body = self.body()
            self.check_origin()
            work(body)
        except RefusedError as refused:
            self.send(refused.status, refused.reply())
        except GONE:
            self.close_connection = True
        except Exception as failure:
            traceback.print_exc()
            if self.close_connection:  # a reply has begun, which ends here
                return
            self.send(500, RefusedError(f"this failed: {failure}", status=500).reply())

    def body(self) -> bytes:
        """The body of the request. Raises RefusedError where its size is not known, or is too large."""
        said = self.headers.get("Content-Length", "0")
        if said.isdecimal() and int(said) <= BODY and "Transfer-Encoding" not in self.headers:
            return self.rfile.read(int(said))
        self.close_connection = True  # the body is not read
        raise RefusedError(f"Content-Length must be given, and at most {BODY}", status=413)

    def check_origin(self) -> None:
        """Raises RefusedError for a request to another host's name, or from a page of another origin."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not re.fullmatch(HOSTS, host):
            raise RefusedError(f"Host must be {LOOPBACK} or localhost", status=403)
        if origin is not None and origin != f"http://{host}":
            raise RefusedError("pages of another origin may not ask here", status=403)

    def list_models(self, body: bytes) -> None:
        """Sends the list of models. Raises RefusedError at any other path."""
        if self.path != "/v1/models":
            raise RefusedError(f"there is no GET {self.path}", status=404)
        one = lambda name: {"id": name, "object": "model", "created": 0, "owned_by": "rlhf_jax"}
        self.send(200, {"object": "list", "data": [*map(one, self.speakers)]})

    def complete(self, body: bytes) -> None:
        """Sends an answer, as it is sampled or as a whole. Raises RefusedError where there is none."""
        if self.path not in PATHS:
            raise RefusedError(f"there is no POST {self.path}", status=404)
        if self.headers.get_content_type() != "application/json":
            raise RefusedError("Content-Type must be application/json", status=415)
        try:
            asked = completion_requests.read(json.loads(body), self.speakers, PATHS[self.path])
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            raise RefusedError("the body is no JSON") from None
        with self.lock:
            if not asked.streams:
                return self.send(200, completions.whole(asked))
            self.close_connection = True  # the end of the connection ends the reply
            self.start(200, "text/event-stream", {"Cache-Control": "no-store"})
            for chunk in completions.chunks(asked):
                self.wfile.write(f"data: {written(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

    def send(self, status: int, reply: Json) -> None:
        """Sends JSON."""
        data = written(reply).encode()
        self.start(status, "application/json", {"Content-Length": str(len(data))})
        self.wfile.write(data)

    def start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        """Sends the head of a reply."""
        self.send_response(status)
        more = {"Connection": "close"} if self.close_connection else {}
        for name, value in ({"Content-Type": kind} | headers | more).items():
            self.send_header(name, value)
        self.end_headers()


def written(value: Json) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, allow_nan=False)
