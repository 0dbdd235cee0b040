"""The demo's grid: made by the same steps that an operator takes, in a folder that is thrown away.

grid create, run, model publish, invite, join, run. Nothing is shortened but the typing.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from gridnode.client import AsyncGrid
from gridnode.control import QueryKind
from gridnode.demo.children import Daemon
from gridnode.errors import DaemonUnreachableError, GridError, ProtocolError
from gridnode.gridsetup import create_grid
from gridnode.joining import join_grid
from gridnode.publish import publish
from gridnode.statedir import StateDirectory
from gridnode.status import ModelStatus, NodeStatus
from gridnode.zoo import build_zoo, zoo_names
from transport.identity import NodeKey

MODEL: Final = "street"
READY_S: Final = 90.0
"""Time for the whole grid to stand; on two busy cores it takes about ten seconds."""
READY: Final = "is ready"
LOOK_S: Final = 0.1
DRAIN_S: Final = 2.0
SOCKET_PATH_MAX: Final = 100
"""Longest path of a Unix socket: the kernel takes 107 bytes (unix(7))."""


class StageError(GridError):
    """The demo's grid does not stand."""


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the demo."""

    name: str
    cpu_share: float = 1.0
    settings: tuple[str, ...] = ()
    """More for ``--set``."""


NODES: Final = (
    NodePlan(name="slow", cpu_share=0.15),
    NodePlan(name="middle", cpu_share=0.4),
    NodePlan(name="fast", cpu_share=1.0),
)
"""The entry node first, the node that makes the grid last."""
LATECOMER: Final = NodePlan(name="late", cpu_share=1.0)


class DemoNode:
    """One node: its daemon, its state, and a client that looks at it alone."""

    def __init__(self, plan: NodePlan, folder: Path, *, entries: Sequence[str], model: str = MODEL) -> None:
        self.plan = plan
        self._model = model
        self.state = StateDirectory(folder / plan.name)
        self.socket = socket_path(folder, plan.name)
        self.peer_id = ""
        settings = [
            f"runtime.cpu_share={plan.cpu_share}",
            "scheduler.queue.slots=1",  # each stands for a small device, and all share this machine's cores
            "runtime.threads=1",
            f"client.entries={json.dumps(list(entries))}",
            f"node.drain_s={DRAIN_S}",
            *plan.settings,
        ]
        self.daemon = Daemon(
            plan.name,
            state_dir=self.state.path,
            socket=self.socket,
            log=folder / f"{plan.name}.log",
            settings=settings,
        )

    @property
    def name(self) -> str:
        """What people call it."""
        return self.plan.name

    def start(self) -> None:
        """Start the daemon."""
        self.peer_id = NodeKey.load(self.state.node_key).node
        self.daemon.start()

    async def ask(self, what: QueryKind, argument: str = "") -> dict[str, Any]:
        """Ask the daemon; raises GridError where it does not answer."""
        async with AsyncGrid([self.socket], patience_s=0.3) as grid:
            return await grid.ask(what, argument)

    async def status(self) -> NodeStatus | None:
        """Return how the node is; None where it does not answer."""
        try:
            return msgspec.convert(await self.ask("status"), NodeStatus)
        except (DaemonUnreachableError, ProtocolError):
            return None

    async def models(self) -> list[ModelStatus]:
        """Return the models as they stand there; none where it does not answer."""
        try:
            return msgspec.convert((await self.ask("models"))["items"], list[ModelStatus])
        except (DaemonUnreachableError, ProtocolError):
            return []

    async def is_able(self) -> bool:
        """Whether it serves and every model of the stage is ready."""
        return await self.progress() == READY

    async def progress(self, *, peers: int = 0) -> str:
        """Say in a few words how far the node has got; raises StageError where it will never be ready.

        Parameters
        ----------
        peers : int
            Other nodes that it must know to be alive.
        """
        status = await self.status()
        if status is None:
            return "starts"
        if status.peers_alive < peers:
            return "meets the others"
        shown = {model.name: model for model in await self.models()}
        wanted = zoo_names(self._model)
        models = [shown[name] for name in wanted if name in shown]
        for model in models:
            if model.state == "refused":
                raise StageError(f"node {self.name} refused model {model.name}: {model.problem}")
        if len(models) < len(wanted) or any(model.state in ("missing", "fetching") for model in models):
            return "fetches the model"
        return READY if all(model.state == "ready" for model in models) else "checks and measures the model"


def socket_path(folder: Path, name: str) -> Path:
    """Return where a node's socket lies; raises StageError where the kernel would not take the path."""
    path = folder / f"{name}.sock"
    if len(str(path)) > SOCKET_PATH_MAX:
        raise StageError(f"{path} is too long for a socket; set TMPDIR to a shorter folder, such as /tmp")
    return path


