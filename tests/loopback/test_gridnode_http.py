"""The HTTP port on real sockets, before whole nodes on a virtual clock: who is served, who is refused, who pays."""

import functools
import gzip
import json
import socket
import zlib

import msgspec
import pytest
import trio

from gridnode.errors import StateDirectoryError
from gridnode.http.heads import HEAD_MAX_BYTES
from gridnode.http.memory import HELD_MAX_BYTES
from gridnode.http.receiving import READ_BYTES
from gridnode.http.requests import JSON_MAX_BYTES
from gridnode.sandbox import SandboxDevice

ONE = {"one": SandboxDevice()}
ON = {"http": {"enabled": True}}
HOST = b"Host: localhost\r\n"


def body(size=100, *, shape=None, **others):
    """Return the JSON of a request whose input follows as binary data."""
    given = {"name": "x", "shape": shape or [size], "datatype": "UINT8", "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [given], **others}).encode()


def request(text=None, binary=bytes(100), *, path="/v2/models/m/infer", headers=b"", length=None):
    """Return an inference request, head and body."""
    text = body(len(binary)) if text is None else text
    length = len(text) + len(binary) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nContent-Length: {length}\r\nInference-Header-Content-Length: {len(text)}\r\n"
    return head.encode() + HOST + headers + b"\r\n" + text + binary


def get(path, *, method="GET", headers=HOST):
    return f"{method} {path} HTTP/1.1\r\n".encode() + headers + b"\r\n"


class Program:
    """A program that says what it is told."""

    def __init__(self, stream):
        self.stream = stream
        self._data = b""

    async def say(self, data):
        await self.stream.send_all(data)

    async def hear(self, *, without_body=False):
        """Return status, headers and body of the next answer, or None when the connection ends before it."""
        with trio.fail_after(300.0):
            while b"\r\n\r\n" not in self._data:
                if not await self._more():
                    return None
            head, _, self._data = self._data.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            assert first.startswith("HTTP/1.1 "), first
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            size = 0 if without_body else int(headers.get("content-length", 0))
            while len(self._data) < size:
                assert await self._more(), "connection ended inside an answer"
            found, self._data = self._data[:size], self._data[size:]
        return int(first.split(" ")[1]), headers, found

    async def ask(self, data, **options):
        await self.say(data)
        return await self.hear(**options)

    async def _more(self):
        try:
            piece = await self.stream.receive_some()
        except trio.BrokenResourceError:
            return False
        self._data += piece
        return bool(piece)


@pytest.fixture
def run_port(run_grid):
    """Run a scenario on a grid whose nodes serve HTTP; it gets the sandbox and ``connect(name)``."""

    def run(scenario, *, devices=ONE, flags=None, **options):
        async def careful(sandbox):
            opened = []

            async def connect(name="one"):
                host, port = sandbox.nodes[name].running.http_address.split(":")
                program = Program(await trio.open_tcp_stream(host, int(port)))
                opened.append(program.stream)
                return program

            try:
                await scenario(sandbox, connect)
            finally:
                for stream in opened:
                    await trio.aclose_forcefully(stream)

        run_grid(careful, devices=devices, flags=ON | (flags or {}), **options)

    return run


def error_in(answer):
    return json.loads(answer[2])["error"]


# ---------------------------------------------------------------- what is served


def test_what_a_node_says_of_itself(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        digest = sandbox.nodes["one"].running.house.published()["m"][0]
        status, headers, told = await program.ask(get("/v2"))
        assert (status, headers["content-type"]) == (200, "application/json")
        assert "binary_tensor_data" in json.loads(told)["extensions"]
        for path in (
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models/m/ready",
            f"/v2/models/m/versions/{digest}/ready",
        ):
            assert (await program.ask(get(path)))[0] == 200, path
        for path in ("/v2/models/m", "/v2/models/m/versions/1", f"/v2/models/m/versions/{digest[:12]}"):
            model = json.loads((await program.ask(get(path)))[2])
            assert (model["name"], model["versions"]) == ("m", [digest])
            assert model["inputs"] == [{"name": "x", "datatype": "UINT8", "shape": [-1]}]
        index = json.loads((await program.ask(get("/v2/repository/index", method="POST")))[2])
        assert index == [{"name": "m", "version": digest, "state": "READY", "reason": ""}]

    run_port(scenario)


def test_a_model_that_a_peer_runs_is_ready(run_port):
    async def scenario(sandbox, connect):
        house = sandbox.nodes["one"].running.house
        house._entries.clear()
        house._tell_core()
        program = await connect("one")
        assert (await program.ask(get("/v2/models/m/ready")))[0] == 200
        assert json.loads((await program.ask(request()))[2])["parameters"]["node"] == "two"

    run_port(scenario, devices={"one": SandboxDevice(), "two": SandboxDevice()})


def test_a_model_that_nobody_runs_is_not_ready(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        assert (await program.ask(get("/v2/models/m/ready")))[0] == 503
        index = await program.ask(get("/v2/repository/index", method="POST"))
        assert json.loads(index[2])[0]["state"] == "UNAVAILABLE"
        only_ready = (
            b'POST /v2/repository/index HTTP/1.1\r\nContent-Length: 14\r\nHost: [::1]:8000\r\n\r\n{"ready":true}'
        )
        assert json.loads((await program.ask(only_ready))[2]) == []
        status, headers, _ = refused = await program.ask(request())
        assert (status, headers["gridnode-reason"]) == (503, "unknown_model"), refused

    async def impatient(sandbox, connect):
        sandbox.nodes["one"].running.house._entries.clear()
        sandbox.nodes["one"].running.house._tell_core()
        await scenario(sandbox, connect)

    run_port(impatient)


def test_an_inference_says_who_answered(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        status, _, told = await program.ask(request(body(id="42")))
        told = json.loads(told)
        assert (status, told["id"], told["model_name"]) == (200, "42", "m")
        assert told["model_version"] == sandbox.nodes["one"].running.house.published()["m"][0]
        parameters = told["parameters"]
        assert (parameters["node"], parameters["hops"], parameters["emulated"]) == ("one", 0, True)
        assert parameters["service_s"] == pytest.approx(0.1)
        assert parameters["total_s"] == pytest.approx(parameters["waiting_s"] + 0.1, abs=0.01)

    run_port(scenario)


def test_a_job_may_be_answered_by_another_node(run_port):
    async def scenario(sandbox, connect):
        program = await connect("slow")
        told = json.loads((await program.ask(request()))[2])
        assert (told["parameters"]["node"], told["parameters"]["hops"]) == ("fast", 1)

    run_port(scenario, devices={"fast": SandboxDevice(speed=10), "slow": SandboxDevice(speed=0.2)})


def test_a_connection_serves_one_request_after_another(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        for _ in range(3):
            assert (await program.ask(request()))[0] == 200
        assert (await program.ask(request(path="/v2/models/none/infer")))[0] == 404
        assert (await program.ask(request(body(7))))[0] == 400
        assert (await program.ask(request()))[0] == 200

    run_port(scenario)


def test_requests_sent_ahead_are_answered_in_order(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        await program.say(b"".join(request(body(id=str(number))) for number in range(5)) + get("/v2/nothing"))
        for number in range(5):
            assert json.loads((await program.hear())[2])["id"] == str(number)
        assert (await program.hear())[0] == 404

    run_port(scenario)


def test_a_flood_of_requests_leaves_turns_to_others(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        count = 3 * READ_BYTES // len(get("/1000"))  # heads lie across the ends of the buffer
        turns = 0

        async def take_turns():
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            nursery.start_soon(program.say, b"".join(get(f"/{number}") for number in range(count)))
            for number in range(count):
                assert f"'/{number}'" in error_in(await program.hear())
            nursery.cancel_scope.cancel()
        assert turns > count / 2

    run_port(scenario)


async def connect_slow_reader(sandbox):
    """Connect a program whose connection takes little before it is read."""
    node = sandbox.nodes["one"].running
    host, port = node.http_address.split(":")
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect((host, int(port)))
    program = Program(trio.SocketStream(sock))
    assert (await program.ask(get("/v2")))[0] == 200
    [connection] = node.http._connections
    connection._plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return program


MANY = 1_000
"""Requests whose answers, 300 kB, do not fit the buffers of a slow reader's connection."""


def test_answers_wait_for_a_program_that_reads_late(run_port):
    async def scenario(sandbox, connect):
        program = await connect_slow_reader(sandbox)
        async with program.stream, trio.open_nursery() as nursery:
            nursery.start_soon(program.say, get("/v2/models/m") * MANY)
            await trio.sleep(15.0)
            for _ in range(MANY):
                assert (await program.hear())[0] == 200

    run_port(scenario)


def test_a_program_that_reads_nothing_is_cut_off(run_port):
    async def scenario(sandbox, connect):
        program = await connect_slow_reader(sandbox)
        async with program.stream:
            began_s = trio.current_time()
            await program.say(get("/v2/models/m") * MANY)
            server = sandbox.nodes["one"].running.http
            await sandbox.wait_until(lambda: not server._connections, limit_s=30.0)
            assert trio.current_time() - began_s >= 20.0
        assert (await (await connect()).ask(request()))[0] == 200

    run_port(scenario)


def test_large_json_is_read_and_written_in_threads(run_port, monkeypatch):
    monkeypatch.setattr("gridnode.http.exchange.INLINE_BYTES", -1)
    numbers = {"name": "x", "shape": [100], "datatype": "UINT8", "data": [7] * 100}

    async def scenario(sandbox, connect):
        program = await connect()
        server = sandbox.nodes["one"].running.http
        async with server._threads:
            await program.say(request(json.dumps({"inputs": [numbers]}).encode(), b""))
            await trio.sleep(1.0)
            assert len(sandbox.nodes["one"].running.jobs) == 0, "read without a thread"
        await trio.sleep(0.05)
        async with server._threads:
            await trio.sleep(1.0)
            with trio.move_on_after(1.0) as scope:
                await program.hear()
            assert scope.cancelled_caught, "written without a thread"
        assert (await program.hear())[0] == 200

    run_port(scenario)


def test_connections_end_when_the_program_asks_for_it(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        status, headers, _ = await program.ask(request(headers=b"Connection: close\r\n"))
        assert (status, headers["connection"]) == (200, "close")
        answered_s = trio.current_time()
        assert await program.hear() is None
        assert trio.current_time() - answered_s < 1.0

    run_port(scenario)


def test_head_gives_a_head(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        status, headers, _ = await program.ask(get("/v2", method="HEAD"), without_body=True)
        assert (status, int(headers["content-length"]) > 0) == (200, True)
        assert (await program.ask(get("/v2/health/live")))[0] == 200

    run_port(scenario)


# ---------------------------------------------------------------- bodies


def test_the_body_is_sent_once_it_is_asked_for(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        whole = request(headers=b"Expect: 100-continue\r\n")
        end = whole.index(b"\r\n\r\n") + 4
        await program.say(whole[:end])
        assert (await program.hear())[0] == 100
        assert (await program.ask(whole[end:]))[0] == 200
        assert (await program.ask(whole))[0] == 200, "the body came along: nobody is to be asked for it"

    run_port(scenario)


def test_a_body_too_large_is_refused_before_it_is_sent(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        answer = await program.ask(request(b"", b"", headers=b"Expect: 100-continue\r\n", length=5000))
        assert (answer[0], answer[1]["connection"]) == (413, "close")
        assert "at most 4096" in error_in(answer)
        assert await program.hear() is None

    run_port(scenario, flags={"http": {"enabled": True, "body_bytes": 4096}})


def test_a_program_that_sends_to_the_end_before_it_reads_hears_why_it_is_refused(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        size = 8 << 20
        await program.say(request(body(size), bytes(size)))
        assert (await program.hear())[0] == 413

    run_port(scenario, flags={"http": {"enabled": True, "body_bytes": 4096}})


def chunked(data, *, size=37, headers=b""):
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    stream = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + headers
    return head + b"Inference-Header-Content-Length: %d\r\n\r\n" % len(body()) + stream


def test_a_body_may_come_in_chunks(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        await program.say(chunked(body() + bytes(100)) + chunked(body() + bytes(100), size=1) + get("/v2"))
        assert [(await program.hear())[0] for _ in range(3)] == [200, 200, 200]

    run_port(scenario)


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [(b"gzip", gzip.compress), (b"deflate", zlib.compress), (b"identity", bytes), (b"GZIP", gzip.compress)],
)
def test_a_body_may_be_compressed(run_port, encoding, compress):
    async def scenario(sandbox, connect):
        program = await connect()
        packed = compress(body() + bytes(100))
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n" % (
            encoding,
            len(packed),
        )
        length = b"Inference-Header-Content-Length: %d\r\n\r\n" % len(body())
        assert (await program.ask(head + HOST + length + packed))[0] == 200

    run_port(scenario)


def compressed(packed, encoding=b"gzip"):
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n" % (
        encoding,
        len(packed),
    )
    return head + HOST + b"\r\n" + packed


# ---------------------------------------------------------------- nonsense


def post(length):
    return b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\n" % length + HOST + b"\r\n"


NONSENSE = {
    "no http": (b"\x16\x03\x01\x00\x05hello\r\n\r\n", 400),
    "no host": (get("/v2", headers=b""), 400),
    "two lengths": (request(headers=b"Content-Length: 5\r\n"), 400),
    "length and chunks": (request(headers=b"Transfer-Encoding: chunked\r\n"), 400),
    "unknown transfer encoding": (get("/v2", headers=HOST + b"Transfer-Encoding: br\r\n"), 501),
    "a request inside the head": (b"GET /v2 HTTP/1.1\nHost: localhost\n\nGET /v2 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "head too large": (get("/v2", headers=HOST + b"X: " + b"x" * HEAD_MAX_BYTES + b"\r\n"), 431),
    "head without an end": (b"GET /" + b"x" * (HEAD_MAX_BYTES + READ_BYTES // 2), 431),
    "expectation": (get("/v2", headers=HOST + b"Expect: tea\r\n"), 417),
    "json longer than the body": (request(b"{}", b"", headers=b"", length=1), 400),
    "json too large": (post(JSON_MAX_BYTES + 1), 413),
    "body too large": (request(length=64 << 21), 413),
    "bad chunk": (chunked(b"").replace(b"0\r\n\r\n", b"zz\r\n"), 400),
    "chunks without end": (chunked(bytes(JSON_MAX_BYTES // 2), size=1 << 20).replace(b"0\r\n\r\n", b"-1\r\n"), 400),
    "unknown encoding": (compressed(b"x", b"br"), 415),
    "no gzip": (compressed(b"hello"), 400),
    "half a gzip": (compressed(gzip.compress(body())[:-5]), 400),
    "gzip and more": (compressed(gzip.compress(body()) + b"x"), 400),
    "gzip bomb": (compressed(gzip.compress(bytes(65 << 20), compresslevel=1)), 413),
    "a web page": (request(headers=b"Origin: https://example.org\r\n"), 403),
    "a page's own name for this machine": (get("/v2", headers=b"Host: evil.example:8000\r\n"), 403),
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_costs_its_connection_and_nothing_else(run_port, name):
    data, status = NONSENSE[name]

    async def scenario(sandbox, connect):
        program, other = await connect(), await connect()
        answer = await program.ask(data)
        assert answer[0] == status, answer
        assert error_in(answer)
        assert answer[1]["connection"] == "close"
        assert await program.hear() is None
        assert (await other.ask(request()))[0] == 200
        assert sandbox.nodes["one"].running.http.memory.left_bytes == HELD_MAX_BYTES

    run_port(scenario)


WRONG = {
    "unknown path": (get("/v3"), 404, "docs/http.md"),
    "no path": (get("/"), 404, "docs/http.md"),
    "no infer": (request(path="/v2/infer"), 404, "nothing is served"),
    "unknown model": (request(path="/v2/models/none/infer"), 404, "published are: m"),
    "a model by an odd name": (request(path="/v2/models/m@abc/infer"), 404, "nothing is served"),
    "unknown version": (request(path="/v2/models/m/versions/2/infer"), 404, "no version '2'"),
    "unknown digest": (request(path="/v2/models/m/versions/0123456789ab/infer"), 404, "no model"),
    "odd version": (request(path="/v2/models/m/versions/../infer"), 404, "no digest"),
    "get instead of post": (get("/v2/models/m/infer"), 405, "takes POST"),
    "post instead of get": (get("/v2/models/m", method="POST"), 405, "takes GET"),
    "no json": (request(b"hello", b""), 400, "no inference request"),
    "unknown input": (request(body().replace(b'"x"', b'"w"')), 400, "has no input 'w'"),
    "wrong dtype": (request(body().replace(b"UINT8", b"INT8")), 400, "the model takes uint8"),
    "wrong shape": (request(body(shape=[10, 10])), 400, "has shape (10, 10)"),
    "binary data too short": (request(body(101), bytes(100)), 400, "100 are left"),
    "unknown output": (request(body(outputs=[{"name": "z"}])), 400, "no output 'z'"),
    "a picture for a model that takes none": (
        request(b"", b"\xff\xd8\xff", headers=b"Content-Type: image/jpeg\r\n"), 400, "takes no pictures",
    ),
    "no time": (request(body(parameters={"timeout": 1})), 504, "allow more time"),
    "a frame that no wire takes": (request(body(parameters={"stream": "s", "frame": 2**60})), 400, "frame number"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_costs_itself_alone(run_port, name):
    data, status, words = WRONG[name]

    async def scenario(sandbox, connect):
        program = await connect()
        answer = await program.ask(data)
        assert answer[0] == status, answer
        assert words in error_in(answer)
        assert "connection" not in answer[1]
        assert (await program.ask(request()))[0] == 200
        assert sandbox.nodes["one"].running.http.memory.left_bytes == HELD_MAX_BYTES

    run_port(scenario)


def test_the_right_method_is_told(run_port):
    async def scenario(sandbox, connect):
        assert (await (await connect()).ask(get("/v2/models/m/infer")))[1]["allow"] == "POST"

    run_port(scenario)


def test_an_open_port_serves_pages_and_other_names(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        assert (await program.ask(get("/v2", headers=b"Host: grid.example\r\nOrigin: https://grid.example\r\n")))[
            0
        ] == 200

    run_port(scenario, flags={"http": {"enabled": True, "allow_remote": True}})


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("sent", [1, 20, len(request()) - 1])
def test_a_request_must_come_within_its_time(run_port, sent):
    async def scenario(sandbox, connect):
        program = await connect()
        began_s = trio.current_time()
        answer = await program.ask(request()[:sent])
        assert (answer[0], answer[1]["connection"]) == (408, "close")
        assert 20.0 <= trio.current_time() - began_s < 20.5
        assert await program.hear() is None

    run_port(scenario)


def test_a_request_that_trickles_is_cut_off(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        await program.say(request(body(1 << 20), b"", length=1 << 21))

        async def trickle():
            while True:
                await program.say(bytes(10))
                await trio.sleep(1.0)

        with trio.fail_after(25.0), pytest.raises(trio.BrokenResourceError):
            await trickle()

    run_port(scenario)


def test_a_slow_link_gets_the_time_it_earns(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        size = 6_000_000
        await program.say(request(body(size), b"", length=len(body(size)) + size))
        for _ in range(40):
            await program.say(bytes(size // 40))
            await trio.sleep(1.0)  # 150 kB/s, 40 s: more than the time of a small request
        assert (await program.hear())[0] == 200

    run_port(scenario)


def test_an_idle_connection_is_closed(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        assert (await program.ask(get("/v2")))[0] == 200
        began_s = trio.current_time()
        assert await program.hear() is None
        assert 75.0 <= trio.current_time() - began_s < 75.5

    run_port(scenario)


def test_an_answer_is_waited_for_longer_than_an_idle_connection_lives(run_port):
    async def scenario(sandbox, connect):
        program = await connect()
        assert (await program.ask(request(body(parameters={"timeout": 300_000_000}))))[0] == 200

    run_port(scenario, models_s={"m": 2.0}, flags={"http": {"enabled": True, "idle_s": 0.5, "request_s": 0.5}})


# ---------------------------------------------------------------- load


def test_a_job_whose_program_has_gone_is_cancelled(run_port):
    async def scenario(sandbox, connect):
        node = sandbox.nodes["one"].running
        program = await connect()
        await program.say(request(body(parameters={"timeout": 60_000_000})))
        await sandbox.wait_until(lambda: len(node.jobs) == 1, limit_s=1.0)
        await program.stream.aclose()
        await sandbox.wait_until(lambda: not len(node.jobs), limit_s=1.0)
        assert node.report.snapshot().ended == {"cancelled": 1}
        assert node.http.memory.left_bytes == HELD_MAX_BYTES

    run_port(scenario, models_s={"m": 2.0})


def test_a_full_queue_says_when_to_come_again(run_port):
    async def scenario(sandbox, connect):
        programs = [await connect() for _ in range(12)]
        answers = []

        async def ask(program):
            answers.append(await program.ask(request(body(parameters={"timeout": 60_000_000}))))

        async with trio.open_nursery() as nursery:
            for program in programs:
                nursery.start_soon(ask, program)
        refused = [answer for answer in answers if answer[0] != 200]
        assert 0 < len(refused) < len(answers)
        for answer in refused:
            assert (answer[0], answer[1]["gridnode-reason"]) == (429, "queue_full")
            assert int(answer[1]["retry-after"]) >= 1

    run_port(scenario, models_s={"m": 0.5})


def test_too_many_connections_are_turned_away(run_port):
    async def scenario(sandbox, connect):
        first, second = await connect(), await connect()
        assert (await first.ask(get("/v2")))[0] == 200
        assert (await second.ask(get("/v2")))[0] == 200
        status, headers, _ = await (await connect()).hear()
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        await first.stream.aclose()
        await sandbox.wait_until(lambda: len(sandbox.nodes["one"].running.http._connections) == 1, limit_s=1.0)
        assert (await (await connect()).ask(get("/v2")))[0] == 200

    run_port(scenario, flags={"http": {"enabled": True, "connections": 2}})


def test_bodies_of_all_connections_share_one_bound(run_port):
    async def scenario(sandbox, connect):
        size = 64 << 20
        programs = [await connect() for _ in range(HELD_MAX_BYTES // size)]
        for program in programs:
            await program.say(request(body(size), b"", length=size))
        memory = sandbox.nodes["one"].running.http.memory
        await sandbox.wait_until(lambda: not memory.left_bytes, limit_s=1.0)
        answer = await (await connect()).ask(request())
        assert (answer[0], answer[1]["retry-after"]) == (503, "1")
        for program in programs:
            await program.stream.aclose()
        await sandbox.wait_until(lambda: memory.left_bytes == HELD_MAX_BYTES, limit_s=1.0)
        assert (await (await connect()).ask(request()))[0] == 200

    run_port(scenario)


def test_a_newer_frame_takes_the_place_of_an_older_one(run_port):
    async def scenario(sandbox, connect):
        def frame(number):
            given = {"stream": "door", "frame": number, "newest_wins": True, "timeout": 60_000_000}
            return request(body(parameters=given))

        programs = [await connect() for _ in range(3)]
        for number, program in enumerate(programs):
            await program.say(frame(number))
            await sandbox.wait_until(
                functools.partial(_has_arrived, sandbox.nodes["one"].running, number + 1), limit_s=1.0
            )
        status, headers, _ = await programs[1].hear()
        assert (status, headers["gridnode-reason"]) == (409, "superseded")
        assert [(await programs[number].hear())[0] for number in (0, 2)] == [200, 200]

    run_port(scenario, models_s={"m": 1.0})


def _has_arrived(node, count):
    return node.core.statistics().jobs_arrived >= count


# ---------------------------------------------------------------- the port's life


def test_a_stop_lets_open_requests_finish(run_port):
    async def scenario(sandbox, connect):
        busy, idle = await connect(), await connect()
        assert (await idle.ask(get("/v2")))[0] == 200
        await busy.say(request(body(parameters={"timeout": 60_000_000})))
        node = sandbox.nodes["one"].running
        await sandbox.wait_until(lambda: len(node.jobs) == 1, limit_s=1.0)
        node.stop()
        assert await idle.hear() is None
        late = await connect()
        assert (await late.ask(get("/v2/health/ready")))[0] == 503
        assert (await late.ask(request()))[1]["gridnode-reason"] == "draining"
        status, headers, _ = await busy.hear()
        assert (status, headers["connection"]) == (200, "close")
        await sandbox.nodes["one"].ended.wait()

    run_port(scenario, models_s={"m": 2.0})


def test_a_port_in_use_is_named(run_port):
    async def scenario(sandbox, connect):
        port = int(sandbox.nodes["one"].running.http_address.split(":")[1])
        server = sandbox.nodes["one"].running._make_http()
        server.config = msgspec.structs.replace(server.config, port=port)
        with pytest.raises(StateDirectoryError, match=rf"http port 127.0.0.1:{port}"):
            await server.serve()

    run_port(scenario)
