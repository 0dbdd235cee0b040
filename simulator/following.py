"""What an executor says of a job becomes events of the core. The daemon's Outbound.take is the model."""

from typing import Final

import msgspec

from scheduler.events import Accepted, Nacked, Progressed, ReplyReceived
from scheduler.types import LinkSample, NodeId, Reason, ServiceTimes
from simulator.records import Answer, Failure, Site
from simulator.wording import reason_from_wire, state_from_wire
from transport.wire import DataMessage, JobAccepted, JobFailed, JobProgress, JobRefused, JobResult

_SMALL_BYTES: Final = 32 * 1024
"""Up to this size a payload's transfer is a round trip; above it, it tells the link's goodput."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How a job went to its executor, for measuring the link; a lease has none."""

    began_s: float
    """When there was a connection."""
    setup_s: float
    """How long that had taken."""
    input_bytes: int


def follow(site: Site, peer: NodeId, command: int, message: DataMessage, way: Way | None) -> bool:
    """Post the event for one message about a job; True when it was the outcome."""
    match message:
        case JobAccepted():
            found = (site.commands.get((peer, key)) for key in message.covered)
            covered = tuple(each for each in found if each is not None)
            site.post(Accepted(command=command, state=state_from_wire(message.state), covered=covered))
            return False
        case JobProgress():
            site.post(Progressed(command=command, state=state_from_wire(message.state)))
            return False
        case JobRefused():
            post_refused(site, command, message)
        case JobResult():
            _post_result(site, command, message, way)
        case JobFailed():
            reason = Reason.MODEL_FAILED if message.reason == "bad_input" else reason_from_wire(message.reason)
            state = state_from_wire(message.state)
            site.post(
                ReplyReceived(command=command, model=None, failure=reason, state=state, times=None),
                Failure(reason=message.reason, message=message.message),
            )
        case _:
            raise AssertionError(f"an executor said {type(message).__name__}")
    return True


def post_refused(site: Site, command: int, message: JobRefused) -> None:
    """Post the event for a refusal."""
    state = state_from_wire(message.state)
    reason = reason_from_wire(message.reason)
    site.post(Nacked(command=command, reason=reason, state=state, estimate_s=message.estimate_s))


def _post_result(site: Site, command: int, message: JobResult, way: Way | None) -> None:
    site.post(
        ReplyReceived(
            command=command,
            model=message.model,
            failure=None,
            state=state_from_wire(message.state),
            times=ServiceTimes(waiting_s=message.waiting_s, service_s=message.service_s),
            link=_link_sample(site.engine.now_s, message, way),
        ),
        Answer(
            model=message.model,
            node=message.node,
            hops=message.hops,
            waiting_s=message.waiting_s,
            service_s=message.service_s,
        ),
    )


def _link_sample(now_s: float, message: JobResult, way: Way | None) -> LinkSample | None:
    """Measure the link; an answer over further hops tells of the first one only how long its connection took."""
    if way is None:
        return None
    if message.node != message.state.node:
        return LinkSample(rtt_s=None, sent_bytes=0, sent_s=0.0, setup_s=way.setup_s)
    taken_s = max(0.0, now_s - way.began_s - message.waiting_s - message.service_s)
    if way.input_bytes <= _SMALL_BYTES:
        return LinkSample(rtt_s=taken_s, sent_bytes=way.input_bytes, sent_s=0.0, setup_s=way.setup_s)
    return LinkSample(rtt_s=None, sent_bytes=way.input_bytes, sent_s=taken_s, setup_s=way.setup_s)