class Stage:
    """The grid of one demo, or of one calibration.

    Parameters
    ----------
    folder : Path
        Holds everything; thrown away by whoever made it.
    say : callable
        Told each step.
    show : callable
        Told what is waited for, whenever that changes.
    plans : sequence of NodePlan
        The nodes, the one that makes the grid last.
    model : str
        Of the zoo; with its rungs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        say: Callable[[str], None],
        show: Callable[[str], None],
        plans: Sequence[NodePlan] = NODES,
        model: str = MODEL,
    ) -> None:
        self._folder = folder
        self._model = model
        self._say = say
        self._show = show
        self._progress: dict[str, str] = {}
        sockets = [str(socket_path(folder, plan.name)) for plan in plans]
        self._sockets = sockets
        self.nodes = [DemoNode(plan, folder, entries=sockets, model=model) for plan in plans]
        self.founder = self.nodes[-1]
        """The node that makes the grid."""

    @property
    def sockets(self) -> list[str]:
        """Sockets of all nodes, the entry node's first."""
        return [str(node.socket) for node in self.nodes]

    @property
    def entry(self) -> DemoNode:
        """The node that the frames enter."""
        return self.nodes[0]

    def node(self, name: str) -> DemoNode:
        """Return a node by its name."""
        return next(node for node in self.nodes if node.name == name)

    # ------------------------------------------------------------ building

    async def build(self) -> None:
        """Make the grid and wait until every node can run every model; raises GridError."""
        owner = self._folder / "owner"
        self._say("grid create demo")
        self._show("the founder of the grid starts")
        await trio.to_thread.run_sync(lambda: create_grid(self.founder.state, owner, "demo", now_s=_wall_s()))
        self.founder.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish, owner)
            await self._wait("the founder", self._founder_answers)
            for node in self.nodes:
                if node is not self.founder:
                    nursery.start_soon(self._join, node)
        await self._wait("all nodes", self._stands)

    async def _publish(self, owner: Path) -> None:
        self._say(f"model publish --zoo {self._model}")
        built = await build_zoo(self._model)
        await trio.to_thread.run_sync(lambda: publish(self.founder.state, owner, built, clock=_wall_s))
        await self._wait("the founder", self._founder_answers)
        await self.founder.ask("reload_trust")

    async def _join(self, node: DemoNode) -> None:
        """Invite a node, let it join and run it."""
        self._say(f"invite, join and run {node.name}")
        answer = await self.founder.ask("invite", json.dumps({"roles": ["serve", "submit"], "life_s": 600}))
        await join_grid(node.state, answer["token"], name=node.name, clock=_wall_s)
        node.start()

    async def _founder_answers(self) -> bool:
        return await self.founder.status() is not None

    async def _stands(self) -> bool:
        for node in self.nodes:
            words = await node.progress(peers=len(self.nodes) - 1)
            if words == READY and self._progress.get(node.name) != READY:
                self._say(f"{node.name} {READY}: golden outputs right, service time measured")
            self._progress[node.name] = words
        self._show("; ".join(f"{name} {words}" for name, words in self._progress.items() if words != READY))
        return all(words == READY for words in self._progress.values())

    async def _wait(self, what: str, is_done: Callable[[], Any]) -> None:
        """Look until it is so; raises DaemonError where a daemon ended, StageError when the time is over."""
        with trio.move_on_after(READY_S):
            while not await is_done():
                for node in self.nodes:
                    node.daemon.check()
                await trio.sleep(LOOK_S)
            return
        raise StageError(f"{what} did not get ready within {READY_S:.0f} s; see the logs in {self._folder} (--keep)")

    # ------------------------------------------------------------ changes

    async def add_latecomer(self) -> DemoNode:
        """Add a fourth node as an operator would."""
        node = DemoNode(LATECOMER, self._folder, entries=self._sockets, model=self._model)
        self.nodes.append(node)
        await self._join(node)
        return node

    async def stop(self) -> None:
        """Stop all daemons; none is left, whatever happens."""
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    for node in self.nodes:
                        nursery.start_soon(node.daemon.stop)
        finally:
            for node in self.nodes:
                node.daemon.sweep()


def _wall_s() -> float:
    return time.time()
