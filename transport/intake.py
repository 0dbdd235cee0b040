"""What happens to a gossip message between the network and the daemon, the same for every control plane.

Owns the checks that need no key, in the order of their cost: topic, size, rate of the origin, then the topic's own
validator, which can do what it likes but raise. What is admitted goes to one bounded channel; when the daemon falls
behind, the oldest message goes, since newer news replaces older. Knows nothing of how messages travel.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from transport.base import STATE_TOPIC, TOPICS, GossipMessage, Validator
from transport.wire import GOSSIP_MAX_BYTES, STATE_MAX_BYTES

INBOX_MESSAGES: Final = 256
"""Messages that wait for the daemon: half a minute at DESIGN's eight records per second."""
ORIGIN_RATE_HZ: Final = 5.0
"""Messages per second of one origin. A node sends one record every two seconds, and more only on change."""
ORIGIN_BURST: Final = 10.0
"""Messages of one origin at once: a card, a revocation and a few records after a healed partition."""
ORIGINS_MAX: Final = 2048
"""Origins whose rate is held; the one not heard longest is forgotten first."""


class TokenBuckets:
    """One token bucket per name.

    Parameters
    ----------
    rate_hz : float
        Tokens per second that each bucket gains.
    burst : float
        Most tokens in a bucket, and what a new one starts with.
    names_max : int
        Buckets kept; the one not used longest goes first, and starts full when it comes back.
    """

    def __init__(self, *, rate_hz: float, burst: float, names_max: int) -> None:
        self._rate_hz = rate_hz
        self._burst = burst
        self._names_max = names_max
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now_s: float) -> bool:
        """Take a token; False when there is none."""
        level, at_s = self._levels.pop(name, (self._burst, now_s))
        level = min(self._burst, level + (now_s - at_s) * self._rate_hz)
        allowed = level >= 1.0
        self._levels[name] = (level - 1.0 if allowed else level, now_s)
        if len(self._levels) > self._names_max:
            self._levels.popitem(last=False)
        return allowed


class IntakeStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Messages since start, by what became of them."""

    delivered: int
    oversize: int
    """Unknown topic or too long."""
    limited: int
    """Above the rate of their origin."""
    refused: int
    """By the topic's validator."""
    dropped: int
    """Admitted, but older than the channel's capacity of newer ones."""
    bugs: int
    """Validators, and consumers of messages, that raised."""


class GossipIntake:
    """Checks and queues the messages of one node.

    Parameters
    ----------
    clock : callable
        Monotonic time in seconds.
    on_bug : callable
        Told of an exception of a validator, whose message counts as refused, or of a consumer; it should end the node.
    """

    def __init__(self, *, clock: Callable[[], float], on_bug: Callable[[Exception], None]) -> None:
        self._clock = clock
        self._on_bug = on_bug
        self._validators: dict[str, Validator] = {}
        self._buckets = TokenBuckets(rate_hz=ORIGIN_RATE_HZ, burst=ORIGIN_BURST, names_max=ORIGINS_MAX)
        self._send, self._receive = trio.open_memory_channel[GossipMessage](INBOX_MESSAGES)
        self._consumer: Callable[[GossipMessage], None] | None = None
        self._delivered = self._oversize = self._limited = self._refused = self._dropped = self._bugs = 0

    @property
    def messages(self) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Channel of the admitted messages."""
        return self._receive

    def set_validator(self, topic: str, validator: Validator) -> None:
        """Set the check of a topic; ValueError for a topic there is not."""
        if topic not in TOPICS:
            raise ValueError(f"there is no topic {topic!r}, the topics are {', '.join(TOPICS)}")
        self._validators[topic] = validator

    def admit(self, message: GossipMessage) -> bool:
        """Say whether a message is used and forwarded. Never raises for what a message holds."""
        bound = STATE_MAX_BYTES if message.topic == STATE_TOPIC else GOSSIP_MAX_BYTES
        if message.topic not in TOPICS or len(message.data) > bound:
            self._oversize += 1
            return False
        if not self._buckets.take(message.origin, self._clock()):
            self._limited += 1
            return False
        validator = self._validators.get(message.topic)
        try:
            admitted = validator is None or validator(message)
        except Exception as error:
            # libp2p would be torn down half-way by it: here everything is caught, and the supervisor told.
            self._bugs += 1
            self._on_bug(error)
            return False
        self._refused += not admitted
        return admitted

    def consume(self, take: Callable[[GossipMessage], None] | None) -> None:
        """Give messages to a function, those that wait first; None: to the channel."""
        self._consumer = take
        while take is not None and self._receive.statistics().current_buffer_used:
            self._give(take, self._receive.receive_nowait())

    def _give(self, take: Callable[[GossipMessage], None], message: GossipMessage) -> None:
        try:
            take(message)
        except Exception as error:  # as in admit
            self._bugs += 1
            self._on_bug(error)

    def deliver(self, message: GossipMessage) -> None:
        """Hand over an admitted message; the oldest goes when the channel is full."""
        if self._consumer is not None:
            self._delivered += 1
            self._give(self._consumer, message)
            return
        while True:
            try:
                self._send.send_nowait(message)
            except trio.WouldBlock:
                self._receive.receive_nowait()
                self._dropped += 1
            except trio.BrokenResourceError:
                return  # the daemon closed its end: it is on its way out
            else:
                self._delivered += 1
                return

    def close(self) -> None:
        """End the channel; what is queued can still be received."""
        self._send.close()

    def statistics(self) -> IntakeStatistics:
        """Return the counters."""
        return IntakeStatistics(
            delivered=self._delivered,
            oversize=self._oversize,
            limited=self._limited,
            refused=self._refused,
            dropped=self._dropped,
            bugs=self._bugs,
        )
