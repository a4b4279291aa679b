"""The server: uvicorn with a log that has neither texts nor tokens, and links printed at its start."""

import logging
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from feedback.settings import Settings
from feedback.web.faults import Discreet

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10
"""Seconds that requests have to end once the server is told to."""


def listen(settings: Settings) -> socket.socket:
    """A socket that listens at the host and port of `settings`; ValueError where that is impossible."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host.strip("[]"), settings.port))
        bound.listen(2048)
    except OSError as e:
        bound.close()
        raise ValueError(
            f"port {settings.port} of host {settings.host} cannot be used ({e.strerror}): name "
            "another port, or 0 for any free one"
        ) from None
    return bound


def url(settings: Settings, bound: socket.socket) -> str:
    """The address at which a browser reaches the server, without a slash at its end."""
    if settings.url:
        return settings.url.rstrip("/")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{bound.getsockname()[1]}"


def serve(app: FastAPI, bound: socket.socket, started: Callable[[], None] = lambda: None) -> None:
    """Serves until SIGINT or SIGTERM, then lets requests end; calls `started` once it answers."""
    settings: Settings = app.state.settings
    log_to(settings.log)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        proxy_headers=bool(settings.forwarded),
        forwarded_allow_ips=settings.forwarded or None,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=30,
        ws="none",
    )
    quiet = threading.current_thread() is threading.main_thread()
    before = {x: signal.signal(x, _ended) for x in SIGNALS} if quiet else {}
    try:
        Server(config, started).run(sockets=[bound])
    finally:
        app.state.db.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(number: int, frame: object) -> None:
    """What uvicorn's repetition of the signal that ended it comes to."""


class Server(uvicorn.Server):
    """A server that says when it answers."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]):
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer."""
        await super().startup(sockets)
        self._started()


def log_to(path: str) -> None:
    """Sends the log to a file, or to standard error where `path` is empty."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if path:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Discreet("%(asctime)s %(levelname)s %(message)s"))
    for name in ("feedback", "uvicorn"):
        log = logging.getLogger(name)
        for old in [*log.handlers]:
            log.removeHandler(old)
            old.close()
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
