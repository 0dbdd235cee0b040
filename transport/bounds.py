"""What bounds a data connection's frames, and what counts them.

Owns the limits of one frame, the bytes that all connections of a node may allocate at once, and their counters. Knows
nothing of connections.
"""

import msgspec
import trio

from transport import wire


class FrameLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of a frame."""

    payload_max_bytes: int = wire.PAYLOAD_MAX_BYTES
    """Largest payload taken or sent."""
    stall_s: float = 10.0
    """Time for a frame of no size, in seconds: several retransmissions on a bad radio link. A frame that is received is
    given up by the second look (`sweep_s`) that finds it late."""
    slowest_rate: float = 64 * 1024
    """Bytes per second below which a peer counts as stalled: a picture of 150 kB then takes over 2 s, useless."""
    receive_budget_bytes: int = 256 * 1024 * 1024
    """Payloads being received at once, over all connections of the node; more wait in the kernel's buffers."""

    def time_s(self, size_bytes: int) -> float:
        """Return how long a frame of this size may take, in seconds."""
        return self.stall_s + size_bytes / self.slowest_rate


class ByteBudget:
    """Bytes that may be allocated at once; who finds none waits.

    Parameters
    ----------
    total_bytes : int
        The bound; a single request above it is served alone.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._used_bytes = 0
        self._lot = trio.lowlevel.ParkingLot()

    @property
    def used_bytes(self) -> int:
        """Bytes taken now."""
        return self._used_bytes

    def take_nowait(self, count: int) -> bool:
        """Take bytes if so many are free."""
        if self._used_bytes and self._used_bytes + count > self._total_bytes:
            return False
        self._used_bytes += count
        return True

    async def take(self, count: int) -> None:
        """Wait until so many bytes are free, and take them."""
        while not self.take_nowait(count):
            await self._lot.park()

    def give_back(self, count: int) -> None:
        """Free bytes."""
        self._used_bytes -= count
        if self._lot:
            self._lot.unpark_all()


class Traffic:
    """Counters of all connections of a node."""

    def __init__(self) -> None:
        self.frames_sent = 0
        self.frames_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
