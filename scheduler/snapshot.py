"""What the core knows of its peers, as frozen records for people to look at. Decides nothing."""

import msgspec

from scheduler.types import ModelDigest, NodeId, PeerState
from scheduler.view import View


class PeerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One peer at one moment."""

    node_id: NodeId
    state: PeerState | None
    """Newest record; None before the first."""
    heard_s: float
    """When it came."""
    is_open: bool
    """Whether it takes jobs at all."""
    in_flight: int
    """Our open commands there."""
    window: float
    """Most of them allowed now."""
    rtt_s: float
    """Round trip, learned."""
    models: frozenset[ModelDigest]
    """What it offers, by its capability table."""


def snapshot_peers(view: View) -> tuple[PeerSnapshot, ...]:
    """Return all peers of a view, sorted by node."""
    return tuple(
        PeerSnapshot(
            node_id=peer.node_id,
            state=peer.state,
            heard_s=peer.heard_s,
            is_open=peer.is_open,
            in_flight=len(peer.shipments),
            window=peer.window.size,
            rtt_s=peer.link.rtt_s,
            models=frozenset(peer.capabilities),
        )
        for peer in sorted(view.listed, key=lambda peer: peer.node_id)
    )
