"""Transfers over shared links whose times are known: by hand, or from SimGrid run beside."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from typing import Final

import msgspec

from simulator.engine import Engine
from simulator.flowmodels import CM02, LV08, FlowModel
from simulator.flows import Flows, Resource


class WireCase(msgspec.Struct, frozen=True):
    """A link of a case, shared by both directions."""

    bytes_per_s: float
    latency_s: float = 0.0


class FlowCase(msgspec.Struct, frozen=True):
    """A transfer of a case."""

    size_bytes: float
    links: tuple[str, ...]
    start_s: float = 0.0


def transfer_times_s(links: Mapping[str, WireCase], flows: Sequence[FlowCase], model: FlowModel) -> list[float]:
    """Return when each transfer is complete at its target.

    Parameters
    ----------
    links : mapping of str to WireCase
        By name.
    flows : sequence of FlowCase
        What is sent, and over which links.
    model : FlowModel
        Factors.

    Returns
    -------
    list of float
        Times in seconds from 0, in the order of `flows`.

    Examples
    --------
    >>> wire = {"wire": WireCase(125_000.0, 0.01)}
    >>> round(transfer_times_s(wire, [FlowCase(100_000, ("wire",))], LV08)[0], 6)
    0.996079
    """
    engine = Engine()
    network = Flows(engine)
    wires = {name: Resource(link.bytes_per_s * model.bandwidth_factor) for name, link in links.items()}
    done = [inf] * len(flows)

    def finish(number: int, latency_s: float) -> None:
        done[number] = engine.now_s + latency_s

    for number, flow in enumerate(flows):
        latency_s = sum(links[name].latency_s for name in flow.links)
        uses = tuple([(wires[name], 1.0 + model.cross_traffic) for name in flow.links])
        start = partial(network.start, flow.size_bytes, uses, bound_bytes_s=model.bound_bytes_s(latency_s))
        engine.at(flow.start_s, start, finish, number, latency_s * model.latency_factor)
    engine.run()
    return done


class FlowCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A case whose result is known."""

    name: str
    links: dict[str, WireCase]
    flows: tuple[FlowCase, ...]
    model: FlowModel
    expected_s: tuple[float, ...]
    source: str

    def times_s(self) -> list[float]:
        """Run it; returns the times in seconds in the order of `expected_s`."""
        return transfer_times_s(self.links, self.flows, self.model)


_LV08_ALONE = FlowModel(name="lv08 without acknowledgements", latency_factor=13.01, bandwidth_factor=0.97)
_MEGABIT = {"wire": WireCase(125_000.0, 0.01)}
_MEGABYTE = {"wire": WireCase(1e6, 0.01)}
_TWO = (FlowCase(1e6, ("wire",)), FlowCase(2e6, ("wire",)))
_SIMGRID = "SimGrid 3.32, run beside; its documentation, Models, has the formula"

FLOW_CHECKS: Final = (
    FlowCheck(
        name="flow: LV08, 100 kB over 1 Mb/s, 10 ms",
        links=_MEGABIT,
        flows=(FlowCase(100_000, ("wire",)),),
        model=LV08,
        expected_s=(0.996079,),
        source=_SIMGRID,
    ),
    FlowCheck(
        name="flow: the same without acknowledgements",
        links=_MEGABIT,
        flows=(FlowCase(100_000, ("wire",)),),
        model=_LV08_ALONE,
        expected_s=(0.954842,),
        source=_SIMGRID,
    ),
    FlowCheck(
        name="flow: CM02, 1 MB and 2 MB share 1 MB/s",
        links=_MEGABYTE,
        flows=_TWO,
        model=CM02,
        expected_s=(2.010, 3.010),
        source=_SIMGRID,
    ),
    FlowCheck(
        name="flow: LV08 without acknowledgements, 1 MB and 2 MB share 1 MB/s",
        links=_MEGABYTE,
        flows=_TWO,
        model=_LV08_ALONE,
        # .1301 + 2 / .97 and .1301 + 3 / .97, to more digits than SimGrid prints
        expected_s=(0.1301 + 2 / 0.97, 0.1301 + 3 / 0.97),
        source=_SIMGRID,
    ),
    FlowCheck(
        name="flow: max-min, three flows over 10 and 4 MB/s",
        links={"left": WireCase(10e6), "right": WireCase(4e6)},
        flows=(
            FlowCase(80e6, ("left",)),
            FlowCase(20e6, ("left", "right")),
            FlowCase(20e6, ("right",)),
        ),
        model=CM02,
        expected_s=(10.0, 10.0, 10.0),
        source="by hand: 8, 2 and 2 MB/s; SimGrid 3.32 agrees",
    ),
    FlowCheck(
        name="flow: TCP window of 4194304 B caps 10 GiB over 10 GB/s, 1 ms",
        links={"wire": WireCase(10e9, 0.001)},
        flows=(FlowCase(10 * 2**30, ("wire",)),),
        model=CM02,
        expected_s=(5.12 + 0.001,),
        source="by hand: 4194304 B / 2 ms, and the latency; SimGrid's documentation, Models",
    ),
)
"""Flow-level cases; each must come out within a microsecond."""
