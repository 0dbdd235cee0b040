"""A whole grid in one process: real nodes over a network in memory, with emulated executors, on a virtual clock.

For fault tests and experiments. Identities, certificates, signed state, stores and front doors are real; links,
devices and time are not. The virtual clock jumps whenever nothing is left to do, but never while a thread works, so a
minute of a grid's life takes about a second and file systems cannot be outrun.

Examples
--------
::

    async def main():
        async with open_sandbox(folder, nodes=3) as grid:
            await grid.publish("street", mean_s=0.05)
            ...

    trio.run(main, clock=trio.testing.MockClock())
"""

import functools
import random
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio
import trio.testing

from gridnode.client import AsyncGrid
from gridnode.config import Config, load_config
from gridnode.credentials import Credentials, GridFile
from gridnode.gridsetup import REPOSITORY_NAME, create_grid, write_grid_file
from gridnode.node import Node
from gridnode.statedir import StateDirectory
from models.emulated import DeviceProfile, EmulatedExecutor, EmulatedModel
from models.manifest import Manifest, TensorSpec, canonical_bytes, describe_shard, model_digest
from models.owner import OwnerRepository
from models.trust import TrustClient
from transport.certificates import SERVE, SUBMIT
from transport.files import write_atomically
from transport.identity import NodeKey
from transport.issuing import make_csr, read_csr
from transport.memory import Link, MemoryNetwork

START_S: Final = 1_800_000_000.0
"""System time at the virtual clock's zero, in seconds since 1970: certificates need one."""
THREAD_PAUSE_S: Final = 0.0005
"""Real time between two looks whether a thread has finished, in seconds."""
THREAD_LOOKS: Final = 10
"""Looks after which time goes on although a thread is out: it waits for a peer, and that takes virtual time."""
THREAD_STEP_S: Final = 0.005
"""Longest jump while a thread is out."""


class SandboxDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One emulated device."""

    speed: float = 1.0
    """Divides the service times of models."""
    slots: int = 1
    cv: float = 0.0
    """Coefficient of variation of service times."""


class SandboxNode:
    """One node of the sandbox; may be stopped, killed and started again."""

    def __init__(self, name: str, state: StateDirectory, device: SandboxDevice) -> None:
        self.name = name
        self.state = state
        self.device = device
        self.node: Node | None = None
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    @property
    def socket(self) -> Path:
        """Socket of the front door."""
        return self.state.path / "gridnode.sock"

    @property
    def running(self) -> Node:
        """The node's parts, while it runs."""
        assert self.node is not None
        return self.node


