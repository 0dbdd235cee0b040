"""One program on its connection: requests in, answers out.

A connection that ends cancels its open jobs; the client sends them again under the same keys over a new one. What a
program says badly costs its job, or its connection, and nothing else.
"""

import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from gridnode.config import OUTBOX_BYTES_MAX, OUTBOX_FRAMES_MAX
from gridnode.control import (
    CLIENT_ID_BYTES,
    VERSION,
    Answer,
    Buffer,
    CancelJob,
    ClientHello,
    Goodbye,
    JobDone,
    JobError,
    OpenLane,
    Query,
    ServerHello,
    ServerMessage,
    Share,
    Submit,
    decode_client,
    encode_frame,
)
from gridnode.errors import GridError, ProtocolError
from gridnode.jobtable import Answer as JobAnswer
from gridnode.jobtable import Failure, JobEntry
from gridnode.lanes import PROGRAM_LANES_MAX, Standing
from gridnode.localsocket import FrameReader, FrameWriter, OutboxFullError
from gridnode.logs import EventLog
from gridnode.submissions import SubmissionError, explain, make_job
from models.executor import Place
from models.segments import Segment, SegmentRefusedError
from scheduler.events import CancelRequested, JobArrived
from scheduler.types import Job, ModelDigest, PeerState, Reason

if TYPE_CHECKING:
    from gridnode.frontdoor import FrontDoor

log = EventLog("frontdoor")


class NodeNames(Protocol):
    """Knows what peers call themselves."""

    def name_of(self, node: str) -> str:
        """Return a node's name, or the tail of its PeerID."""
        ...


Kind = tuple[str, bool, int, str]
"""What requests by one lane have in common: model, rungs, priority and tenant, as the program says them."""

Answerer = Callable[[str, str], Awaitable[object]]
"""Answers a query (what, argument) with something msgspec can write as JSON; raises GridError."""


