"""What came of a job: a result without its bytes, or the lack of one."""

import msgspec

from scheduler.types import ModelDigest, NodeId, Reason


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A result on its way to whoever asked."""

    model: ModelDigest
    node: NodeId
    """Executor."""
    hops: int
    waiting_s: float
    service_s: float
    output_bytes: int = 0
    """Of the payload."""
    load_s: float = 0.0
    """Of the waiting, while the model was loaded; no daemon tells it."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The end of a job without a result."""

    reason: Reason
    message: str = ""