class Sandbox:
    """The grid; see open_sandbox."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: str,
        nursery: trio.Nursery,
        network: MemoryNetwork,
        clock: trio.testing.MockClock,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._seed = seed
        self._nursery = nursery
        self.network = network
        self.owner = folder / "owner"
        self.nodes: dict[str, SandboxNode] = {}
        self._means_s: dict[str, float] = {}
        self._lives = 0
        self._slept_s = 0.0

    def now_s(self) -> float:
        """Return the virtual system time, in seconds since 1970; from any thread."""
        return START_S + self._slept_s + self._clock.current_time()

    def sleep_all(self, seconds: float) -> None:
        """Let all machines sleep: their system clocks leap ahead, their monotonic clocks and their peers' do not.

        So months of a grid's calendar pass in minutes of its life.
        """
        self._slept_s += seconds

    def create(self, name: str, device: SandboxDevice) -> SandboxNode:
        """Make a node's state directory: the first makes the grid, others are admitted by it. Blocks."""
        state = StateDirectory(self._folder / name)
        if not self.nodes:
            create_grid(state, self.owner, "sandbox", now_s=self.now_s())
        else:
            self._admit(state)
        created = self.nodes[name] = SandboxNode(name, state, device)
        return created

    def publish(self, name: str, *, mean_s: float, rungs: tuple[str, ...] = ()) -> str:
        """Publish a model whose service takes ``mean_s`` on a device of speed 1; returns its digest. Blocks."""
        graph = f"emulated {name}".encode()
        shard = describe_shard("graph", [graph])
        manifest = Manifest(
            name=name,
            inputs=(TensorSpec(name="x", dtype="uint8", shape=(-1,)),),
            outputs=(TensorSpec(name="y", dtype="uint8", shape=(-1,)),),
            peak_memory_bytes=1 << 20,
            graph="graph",
            rungs=rungs,
            shards=(shard,),
        )
        self._means_s[name] = mean_s
        owner = OwnerRepository(self.owner, self.owner / REPOSITORY_NAME)
        owner.publish_model(canonical_bytes(manifest), self.now_s())
        first = next(iter(self.nodes.values())).state
        first.incoming.mkdir(exist_ok=True)
        (first.incoming / shard.sha256).write_bytes(graph)
        write_atomically(first.inbox, owner.publication())
        return model_digest(manifest)

    def remove(self, name: str) -> None:
        """Withdraw a model from the grid. Blocks."""
        owner = OwnerRepository(self.owner, self.owner / REPOSITORY_NAME)
        owner.remove_model(name, self.now_s())
        write_atomically(next(iter(self.nodes.values())).state.inbox, owner.publication())

    async def start(self, name: str, flags: Mapping[str, object] | None = None) -> SandboxNode:
        """Start a node; returns when programs may connect."""
        wanted = self.nodes[name]
        wanted.scope = trio.CancelScope()
        wanted.ended = trio.Event()
        await self._nursery.start(self._run, wanted, flags or {})
        return wanted

    def alive(self) -> list[Node]:
        """Return the nodes that run."""
        return [node.running for node in self.nodes.values() if node.node is not None and not node.ended.is_set()]

    def program(self, *names: str) -> AsyncGrid:
        """Return a client of some nodes, the preferred first; enter it before use."""
        return AsyncGrid([str(self.nodes[name].socket) for name in names])

    async def kill(self, name: str) -> None:
        """End a node as kill -9 would: nothing is said, connections break."""
        wanted = self.nodes[name]
        self.network.kill(wanted.running.credentials.node)
        wanted.scope.cancel()
        await wanted.ended.wait()

    async def stop(self, name: str) -> None:
        """Drain and end a node."""
        wanted = self.nodes[name]
        wanted.running.stop()
        await wanted.ended.wait()

    async def wait_until(self, condition: Callable[[], bool], *, limit_s: float) -> None:
        """Wait in virtual time until a condition holds; raises trio.TooSlowError."""
        with trio.fail_after(limit_s):
            while not condition():  # noqa: ASYNC110  # a condition of many parts has no event of its own
                await trio.sleep(0.05)

    async def _run(
        self, wanted: SandboxNode, flags: Mapping[str, object], *, task_status: trio.TaskStatus[None]
    ) -> None:
        state = wanted.state
        try:
            with wanted.scope:
                state.open()
                credentials = Credentials(state, clock=self.now_s)
                self._lives += 1
                rng_seed = f"{self._seed}/{wanted.name}/{self._lives}"
                planes = self.network.join(credentials.node)
                wanted.node = Node(
                    config=self._config(wanted, flags),
                    state=state,
                    credentials=credentials,
                    epoch=state.next_epoch(),
                    control=planes.control,
                    data=planes.data,
                    executor=EmulatedExecutor(self._profile(wanted.device), random.Random(f"{rng_seed}/executor")),
                    seed=rng_seed,
                    socket=wanted.socket,
                    name=wanted.name,
                    setup="sandbox",
                    threads=1,
                    probe=None,
                )
                await wanted.node.serve(task_status=task_status)
        finally:
            state.close()
            wanted.ended.set()

    def _config(self, wanted: SandboxNode, flags: Mapping[str, object]) -> Config:
        base: dict[str, object] = {
            "preset": "loopback",
            "metrics": {"enabled": False},
            "scheduler": {"queue": {"slots": wanted.device.slots}},
        }
        return load_config(None, environment={}, flags=base | dict(flags))

    def _profile(self, device: SandboxDevice) -> DeviceProfile:
        models = {
            name: EmulatedModel(mean_s=mean_s / device.speed, cv=device.cv, memory_bytes=1 << 20)
            for name, mean_s in self._means_s.items()
        }
        default = EmulatedModel(mean_s=0.05 / device.speed, cv=device.cv)
        return DeviceProfile(models=models, default=default, slots=device.slots)

    def _admit(self, state: StateDirectory) -> None:
        """Write what a join would: the door needs real sockets, which a virtual clock cannot wait for."""
        first = next(iter(self.nodes.values())).state
        issuer = Credentials(first, clock=self.now_s).issuer
        assert issuer is not None
        state.create()
        key = NodeKey.create(state.node_key)
        chain = issuer.issue(read_csr(make_csr(key)), (SERVE, SUBMIT), now_s=self.now_s())
        shutil.copy(first.authority, state.authority)
        write_atomically(state.certificate, chain)
        grid = Credentials(first, clock=self.now_s).grid
        TrustClient(state.trust, grid.grid_id).bootstrap((self.owner / "root.json").read_bytes())
        running = next(iter(self.nodes.values())).node
        bootstrap: tuple[str, ...] = ()
        if running is not None:
            host, port = running.control_address
            bootstrap = (f"{running.credentials.node}@{host}:{port}",)
        write_grid_file(state, GridFile(name=grid.name, grid_id=grid.grid_id, bootstrap=bootstrap))


