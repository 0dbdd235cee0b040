"""How far a transfer is from the wire's figures: headers, acknowledgements, the window, slow start. Records only.

The factors are those of SimGrid's models (its documentation, "Models"; Velho and Legrand 2009), one FlowModel each:
LV08 stretches latencies by 13.01 to stand for TCP's slow start, uses 97 % of a bandwidth (headers), and lets
acknowledgements take 5 % of the way back. CM02 has no factors. Both bound a flow by a TCP window of 4194304 bytes per
round trip.
"""

from math import inf
from typing import Final

import msgspec

TCP_WINDOW_BYTES: Final = 4_194_304
"""Largest TCP window in SimGrid's models, and Linux's default upper bound of one (net.ipv4.tcp_wmem)."""


class FlowModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a flow is from the wire's figures."""

    name: str = "ideal"
    latency_factor: float = 1.0
    """On latencies, for a whole transfer."""
    bandwidth_factor: float = 1.0
    """Share of a bandwidth that payload can use."""
    cross_traffic: float = 0.0
    """What a flow takes of the way back, as a share of its rate: acknowledgements."""
    window_bytes: int | None = None
    """Most bytes under way in a round trip of twice the latency; None for unlimited."""

    def bound_bytes_s(self, latency_s: float) -> float:
        """Return the highest rate of one flow over a latency (one way, in seconds), in bytes per second."""
        if self.window_bytes is None or latency_s <= 0.0:
            return inf
        return self.window_bytes / (2.0 * latency_s)


IDEAL: Final = FlowModel()
CM02: Final = FlowModel(name="cm02", window_bytes=TCP_WINDOW_BYTES)
LV08: Final = FlowModel(
    name="lv08", latency_factor=13.01, bandwidth_factor=0.97, cross_traffic=0.05, window_bytes=TCP_WINDOW_BYTES
)
POOLED: Final = FlowModel(name="pooled", bandwidth_factor=0.97, cross_traffic=0.05, window_bytes=TCP_WINDOW_BYTES)
"""LV08 without its factor on latencies, which stands for the slow start of a fresh connection: the daemon keeps its
connections open, so that their windows have grown."""
MODELS: Final = {model.name: model for model in (IDEAL, CM02, LV08, POOLED)}
"""By name, as in a scenario."""
