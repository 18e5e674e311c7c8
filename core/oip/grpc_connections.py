"""HTTP/2 connections to every address that a host's name stands for, used in turn; those that are lost come back."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from contextlib import suppress
from typing import Any

from httpunk import H1Connection, H2Connection, HTTPunkError
from httpunk._httpunk import H2Streams
from httpunk.asyncio import H2ClientProtocol
from httpunk.h2.client import Connection

from kservekit.oip.address_health import Health

log = logging.getLogger(__name__)

CONNECT_S = 5.0
"""For a connection, TLS and HTTP/2's first words."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 1.0
"""Before an address is tried again that could not be reached: a backend that is restarted is found within a second."""
TLS_GOODBYE_S = 0.5
"""For a server's goodbye in TLS, which gRPC's own servers do not say."""
LOOK_UP_S = 10.0
"""How often a name is looked up again: pods that came later get their share."""
WORN_FRAMES = 512
"""Frames for calls that were given up, and are forgotten, after which a connection takes no more calls: at 1024 httpunk
breaks it off, and what runs on it."""
UNHEARD_MS = 20_000
"""After so long without a sign of what was sent a connection is given up: its host is gone."""
WINDOW_BYTES = 4 * 2**20
"""What a server may send before we have read it, for one call; of all calls of a connection twice as much."""
FRAME_BYTES = 16_384
"""HTTP/2's own: servers begin with larger ones before they have agreed to them, which breaks the connection."""
HEADER_BYTES = 2**20
"""The most that comes with a status; a text in it may be a backend's whole traceback."""
READ_BYTES = 262_144
"""As many as uvloop reads at once: less is a copy of it."""


class Unreachable(Exception):
    """No address takes a connection; the message has the last reason of each."""


class _Driver(Connection):
    """httpunk's own loses a status text of 16 KiB, and breaks the connection off for one of 64."""

    def __new__(cls, *_: Any, **__: Any) -> _Driver:
        new: Any = H2Streams.__new__
        found: _Driver = new(
            cls,
            "client",
            initial_window_size=WINDOW_BYTES,
            connection_window=2 * WINDOW_BYTES,
            max_frame_size=FRAME_BYTES,
            max_header_list_size=HEADER_BYTES,
            max_send_buf_size=WINDOW_BYTES,
            enable_push=False,
        )
        return found


class _Client(H2Connection):
    def __init__(self, transport: _Protocol, **options: Any) -> None:
        self._conn = _Driver(transport, **options)


class _Protocol(H2ClientProtocol):
    def _make_client(self) -> H2Connection:
        return _Client(self, authority=self._authority, scheme=self._scheme or "http", backend=self._backend)

    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes:
        data: bytes = await super().receive_some(max(max_bytes, READ_BYTES))  # type: ignore[no-untyped-call]
        return data

    async def send_all(self, data: Any) -> None:
        # httpunk lets go of its view when this returns, and asyncio's transport keeps it (from Python 3.12 on).
        await super().send_all(memoryview(data))  # type: ignore[no-untyped-call]


class Link:
    """One connection, and how many calls run on it. It is closed when it is not wanted any more and they have ended."""

    __slots__ = ("_protocol", "connection", "health", "running", "wanted")

    def __init__(self, protocol: _Protocol, connection: H2Connection | H1Connection, health: Health) -> None:
        self._protocol, self.connection, self.health = protocol, connection, health
        self.running = 0
        self.wanted = True

    @property
    def takes_calls(self) -> bool:
        driver: Any = self.connection._conn
        return not self.connection.closed and driver.local_error_resets < WORN_FRAMES

    def begin(self) -> None:
        self.running += 1

    def end(self) -> None:
        self.running -= 1
        if not self.wanted and not self.running:
            spawn(self.close())

    def retire(self) -> None:
        self.wanted = False
        if not self.running:
            spawn(self.close())

    async def close(self) -> None:
        self.wanted = False
        with suppress(OSError, HTTPunkError):
            await self._protocol.aclose()


class _Peer:
    """One address."""

    def __init__(self, address: str, port: int, dial: _Dial) -> None:
        self.address, self.port = address, port
        self.error = ""
        self.health = Health()
        self._dial = dial
        self._link: Link | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._failures = 0
        self._not_before = 0.0

    def link(self) -> Link | None:
        """A connection that takes calls."""
        link = self._link
        if link is not None and not link.takes_calls:
            self._link = None
            link.retire()
            return None
        return link

    def connects(self) -> asyncio.Task[None] | None:
        """The attempt that is under way, or one that begins now; None while the address is given time."""
        if self._dialing is None and asyncio.get_running_loop().time() >= self._not_before:
            self._dialing = spawn(self._connect())
        return self._dialing

    def drop(self) -> None:
        if self._dialing is not None:
            self._dialing.cancel()
        if self._link is not None:
            self._link.retire()

    async def close(self) -> None:
        if self._dialing is not None:
            self._dialing.cancel()
            with suppress(asyncio.CancelledError):
                await self._dialing
        if self._link is not None:
            await self._link.close()

    async def _connect(self) -> None:
        try:
            self._link = await self._dial(self.address, self.port, self.health)
            self._failures = 0
        except (OSError, HTTPunkError) as error:  # a TimeoutError of ours has no text
            self.error = str(error) or f"no HTTP/2 within {CONNECT_S:g} s"
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self._failures, 10))
            self._failures += 1
            self._not_before = asyncio.get_running_loop().time() + wait
        finally:
            self._dialing = None


