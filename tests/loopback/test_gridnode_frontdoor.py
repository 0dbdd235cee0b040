"""The front door met by programs that speak the protocol badly: each costs its own connection, never the daemon."""

import array
import contextlib
import fcntl
import gc
import mmap
import os
import socket
import stat

import msgspec
import numpy as np
import pytest
import trio

from gridnode.control import (
    PREFIX_BYTES,
    Answer,
    CancelJob,
    ClientHello,
    Goodbye,
    JobDone,
    JobError,
    Query,
    RequestBody,
    ServerHello,
    Share,
    Submit,
    TensorHeader,
    decode_prefix,
    decode_server,
    encode_body,
    encode_frame,
    make_key,
)
from gridnode.errors import StateDirectoryError
from gridnode.sandbox import SandboxDevice

ONE = {"one": SandboxDevice()}
CLIENT = bytes(range(16))


def tensor(name, *shape):
    return encode_body(RequestBody(kind="tensors", tensors=(TensorHeader(name=name, dtype="uint8", shape=shape),)))


BODY = tensor("x", 100)
X = {"x": np.zeros(100, np.uint8)}


class Program:
    """A program that says what it is told."""

    def __init__(self, stream):
        self.stream = stream
        self._count = 0

    async def say(self, message, payload=b""):
        await self.stream.send_all(encode_frame(message, len(payload)) + payload)

    async def hear(self):
        """Return the next message, or None when the daemon has closed the connection."""
        try:
            with trio.fail_after(5.0):
                prefix = await self._exactly(PREFIX_BYTES)
                if prefix is None:
                    return None
                header, payload = decode_prefix(prefix, header_max_bytes=4 << 20)
                message = decode_server(await self._exactly(header))
                await self._exactly(payload)
                return message
        except trio.BrokenResourceError:
            return None

    async def _exactly(self, count):
        data = b""
        while len(data) < count:
            piece = await self.stream.receive_some(count - len(data))
            if not piece:
                return None
            data += piece
        return data

    async def submit(self, payload=bytes(100), **changes):
        self._count += 1
        fields = {"key": make_key(CLIENT, self._count), "model": "m", "budget_s": 2.0, "body": BODY}
        await self.say(Submit(**fields | changes), payload)


async def connect(sandbox, *, greet=True, name="one"):
    program = Program(await trio.open_unix_socket(str(sandbox.nodes[name].socket)))
    sandbox.opened.append(program.stream)
    if greet:
        await program.say(ClientHello(client=CLIENT))
        assert isinstance(await program.hear(), ServerHello)
    return program


@pytest.fixture
def run_door(run_grid):
    """Run a scenario on a grid of one node, and close what it opened."""

    def run(scenario, **options):
        async def careful(sandbox):
            sandbox.opened = []
            try:
                await scenario(sandbox)
            finally:
                for stream in sandbox.opened:
                    await trio.aclose_forcefully(stream)

        run_grid(careful, devices=ONE, **options)

    return run


async def check_still_serving(sandbox):
    async with sandbox.program("one") as grid:
        assert (await grid.infer("m", X, deadline_s=2.0)).node == "one"


def hello():
    return encode_frame(ClientHello(client=CLIENT))


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "claims a header"),
        (b"\x00\x00\x00\x00\x00\x00\x00\x00", "claims a header of 0"),
        (b"\x7f\xff\xff\xff\x00\x00\x00\x00", "claims a header"),
        (b"\x00\x00\x00\x05\xff\xff\xff\xff", "and a payload of"),
        (b"\x00\x00\x00\x05\x00\x00\x00\x00\xc1\xc1\xc1\xc1\xc1", "malformed"),
        (b"\x00\x00\x40\x00\x00\x00\x00\x00" + b"\x91" * 0x4000, "malformed"),
        (encode_frame(Query(number=1, what="status")), "first message must be a hello"),
        (encode_frame(ClientHello(client=CLIENT, versions=(99,))), "speaks versions"),
        (hello() + hello(), "second hello"),
        (hello() + encode_frame(Submit(key=bytes(24), model="m", body=BODY), 100) + bytes(100), "client's id"),
        (hello() + encode_frame(msgspec.structs.replace(Query(number=1, what="status"), what="rm")), "malformed"),
    ],
)
def test_a_program_that_breaks_the_protocol_is_told_and_cut_off(run_door, sent, complaint):
    async def scenario(sandbox):
        program = await connect(sandbox, greet=False)
        await program.stream.send_all(sent)
        heard = [message async for message in _all(program)]
        assert isinstance(heard[-1], Goodbye)
        assert complaint in heard[-1].reason
        await check_still_serving(sandbox)

    run_door(scenario)


