"""What the planner of control connections is told and what it asks for. See transport.discovery."""

import msgspec

from transport.addressbook import Address
from transport.base import Dial

# ---------------------------------------------------------------- events


class AddressesLearned(msgspec.Struct, frozen=True, kw_only=True):
    """A signed node card names these addresses, best first."""

    node: str
    addresses: tuple[Address, ...]


class NeighboursChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The control connections there are now, whoever made them."""

    nodes: tuple[str, ...]
    grid_time_s: float = 0.0


class DialFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A dial of ours did not lead to a connection."""

    node: str


class DialSucceeded(msgspec.Struct, frozen=True, kw_only=True):
    """A dial of ours led to a connection."""

    node: str
    grid_time_s: float = 0.0


class PeerRevived(msgspec.Struct, frozen=True):
    """The peer is back (a higher epoch, a new card): dial it without waiting for its backoff."""

    node: str


class PeerForgotten(msgspec.Struct, frozen=True):
    """The peer is revoked or was removed: never dial it again unless its addresses are learned anew."""

    node: str


class TimerFired(msgspec.Struct, frozen=True):
    """next_deadline_s() has come."""


Event = AddressesLearned | NeighboursChanged | DialFailed | DialSucceeded | PeerRevived | PeerForgotten | TimerFired

# ---------------------------------------------------------------- actions


class DialPeer(msgspec.Struct, frozen=True, kw_only=True):
    """Connect; answered by DialSucceeded or DialFailed."""

    dial: Dial
    reason: str


class DropPeer(msgspec.Struct, frozen=True, kw_only=True):
    """Close the control connections of this node."""

    node: str
    reason: str


Action = DialPeer | DropPeer


class DiscoveryStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How well connected the node is."""

    neighbours: int
    dialling: int
    known: int
    isolated_s: float | None
    """Time without any connection, in seconds; None while there is one."""
    dials: int
    dials_failed: int
    exchanges: int