class Connection:
    """One program."""

    def __init__(self, door: "FrontDoor", plain: socket.socket) -> None:
        self._door = door
        self._plain = plain
        self._writer = FrameWriter(plain, frames_max=OUTBOX_FRAMES_MAX, bytes_max=OUTBOX_BYTES_MAX)
        self._reader = FrameReader(plain, takes_descriptor=True)
        self._client = b""
        self._client_name = ""
        self._segment: Segment | None = None
        self._lanes: dict[Kind, Standing] = {}
        self._last: tuple[Kind, tuple[ModelDigest, ...]] | None = None
        """Kind and models of the last request."""
        self._executor = ""
        """PeerID of the node that answered last."""
        self._handles: dict[bytes, int] = {}
        self._nursery: trio.Nursery | None = None

    async def wait_flushed(self) -> None:
        """Wait until every answer said so far has left, or the connection has ended."""
        await self._writer.wait_flushed()

    async def run(self) -> None:
        """Serve the program until it leaves; raises OSError or EOFError when the connection breaks."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._writer.serve)
                try:
                    await self._read()
                except ProtocolError as error:
                    log.warning("client_misbehaved", error=error)
                    self.say(Goodbye(reason=str(error)))
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._writer.release()
            self._reader.close()
            for standing in self._lanes.values():
                self._door.lanes.close(standing)
            self._lanes.clear()  # each knows this connection
            for handle in tuple(self._handles.values()):  # each outcome takes its handle away
                self._door.driver.post(CancelRequested(handle=handle))
            if self._segment is not None:
                self._door.forget_segment(self._segment)
                self._segment = None  # this object may live until Python looks for cycles, the memory must not

    async def _read(self) -> None:
        while (frame := await self._reader.receive()) is not None:
            header, payload = frame
            message = decode_client(header)
            if not self._client:
                self._greet(message)
                continue
            match message:
                case Submit():
                    self._submit(message, payload)
                case Share():
                    self._adopt(message)
                case OpenLane():
                    self._open_lane(message)
                case CancelJob():
                    handle = self._handles.get(message.key)
                    if handle is not None:
                        self._door.driver.post(CancelRequested(handle=handle))
                case Query():
                    assert self._nursery is not None
                    self._nursery.start_soon(self._query, message)
                case _:
                    raise ProtocolError("a second hello")

    def _greet(self, message: object) -> None:
        if not isinstance(message, ClientHello):
            raise ProtocolError("the first message must be a hello")
        if VERSION not in message.versions:
            raise ProtocolError(
                f"client speaks versions {message.versions}, this daemon {VERSION}; install one release"
            )
        self._client = message.client
        self._client_name = message.client.hex()[:16]
        door = self._door
        self.say(
            ServerHello(
                version=VERSION,
                node=door.node,
                name=door.name,
                grid=door.grid,
                entries=door.config.entries,
                draining=door.draining,
            )
        )

    def _adopt(self, message: Share) -> None:
        """Take the memory that the program shares."""
        if self._segment is not None:
            raise ProtocolError("memory is shared already; share it once per connection")
        descriptor = self._reader.take_descriptor()
        if descriptor is None:
            raise ProtocolError("memory is said to be shared, but not exactly one descriptor came with the message")
        try:
            self._segment = Segment(descriptor, message.segment_bytes)
        except SegmentRefusedError as error:
            raise ProtocolError(str(error)) from error

    def _open_lane(self, message: OpenLane) -> None:
        """Open a lane for more requests like the last one, where there is room; else the program finds it closed."""
        descriptor = self._reader.take_descriptor()
        if descriptor is None:
            raise ProtocolError("a lane is asked for, but not exactly one descriptor came with the message")
        kind = _kind(message)
        self._lanes = {of: standing for of, standing in self._lanes.items() if standing.tracks}
        open_lanes = sum(len(standing.tracks) for standing in self._lanes.values())
        if self._segment is None or self._last is None or self._last[0] != kind or open_lanes >= PROGRAM_LANES_MAX:
            os.close(descriptor)
            return
        standing = self._lanes.get(kind)
        if standing is None:
            standing = Standing(
                message, self._last[1], executor=self._executor or self._door.node, client=self._client, say=self.say
            )
        if self._door.lanes.open(standing, message.lane, self._segment, descriptor):
            self._lanes[kind] = standing

    def _lane_of(self, message: Submit, job: Job) -> Standing | None:
        """Return the lane for requests of this kind."""
        if job.stream:
            return None
        kind = _kind(message)
        self._last = (kind, job.models)
        standing = self._lanes.get(kind)
        if standing is not None and (not standing.tracks or standing.models != job.models):
            self._door.lanes.close(standing)  # its worker has gone, or another model has this name now
            del self._lanes[kind]
            return None
        return standing

    def _find(self, message: Submit, payload: memoryview) -> tuple[memoryview, Place | None]:
        """Return a request's payload, and where in shared memory it lies if it does."""
        if message.place is None:
            return payload, None
        if self._segment is None or len(payload):
            raise ProtocolError(
                "a payload is said to lie in shared memory, but none is shared or the frame has one too"
            )
        try:
            piece = self._segment.piece(message.place, message.place_bytes)
        except SegmentRefusedError as error:
            raise ProtocolError(str(error)) from error
        return piece, Place(self._segment, message.place)

    def _submit(self, message: Submit, payload: memoryview) -> None:
        if message.key[:CLIENT_ID_BYTES] != self._client:
            raise ProtocolError("a key that does not begin with the client's id")
        if message.key in self._handles:
            raise ProtocolError("a key that is already open")
        door = self._door
        payload, place = self._find(message, payload)
        try:
            job = make_job(
                message,
                len(payload),
                node=door.node,
                client=self._client_name,
                models=door.models,
                default_deadline_s=door.default_deadline_s,
                now_s=door.driver.clock(),
            )
        except SubmissionError as error:
            self._refuse(message.key, error.reason, str(error))
            return
        if len(self._handles) >= door.config.jobs:
            self._refuse(message.key, Reason.QUEUE_FULL.value, f"{len(self._handles)} jobs of this client are open")
            return
        handle = self._handles[job.key] = door.jobs.mint()
        standing = self._lane_of(message, job)
        if standing is not None:
            standing.open += 1
        door.jobs.add(
            JobEntry(
                handle=handle,
                job=job,
                body=message.body,
                payload=(payload,),
                responder=ClientResponder(self, job, standing),
                place=place,
                is_hasty=True,
                lane=standing,
            )
        )
        door.driver.post(JobArrived(handle=handle, job=job, origin=None))

    def _refuse(self, key: bytes, reason: str, message: str) -> None:
        entries = self._door.config.entries
        self.say(JobError(key=key, reason=reason, message=message, entries=entries))

    def end(self, job: Job, answer: JobAnswer) -> None:
        """Send a job's result."""
        self._handles.pop(job.key, None)
        self._executor = answer.node
        total_s = self._door.driver.clock() - job.arrival_s
        own = answer.node == self._door.node
        done = JobDone(
            key=job.key,
            model=self._door.models.name_of(answer.model),
            model_digest=answer.model,
            node=answer.node,
            node_name=self._door.name if own else self._door.nodes.name_of(answer.node),
            hops=answer.hops,
            waiting_s=answer.waiting_s,
            service_s=answer.service_s,
            transfer_s=0.0 if own else max(0.0, total_s - answer.waiting_s - answer.service_s),
            total_s=total_s,
            body=answer.body,
        )
        self.say(done, answer.payload)

    def fail(self, job: Job, reason: str, message: str, estimate_s: float | None) -> None:
        """Send a job's named error."""
        self._handles.pop(job.key, None)
        text = explain(reason, message)
        if estimate_s is not None:
            text += f" (best estimate {estimate_s:.3g} s)"
        entries = self._door.config.entries
        self.say(JobError(key=job.key, reason=reason, message=text, estimate_s=estimate_s, entries=entries))

    async def _query(self, message: Query) -> None:
        try:
            document = msgspec.json.encode(await self._door.answer(message.what, message.argument))
            self.say(Answer(number=message.number, document=document))
        except GridError as error:
            self.say(Answer(number=message.number, error=str(error)))

    def say(self, message: ServerMessage, payload: Buffer = b"") -> None:
        """Send a frame; a program that has gone or does not read its answers loses the connection."""
        if self._nursery is None:
            return
        try:
            frame = encode_frame(message, len(payload))
        except ProtocolError as error:
            log.warning("answer_too_large", error=error)
            frame, payload = encode_frame(_instead_of(message, error)), b""
        try:
            self._writer.write(frame, payload)
        except OSError as error:
            log.debug("client_lost", error=error)
            self._nursery.cancel_scope.cancel()
        except OutboxFullError as error:
            log.warning("client_cut_off", error=error)
            self._nursery.cancel_scope.cancel()