def test_programs_that_stop_inside_a_frame_keep_nobody_else_waiting(run_door):
    async def scenario(sandbox):
        whole = encode_frame(Submit(key=make_key(CLIENT, 1), model="m", body=BODY), 64 << 20)
        for cut in (1, 7, 9, len(whole), len(whole) + 1000):
            program = await connect(sandbox, greet=cut > 8)
            await program.stream.send_all((whole + bytes(1000))[:cut])
        await check_still_serving(sandbox)
        for cut in (1, 9, len(whole)):
            program = await connect(sandbox, greet=cut > 8)
            await program.stream.send_all(whole[:cut])
            await program.stream.aclose()
        await check_still_serving(sandbox)

    run_door(scenario)


@pytest.mark.parametrize(
    ("changes", "payload", "reason"),
    [
        ({"budget_s": -1.0}, bytes(100), "expired"),
        ({"budget_s": 0.0}, bytes(100), "expired"),
        ({"model": "nothing"}, bytes(100), "unknown_model"),
        ({"model": "m@0000"}, bytes(100), "unknown_model"),
        ({"model": ""}, bytes(100), "unknown_model"),
        ({"body": b""}, bytes(100), "bad_input"),
        ({"body": b"\x91" * 20_000}, bytes(100), "bad_input"),
        ({"body": b"\xc1"}, bytes(100), "bad_input"),
        ({}, bytes(99), "bad_input"),
        ({}, b"", "bad_input"),
        ({"frame": 2**60}, bytes(100), "bad_input"),
        ({"body": tensor("n" * 40_000, 100)}, bytes(100), "bad_input"),
        ({"body": tensor("x", -1)}, bytes(100), "bad_input"),
        ({"body": tensor("x", 2**62, 4)}, bytes(100), "bad_input"),
        ({"body": encode_body(RequestBody(kind="image"))}, b"no picture", "bad_input"),
    ],
)  # fmt: skip
def test_a_bad_request_gets_its_named_error_on_a_connection_that_goes_on(run_door, changes, payload, reason):
    async def scenario(sandbox):
        program = await connect(sandbox)
        await program.submit(payload, **changes)
        error = await program.hear()
        assert isinstance(error, JobError)
        assert error.reason == reason
        assert error.message
        await program.submit()
        assert isinstance(await program.hear(), JobDone)

    run_door(scenario)


