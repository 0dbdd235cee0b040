"""The parts of one node: who is made of what, and who tells whom.

Owns the wiring and nothing else: nothing runs yet, no socket is open. When parts live and in which order they start
and stop is gridnode.node's. Each part knows the others only through what is passed to it here.
"""

import os
import random
from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from gridnode import __version__
from gridnode.admitting import Admitting
from gridnode.config import Config
from gridnode.credentials import Credentials
from gridnode.driver import Driver
from gridnode.farlanes import FarLanes
from gridnode.fetching import PeerFetcher
from gridnode.hands import DaemonHands
from gridnode.inbound import Inbound
from gridnode.jobtable import JobTable
from gridnode.laneruns import LaneRuns
from gridnode.lanes import LaneDesk
from gridnode.logs import EventLog, short
from gridnode.membership import Membership
from gridnode.mesh import Mesh, read_book
from gridnode.modelhouse import ModelHouse
from gridnode.mouth import GridMouth
from gridnode.outbound import Outbound
from gridnode.recording import Machine, Recorder
from gridnode.report import Report
from gridnode.services import Services
from gridnode.signedstate import SignedState
from gridnode.statedir import StateDirectory
from gridnode.tracefile import DiskTraceFile
from gridnode.tracerecords import Header
from gridnode.translate import table_digest, table_to_wire
from gridnode.upkeep import Upkeep
from gridnode.watch import Watch
from models.executor import Executor
from models.store import ChunkStore
from scheduler.core import Core
from scheduler.types import CapabilityTable
from transport.base import ControlPlane, DataPlane, Dial
from transport.discovery import Discovery, DiscoveryConfig
from transport.liveness import Liveness
from transport.wire import RemoteProtocolError, Table

log = EventLog("node")


class Supervisor(Protocol):
    """What parts may ask of the whole node."""

    def fail(self, error: BaseException) -> None:
        """End the node at once; for parts that must not raise where they are."""
        ...

    def use_renewed(self) -> None:
        """Use a renewed certificate on new connections, and tell the grid."""
        ...


class Parts:
    """A node's parts.

    Parameters
    ----------
    supervisor : Supervisor
        The node; other parameters are those of gridnode.node.Node.
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
        name: str,
        setup: str,
        supervisor: Supervisor,
    ) -> None:
        self.config = config
        self.credentials = credentials
        self.name = name
        self.epoch = epoch
        self._control = control
        self._data = data
        self._executor = executor
        self._supervisor = supervisor
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
        self.recorder = self._make_recorder(state) if config.trace.path else None
        self.lanes = LaneDesk(
            node=credentials.node,
            core=self.core,
            driver=self.driver,
            executor=self._executor,
            report=self.report,
            recorder=self.recorder,
            default_deadline_s=config.scheduler.placement.default_deadline_s,
            slots=config.scheduler.queue.slots,
        )

    # ------------------------------------------------------------ making

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
            on_fatal=self._supervisor.fail,
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
            on_renewed=self._supervisor.use_renewed,
        )

    def _make_services(self) -> Services:
        return Services(
            data=self._data,
            cards=self.membership,
            models=self.house,
            renewer=self,
            own_state=lambda: self.core.state_record(trio.current_time()),
            own_table=self._own_table,
            on_ping=self.watch.spoke,
        )

    def _make_recorder(self, state: StateDirectory) -> Recorder:
        config = self.config
        header = Header(
            node=self.credentials.node,
            name=self.name,
            software=__version__,
            epoch=self.epoch,
            grid_s=0.0,
            clock_s=0.0,
            policy=config.scheduler.placement.policy,
            executor=config.runtime.executor,
            scheduler=msgspec.to_builtins(config.scheduler),
        )
        limit_bytes = config.trace.max_bytes // 2
        return Recorder(
            DiskTraceFile(state.path / config.trace.path, most_bytes=limit_bytes),
            limit_bytes=limit_bytes,
            header=header,
            machine=self._machine,
            model_name=self.house.name_of,
            node_name=self.membership.name_of,
            grid_s=self.credentials.grid_time.now_s,
            secret=os.urandom(16),
        )

    def _machine(self) -> Machine:
        state = self.core.state_record(trio.current_time())
        unmeasured_s = self.config.scheduler.estimate.rtt_prior_s
        return Machine(
            slots=state.slots,
            cpu_share=self.config.runtime.cpu_share,
            threads=self.config.runtime.threads,
            slow_down=state.slow_down,
            models=self.house.capabilities(),
            rtts_s={peer.node_id: peer.rtt_s for peer in self.core.peers() if peer.rtt_s != unmeasured_s},
        )

    def make_hands(self, jobs: trio.Nursery, *, on_drained: Callable[[], None]) -> tuple[DaemonHands, Inbound]:
        """Return what carries out the core's actions, and what serves peers' jobs; both start tasks in ``jobs``."""
        outbound = Outbound(
            node=self.credentials.node,
            data=self._data,
            jobs=self.jobs,
            driver=self.driver,
            nursery=jobs,
            own_state=lambda: self.core.state_record(trio.current_time()),
            on_unreachable=self.membership.unreachable,
            on_misbehaviour=self._misbehaved,
            on_answer=self.watch.answered,
            is_awaited=self.core.awaits,
            before_answer=self.lanes.ending_afar,
        )
        self.lanes.far = FarLanes(
            data=self._data,
            driver=self.driver,
            nursery=jobs,
            default_deadline_s=self.config.scheduler.placement.default_deadline_s,
            on_misbehaviour=self._misbehaved,
            on_answer=self.watch.answered,
        )
        lane_runs = LaneRuns(
            core=self.core,
            driver=self.driver,
            executor=self._executor,
            desk=self.lanes,
            report=self.report,
            recorder=self.recorder,
            nursery=jobs,
        )
        inbound = Inbound(
            node=self.credentials.node,
            jobs=self.jobs,
            driver=self.driver,
            outbound=outbound,
            lane_runs=lane_runs,
            nursery=jobs,
        )
        mouth = GridMouth(control=self._control, data=self._data, driver=self.driver, nursery=jobs)
        hands = DaemonHands(
            node=self.credentials.node,
            jobs=self.jobs,
            driver=self.driver,
            executor=self._executor,
            outbound=outbound,
            inbound=inbound,
            residents=self.house,
            mouth=mouth,
            report=self.report,
            lanes=self.lanes,
            nursery=jobs,
            on_drained=on_drained,
            recorder=self.recorder,
        )
        return hands, inbound

    # ------------------------------------------------------------ news from one part to others

    def renew(self, csr: bytes, *, peer: str) -> bytes:
        """Sign a peer's certificate anew; see services.Renewer."""
        card = self.membership.card(peer)
        if card is None:
            raise RemoteProtocolError("the asker's card is not known yet; ask again in a moment")
        return self.admitting.renew(csr, peer=card)

    def _misbehaved(self, peer: str, what: str) -> None:
        log.warning("peer_misbehaved", peer=short(peer), what=what)
        self.watch.doubt(peer)

    def _own_table(self) -> Table:
        entries = self.house.capabilities()
        table = CapabilityTable(node_id=self.credentials.node, digest=table_digest(entries), entries=entries)
        return table_to_wire(table)

    def _greet(self, neighbour: str) -> None:
        self.membership.greet(neighbour)
        if not self.watch.is_settled(neighbour):
            self.signed.greet()

    def _met(self, node: str) -> None:
        self.signed.met(node)
        self.admitting.look()


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
