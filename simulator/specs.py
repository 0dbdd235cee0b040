"""What a fleet is made of and what it is sent: models on devices, nodes, jobs. Records that no run changes."""

from collections.abc import Mapping

import msgspec

from scheduler.config import CoreConfig
from scheduler.types import DEFAULT_PRIORITY, Capability, ModelDigest
from simulator.distributions import ServiceTime


class ModelProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs on a device."""

    capability: Capability
    """What the node tells of it."""
    service: ServiceTime
    """What it really takes."""
    warm_up: float = 1.0
    """Factor on the first execution after a load, >= 1."""
    batch: tuple[float, ...] = ()
    """Time of an execution of 1, 2, 3, ... requests over that of one. Empty: one after the other."""


def profile(
    model: ModelDigest, service: ServiceTime, *, mean_s: float, load_s: float = 0.0, memory_bytes: int = 0
) -> ModelProfile:
    """Make a model profile of a node that tells the truth of its mean."""
    capability = Capability(model=model, mean_s=mean_s, p95_s=mean_s, memory_bytes=memory_bytes, load_s=load_s)
    return ModelProfile(capability=capability, service=service)


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a fleet."""

    name: str
    models: Mapping[ModelDigest, ModelProfile]
    loaded: frozenset[ModelDigest] | None = None
    """Models in memory at the start; None for all."""
    config: CoreConfig | None = None
    """Of its core; None for the fleet's."""


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a source sends."""

    models: tuple[ModelDigest, ...]
    input_bytes: int
    output_bytes: int = 4096
    """Expected; a prior of the transfer estimate."""
    body_bytes: int = 40
    """Length of the encoded request that goes with the header."""
    budget_s: float = 5.0
    priority: int = DEFAULT_PRIORITY
    stream: str = ""
    newest_wins: bool = False
