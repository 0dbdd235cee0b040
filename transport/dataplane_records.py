"""Bounds and counters of the data plane.

Owns the configuration that transport.dataplane takes and the figures that it gives. No behaviour.
"""

import msgspec

from transport.bounds import FrameLimits
from transport.tls import HANDSHAKE_TIMEOUT_S


class DataPlaneConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the data plane."""

    host: str = "0.0.0.0"
    """Address to listen on."""
    port: int = 0
    """Port to listen on; 0 lets the system choose."""
    dial_timeout_s: float = 3.0
    """For making a TCP connection, in seconds; two lost SYNs are sent again after 1 and 3 s."""
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S
    """From TCP connection to Hello, in seconds."""
    outbound_per_peer: int = 32
    """Connections to one peer, hence exchanges with it at once; each costs both sides about 50 kB."""
    outbound_max: int = 256
    """Connections to all peers; 32 active peers with 8 each."""
    inbound_per_peer: int = 32
    """Connections from one peer."""
    inbound_max: int = 512
    """Connections from all peers; with outbound_max well under the unit's 4096 open files."""
    idle_s: float = 60.0
    """An idle outbound connection is closed after this time, in seconds."""
    inbound_idle_s: float = 90.0
    """An idle inbound one; more than idle_s, see above."""
    pending_per_host: int = 8
    """Connections from one IP address that have not proved who they are."""
    pending_max: int = 64
    """Such connections in all."""
    sweep_s: float = 5.0
    """How often connections are looked at whether they were idle for too long or a frame on them is late, in seconds.
    That a peer closed one is known at once."""
    frames: FrameLimits = FrameLimits()
    """Bounds of a frame."""

    def __post_init__(self) -> None:
        if self.idle_s >= self.inbound_idle_s:
            raise ValueError(f"idle_s ({self.idle_s}) must be below inbound_idle_s ({self.inbound_idle_s})")


class DataPlaneStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start, and gauges."""

    outbound: int
    """Outbound connections open or being made."""
    outbound_idle: int
    inbound: int
    """Certified inbound connections."""
    pending: int
    """Inbound connections that have not proved who they are."""
    receiving_bytes: int
    """Payload buffers being filled."""
    dials: int
    dials_failed: int
    reused: int
    """Leases served by a pooled connection."""
    stale: int
    """Pooled connections that were found closed when they were needed."""
    admitted: int
    """Inbound connections that proved who they are."""
    refused_crowded: int
    """Inbound connections closed because a bound was reached."""
    refused_handshakes: int
    """Inbound connections that failed to prove who they are."""
    faults: int
    """Inbound connections closed for nonsense or a failed exchange."""
    exchanges_served: int
    frames_sent: int
    frames_received: int
    bytes_sent: int
    bytes_received: int