def test_a_budget_without_end_is_served(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        for budget_s in (None, 1e6):
            await program.submit(budget_s=budget_s)
            assert isinstance(await program.hear(), JobDone)

    run_door(scenario)


def test_a_key_that_is_open_already_ends_the_connection_and_its_jobs(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        await program.submit(key=make_key(CLIENT, 7))
        await program.submit(key=make_key(CLIENT, 7))
        heard = [message async for message in _all(program)]
        assert "already open" in heard[-1].reason
        await sandbox.wait_until(lambda: not sandbox.nodes["one"].running.jobs, limit_s=1.0)

    run_door(scenario)


def test_a_cancel_of_what_is_not_open_changes_nothing(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        await program.say(CancelJob(key=make_key(CLIENT, 99)))
        await program.submit()
        assert isinstance(await program.hear(), JobDone)
        await program.say(CancelJob(key=make_key(CLIENT, 1)))
        await program.submit()
        assert isinstance(await program.hear(), JobDone)

    run_door(scenario)


def test_open_jobs_of_one_program_are_bounded(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        for _ in range(6):
            await program.submit()
        heard = [await program.hear() for _ in range(6)]
        assert [type(message) for message in heard] == [JobError] * 2 + [JobDone] * 4
        assert heard[0].reason == "queue_full"

    run_door(scenario, flags={"client": {"jobs": 4}})


def test_a_program_more_than_allowed_waits_until_one_goes(run_door):
    async def scenario(sandbox):
        programs = [await connect(sandbox) for _ in range(3)]
        late = await connect(sandbox, greet=False)
        await late.say(ClientHello(client=CLIENT))
        with trio.move_on_after(1.0) as scope:
            await late.stream.receive_some(1)
        assert scope.cancelled_caught
        await programs[0].stream.aclose()
        assert isinstance(await late.hear(), ServerHello)

    run_door(scenario, flags={"client": {"connections": 3}})


def test_a_program_that_does_not_read_its_answers_is_cut_off(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        frame = encode_frame(Query(number=1, what="status"))
        with pytest.raises(trio.BrokenResourceError):
            await _send_for_ever(program.stream, frame * 100)
        await check_still_serving(sandbox)

    run_door(scenario)


@pytest.mark.parametrize(
    ("what", "argument", "complaint"),
    [
        ("explain", "zz", "hex"),
        ("explain", "00" * 24, "no placement"),
        ("invite", "{", "malformed"),
        ("invite", '{"roles": []}', "roles"),
        ("invite", '{"roles": ["god"]}', "god"),
        ("invite", '{"life_s": -1}', "no invite"),
        ("invite", '{"life_s": 1e300}', "no invite"),
        ("invite", '{"life_s": null}', "malformed"),
        ("revoke", "", "not revoked"),
        ("revoke", "nobody", "not revoked"),
        ("revoke", "x" * 4000, "not revoked"),
        ("revoke", "one", "itself"),
    ],
)
def test_a_query_that_makes_no_sense_gets_a_named_error(run_door, what, argument, complaint):
    async def scenario(sandbox):
        program = await connect(sandbox)
        await program.say(Query(number=5, what=what, argument=argument))
        answer = await program.hear()
        assert isinstance(answer, Answer)
        assert answer.number == 5
        assert complaint in answer.error
        assert sandbox.nodes["one"].running.credentials.revocations.version == 0

    run_door(scenario)


def test_a_draining_daemon_says_goodbye_and_still_answers_what_is_open(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        for _ in range(5):
            await program.submit()
        await sandbox.wait_until(lambda: len(sandbox.nodes["one"].running.jobs) == 5, limit_s=0.09)
        await sandbox.stop("one")
        heard = [message async for message in _all(program)]
        assert [type(message) for message in heard] == [Goodbye] + [JobDone] * 5
        assert not sandbox.nodes["one"].socket.exists()

    run_door(scenario)


def test_the_socket_is_for_owner_and_group_and_not_taken_from_a_living_daemon(run_door):
    async def scenario(sandbox):
        path = sandbox.nodes["one"].socket
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        door = sandbox.nodes["one"].running.door
        with pytest.raises(StateDirectoryError, match="another daemon answers"):
            await door.serve()
        assert path.exists()

    run_door(scenario)


def test_a_socket_file_of_a_dead_daemon_is_replaced(run_door):
    async def scenario(sandbox):
        await sandbox.kill("one")
        path = sandbox.nodes["one"].socket
        await trio.to_thread.run_sync(_leave_socket, path)
        await sandbox.start("one")
        await sandbox.wait_until(lambda: bool(sandbox.nodes["one"].running.house.capabilities()), limit_s=10.0)
        await check_still_serving(sandbox)

    run_door(scenario)


async def _send_for_ever(stream, data):
    while True:
        await stream.send_all(data)


def _leave_socket(path):
    import socket

    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert os.path.exists(path)


async def _all(program):
    while (message := await program.hear()) is not None:
        yield message


# ---------------------------------------------------------------- shared memory

SEGMENT = 8 * mmap.PAGESIZE
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def memory(size=SEGMENT, seals=SEALS, flags=0):
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


async def share(program, *descriptors, size=SEGMENT):
    frame = encode_frame(Share(segment_bytes=size))
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    assert await program.stream.socket.sendmsg([frame], ancillary) == len(frame)


async def hear_the_end(program):
    while (message := await program.hear()) is not None:
        last = message
    assert isinstance(last, Goodbye)
    return last.reason


def open_memories():
    """Return how many descriptors of this process are memory that a test made."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of listdir itself
            found += "memfd:test" in os.readlink(f"/proc/self/fd/{number}")
    return found


def listed(scenario):
    """Run a scenario and check that every descriptor of shared memory is closed again."""

    async def checked(sandbox):
        await scenario(sandbox)
        for stream in sandbox.opened:
            await trio.aclose_forcefully(stream)
        await check_still_serving(sandbox)
        gc.collect()
        assert open_memories() == 0

    return checked


def test_a_payload_in_shared_memory_is_answered(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        descriptor = memory()
        await share(program, descriptor)
        os.close(descriptor)
        for place in (0, 64, SEGMENT - 128):
            await program.submit(b"", place=place, place_bytes=100)
            assert isinstance(await program.hear(), JobDone)
        await program.submit()
        assert isinstance(await program.hear(), JobDone), "a payload may still come over the socket"

    run_door(listed(scenario))


@pytest.mark.parametrize(
    ("place", "place_bytes", "payload"),
    [
        (SEGMENT - 64, 100, b""),
        (SEGMENT, 100, b""),
        (2**62, 100, b""),
        (1, 100, b""),
        (0, 2**62, b""),
        (0, 100, bytes(100)),
    ],
)
def test_a_payload_outside_of_shared_memory_costs_the_connection(run_door, place, place_bytes, payload):
    async def scenario(sandbox):
        program = await connect(sandbox)
        descriptor = memory()
        await share(program, descriptor)
        os.close(descriptor)
        await program.submit(payload, place=place, place_bytes=place_bytes)
        assert "shared memory" in await hear_the_end(program)

    run_door(listed(scenario))


def test_a_payload_in_memory_that_nobody_shared_costs_the_connection(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        await program.submit(b"", place=0, place_bytes=100)
        assert "none is shared" in await hear_the_end(program)

    run_door(listed(scenario))


@pytest.mark.parametrize(
    ("make", "size", "complaint"),
    [
        (lambda: memory(seals=0), SEGMENT, "not sealed"),
        (lambda: memory(seals=fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL), SEGMENT, "not sealed"),
        (lambda: memory(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW), SEGMENT, "not sealed"),
        (memory, SEGMENT - 1, "the program said"),
        (memory, 2 * SEGMENT, "the program said"),
        (lambda: os.open("/dev/zero", os.O_RDONLY), SEGMENT, "not a file"),
        (lambda: os.open(__file__, os.O_RDONLY), os.stat(__file__).st_size, "not a file"),
    ],
)
def test_memory_that_could_make_its_reader_fault_is_refused(run_door, make, size, complaint):
    async def scenario(sandbox):
        program = await connect(sandbox)
        descriptor = make()
        await share(program, descriptor, size=size)
        os.close(descriptor)
        assert complaint in await hear_the_end(program)

    run_door(listed(scenario))


@pytest.mark.parametrize("count", [0, 2])
def test_memory_comes_with_exactly_one_descriptor(run_door, count):
    async def scenario(sandbox):
        program = await connect(sandbox)
        descriptors = [memory() for _ in range(count)]
        await share(program, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        assert "one descriptor" in await hear_the_end(program)

    run_door(listed(scenario))


def test_memory_is_shared_once(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        for _ in range(2):
            descriptor = memory()
            await share(program, descriptor)
            os.close(descriptor)
        assert "shared already" in await hear_the_end(program)

    run_door(listed(scenario))


def test_descriptors_that_nobody_asked_for_are_closed(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        descriptor = memory()
        for _ in range(3):
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
            await program.stream.socket.sendmsg([encode_frame(Share(segment_bytes=SEGMENT))[:1]], ancillary)
        os.close(descriptor)

    run_door(listed(scenario))


def test_a_program_that_leaves_while_its_frame_is_read_takes_nothing_along(run_door):
    async def scenario(sandbox):
        program = await connect(sandbox)
        descriptor = memory()
        await share(program, descriptor)
        os.close(descriptor)
        for place in range(0, 64 * 20, 64):
            await program.submit(b"", place=place, place_bytes=100)
        await program.stream.aclose()

    run_door(listed(scenario))
