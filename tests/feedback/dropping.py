"""A proxy that loses replies: what the server did stands, and nobody is told."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator


class Proxy:
    """A proxy on a free port, before a server on a port of this machine."""

    def __init__(self, server: int, share: float, seed: int) -> None:
        self.server, self.share, self.random = server, share, random.Random(seed)
        self.port = self.dropped = self.passed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes one request on and its reply back, or closes the connection in the place of the reply."""
        with contextlib.suppress(OSError, EOFError):
            request = await self.request(reader)
            up, down = await asyncio.open_connection("127.0.0.1", self.server)
            try:
                down.write(request)
                reply = await up.read()  # to the end: each request has a connection of its own
            finally:
                down.close()
            if reply and self.random.random() < self.share:
                self.dropped += 1
            elif reply:
                self.passed += 1
                writer.write(reply)
                await writer.drain()
        writer.close()

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head[:-4].split(b"\r\n")
        size = 0
        kept = [line, b"Connection: close"]
        for field in fields:
            name, _, value = field.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
            if name.lower() != b"connection":
                kept.append(field)
        return b"\r\n".join(kept) + b"\r\n\r\n" + await reader.readexactly(size)


@contextlib.contextmanager
def running(server: int, share: float = 0.02, seed: int = 0) -> Iterator[Proxy]:
    """A proxy that runs, in a thread of its own."""
    proxy, loop, ready = Proxy(server, share, seed), asyncio.new_event_loop(), threading.Event()
    over = asyncio.Event()

    async def main() -> None:
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, backlog=500)
        proxy.port = listening.sockets[0].getsockname()[1]
        ready.set()
        async with listening:
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