@asynccontextmanager
async def open_sandbox(
    folder: Path,
    *,
    devices: Mapping[str, SandboxDevice],
    models_s: Mapping[str, float],
    seed: str = "7",
    link: Link | None = None,
    flags: Mapping[str, object] | None = None,
) -> AsyncIterator[Sandbox]:
    """Make a grid, publish models, start all nodes, and wait until each has every model ready.

    Parameters
    ----------
    folder : Path
        For state directories; empty.
    devices : mapping of str to SandboxDevice
        Nodes by name; the first makes the grid.
    models_s : mapping of str to float
        Mean service time of each model on a device of speed 1, in seconds.
    seed : str
        Seeds all draws.
    link : Link, optional
        Every link of the network.
    flags : mapping, optional
        Configuration of all nodes, nested as in the file.
    """
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock), "run the sandbox with trio.run(main, clock=MockClock())"
    async with trio.open_nursery() as around:
        around.start_soon(_jump, clock)
        network = MemoryNetwork(random.Random(f"{seed}/network"), link)
        await around.start(network.serve)
        async with trio.open_nursery() as nursery:
            grid = Sandbox(folder, seed=seed, nursery=nursery, network=network, clock=clock)
            for index, (name, device) in enumerate(devices.items()):
                await trio.to_thread.run_sync(grid.create, name, device)
                if index == 0:
                    for model, mean_s in models_s.items():
                        await trio.to_thread.run_sync(functools.partial(grid.publish, model, mean_s=mean_s))
                await grid.start(name, flags)
            await grid.wait_until(functools.partial(_all_ready, grid, len(models_s)), limit_s=60.0)
            yield grid
            nursery.cancel_scope.cancel()
        around.cancel_scope.cancel()


def _all_ready(grid: Sandbox, models: int) -> bool:
    """Say whether every node has all models and knows all other nodes with their tables."""
    for wanted in grid.nodes.values():
        node = wanted.running
        if sum(entry.state == "ready" for entry in node.house.entries()) < models:
            return False
        if sum(peer.is_open for peer in node.core.peers()) < len(grid.nodes) - 1:
            return False
    return True


async def _jump(clock: trio.testing.MockClock) -> None:
    """Move the virtual clock to the next deadline whenever all tasks wait and no thread works."""
    pause = trio.CapacityLimiter(1)
    threads = trio.to_thread.current_default_thread_limiter()
    looks = 0
    while True:
        await trio.testing.wait_all_tasks_blocked()
        if threads.borrowed_tokens and looks < THREAD_LOOKS:
            looks += 1
            await trio.to_thread.run_sync(_real_pause, limiter=pause)
            continue
        looks = 0
        next_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if 0 < next_s < float("inf"):
            clock.jump(min(next_s, THREAD_STEP_S) if threads.borrowed_tokens else next_s)
        else:
            await trio.to_thread.run_sync(_real_pause, limiter=pause)


def _real_pause() -> None:
    import threading

    threading.Event().wait(THREAD_PAUSE_S)
