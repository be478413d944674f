"""Short messages between the ranks of a training: all of them meet at rank 0, and learn what each one says.

Messages are JSON, and go through plain connections rather than torch's, since these lose a message whose receiver does
not wait for it yet. So a rank that ends can say so, and a rank that was killed is known by its connection.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from medkit.errors import Stopped, TrainingError, UsageError, listed
from medkit.training.world import World

MEETING_SECONDS = 600.0
"""How long the ranks wait for each other at the start, when modules are imported from a slow disk."""
ANSWER_SECONDS = 1800.0
"""How long they wait for each other later. A rank that ends is known at once; this is for one that hangs."""
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""Linux's options by which the system notices within 90 s that a machine no longer exists."""

Message = dict[str, Any]
LOST: Message = {"ended": "lost"}
"""Takes the place of the message of a rank that has ended without one."""


class Channel:
    """The connections of one rank: rank 0 has one to each other rank, the others have one to rank 0."""

    def __init__(self, world: World, connections: Mapping[int, Connection]) -> None:
        self.world = world
        self.connections = dict(connections)

    def exchange(self, message: Message, seconds: float | None = None) -> list[Message]:
        """Return the messages of all ranks, each of which calls this; `LOST` for those that no longer can."""
        seconds = ANSWER_SECONDS if seconds is None else seconds
        if not self.world.first:
            with contextlib.suppress(OSError):
                self._send(0, message)
            return self._received(0, seconds) or [LOST] * self.world.size
        messages = [message, *(LOST for _ in range(1, self.world.size))]
        deadline = time.monotonic() + seconds
        ranks = {id(connection): rank for rank, connection in self.connections.items()}
        waiting = list(self.connections.values())
        while waiting and (ready := wait(waiting, max(0.0, deadline - time.monotonic()))):
            for connection in ready:
                assert isinstance(connection, Connection)
                waiting.remove(connection)
                rank = ranks[id(connection)]
                messages[rank] = self._received(rank, seconds) or LOST
        self._answer(messages)
        return messages

    def leave(self, message: Message, seconds: float = 10.0) -> list[Message]:
        """Send a last message without waiting for other ranks; return what rank 0 answers within `seconds`, if it does.

        Rank 0 gives all other ranks its message as that of all.
        """
        if self.world.first:
            self._answer([message] * self.world.size)
            return []
        with contextlib.suppress(OSError):
            self._send(0, message)
        return self._received(0, seconds) or []

    def gone(self) -> list[int]:
        """Return which of the connected ranks no longer exist; what others have sent meanwhile is lost."""
        found = []
        for rank, connection in self.connections.items():
            try:
                if connection.poll(0):
                    connection.recv_bytes()
            except (EOFError, OSError):
                found.append(rank)
        return found

    def send_bytes(self, rank: int, content: bytes) -> None:
        """Send bytes to a rank that waits for them. Raises TrainingError if it no longer exists."""
        try:
            self.connections[rank].send_bytes(content)
        except OSError as error:
            raise TrainingError(f"the connection to rank {rank} is lost: {error}") from None

    def receive_bytes(self, rank: int) -> bytes:
        """Return the bytes that a rank sends. Raises TrainingError if it no longer exists."""
        try:
            return self.connections[rank].recv_bytes()
        except (EOFError, OSError) as error:
            raise TrainingError(f"the connection to rank {rank} is lost: {error}") from None

    def close(self) -> None:
        """Close all connections."""
        for connection in self.connections.values():
            connection.close()

    def _answer(self, messages: list[Message]) -> None:
        for rank in self.connections:
            with contextlib.suppress(OSError):  # it has ended
                self._send(rank, messages)

    def _send(self, rank: int, value: object) -> None:
        self.connections[rank].send_bytes(json.dumps(value).encode())

    def _received(self, rank: int, seconds: float) -> Any:
        """Return what a rank has sent; None if it sends nothing within the time, or no longer exists."""
        with contextlib.suppress(EOFError, OSError):
            if self.connections[rank].poll(seconds):
                return json.loads(self.connections[rank].recv_bytes())
        return None


