"""A real server in a child process, and a small client of it that keeps cookies.

Nothing waits by the clock: the child says where it listens once it answers.
"""

import contextlib
import http.client
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from feedback.entry import access
from feedback.store import database, items, tokens

ADDRESSES = itertools.count()
ROOT = pathlib.Path(__file__).parents[2]


class Reply(NamedTuple):
    """A reply: its status, its headers by lower-case names, and its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A browser (with cookies) or a script (with a token) at a server."""

    def __init__(self, url: str, token: str = "", headers: Mapping[str, str] | None = None):
        self.url, self.token, self.csrf = url, token, ""
        self.cookies: dict[str, str] = {}
        # an address of its own, where the server believes this machine to be a proxy
        self.headers = {"X-Forwarded-For": f"192.0.2.{next(ADDRESSES) % 255}", **(headers or {})}

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        form: Mapping | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Sends one request on a connection of its own, with JSON or a form, and follows nothing."""
        given = dict(self.headers)
        if form is not None:
            data = urllib.parse.urlencode({**form}, errors="surrogatepass").encode()
            given["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            given |= {"Content-Type": "application/json"} if body is not None else {}
        if self.token:
            given["Authorization"] = f"Bearer {self.token}"
        if self.cookies:
            given["Cookie"] = "; ".join(f"{k}={v}" for k, v in self.cookies.items())
        if self.csrf and method not in ("GET", "HEAD"):
            given["X-CSRF"] = self.csrf
        given |= headers or {}
        there = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, data, given)
            got = connection.getresponse()
            reply = Reply(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        for name, value in re.findall(r"([\w-]+)=([^;]*)", reply.headers.get("set-cookie", ""))[:1]:
            self.cookies[name] = value
        return reply

    def get(self, path: str, **more: Any) -> Reply:
        return self.send("GET", path, **more)

    def post(self, path: str, **more: Any) -> Reply:
        return self.send("POST", path, **more)

    def put(self, path: str, **more: Any) -> Reply:
        return self.send("PUT", path, **more)

    def open(self, path: str) -> "Client":
        """Opens a link; the word of the session is the one that its pages carry."""
        reply = self.get(path)
        assert reply.status == 303, reply
        self.csrf = tokens.csrf([*self.cookies.values()][-1])
        return self

    def judge(
        self, lease: Mapping, choice: Mapping | None = None, key: str = "", **more: Any
    ) -> Reply:
        """Judges the item of a lease, by the API."""
        body = {"lease": lease["lease"], "choice": choice or {"degree": 1}, **more}
        return self.put(f"/api/judgements/{key or uuid.uuid4()}", body=body)


def word(page: str) -> str:
    """The word of a session's forms."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    return found[1] if found else ""


class Server:
    """A server in a child process; `url` is where it listens, `log` what it has logged."""

    def __init__(self, folder: pathlib.Path, **settings: Any):
        self.folder = folder
        self.database = settings.pop("database", f"sqlite:///{folder / 'feedback.db'}")
        self.settings = {"log": str(folder / "log"), **settings}
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        self.url, self.owner_link, self.port = "", "", 0

    def start(self) -> "Server":
        """Starts it, at the port that it had before if there was one, and waits until it answers."""
        given = {"database": self.database, "port": self.port, **self.settings}
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "feedback", "serve", *flags],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout
        said = self.process.stdout.readline()
        found = re.search(r"https?://[^/]*?(?::(\d+))?(/i/\S+)", said)
        if not found:
            self.process.kill()
            raise RuntimeError(said + "".join(self.process.communicate()))
        self.owner_link = found[2]
        self.port = int(found[1] or given["port"])
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Ends it by a signal, and gives its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.out, self.err = self.process.communicate()
        return self.process.returncode

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        """A transaction on the server's database, from here."""
        with self.opened() as db, db.write() as c:
            yield c

    @contextlib.contextmanager
    def opened(self) -> Iterator[database.Database]:
        """The server's database."""
        db = database.Database(self.database)
        db.upgrade()
        try:
            yield db
        finally:
            db.close()

    def invite(self, name: str = "", **more: Any) -> str:
        """The token of a new invitation."""
        with self.writing() as c:
            return access.invite(c, name, **more)

    def put(self, rows: list[dict]) -> None:
        """Puts items."""
        with self.writing() as c:
            items.put(c, rows)

    def script(self, name: str = "", **more: Any) -> Client:
        """A script with a token of its own."""
        return Client(self.url, self.invite(name, **more))

    def browser(self, name: str = "") -> Client:
        """A browser that has opened an annotator's link."""
        return Client(self.url).open(f"/i/{self.invite(name)}")

    def owner(self) -> Client:
        """A browser that has opened the owner's link."""
        return Client(self.url).open(self.owner_link)


@contextlib.contextmanager
def serving(folder: pathlib.Path, **settings: Any) -> Iterator[Server]:
    """A server that runs, and ends afterwards."""
    server = Server(folder, **settings).start()
    try:
        yield server
    finally:
        server.stop()


def pairs(n: int, **more: Any) -> list[dict]:
    """Items to compare."""
    texts = lambda i: [{"text": f"good {i}"}, {"text": f"bad {i}"}]
    return [
        {"id": f"pair-{i}", "prompt": f"Say {i}.", "responses": texts(i), **more} for i in range(n)
    ]


def free_port() -> int:
    """A port that nobody listens at."""
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
