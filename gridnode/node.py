"""One node: in which order its parts live and stop, and what others may ask of the whole. gridnode.parts makes them.

Takes both planes, the executor and the state directory as they are, so the same node runs in a daemon (real sockets,
real workers) and in tests (transport.memory, emulated executor, virtual clock).

Lifetimes, outermost first: *life* (executor, planes, membership, models), *jobs* (executions and conversations about
accepted work), *intake* (programs). A stop goes from the inside out: intake takes no more work, accepted jobs get
drain_s to finish or are given back, the node says goodbye to the mesh, then the machine is let go.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from gridnode.addresses import own_addresses
from gridnode.config import PROBE_INTERVAL_S, Config
from gridnode.credentials import Credentials
from gridnode.exchanges import Exchanges
from gridnode.frontdoor import FrontDoor
from gridnode.insight import Insight
from gridnode.logs import EventLog
from gridnode.modelmemory import Loan, ModelMemory
from gridnode.parts import Parts
from gridnode.probe import MachineProbe, MachineSample
from gridnode.statedir import StateDirectory
from models.executor import Executor
from models.segments import Segment
from scheduler.events import DrainRequested, LoadSampled
from transport.base import ControlPlane, DataPlane, Neighbour
from transport.beats import next_beat_s
from transport.cards import Address
from transport.wire import DataMessage, JobSend, LaneRun

if TYPE_CHECKING:
    from gridnode.http.server import HttpServer

log = EventLog("node")

FLUSH_S: Final = 2.0
"""After a drain, time for the last answers to leave."""
FAREWELL_S: Final = 1.0
"""Time for the goodbye to reach the neighbours."""


class Node:
    """One member of the grid.

    Parameters
    ----------
    config : Config
        What the operator wants.
    state : StateDirectory
        Opened.
    credentials : Credentials
        Who this node is.
    epoch : int
        Boot counter of this life.
    control, data : ControlPlane, DataPlane
        The network.
    executor : Executor
        Runs models.
    seed : str
        Seeds all of the node's draws.
    socket : Path
        Of the front door.
    probe : MachineProbe or None
        Reads the machine; None on a virtual clock.
    """

    def __init__(
        self,
        *,
        config: Config,
        state: StateDirectory,
        credentials: Credentials,
        epoch: int,
        control: ControlPlane,
        data: DataPlane,
        executor: Executor,
        seed: str,
        socket: Path,
        name: str,
        setup: str,
        threads: int,
        probe: MachineProbe | None,
    ) -> None:
        self.config = config
        self.credentials = credentials
        self.name = name
        self.epoch = epoch
        self.socket = socket
        self.threads = threads
        self._control = control
        self._data = data
        self._executor = executor
        self._probe = probe
        self._stop = trio.Event()
        self._ready = trio.Event()
        self._drained = trio.Event()
        self._fatal: BaseException | None = None
        self._life: trio.Nursery | None = None
        self.sample: MachineSample | None = None
        self.metrics_address = ""
        self.http_address = ""
        self.is_ready = False
        self.control_address = ("", 0)
        self.data_address = ("", 0)
        self.started_s = trio.current_time()
        self.parts = Parts(
            config=config,
            state=state,
            credentials=credentials,
            epoch=epoch,
            control=control,
            data=data,
            executor=executor,
            seed=seed,
            name=name,
            setup=setup,
            supervisor=self,
        )
        self._expose(self.parts)
        self.insight = Insight(self)
        self.door = self._make_door()
        self.http = self._make_http() if config.http.enabled else None

    def _expose(self, parts: Parts) -> None:
        """Let those who ask the node have its parts by their names."""
        self.core = parts.core
        self.driver = parts.driver
        self.jobs = parts.jobs
        self.report = parts.report
        self.membership = parts.membership
        self.signed = parts.signed
        self.house = parts.house
        self.watch = parts.watch
        self.mesh = parts.mesh
        self.admitting = parts.admitting

    def _make_door(self) -> FrontDoor:
        return FrontDoor(
            self.socket,
            config=self.config.client,
            node=self.credentials.node,
            name=self.name,
            grid=self.credentials.grid.name,
            jobs=self.jobs,
            driver=self.driver,
            lanes=self.parts.lanes,
            models=self.house,
            nodes=self.membership,
            answer=self.insight.answer,
            forget_segment=self._forget_segment,
            default_deadline_s=self.config.scheduler.placement.default_deadline_s,
        )

    def _make_http(self) -> "HttpServer":
        # Only who wants it pays for it.
        from gridnode.http.server import HttpServer

        return HttpServer(
            self.config.http,
            node=self.credentials.node,
            jobs=self.jobs,
            driver=self.driver,
            models=self.house,
            nodes=self.membership,
            default_deadline_s=self.config.scheduler.placement.default_deadline_s,
            is_ready=lambda: self.is_ready,
            offered=self.insight.offered,
            forget_segment=self._forget_segment,
        )

    def _forget_segment(self, segment: Segment) -> None:
        """Let go of the memory of a program that has left, here and in the workers."""
        self._executor.forget_segment(segment)
        segment.close()

    async def _lend_memory(self) -> None:
        """Have peers' payloads received where workers read them, while this node lives."""
        memory = ModelMemory(self._forget_segment)

        def make_room(message: DataMessage, size_bytes: int) -> Loan | None:
            match message:
                case JobSend():
                    return memory.take(message.job.models[0], size_bytes)
                case LaneRun():
                    return memory.take(message.model, size_bytes)
                case _:
                    return None

        self._data.make_room = make_room
        try:
            await trio.sleep_forever()
        finally:
            self._data.make_room = lambda _message, _size: None
            memory.close()

    # ------------------------------------------------------------ from outside

    def neighbours(self) -> tuple[Neighbour, ...]:
        """Return the live control connections."""
        return self._control.neighbours()

    def stop(self) -> None:
        """Ask the node to drain and end."""
        self._stop.set()

    async def wait_ready(self) -> None:
        """Wait until programs may connect."""
        await self._ready.wait()

    async def wait_stopping(self) -> None:
        """Wait until the node was asked to stop."""
        await self._stop.wait()

    def fail(self, error: BaseException) -> None:
        """End the node at once with an error; from parts that must not raise where they are."""
        if self._fatal is None:
            self._fatal = error
            log.error("node_failed", error=error)
        if self._life is not None:
            self._life.cancel_scope.cancel()

    def use_renewed(self) -> None:
        """Use a renewed certificate on new connections, and tell the grid."""
        for renewer in self.renewers:
            renewer(self.credentials.chain_pem)
        self._announce()
        if self._life is not None:
            self._life.start_soon(self.membership.publish_card)

    renewers: tuple[Callable[[bytes], None], ...] = ()
    """What else must know of a renewed chain: the two real planes."""

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until stop() and the drain after it; reports started when programs may connect.

        Raises
        ------
        GridError
            A port, the socket or a file of this machine cannot be used.
        """
        async with trio.open_nursery() as life:
            self._life = life
            await life.start(self._executor.serve)
            async with trio.open_nursery() as jobs:
                await self._start_life(life, jobs)
                async with trio.open_nursery() as intake:
                    await intake.start(self.door.serve)
                    if self.http is not None:
                        port = await intake.start(self.http.serve)
                        self.http_address = f"{self.config.http.host}:{port}"
                    self.is_ready = True
                    self._ready.set()
                    task_status.started()
                    log.info("node_started", name=self.name, node=self.credentials.node, epoch=self.epoch)
                    await self._stop.wait()
                    await self._drain()
                    intake.cancel_scope.cancel()
                jobs.cancel_scope.cancel()
            await self._take_leave()
            life.cancel_scope.cancel()
        if self._fatal is not None:
            raise self._fatal

    # ------------------------------------------------------------ starting

    async def _start_life(self, life: trio.Nursery, jobs: trio.Nursery) -> None:
        """Start what outlives single jobs, in the order in which one needs the other.

        The core is driven in the nursery of jobs: its hands start tasks there, so it must end no later.
        """
        hands, self.inbound = self.parts.make_hands(jobs, on_drained=self._drained.set)
        life.start_soon(self._lend_memory)
        self._exchanges = Exchanges(self.inbound, self.parts.services, self.membership)
        self.data_address = await life.start(self._data.serve, self._exchanges.serve)
        self.control_address = await life.start(self._control.serve)
        jobs.start_soon(self.driver.run, hands)
        self._announce()
        await life.start(self.membership.serve)
        await life.start(self.admitting.serve)
        await life.start(self.watch.serve)
        await life.start(self.mesh.serve)
        await life.start(self.signed.serve)
        await life.start(self.house.serve)
        life.start_soon(self.parts.upkeep.serve)
        if self.parts.recorder is not None:
            life.start_soon(self.parts.recorder.serve)
        if self._probe is not None:
            life.start_soon(self._sample_machine, self._probe)

    def _announce(self) -> None:
        network = self.config.network
        control = own_addresses(network.advertise, bound=network.control.host)
        data = own_addresses(network.advertise, bound=network.data.host)
        self.membership.announce(
            control=tuple(Address(host, self.control_address[1]) for host in control),
            data=tuple(Address(host, self.data_address[1]) for host in data),
        )

    async def _sample_machine(self, probe: MachineProbe) -> None:
        last_s = trio.current_time()
        while True:
            await trio.sleep_until(next_beat_s(trio.current_time(), PROBE_INTERVAL_S))
            now_s = trio.current_time()
            self.sample = probe.sample(elapsed_s=max(now_s - last_s, 1e-3))
            last_s = now_s
            self.driver.post(
                LoadSampled(
                    slow_down=self.sample.slow_down,
                    memory_free_bytes=self.sample.memory_free_bytes,
                    power_class=self.sample.power_class,
                )
            )

    # ------------------------------------------------------------ stopping

    async def _drain(self) -> None:
        """Take no more work; finish what there is, give back the rest."""
        log.info("drain_started", jobs=len(self.jobs), limit_s=self.config.node.drain_s)
        self.is_ready = False
        self.door.drain()
        if self.http is not None:
            self.http.drain()
        self.driver.post(DrainRequested())
        with trio.move_on_after(self.config.node.drain_s) as scope:
            await self._drained.wait()
        if scope.cancelled_caught:
            log.warning("drain_cut_short", jobs=len(self.jobs))
        with trio.move_on_after(FLUSH_S):
            await self.parts.lanes.settle()  # runs by lanes are not among the core's jobs
            await self.door.wait_flushed()
            if self.http is not None:
                await self.http.wait_flushed()
            await self._exchanges.wait_silent()
        log.info("drain_ended")

    async def _take_leave(self) -> None:
        """Tell the grid and keep what was learned."""
        with trio.move_on_after(FAREWELL_S):
            await self.watch.leave()
            await trio.sleep(FAREWELL_S / 4)
        await self.mesh.save()
        await trio.to_thread.run_sync(self.membership.save_cards)
        await self.parts.upkeep.save_time()
