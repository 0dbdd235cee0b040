"""The remote way without gridnode: what two event loops, TLS in Python and a process for the model cost by themselves.

Caller, relay, mutual TLS 1.3, second relay, the model's process: as gridnode remote, with payloads in shared memory at
both ends and trio's loop in both relays, but nothing is decided, checked, counted or kept in time, and there is one
caller with one request. So this is a floor under any grid written on these parts.
"""

import mmap
import os
import socket
import ssl

import msgspec
import numpy as np

from benches.peers.ways import Call, Flood, PeerError, Way
from benches.peers.workloads import Requests, answer_array

MEMORY_BYTES = 4 << 20
PACKET_BYTES = 1 << 16
PIECE_BYTES = 48 * 1024
"""Encrypted and sent at once, so that the other side decrypts meanwhile; as in transport.securestream."""

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode


class Relay(Way):
    name = "relay"
    label = "bare relays, no grid"
    encrypted = "TLS 1.3, mutual"
    between = 3
    module = "benches.peers.peer_relay"

    def start(self, models) -> None:
        self._numbers = {name: number for number, name in enumerate(models)}
        super().start(models)

    def caller(self, requests: Requests) -> Call:
        path, memory = self.address.split("|")
        with open(memory, "r+b") as file:
            payload = mmap.mmap(file.fileno(), MEMORY_BYTES)
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.connect(path)
        self._connections.append(line)
        number, raw, workload = self._numbers[requests.workload.name], requests.raw, requests.workload

        def call(request: int) -> np.ndarray:
            data = raw[request % len(raw)]
            payload[: len(data)] = data
            line.send(encode((number, len(data), b"")))
            _, _, answer = decode(line.recv(PACKET_BYTES))
            return answer_array(workload, answer)

        return call

    def flood(self, requests: Requests, in_flight: int, seconds: float) -> Flood:
        raise PeerError("it takes one request at a time")


class SecureLine:
    """TLS over a non-blocking socket."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._plain = plain
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_side=is_server)
        self._buffer = memoryview(bytearray(PACKET_BYTES * 4))

    async def greet(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            else:
                return await self._flush()

    async def send(self, head: bytes, payload: memoryview) -> None:
        self._tls.write(head)
        while payload:
            self._tls.write(payload[:PIECE_BYTES])
            payload = payload[PIECE_BYTES:]
            await self._flush()
        await self._flush()

    async def receive(self) -> bytes:
        """Receive what was sent as one record."""
        while True:
            try:
                return self._tls.read(PACKET_BYTES)
            except ssl.SSLWantReadError:
                await self._fill()

    async def receive_into(self, target: memoryview) -> None:
        while target:
            try:
                target = target[self._tls.read(len(target), target) :]
            except ssl.SSLWantReadError:
                await self._fill()

    async def _fill(self) -> None:
        import trio

        while True:
            try:
                count = self._plain.recv_into(self._buffer)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._plain)
            else:
                break
        if not count:
            raise EOFError
        self._arrived.write(self._buffer[:count])

    async def _flush(self) -> None:
        import trio

        data = memoryview(self._leaving.read())
        while data:
            try:
                data = data[self._plain.send(data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._plain)


async def _packet(line: socket.socket) -> bytes:
    import trio

    while True:
        try:
            return line.recv(PACKET_BYTES)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(line)


async def relay_near(listener: socket.socket, plain: socket.socket, context: ssl.SSLContext, memory: mmap.mmap) -> None:
    """Take requests from callers, one after another, and ask the second relay."""
    import trio

    far = SecureLine(plain, context, is_server=False)
    await far.greet()
    payload = memoryview(memory)
    while True:
        await trio.lowlevel.wait_readable(listener)
        caller, _ = listener.accept()
        caller.setblocking(False)
        with caller:
            while packet := await _packet(caller):
                _, size, _ = decode(packet)
                await far.send(packet, payload[:size])
                caller.send(encode(decode(await far.receive())))


async def relay_far(worker: socket.socket, plain: socket.socket, context: ssl.SSLContext, memory: mmap.mmap) -> None:
    """Receive where the model reads, ask it, answer."""
    near = SecureLine(plain, context, is_server=True)
    await near.greet()
    target = memoryview(memory)
    while True:
        head = await near.receive()
        _, size, _ = decode(head)
        await near.receive_into(target[:size])
        worker.send(encode(decode(head)))
        await near.send(encode(decode(await _packet(worker))), memoryview(b""))


def work(line: socket.socket, memory: mmap.mmap) -> None:
    """Be the model's process."""
    from benches.peers.serving import arguments

    models = list(arguments()[1].values())
    line.send(b"ready")
    payload = memoryview(memory)
    while packet := line.recv(PACKET_BYTES):
        number, size, _ = decode(packet)
        line.send(encode((number, 0, models[number].run(payload[:size]).tobytes())))


def _memory() -> tuple[int, mmap.mmap]:
    descriptor = os.memfd_create("relay")
    os.ftruncate(descriptor, MEMORY_BYTES)
    return descriptor, mmap.mmap(descriptor, MEMORY_BYTES)


def serve() -> None:
    import sys
    from pathlib import Path

    descriptor, here = _memory()
    _, there = _memory()
    order, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        order.close()
        work(worker, there)
        os._exit(0)
    worker.close()
    order.recv(PACKET_BYTES)

    import trio

    from transport.sandbox import SandboxGrid
    from transport.tls import client_context, server_context

    grid = SandboxGrid()
    one, other = grid.make_node("serve"), grid.make_node("serve")
    with socket.create_server(("127.0.0.1", 0)) as door:
        near = socket.create_connection(door.getsockname())
        far, _ = door.accept()
    for line in (near, far):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.setblocking(False)
    order.setblocking(False)
    if os.fork() == 0:
        near.close()
        trio.run(relay_far, order, far, server_context(other.key, other.chain_pem, grid.ca_pem), there)
    far.close()
    order.close()
    path = Path(sys.argv[1]) / "relay.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        from benches.peers.serving import say_ready

        say_ready(f"{path}|/proc/{os.getpid()}/fd/{descriptor}")
        trio.run(relay_near, listener, near, client_context(one.key, one.chain_pem, grid.ca_pem), here)


if __name__ == "__main__":
    serve()