def _kind(message: Submit | OpenLane) -> Kind:
    return message.model, message.rungs, message.priority, message.tenant


def _instead_of(message: ServerMessage, error: ProtocolError) -> ServerMessage:
    """Return what to say in place of an answer that does not fit a frame."""
    match message:
        case JobDone():
            return JobError(
                key=message.key, reason=Reason.MODEL_FAILED.value, message=f"the result is too large: {error}"
            )
        case Answer():
            return Answer(number=message.number, error=f"the answer is too large: {error}")
        case _:
            raise error


class ClientResponder:
    """Answers a program."""

    def __init__(self, connection: Connection, job: Job, standing: Standing | None) -> None:
        self._connection = connection
        self._job = job
        self._standing = standing

    def accepted(self, state: PeerState) -> None:
        """Say nothing: a program waits for the outcome alone."""

    def progress(self, state: PeerState) -> None:
        """Say nothing."""

    def answer(self, answer: JobAnswer, state: PeerState | None) -> None:
        """Send the result."""
        self._count()
        self._connection.end(self._job, answer)

    def fail(self, failure: Failure, state: PeerState, *, estimate_s: float | None) -> None:
        """Send the named error."""
        self._count()
        self._connection.fail(self._job, failure.reason, failure.message, estimate_s)

    def give_back(self, reason: Reason, state: PeerState, *, estimate_s: float | None) -> None:
        """Send the named error: a program's job has nowhere else to go back to."""
        self._count()
        self._connection.fail(self._job, reason.value, "", estimate_s)

    def _count(self) -> None:
        if self._standing is not None:
            self._standing.open -= 1
