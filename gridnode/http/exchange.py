"""One inference by HTTP: from the body of its request to the answer, by way of a job.

The job goes in at the same door as a local program's (gridnode.submissions); the core answers it here.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

from gridnode.catalogue import Resolved
from gridnode.http.bodies import Body
from gridnode.http.memory import Holding
from gridnode.http.oip import ResponseParameters
from gridnode.http.requests import Inference, Wanted, read_picture, read_raw, read_request
from gridnode.http.responses import Reply, encode_response, error_of, error_reply, result_reply
from gridnode.jobtable import Answer, Failure, JobEntry
from gridnode.submissions import SubmissionError, explain, make_job
from models.bodies import ResultBody, decode_result
from models.executor import Place
from models.tensors import BadInputError, Buffer, InferenceError
from scheduler.events import CancelRequested, JobArrived
from scheduler.types import Job, PeerState, Reason

if TYPE_CHECKING:
    from gridnode.http.server import HttpServer

INLINE_BYTES: Final = 64 * 1024
"""Most JSON read, and tensors written as JSON, in the event loop, in about 1 ms; a thread does more."""


class Listener(Protocol):
    """Whoever waits for the answer."""

    def reply(self, reply: Reply) -> None:
        """Take the answer; does not block."""
        ...

    def spawn(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do something beside, not beyond the listener's life."""
        ...


class Exchange:
    """One inference.

    Parameters
    ----------
    server : HttpServer
        What all connections share.
    listener : Listener
        Gets the answer.
    """

    def __init__(self, server: "HttpServer", listener: Listener) -> None:
        self._server = server
        self._listener: Listener | None = listener
        self._wanted = Wanted(outputs=())
        self._job: Job | None = None
        self._handle = 0
        self._holding: Holding | None = None
        self._has_ended = False

    async def begin(self, model: tuple[str, Resolved], body: Body, holding: Holding) -> None:
        """Make the request a job.

        Parameters
        ----------
        model : (str, Resolved)
            The name as asked for, and what it stands for.
        body : Body
            As received.
        holding : Holding
            Where it lies; released with the job's outcome, unless this raises.

        Raises
        ------
        HttpError
            It does not fit the model.
        """
        name, resolved = model
        try:
            inference = await self._read(body, resolved)
            self._wanted = inference.wanted
            message = inference.submit(self._server.mint_key(), name)
            job = self._job = make_job(
                message,
                inference.payload_bytes,
                node=self._server.node,
                client=self._server.client,
                models=self._server.models,
                default_deadline_s=self._server.default_deadline_s,
                now_s=self._server.driver.clock(),
            )
        except BadInputError as error:
            raise error_of("bad_input", str(error)) from error
        except SubmissionError as error:
            raise error_of(error.reason, str(error)) from error
        self._holding = holding
        self._handle = self._server.jobs.mint()
        self._server.jobs.add(
            JobEntry(
                handle=self._handle,
                job=job,
                body=message.body,
                payload=inference.parts,
                responder=self,
                place=_place(inference, body, holding),
                is_hasty=True,
            )
        )
        self._server.driver.post(JobArrived(handle=self._handle, job=job, origin=None))

    async def _read(self, body: Body, resolved: Resolved) -> Inference:
        manifest = resolved.manifest
        if body.is_picture:
            return read_picture(body.binary, manifest)
        if body.is_raw:
            return read_raw(body.binary, manifest)
        read = functools.partial(read_request, body.text, body.binary, manifest)
        if len(body.text) <= INLINE_BYTES:
            return read()
        return await self._server.in_thread(read)

    def abandon(self) -> None:
        """Cancel the job: its program has gone."""
        self._listener = None
        if self._job is not None and not self._has_ended:
            self._server.driver.post(CancelRequested(handle=self._handle))

    # ------------------------------------------------------------ gridnode.jobtable.Responder

    def accepted(self, state: PeerState) -> None:
        """Say nothing: a program waits for the outcome alone."""

    def progress(self, state: PeerState) -> None:
        """Say nothing."""

    def answer(self, answer: Answer, state: PeerState | None) -> None:
        """Send the result."""
        self._end()
        if self._listener is None:
            return
        try:
            body = decode_result(answer.body)
        except InferenceError as error:
            self._listener.reply(error_reply(error_of(Reason.MODEL_FAILED.value, str(error))))
            return
        make = functools.partial(
            _make_reply,
            body,
            answer.payload,
            self._wanted,
            model_name=self._server.models.name_of(answer.model),
            model_version=answer.model,
            parameters=self._describe(answer, body),
        )
        if len(answer.payload) > INLINE_BYTES and self._wanted.has_json:
            self._listener.spawn(functools.partial(self._answer_later, make))
        else:
            self._listener.reply(make())

    async def _answer_later(self, make: Callable[[], Reply]) -> None:
        reply = await self._server.in_thread(make)
        if self._listener is not None:
            self._listener.reply(reply)

    def _describe(self, answer: Answer, body: ResultBody) -> ResponseParameters:
        assert self._job is not None
        return ResponseParameters(
            node=self._server.nodes.name_of(answer.node),
            node_id=answer.node,
            hops=answer.hops,
            waiting_s=answer.waiting_s,
            service_s=answer.service_s,
            total_s=self._server.driver.clock() - self._job.arrival_s,
            image_width=body.image_width,
            image_height=body.image_height,
            truncated=body.truncated,
            emulated=body.emulated,
        )

    def fail(self, failure: Failure, state: PeerState, *, estimate_s: float | None) -> None:
        """Send the named error."""
        self._fail(failure.reason, failure.message, estimate_s)

    def give_back(self, reason: Reason, state: PeerState, *, estimate_s: float | None) -> None:
        """Send the named error: a program's job has nowhere else to go back to."""
        self._fail(reason.value, "", estimate_s)

    def _fail(self, reason: str, message: str, estimate_s: float | None) -> None:
        self._end()
        text = explain(reason, message)
        if estimate_s is not None:
            text += f" (best estimate {estimate_s:.3g} s)"
        if self._listener is not None:
            self._listener.reply(error_reply(error_of(reason, text, estimate_s)))

    def _end(self) -> None:
        self._has_ended = True
        if self._holding is not None:
            self._holding.release()


def _place(inference: Inference, body: Body, holding: Holding) -> Place | None:
    """Return where workers can read the payload in place: where it is all that was received into the buffer."""
    is_whole = len(inference.parts) == 1 and inference.payload_bytes == len(body.binary)
    return holding.place if is_whole else None


def _make_reply(
    body: ResultBody,
    payload: Buffer,
    wanted: Wanted,
    *,
    model_name: str,
    model_version: str,
    parameters: ResponseParameters,
) -> Reply:
    """Write a result, or why it cannot be written as it was asked for. In any thread."""
    try:
        text, parts = encode_response(
            body, payload, wanted, model_name=model_name, model_version=model_version, parameters=parameters
        )
    except BadInputError as error:
        return error_reply(error_of("bad_input", str(error)))
    except InferenceError as error:
        return error_reply(error_of(Reason.MODEL_FAILED.value, str(error)))
    return result_reply(text, parts)
