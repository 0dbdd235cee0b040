"""What a link is: delay, jitter, loss, bandwidth; between two nodes, or between a node and the middle of the network.

Pure records and the arithmetic of lost packets. `simulator.network` moves messages over them.

Notes
-----
Loss. Streams lose nothing: a lost packet costs time. A message of n segments is late by

* one round trip where a segment is lost behind which at least three more follow: three duplicate acknowledgements
  make the sender repeat it at once (fast retransmit, RFC 5681, section 3.2);
* a retransmission timeout where one of the last three is lost: the larger of Linux's minimum of 200 ms and two round
  trips, twice as long for each further loss (RFC 6298, section 5.5). Probes that find such losses sooner (RFC 8985) are
  not modelled: the figure is on the safe side.

A long transfer is bounded besides by what loss lets TCP's window grow to, MSS / RTT * sqrt(3 / 2p) (Mathis, Semke,
Mahdavi and Ott, 1997). Segments are lost independently of one another.

Jitter is drawn per message, or at most once per `coherence_s`: a radio stalls now and then, not for each packet. What
is sent during a stall comes out behind it, since messages of a stream keep their order.
"""

import math
import random
from typing import Final

import msgspec

from simulator.devices import LinkProfile
from simulator.distributions import ServiceTime

TCP_SEGMENT_BYTES: Final = 1448
"""Payload of a TCP segment on Ethernet, with timestamps."""
FAST_TAIL: Final = 3
"""Segments that must follow a lost one for a fast retransmit."""
TIMEOUT_MIN_S: Final = 0.2
"""Linux's least retransmission timeout (TCP_RTO_MIN)."""
TIMEOUT_MAX_S: Final = 120.0
"""Linux's longest (TCP_RTO_MAX)."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One direction between two nodes."""

    delay_s: float = 0.0005
    """One way."""
    jitter_s: float = 0.0
    """Most that is added to the delay, uniformly."""
    jitter: tuple[ServiceTime, ...] = ()
    """Distributions of what is added besides; each adds a draw."""
    coherence_s: float = 0.0
    """Least time between two draws of `jitter`."""
    loss: float = 0.0
    """Share of packets lost, from 0 to below 1: they are repeated, which takes time."""
    gossip_loss: float = 0.0
    """Share of gossip messages that vanish, 0 to 1: dropped by a full queue, not by the link."""
    bytes_per_s: float | None = None
    """Bandwidth; None for unlimited."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, self.loss, self.bytes_per_s)
        if not (self.delay_s >= 0.0 and self.jitter_s >= 0.0 and self.coherence_s >= 0.0):
            raise ValueError(
                f"delay {self.delay_s}, jitter {self.jitter_s}, coherence {self.coherence_s} s; all from 0"
            )
        if not 0.0 <= self.gossip_loss <= 1.0:
            raise ValueError(f"Link.gossip_loss is {self.gossip_loss}; it must be from 0 to 1")

    @property
    def rtt_s(self) -> float:
        """Round trip over two such directions with mean jitter, in seconds."""
        return 2.0 * (self.delay_s + self.jitter_s / 2.0 + sum([each.mean_s for each in self.jitter]))

    def bound_bytes_s(self) -> float:
        """Return the highest mean rate that loss allows a stream, in bytes per second."""
        if not self.loss or not self.rtt_s:
            return math.inf
        return TCP_SEGMENT_BYTES / self.rtt_s * math.sqrt(1.5 / self.loss)


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies between a node and the middle of the network; a way between two nodes has both halves."""

    latency_s: float = 0.00025
    """One way."""
    jitter: ServiceTime | None = None
    """Added one way."""
    coherence_s: float = 0.0
    """Least time between two draws of it."""
    loss: float = 0.0
    """Share of packets lost, each way."""
    up_bytes_s: float | None = None
    """From the node; None for unlimited."""
    down_bytes_s: float | None = None
    """To the node; None for unlimited."""
    medium: str | None = None
    """Name of a channel that all with this name share in both directions, such as one access point."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, self.loss, self.up_bytes_s, self.down_bytes_s)
        if not (self.latency_s >= 0.0 and self.coherence_s >= 0.0):
            raise ValueError(f"latency {self.latency_s} s and coherence {self.coherence_s} s; both must be 0 or more")


def _check(record: msgspec.Struct, loss: float, *rates: float | None) -> None:
    if not 0.0 <= loss < 1.0:
        raise ValueError(f"{type(record).__name__}.loss is {loss}; it must be from 0 to below 1")
    for rate in rates:
        if rate is not None and not rate > 0.0:
            raise ValueError(f"a bandwidth is {rate} bytes/s; it must be above 0, or None where sizes are free")


def access_of(profile: LinkProfile, *, medium: str | None = None) -> Access:
    """Make the access of a node of a profile of simulator.devices."""
    return Access(
        latency_s=profile.latency_s,
        jitter=profile.jitter,
        coherence_s=profile.coherence_s.value,
        loss=profile.loss.value,
        up_bytes_s=profile.up_bytes_s.value,
        down_bytes_s=profile.down_bytes_s.value,
        medium=medium,
    )


def joined(source: Access, target: Access) -> Link:
    """Return the direction from one node to another, as fast as the slower half.

    Examples
    --------
    >>> link = joined(Access(latency_s=0.01, up_bytes_s=1e6), Access(latency_s=0.02, down_bytes_s=3e6))
    >>> link.delay_s, link.bytes_per_s
    (0.03, 1000000.0)
    """
    rates = [rate for rate in (source.up_bytes_s, target.down_bytes_s) if rate is not None]
    return Link(
        delay_s=source.latency_s + target.latency_s,
        jitter=tuple([each for each in (source.jitter, target.jitter) if each is not None]),
        coherence_s=max(source.coherence_s, target.coherence_s),
        loss=1.0 - (1.0 - source.loss) * (1.0 - target.loss),
        bytes_per_s=min(rates, default=None),
    )


def halved(link: Link) -> Access:
    """Return what a node has, two of which are a link: for nodes without an access of their own."""
    return Access(latency_s=link.delay_s / 2.0, up_bytes_s=link.bytes_per_s, down_bytes_s=link.bytes_per_s)


def repetition_s(rng: random.Random, size_bytes: int, *, loss: float, rtt_s: float) -> float:
    """Draw how late lost packets make a message, in seconds; see the module's notes.

    Parameters
    ----------
    size_bytes : int
        Of the message.
    loss : float
        Share of packets lost, 0 to below 1.
    rtt_s : float
        Round trip in seconds.
    """
    segments = max(1, -(-size_bytes // TCP_SEGMENT_BYTES))
    late_s = 0.0
    if segments > FAST_TAIL and rng.random() >= (1.0 - loss) ** (segments - FAST_TAIL):
        late_s += rtt_s
    timeout_s = max(TIMEOUT_MIN_S, 2.0 * rtt_s)
    arrives = (1.0 - loss) ** min(segments, FAST_TAIL)
    while rng.random() >= arrives:
        late_s += timeout_s
        timeout_s = min(2.0 * timeout_s, TIMEOUT_MAX_S)
        arrives = 1.0 - loss
    return late_s
