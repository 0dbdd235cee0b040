"""A network in memory: both planes with delay, loss, bandwidth, partition, crash and silence.

For tests, and for a whole daemon on a virtual clock. Every message is encoded and decoded as on a real wire, so
sizes and limits are true. Below the planes lies one heap of deliveries, carried out one at a time in the order
(due time, sequence) by `MemoryNetwork.serve`; under trio's MockClock a run repeats as exactly as trio's own choice
among tasks that wake at one instant allows, or wholly when the network is given turns (gridnode.turns). Each
direction of a link has draws of its own.

What it does not model: packets (a link delays and orders whole messages, as TCP shows them), bandwidth shared
between links, certificates, and libp2p's mesh (gossip floods over all neighbours, duplicates suppressed). A paused
node's own tasks go on, since trio cannot stop them; but nothing they send leaves and nothing arrives until it
resumes.

Examples
--------
Two nodes, one gossiping to the other::

    network = MemoryNetwork(random.Random(7), Link(delay_s=0.005))
    a, b = network.join("a"), network.join("b")
    async with trio.open_nursery() as nursery:
        await nursery.start(network.serve)
        host, port = await nursery.start(b.control.serve)
        await nursery.start(a.control.serve)
        await a.control.connect(Dial(node="b", host=host, port=port))
        await a.control.publish(STATE_TOPIC, record)
        message = await b.control.messages().receive()
"""

import random
from collections.abc import Callable, Iterable

import msgspec
import trio

from transport.memory_control import MemoryControl
from transport.memory_data import MemoryData
from transport.memory_link import Link, Turn, Wire

__all__ = ["Link", "MemoryNetwork", "MemoryNode"]


class MemoryNode(msgspec.Struct, frozen=True, kw_only=True):
    """The two planes of one node."""

    control: MemoryControl
    data: MemoryData


def _raise(error: Exception) -> None:
    raise error


class MemoryNetwork:
    """All nodes and what lies between them.

    Parameters
    ----------
    rng : random.Random
        Source of jitter and loss.
    link : Link
        Every direction that set_link does not change.
    turn : callable, optional
        Awaited before each delivery: with it a run repeats exactly, whatever trio does at one instant.
    """

    def __init__(self, rng: random.Random, link: Link | None = None, *, turn: Turn | None = None) -> None:
        self._wire = Wire(rng, link or Link(), turn)
        self._nodes: dict[str, MemoryNode] = {}

    def join(self, node: str, *, on_bug: Callable[[Exception], None] = _raise) -> MemoryNode:
        """Add a node, or a killed one again, as its next process.

        Parameters
        ----------
        node : str
            PeerID; any text.
        on_bug : callable
            Told of a validator's exception; by default it ends the network.

        Returns
        -------
        MemoryNode
            Planes that work while their serve() runs.
        """
        self.kill(node)
        self._wire.restore(node)
        planes = MemoryNode(control=MemoryControl(node, self._wire, on_bug), data=MemoryData(node, self._wire))
        self._nodes[node] = planes
        return planes

    def set_link(self, a: str, b: str, link: Link) -> None:
        """Change the link between two nodes, both directions."""
        self._wire.set_link(a, b, link)
        self._wire.set_link(b, a, link)

    def partition(self, *groups: Iterable[str]) -> None:
        """Let nothing pass between nodes of different groups.

        Nothing breaks either: what is sent meanwhile arrives after heal, as TCP's repetitions would. A node in no
        group reaches everyone.
        """
        self._wire.partition(groups)

    def heal(self) -> None:
        """End the partition."""
        self._wire.partition(())

    def pause(self, node: str) -> None:
        """Make a node silent: nothing answers and nothing breaks, as for a stopped process or a pulled cable."""
        self._wire.pause(node)

    def resume(self, node: str) -> None:
        """Let a paused node go on."""
        self._wire.resume(node)

    def kill(self, node: str) -> None:
        """Break all connections of a node and refuse new ones, as for a killed process; join takes it up again.

        The caller cancels the node's own tasks.
        """
        planes = self._nodes.pop(node, None)
        if planes is not None:
            planes.control.break_all()
            planes.data.break_all()
            self._wire.remove(node)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled."""
        await self._wire.serve(task_status=task_status)
