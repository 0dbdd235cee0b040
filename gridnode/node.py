"""One node, put together: the parts, who knows whom, and in which order they live and stop.

Takes both planes, the executor and the state directory as they are, so the same node runs in a daemon (real sockets,
real workers) and in tests (transport.memory, emulated executor, virtual clock).

Lifetimes, outermost first: *life* (executor, planes, membership, models), *jobs* (executions and conversations about
accepted work), *intake* (programs). A stop goes from the inside out: intake takes no more work, accepted jobs get
drain_s to finish or are given back, the node says goodbye to the mesh, then the machine is let go.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from gridnode.addresses import own_addresses
from gridnode.admitting import Admitting
from gridnode.config import PROBE_INTERVAL_S, Config
from gridnode.credentials import Credentials
from gridnode.driver import Driver
from gridnode.fetching import PeerFetcher
from gridnode.frontdoor import FrontDoor
from gridnode.hands import DaemonHands
from gridnode.inbound import Inbound
from gridnode.insight import Insight
from gridnode.jobtable import JobTable
from gridnode.logs import EventLog, short
from gridnode.membership import Membership
from gridnode.mesh import Mesh, read_book
from gridnode.modelhouse import ModelHouse
from gridnode.mouth import GridMouth
from gridnode.outbound import Outbound
from gridnode.probe import MachineProbe, MachineSample
from gridnode.report import Report
from gridnode.services import Services
from gridnode.signedstate import SignedState
from gridnode.statedir import StateDirectory
from gridnode.translate import table_digest, table_to_wire
from gridnode.upkeep import Upkeep
from gridnode.watch import Watch
from models.executor import Executor
from models.store import ChunkStore
from scheduler.core import Core
from scheduler.events import DrainRequested, LoadSampled
from scheduler.types import CapabilityTable
from transport.base import ControlPlane, DataPlane, Dial, Exchange, Neighbour
from transport.cards import Address
from transport.certificates import SERVE, SUBMIT, PeerCertificate
from transport.discovery import Discovery, DiscoveryConfig
from transport.liveness import Liveness
from transport.wire import (
    DataMessage,
    JobOffer,
    JobSend,
    Refused,
    RemoteProtocolError,
    StealRequest,
    Table,
)

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
        self._state = state
        self._control = control
        self._data = data
        self._executor = executor
        self._probe = probe
        self._stop = trio.Event()
        self._ready = trio.Event()
        self._drained = trio.Event()
        self._fatal: BaseException | None = None
        self._life: trio.Nursery | None = None
        self._conversations = 0
        """Exchanges that peers began and that are being served."""
        self._silent = trio.Event()
        self.sample: MachineSample | None = None
        self.threads = threads
        self.metrics_address = ""
        self.is_ready = False
        self.control_address = ("", 0)
        self.data_address = ("", 0)
        self.started_s = trio.current_time()
        self.core = Core(
            config.scheduler,
            node_id=credentials.node,
            epoch=epoch,
            rng=random.Random(f"{seed}/core"),
            now_s=trio.current_time(),
        )
        self.driver = Driver(self.core)
        self.jobs = JobTable()
        self.report = Report()
        self.membership = self._make_membership(state)
        self.upkeep = Upkeep(credentials, self.membership, judge_connections=data.close_refused)
        self.signed = self._make_signed_state(state, seed)
        self.store = ChunkStore(state.store, config.runtime.disk_bytes)
        self.house = self._make_house(state, seed, setup)
        self.watch = self._make_watch(seed)
        self.mesh = self._make_mesh(state, seed)
        self.membership.begin(mesh=self.mesh, watch=self.watch)
        self.admitting = self._make_admitting(state, seed)
        self.services = self._make_services()
        self.insight = Insight(self)
        self.door = self._make_door()

    # ------------------------------------------------------------ the parts

    def _make_membership(self, state: StateDirectory) -> Membership:
        return Membership(
            self.credentials,
            name=self.name,
            epoch=self.epoch,
            control=self._control,
            data=self._data,
            driver=self.driver,
            cards_path=state.cards,
            on_trust_news=lambda notice, node: self.signed.heard(notice, node),
            on_meeting=self._met,
            on_revoked=lambda: self.upkeep.judge_now(),
            on_fatal=self.fail,
        )

    def _make_signed_state(self, state: StateDirectory, seed: str) -> SignedState:
        return SignedState(
            state,
            self.credentials,
            control=self._control,
            data=self._data,
            peers=self.membership,
            rng=random.Random(f"{seed}/trust"),
            on_changed=lambda: self.house.look(),
        )

    def _make_house(self, state: StateDirectory, seed: str, setup: str) -> ModelHouse:
        fetcher = PeerFetcher(
            store=self.store,
            data=self._data,
            peers=self.membership,
            rng=random.Random(f"{seed}/fetch"),
            on_misbehaviour=self._misbehaved,
        )
        return ModelHouse(
            state=state,
            store=self.store,
            signed=self.signed,
            fetcher=fetcher,
            executor=self._executor,
            driver=self.driver,
            wanted=self.config.runtime.models,
            setup=setup,
        )

    def _make_watch(self, seed: str) -> Watch:
        return Watch(
            Liveness(self.credentials.node, self.epoch, random.Random(f"{seed}/watch")),
            control=self._control,
            data=self._data,
            driver=self.driver,
            undertaker=self.membership,
        )

    def _make_mesh(self, state: StateDirectory, seed: str) -> Mesh:
        return Mesh(
            Discovery(
                self.credentials.node,
                _bootstrap(self.config, self.credentials),
                random.Random(f"{seed}/mesh"),
                DiscoveryConfig(wanted=self.config.network.neighbours, low=min(6, self.config.network.neighbours)),
                book=read_book(state.addresses),
            ),
            control=self._control,
            book_path=state.addresses,
            grid_time_s=self.credentials.grid_time.now_s,
            on_neighbour=self._greet,
        )

    def _make_admitting(self, state: StateDirectory, seed: str) -> Admitting:
        return Admitting(
            self.credentials,
            network=self.config.network,
            invites_path=state.invites,
            data=self._data,
            peers=self.membership,
            rng=random.Random(f"{seed}/admit"),
            root=lambda: self.signed.client.file("metadata/1.root.json") or b"",
            cards=self.membership.cards_for_newcomers,
            on_renewed=self._on_renewed,
        )

    def _make_services(self) -> Services:
        return Services(
            data=self._data,
            cards=self.membership,
            models=self.house,
            renewer=self,
            own_state=lambda: self.core.state_record(trio.current_time()),
            own_table=self._own_table,
        )

    def _make_door(self) -> FrontDoor:
        return FrontDoor(
            self.socket,
            config=self.config.client,
            node=self.credentials.node,
            name=self.name,
            grid=self.credentials.grid.name,
            jobs=self.jobs,
            driver=self.driver,
            models=self.house,
            nodes=self.membership,
            answer=self.insight.answer,
            default_deadline_s=self.config.scheduler.placement.default_deadline_s,
        )

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

    def renew(self, csr: bytes, *, peer: str) -> bytes:
        """Sign a peer's certificate anew; see services.Renewer."""
        card = self.membership.card(peer)
        if card is None:
            raise RemoteProtocolError("the asker's card is not known yet; ask again in a moment")
        return self.admitting.renew(csr, peer=card)

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

    def _make_hands(self, jobs: trio.Nursery) -> DaemonHands:
        outbound = Outbound(
            node=self.credentials.node,
            data=self._data,
            jobs=self.jobs,
            driver=self.driver,
            nursery=jobs,
            own_state=lambda: self.core.state_record(trio.current_time()),
            on_unreachable=self.membership.unreachable,
            on_misbehaviour=self._misbehaved,
        )
        self.inbound = Inbound(node=self.credentials.node, jobs=self.jobs, driver=self.driver, outbound=outbound)
        mouth = GridMouth(control=self._control, data=self._data, driver=self.driver, nursery=jobs)
        return DaemonHands(
            node=self.credentials.node,
            jobs=self.jobs,
            driver=self.driver,
            executor=self._executor,
            outbound=outbound,
            inbound=self.inbound,
            residents=self.house,
            mouth=mouth,
            report=self.report,
            nursery=jobs,
            on_drained=self._drained.set,
        )

    async def _start_life(self, life: trio.Nursery, jobs: trio.Nursery) -> None:
        """Start what outlives single jobs, in the order in which one needs the other.

        The core is driven in the nursery of jobs: its hands start tasks there, so it must end no later.
        """
        hands = self._make_hands(jobs)
        self.data_address = await life.start(self._data.serve, self._handle_exchange)
        self.control_address = await life.start(self._control.serve)
        jobs.start_soon(self.driver.run, hands)
        self._announce()
        await life.start(self.membership.serve)
        await life.start(self.admitting.serve)
        await life.start(self.watch.serve)
        await life.start(self.mesh.serve)
        await life.start(self.signed.serve)
        await life.start(self.house.serve)
        life.start_soon(self.upkeep.serve)
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
            await trio.sleep(PROBE_INTERVAL_S)
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
        self.driver.post(DrainRequested())
        with trio.move_on_after(self.config.node.drain_s) as scope:
            await self._drained.wait()
        if scope.cancelled_caught:
            log.warning("drain_cut_short", jobs=len(self.jobs))
        with trio.move_on_after(FLUSH_S):
            await self.door.wait_flushed()
            if self._conversations:
                self._silent = trio.Event()
                await self._silent.wait()
        log.info("drain_ended")

    async def _take_leave(self) -> None:
        """Tell the grid and keep what was learned."""
        with trio.move_on_after(FAREWELL_S):
            await self.watch.leave()
            await trio.sleep(FAREWELL_S / 4)
        await self.mesh.save()
        await trio.to_thread.run_sync(self.membership.save_cards)
        await self.upkeep.save_time()

    # ------------------------------------------------------------ exchanges

    async def _handle_exchange(self, exchange: Exchange, message: DataMessage, payload: memoryview) -> None:
        """Serve one question of a peer, if its roles allow it."""
        refusal = self._refusal(exchange, message)
        if refusal:
            log.warning("peer_refused", peer=short(exchange.peer), reason=refusal)
            await exchange.send(Refused(reason=refusal))
            return
        self._conversations += 1
        try:
            if not await self.inbound.handle(exchange, message, payload):
                await self.services.handle(exchange, message, payload)
        finally:
            self._conversations -= 1
            if not self._conversations:
                self._silent.set()

    def _refusal(self, exchange: Exchange, message: DataMessage) -> str:
        if isinstance(message, JobSend | JobOffer):
            return "" if self._has_role(exchange, SUBMIT) else "jobs need role 'submit'"
        if isinstance(message, StealRequest):
            return "" if self._has_role(exchange, SERVE) else "stealing needs role 'serve'"
        return ""

    def _has_role(self, exchange: Exchange, role: str) -> bool:
        """Say whether the asker has a role, by the certificate of the connection: its card may still be on its way."""
        certificate: PeerCertificate | None = getattr(exchange, "certificate", None)
        if certificate is not None:
            return role in certificate.roles
        return self.membership.has_role(exchange.peer, role)  # a network in memory knows no certificates

    def _misbehaved(self, peer: str, what: str) -> None:
        log.warning("peer_misbehaved", peer=short(peer), what=what)
        self.watch.doubt(peer)

    def _own_table(self) -> Table:
        entries = self.house.capabilities()
        table = CapabilityTable(node_id=self.credentials.node, digest=table_digest(entries), entries=entries)
        return table_to_wire(table)

    def _greet(self, neighbour: str) -> None:
        self.membership.greet(neighbour)
        self.signed.greet()

    def _met(self, node: str) -> None:
        self.signed.met(node)
        self.admitting.met(node)

    def _on_renewed(self) -> None:
        """Use a renewed certificate on new connections, and tell the grid."""
        for renewer in self.renewers:
            renewer(self.credentials.chain_pem)
        self._announce()
        if self._life is not None:
            self._life.start_soon(self.membership.publish_card)

    renewers: tuple[Callable[[bytes], None], ...] = ()
    """What else must know of a renewed chain: the two real planes."""


def _bootstrap(config: Config, credentials: Credentials) -> tuple[Dial, ...]:
    """Read PEERID@HOST:PORT of the configuration and of the join."""
    dials = []
    for text in (*config.network.bootstrap, *credentials.grid.bootstrap):
        node, _, address = text.partition("@")
        host, _, port = address.rpartition(":")
        if node and host and port.isdigit():
            dials.append(Dial(node=node, host=host.strip("[]"), port=int(port)))
        else:
            log.warning("bootstrap_ignored", address=text, remedy="write PEERID@HOST:PORT")
    return tuple(dials)