def listen(address: str, port: int) -> socket.socket:
    """Open rank 0's port, on the loopback interface if the address is there. Raises TrainingError if it is taken."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        # a machine may know its own name as 127.0.1.1, at which no other one reaches it
        server.bind((address if address in ("127.0.0.1", "localhost") else "", port))
    except OSError as error:
        server.close()
        raise TrainingError(
            f"rank 0 cannot open port {port}: {error.strerror}; set MASTER_PORT to a free one"
        ) from None
    server.listen(socket.SOMAXCONN)
    return server


def accept_all(server: socket.socket, world: World) -> Channel:
    """Return rank 0's channel once every other rank has connected.

    Raises TrainingError if one does not come, and UsageError if one was told another number of ranks.
    """
    found: dict[int, Connection] = {}
    try:
        for _ in _until(time.monotonic() + MEETING_SECONDS):
            if len(found) == world.size - 1:
                _tell(found.values(), {})
                return Channel(world, dict(sorted(found.items())))
            server.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                _welcome(_connection(server.accept()[0]), world, found)
    except (Stopped, KeyboardInterrupt):
        _tell(found.values(), {"ended": "stopped"})
        raise
    missing = [str(rank) for rank in range(1, world.size) if rank not in found]
    raise TrainingError(
        f"ranks did not come within {MEETING_SECONDS:g} s: {listed(missing)} of {world.size}; rank 0 waited at "
        f"{world.address}:{world.port}"
    )


def _welcome(connection: Connection, world: World, found: dict[int, Connection]) -> None:
    """Add a rank that has connected to those found; ignore a program that is none. Raises UsageError."""
    try:
        hello: Any = json.loads(connection.recv_bytes(2**10)) if connection.poll(10.0) else None
        rank, size = int(hello["rank"]), int(hello["size"])
    except (EOFError, OSError, ValueError, TypeError, KeyError):
        return
    problem = ""
    if size != world.size:
        problem = f"rank {rank} was told that there are {size} ranks (WORLD_SIZE), rank 0 {world.size}"
    elif rank in (0, *found):
        problem = f"two processes were told to be rank {rank} (RANK)"
    if problem:
        _tell([connection, *found.values()], {"refused": problem})
        raise UsageError(problem)
    found[rank] = connection


def _tell(connections: Iterable[Connection], message: Message) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):  # it has ended, as the next exchange shows
            connection.send_bytes(json.dumps(message).encode())


def connect(world: World) -> Channel:
    """Return the channel of a rank other than 0.

    Raises TrainingError if rank 0 cannot be reached, and UsageError if it refuses.
    """
    where, reason = f"{world.address}:{world.port}", ""
    for left in _until(time.monotonic() + MEETING_SECONDS):
        try:
            connection = _connection(socket.create_connection((world.address, world.port), min(left(), 10.0)))
        except socket.gaierror as error:
            raise TrainingError(
                f"rank {world.rank} cannot find rank 0's machine {world.address}: {error.strerror}; set MASTER_ADDR"
            ) from None
        except OSError as error:  # rank 0 may not have come yet
            reason = str(error.strerror or error)
            time.sleep(0.2)
            continue
        return _introduced(world, connection, left())
    raise TrainingError(
        f"rank {world.rank} cannot reach rank 0 at {where} (MASTER_ADDR, MASTER_PORT) within {MEETING_SECONDS:g} s: "
        f"{reason}"
    )


def _introduced(world: World, connection: Connection, seconds: float) -> Channel:
    """Return the channel of a rank that has reached rank 0, once all others have."""
    answer: Message = {"refused": ""}
    try:
        with contextlib.suppress(EOFError, OSError):
            connection.send_bytes(json.dumps({"rank": world.rank, "size": world.size}).encode())
            if connection.poll(seconds):
                answer = json.loads(connection.recv_bytes())
    except (Stopped, KeyboardInterrupt):
        _tell([connection], {"ended": "stopped"})
        raise
    if "ended" in answer:
        raise Stopped("a signal at rank 0")
    if problem := answer.get("refused"):
        raise UsageError(problem)
    if "refused" in answer:
        raise TrainingError(
            f"rank {world.rank}: rank 0 at {world.address}:{world.port} has ended, or waits for other ranks in vain"
        )
    return Channel(world, {0: connection})


def _until(deadline: float) -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds left, until there are none."""
    left = lambda: deadline - time.monotonic()  # noqa: E731
    while left() > 0:
        yield left


def _connection(found: socket.socket) -> Connection:
    found.settimeout(None)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(found.detach())
