"""What no code of ours can go below: hops between processes, and TLS over memory.

A request of a few bytes goes from one process to another and back by sequenced packets: straight, with a process in
the middle that only hands on (epoll), and with one whose loop is trio's. Each packet is decoded and encoded once per
hop, as any header must be. Then a payload is encrypted and decrypted in pieces, both ends in this process, without a
socket.

Usage: .venv/bin/python -m benches.wire_floor
"""

import os
import select
import socket
import ssl
import statistics
import time

import msgspec
import trio

from transport.sandbox import SandboxGrid
from transport.tls import client_context, server_context

CALLS = 5000
ROUNDS = 5
PIECE_BYTES = 128 * 1024
SIZES = {"600 kB": 602_112, "2.7 MB": 2_764_800}
REQUEST = {"key": b"k" * 24, "model": "slice", "body": b"b" * 60}

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode


def answer(line: socket.socket) -> None:
    """Be the last process of the chain."""
    while packet := line.recv(65536):
        line.send(encode({"key": decode(packet)["key"], "body": b"b" * 40}))


def hand_on(near: socket.socket, far: socket.socket) -> None:
    """Be the one in the middle, with nothing but epoll."""
    poll = select.epoll()
    poll.register(near, select.EPOLLIN)
    poll.register(far, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            source, target = (near, far) if number == near.fileno() else (far, near)
            packet = source.recv(65536)
            if not packet:
                return
            target.send(encode(decode(packet)))


def hand_on_by_trio(near: socket.socket, far: socket.socket) -> None:
    """Be the one in the middle, with trio's loop."""

    async def carry(source: socket.socket, target: socket.socket, scope: trio.CancelScope) -> None:
        source.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(source)
            packet = source.recv(65536)
            if not packet:
                scope.cancel()
                return
            target.send(encode(decode(packet)))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, near, far, nursery.cancel_scope)
            nursery.start_soon(carry, far, near, nursery.cancel_scope)

    trio.run(main)


def chain_us(middle) -> float:
    """Return the median time of a round trip, in microseconds."""
    ours, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far, last = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    plan = [(answer, (near,))] if middle is None else [(answer, (last,)), (middle, (near, far))]
    for task, lines in plan:
        if os.fork() == 0:
            for line in {ours, near, far, last} - set(lines):
                line.close()
            task(*lines)
            os._exit(0)
    for line in (near, far, last):
        line.close()
    times_s = []
    for _ in range(CALLS):
        start_s = time.perf_counter()
        ours.send(encode(REQUEST))
        ours.recv(65536)
        times_s.append(time.perf_counter() - start_s)
    ours.close()
    for _ in plan:
        os.wait()
    return statistics.median(times_s) * 1e6


def tls_us(size_bytes: int) -> tuple[str, float, float]:
    """Return the cipher, and the least times to encrypt and to decrypt a payload, in microseconds."""
    grid = SandboxGrid()
    one, other = grid.make_node("serve"), grid.make_node("serve")
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(one.key, one.chain_pem, grid.ca_pem).wrap_bio(to_client, to_server)
    server = server_context(other.key, other.chain_pem, grid.ca_pem).wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    payload, target = memoryview(bytearray(size_bytes)), memoryview(bytearray(size_bytes))
    best = (float("inf"), float("inf"))
    for _ in range(20):
        taken, there = [0.0, 0.0], 0
        for start in range(0, size_bytes, PIECE_BYTES):
            start_s = time.perf_counter()
            client.write(payload[start : start + PIECE_BYTES])
            data = memoryview(bytes(to_server.read()))
            middle_s = time.perf_counter()
            to_server.write(data)
            try:
                while there < size_bytes:
                    there += server.read(size_bytes - there, target[there:])
            except ssl.SSLWantReadError:
                pass
            taken[0] += middle_s - start_s
            taken[1] += time.perf_counter() - middle_s
        best = min(best, (taken[0], taken[1]), key=sum)
    cipher = client.cipher()
    assert cipher is not None
    return cipher[0], best[0] * 1e6, best[1] * 1e6


def main() -> None:
    ways = {"straight": None, "epoll in the middle": hand_on, "trio in the middle": hand_on_by_trio}
    found = {name: [chain_us(middle) for middle in [middle] * ROUNDS] for name, middle in ways.items()}
    print(f"round trips, median of {CALLS} calls, least and median of {ROUNDS} rounds, load {os.getloadavg()[0]:.1f}")
    for name, values in found.items():
        print(f"  {name:<20} {min(values):6.1f} {statistics.median(values):6.1f} us")
    for name, size_bytes in SIZES.items():
        cipher, sealing_us, opening_us = tls_us(size_bytes)
        print(f"{cipher}, {name}: encrypt {sealing_us:.0f} us, decrypt {opening_us:.0f} us")


if __name__ == "__main__":
    main()
