"""Real daemons given nonsense on every side: each case costs one request or connection, and the daemon lives."""

import contextlib
import io
import random
import socket
import struct
import zlib

import numpy as np
import psutil
import pytest
from PIL import Image

from gridnode.errors import GridError, InvalidInputError, JobDeadlineError, UnknownModelError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(real_grid):
    """Add a second daemon; programs talk to it."""
    real_grid.join("n2").start()
    real_grid["n2"].wait_ready()
    for name in ("n1", "n2"):
        real_grid[name].wait_peers(1)
    return real_grid


def picture(kind, size=(40, 30), mode="RGB"):
    data = io.BytesIO()
    Image.new(mode, size).save(data, kind)
    return data.getvalue()


def png_claiming(width, height):
    """Return a PNG whose header claims a size that its data does not have: a decompression bomb."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data",
    [
        picture("JPEG")[:200],
        picture("JPEG")[:-400] if len(picture("JPEG")) > 600 else picture("JPEG")[:300],
        picture("PNG")[:60],
        png_claiming(60_000, 60_000),
        png_claiming(0, 10),
        b"\xff\xd8\xff" + bytes(2000),
        random.Random(1).randbytes(5000),
        b"",
    ],
    ids=["cut jpeg", "jpeg without its end", "cut png", "bomb", "no width", "only a magic", "noise", "empty"],
)
def test_a_picture_that_is_none_is_named_and_the_next_one_served(pair, data):
    with pair["n2"].client() as grid:
        with pytest.raises(InvalidInputError):
            grid.infer("tiny", data, deadline_s=10.0)
        assert grid.infer("tiny", picture("JPEG"), deadline_s=10.0).classes


@pytest.mark.parametrize(
    ("kind", "size", "mode"),
    [
        ("JPEG", (1, 1), "RGB"),
        ("JPEG", (3000, 1), "RGB"),
        ("JPEG", (40, 30), "L"),
        ("JPEG", (40, 30), "CMYK"),
        ("PNG", (40, 30), "RGBA"),
        ("PNG", (40, 30), "P"),
        ("PNG", (40, 30), "I;16"),
        ("PNG", (40, 30), "1"),
    ],
)
def test_odd_pictures_are_served_or_named(pair, kind, size, mode):
    with pair["n2"].client() as grid:
        try:
            answer = grid.infer("tiny", picture(kind, size, mode), deadline_s=10.0).classes
        except InvalidInputError as error:
            answer = str(error)
    assert answer


@pytest.mark.parametrize(
    "bad",
    [
        {"y": np.zeros((1, 3, 128, 128), "f")},
        {"x": np.zeros((1, 3, 128, 128), np.float64)},
        {"x": np.zeros((1, 3, 128, 128), np.uint8)},
        {"x": np.zeros((1, 3, 128, 127), "f")},
        {"x": np.zeros((3, 128, 128), "f")},
        {"x": np.zeros((1, 3, 128, 128), "f"), "z": np.zeros(1, "f")},
        {"x": np.zeros((1, 3, 2048, 3072), "f")},
    ],
    ids=["name", "float64", "dtype", "size", "rank", "one too many", "oversize"],
)
def test_wrong_tensors_are_named_and_the_next_ones_served(pair, bad):
    with pair["n2"].client() as grid, pytest.raises(InvalidInputError):
        grid.infer("tiny", bad, deadline_s=10.0)
    assert pair["n2"].infer().tensors["y"].shape == (1, 64)


def test_numbers_that_are_none_are_computed_or_named(pair):
    with pair["n2"].client() as grid:
        for value in (np.nan, np.inf, -np.inf, 3e38):
            with contextlib.suppress(GridError):
                grid.infer("tiny", {"x": np.full((1, 3, 128, 128), value, "f")}, deadline_s=10.0)
    assert pair["n2"].infer().node


def test_unknown_models_and_past_deadlines_are_named(pair, model_input):
    with pair["n2"].client() as grid:
        with pytest.raises(UnknownModelError, match="tiny"):
            grid.infer("tinny", {"x": model_input})
        with pytest.raises(JobDeadlineError):
            grid.infer("tiny", {"x": model_input}, deadline_s=1e-6)


# ---------------------------------------------------------------- ports

GARBAGE = [
    b"",
    b"\x00" * 64,
    b"\xff" * 64,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n",
    b"\x16\x03\x01\x40\x00\x01" + b"\x00" * 200,
    b"\x16\x03\x03\xff\xff" + b"\xaa" * 70_000,
    random.Random(2).randbytes(100_000),
]


def addresses(grid):
    """Return every TCP port of n1 by what it is for; an invite is open, so that the door is too."""
    grid.invite()
    status = grid["n1"].ask()
    known = {
        "control": status["control_address"],
        "data": status["data_address"],
        "metrics": status["metrics_address"],
    }
    ports = {name: int(address.rpartition(":")[2]) for name, address in known.items()}
    listening = {
        connection.laddr.port
        for connection in psutil.Process(grid["n1"].process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    [ports["door"]] = listening - set(ports.values())
    return ports


@pytest.mark.parametrize("plane", ["control", "data", "metrics", "door"])
def test_garbage_on_a_port_costs_its_connection_alone(pair, plane, wait_until):
    port = addresses(pair)[plane]
    before = len(psutil.Process(pair["n1"].process.pid).net_connections("tcp"))
    for data in GARBAGE:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(10)
                while connection.recv(65536):
                    pass
            except OSError:
                continue
    assert pair["n2"].infer().node
    assert pair["n1"].is_alive()
    wait_until(lambda: len(psutil.Process(pair["n1"].process.pid).net_connections("tcp")) <= before + 2, 15.0)
    assert pair["n1"].ask()["neighbours"] >= 1


def test_connections_that_say_nothing_do_not_keep_members_out(pair, wait_until):
    """Slow-loris on all ports at once: what is held is bounded, members of the grid still get in."""
    held = []
    try:
        for port in addresses(pair).values():
            for _ in range(40):
                held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                held[-1].sendall(b"\x16")
        assert pair["n1"].infer().node
        assert pair["n2"].infer().node
        wait_until(lambda: pair["n2"].ask()["peers_alive"] == 1)
    finally:
        for connection in held:
            connection.close()
    assert pair["n1"].is_alive()


def test_garbage_on_the_client_socket_costs_its_connection_alone(pair):
    for data in GARBAGE:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(pair["n1"].socket))
            connection.settimeout(10)
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                continue
    assert pair["n1"].infer().node


# ---------------------------------------------------------------- tampering


def test_a_publication_that_was_tampered_with_changes_nothing(pair, wait_until):
    before = pair["n1"].ask("models")["items"]
    from models.owner import OwnerRepository

    publication = bytearray(OwnerRepository(pair.owner, pair.owner / "repository").publication())
    publication[len(publication) // 2] ^= 1
    for spoilt in (bytes(publication), b"", b"garbage", bytes(publication[:100])):
        inbox = pair["n1"].state.inbox
        inbox.write_bytes(spoilt)
        pair["n1"].ask("reload_trust")
        wait_until(lambda: "publication_refused" in pair["n1"].log_text())
        assert pair["n1"].ask("models")["items"] == before
    assert pair["n1"].infer().node
    inbox.unlink(missing_ok=True)


def test_a_tampered_chunk_is_not_passed_on_and_the_download_ends_well_from_another(pair, wait_until):
    graph = pair.manifest.shard("tiny.onnx")
    spoilt = 0
    for path in pair["n1"].state.store.rglob("*"):
        if path.is_file() and path.stat().st_size == graph.size_bytes:
            path.chmod(0o600)
            flip(path)
            spoilt += 1
    assert spoilt
    third = pair.join("n3").start()
    third.wait_ready()
    np.testing.assert_allclose(third.infer().tensors["y"], pair.expected, rtol=1e-3, atol=1e-4)
    assert third.stop() == 0
    # The node itself finds out at its next start, and gets the model anew.
    assert pair["n1"].stop() == 0
    pair["n1"].start()
    pair["n1"].wait_ready()
    np.testing.assert_allclose(pair["n1"].infer().tensors["y"], pair.expected, rtol=1e-3, atol=1e-4)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_was_learned_and_signed_state_spoilt_on_the_disk_are_had_anew_from_peers(pair):
    node = pair["n2"]
    assert node.stop() == 0
    paths = [path for path in node.state.trust.rglob("*") if path.is_file()]
    assert len(paths) > 2
    for path in paths:
        flip(path)
    for name in ("cards.bin", "profiles.json", "epoch"):
        assert (node.state.path / name).exists()
        (node.state.path / name).write_bytes(b"\xff{]")
    # Without its boot counter it begins a life that peers have seen already; it finds out, and must start once more.
    node.start()
    assert node.process.wait(20) == 75
    node.start()
    node.wait_ready()
    node.wait_peers(1)
    assert node.ask()["epoch"] > 1
    np.testing.assert_allclose(node.infer().tensors["y"], pair.expected, rtol=1e-3, atol=1e-4)


def test_a_damaged_key_is_named_and_nothing_else_happens(pair):
    node = pair["n2"]
    assert node.stop() == 0
    kept = node.state.node_key.read_bytes()
    node.state.node_key.write_bytes(b"\xff{]")
    node.start()
    try:
        assert node.process.wait(20) != 0
        last = node.log_text().strip().splitlines()[-1]
        assert last.startswith("error:")
        assert "node.key" in last
    finally:
        node.state.node_key.write_bytes(kept)
