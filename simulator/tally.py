"""What a run of a plain queue came to; see simulator.stations."""

import msgspec


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of a station came to; times in seconds."""

    jobs: int
    """Counted: those that arrived after the warm-up."""
    waiting_s: float
    """Mean time before service."""
    sojourn_s: float
    sojourn_s_p99: float
    jobs_present: float
    """Mean number in the system, looked at at equal steps after the warm-up."""
    rate_hz: float
    """Arrivals per second in that time."""