class _Dial:
    """How an address is reached."""

    def __init__(self, authority: str, name: str, context: ssl.SSLContext | None) -> None:
        self.authority, self.name, self.context = authority, name, context

    async def __call__(self, address: str, port: int, health: Health) -> Link:
        tls: dict[str, Any] = {}
        if self.context:
            tls = {"ssl": self.context, "server_hostname": self.name, "ssl_shutdown_timeout": TLS_GOODBYE_S}
        scheme = "https" if self.context else "http"
        async with asyncio.timeout(CONNECT_S):
            transport, protocol = await asyncio.get_running_loop().create_connection(
                lambda: _Protocol(authority=self.authority, scheme=scheme), address, port, **tls
            )
            try:
                if self.context and transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
                    raise ConnectionError(f"{self.authority} speaks TLS, and no HTTP/2 in it")
                _give_up_when_unheard(transport.get_extra_info("socket"))
                return Link(protocol, await protocol.ready(), health)
            except BaseException:
                await protocol.aclose()
                raise


class Connections:
    """To `host`, which is `name:port`; with `context` by TLS. Nothing is connected before the first call."""

    def __init__(self, host: str, context: ssl.SSLContext | None = None) -> None:
        name, _, port = host.rpartition(":")
        self.host, self.name, self.port = host, name.strip("[]"), int(port)
        if context is not None:
            context.set_alpn_protocols(["h2"])
        self._dial = _Dial(host, self.name, context)
        self._peers: list[_Peer] = []
        self._turn = 0
        self._looking_up: asyncio.Task[None] | None = None
        self._look_up_at = 0.0
        self._error = ""

    def at_once(self) -> Link | None:
        """The next connection that takes calls, without a wait. Those that are lost are sought again meanwhile, and a
        sick address is used only where there is no other."""
        now = asyncio.get_running_loop().time()
        found, last = None, self._turn
        for turn in (*range(last + 1, len(self._peers)), *range(min(last + 1, len(self._peers)))):
            peer = self._peers[turn]
            link = peer.link()
            if link is None:
                peer.connects()
            elif peer.health.takes_call(now):
                found, self._turn = link, turn
                break
            elif found is None:
                found, self._turn = link, turn
        if now >= self._look_up_at:
            self._look_up()
        return found

    def another_is_well(self, health: Health) -> bool:
        """Whether a call that failed at this one may find an answer at once at another address."""
        return any(peer.health is not health and peer.health.well and peer.link() for peer in self._peers)

    async def link(self) -> Link:
        """The next connection that takes calls; Unreachable where no address gives one, or is to be left alone yet."""
        if (found := self.at_once()) is not None:
            return found
        if not self._peers:
            await asyncio.wait({self._look_up()})
        attempts = {attempt for peer in self._peers if (attempt := peer.connects()) is not None}
        while attempts:
            _, attempts = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
            for peer in self._peers:
                if (found := peer.link()) is not None:
                    return found
        raise Unreachable("; ".join(f"{peer.address}: {peer.error}" for peer in self._peers) or self._error)

    async def close(self) -> None:
        if self._looking_up is not None:
            self._looking_up.cancel()
        await asyncio.gather(*(peer.close() for peer in self._peers))

    def _look_up(self) -> asyncio.Task[None]:
        if self._looking_up is None:
            self._looking_up = spawn(self._addresses())
        return self._looking_up

    async def _addresses(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            addresses = await looked_up(self.name, self.port)
        except (OSError, UnicodeError) as error:  # those that are known may still be there; a..b is no name at all
            self._error = f"{self.name} is not known: {getattr(error, 'strerror', error)}"
            self._look_up_at = loop.time() + LONGEST_WAIT_S
        else:
            known = {peer.address: peer for peer in self._peers}
            self._peers = [known.get(each) or _Peer(each, self.port, self._dial) for each in addresses]
            for address in known.keys() - set(addresses):
                known[address].drop()
            self._look_up_at = loop.time() + LOOK_UP_S
        finally:
            self._looking_up = None


async def looked_up(name: str, port: int) -> list[str]:
    """The addresses that a name stands for, each once."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def _give_up_when_unheard(connected: Any) -> None:
    if connected is not None and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        with suppress(OSError):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)


_tasks: set[asyncio.Task[None]] = set()


def spawn(work: Any) -> asyncio.Task[None]:
    """A task of nobody's; a reference is kept, as asyncio wants it."""
    task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it may begin when its loop ends, as a call does
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task
