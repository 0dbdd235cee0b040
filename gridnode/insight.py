"""Answers what programs ask of the daemon itself: status, peers, models, explanations, and the metrics text.

Reads the parts of a node and fills the records of gridnode.status; changes nothing, save for the three requests that
an operator makes through the local socket: revoke, invite, and look for a new publication.
"""

import os
from typing import TYPE_CHECKING, Final

import msgspec
import psutil
import trio

from gridnode import __version__
from gridnode.errors import GridError
from gridnode.recording import Recorded
from gridnode.report import MetricsText
from gridnode.status import CandidateStatus, DecisionStatus, ModelStatus, NodeStatus, PeerStatus, WorkerStatus
from scheduler.records import Decision
from scheduler.snapshot import PeerSnapshot
from transport.cards import NodeCard
from transport.certificates import REVOKE
from transport.identity import raw_public_of
from transport.wire import TransportError

if TYPE_CHECKING:
    from gridnode.node import Node

DECISIONS_SHOWN: Final = 32
INVITE_LIFE_S: Final = 3600.0


class RequestError(GridError):
    """A query that makes no sense, or that this node may not answer."""


class InviteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Argument of the query ``invite``, as JSON."""

    roles: tuple[str, ...] = ("serve", "submit")
    life_s: float = INVITE_LIFE_S


class Insight:
    """Looks into one node."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._process = psutil.Process(os.getpid())

    async def answer(self, what: str, argument: str) -> object:
        """Answer a query; raises GridError.

        Returns
        -------
        object
            A record or list of records that msgspec writes as JSON.
        """
        match what:
            case "status":
                return self.status()
            case "peers":
                return self.peers()
            case "models":
                return self.models()
            case "explain":
                return await self.explain(argument)
            case "revoke":
                return await self._revoke(argument)
            case "invite":
                return await self._invite(argument)
            case "reload_trust":
                self._node.house.look()
                self._node.signed.look()
                self._node.admitting.look()
                return {"accepted": True}
            case _:
                raise RequestError(f"unknown query {what!r}")

    # ------------------------------------------------------------ documents

    def status(self) -> NodeStatus:
        """Describe this node."""
        node = self._node
        core = node.core.statistics()
        report = node.report.snapshot()
        trust = node.signed.status()
        mesh = node.mesh.statistics()
        sample = node.sample
        certificate = node.credentials.certificate
        return NodeStatus(
            node=node.credentials.node,
            name=node.name,
            version=__version__,
            grid_name=node.credentials.grid.name,
            grid_id=node.credentials.grid_id,
            epoch=node.epoch,
            uptime_s=trio.current_time() - node.started_s,
            health=self._health(),
            draining=core.draining,
            roles=certificate.roles,
            certificate_expires_s=certificate.not_after_s,
            trust_expires_s=trust.expires_s,
            trust_expired=trust.expired,
            root_version=trust.root_version,
            timestamp_version=trust.timestamp_version,
            control_address=_text(node.control_address),
            data_address=_text(node.data_address),
            metrics_address=node.metrics_address,
            http_address=node.http_address,
            socket=str(node.socket),
            policy=node.config.scheduler.placement.policy,
            slots=node.config.scheduler.queue.slots,
            cpu_share=node.config.runtime.cpu_share,
            threads=node.threads,
            neighbours=mesh.neighbours,
            peers_alive=core.peers_alive,
            isolated_s=mesh.isolated_s,
            queue_length=core.queue_length,
            backlog_s=core.backlog_s,
            running=core.jobs_running,
            away=core.jobs_away,
            answered=report.answered,
            executed=core.jobs_executed,
            by_lane=report.by_lane,
            lanes=node.parts.lanes.in_use,
            offloaded=core.jobs_offloaded,
            received=core.jobs_received,
            stolen=core.jobs_stolen,
            granted=core.jobs_granted,
            late_answers=core.late_answers,
            invariant_violations=core.invariant_violations,
            ended=report.ended,
            p50_ms=_ms(report.p50_s),
            p99_ms=_ms(report.p99_s),
            service_ms=_ms(report.service_s_mean),
            memory_bytes=self._process.memory_info().rss,
            memory_free_bytes=sample.memory_free_bytes if sample else psutil.virtual_memory().available,
            temperature_c=sample.temperature_c if sample else None,
            slow_down=sample.slow_down if sample else 1.0,
            workers=self._workers(),
        )

    def peers(self) -> list[PeerStatus]:
        """Describe the other nodes, sorted by name."""
        seen = {peer.node_id: peer for peer in self._node.core.peers()}
        neighbours = {neighbour.node for neighbour in self._node.neighbours()}
        members = [
            self._peer(card, seen.get(card.node), is_neighbour=card.node in neighbours)
            for card in self._node.membership.members()
        ]
        return sorted(members, key=lambda peer: (peer.name, peer.node))

    def models(self) -> list[ModelStatus]:
        """Describe the published models, as they stand here."""
        entries = {entry.digest: entry for entry in self._node.house.entries()}
        shown = []
        for name, (digest, manifest) in self._node.house.published().items():
            entry = entries.get(digest)
            measured = entry.profile if entry else None
            shown.append(
                ModelStatus(
                    name=name,
                    digest=digest,
                    version=manifest.version,
                    state=entry.state if entry else "unwanted",
                    size_bytes=sum(shard.size_bytes for shard in manifest.shards),
                    fetched_bytes=entry.fetched_bytes if entry else 0,
                    mean_ms=_ms(measured.mean_s if measured else None),
                    p95_ms=_ms(measured.p95_s if measured else None),
                    memory_bytes=measured.memory_bytes if measured else manifest.peak_memory_bytes,
                    rungs=manifest.rungs,
                    problem=entry.problem if entry else "",
                )
            )
        return shown

    async def explain(self, key: str) -> list[DecisionStatus]:
        """Tell the recent placements of a job by its key in hex (a prefix will do), or the last few of all."""
        now_s = trio.current_time()
        try:
            wanted = bytes.fromhex(key[: len(key) // 2 * 2])
        except ValueError as error:
            raise RequestError(f"job key {key[:60]!r} is not in hex digits") from error
        await self._node.parts.lanes.settle()  # the job may have run by a lane just now
        found = [decision for decision in self._node.core.decisions() if decision.key.startswith(wanted)]
        if key and not found:
            kept = self._node.config.scheduler.decisions
            raise RequestError(f"no placement of job {key[:60]} is remembered; the last {kept} of this node are kept")
        return [self._decision(decision, now_s) for decision in found[-DECISIONS_SHOWN:]]

    def metrics(self) -> str:
        """Return the OpenMetrics document."""
        node = self._node
        core = node.core.statistics()
        report = node.report
        trust = node.signed.status()
        text = MetricsText()
        text.counter(
            "gridnode_jobs_answered",
            "Jobs of this node answered with a result.",
            [((("where", "here"),), report.executed), ((("where", "peer"),), report.offloaded)],
        )
        text.counter(
            "gridnode_jobs_by_lane",
            "Jobs answered here that no decision came before: their programs had tickets.",
            [((), report.by_lane)],
        )
        text.gauge("gridnode_lanes", "Programs' lanes with a ticket.", [((), node.parts.lanes.in_use)])
        text.counter(
            "gridnode_jobs_ended",
            "Jobs of this node that ended without a result.",
            [((("reason", reason),), count) for reason, count in sorted(report.ended_by_reason.items())],
        )
        for name, help_text, value in (
            ("gridnode_jobs_arrived", "Jobs of own programs.", core.jobs_arrived),
            ("gridnode_jobs_received", "Jobs handed over by peers.", core.jobs_received),
            ("gridnode_jobs_offloaded", "Jobs handed to peers.", core.jobs_offloaded),
            ("gridnode_jobs_stolen", "Jobs pulled from peers.", core.jobs_stolen),
            ("gridnode_jobs_granted", "Jobs handed to thieves.", core.jobs_granted),
            ("gridnode_jobs_executed", "Jobs finished by workers here.", core.jobs_executed),
            ("gridnode_retries", "Placements after the first of a job.", core.retries),
            ("gridnode_executors_lost", "Executors lost with a job.", core.executors_lost),
            ("gridnode_late_answers", "Answers that came after the job's outcome.", core.late_answers),
            ("gridnode_adverts_sent", "State records gossiped.", core.adverts_sent),
            ("gridnode_invariant_violations", "Broken promises of the core; 0 or there is a bug.",
             core.invariant_violations),
        ):  # fmt: skip
            text.counter(name, help_text, [((), value)])
        for name, help_text, gauge in (
            ("gridnode_queue_length", "Jobs waiting.", core.queue_length),
            ("gridnode_backlog_seconds", "Service time still to be done, per slot.", core.backlog_s),
            ("gridnode_jobs_running", "Jobs in workers.", core.jobs_running),
            ("gridnode_jobs_away", "Jobs at peers.", core.jobs_away),
            ("gridnode_peers_alive", "Peers believed alive.", core.peers_alive),
            ("gridnode_neighbours", "Control connections.", len(node.neighbours())),
            ("gridnode_ready", "Whether the node takes work.", int(node.is_ready)),
            ("gridnode_memory_bytes", "Resident memory of the daemon.", self._process.memory_info().rss),
            ("gridnode_tasks", "Tasks of the daemon's event loop.", trio.lowlevel.current_statistics().tasks_living),
            ("gridnode_open_descriptors", "Open file descriptors of the daemon.", self._process.num_fds()),
            ("gridnode_certificate_expires_timestamp_seconds", "When this node's certificate ends, since 1970.",
             node.credentials.certificate.not_after_s),
            ("gridnode_trust_expires_timestamp_seconds", "When the signed state held ends, since 1970; 0 for none.",
             trust.expires_s),
            ("gridnode_trust_expired", "Whether the signed state has ended or is missing: nothing new is installed.",
             int(trust.expired)),
        ):  # fmt: skip
            text.gauge(name, help_text, [((), gauge)])
        text.gauge(
            "gridnode_worker_memory_bytes",
            "Memory of a model's worker.",
            [((("model", worker.model),), worker.memory_bytes) for worker in self._workers()],
        )
        if node.parts.recorder is not None:
            _add_recorded(text, node.parts.recorder.statistics())
        text.histogram("gridnode_sojourn_seconds", "Time from a job's arrival to its result.", report.sojourn)
        text.histogram("gridnode_service_seconds", "Time in the worker.", report.service)
        return text.render()

    def offered(self) -> frozenset[str]:
        """Return the digests of all models that any node offers which takes jobs now, this one included."""
        here = {entry.digest for entry in self._node.house.entries() if entry.state in ("ready", "cold")}
        return frozenset(here.union(*(peer.models for peer in self._node.core.peers() if peer.is_open)))

    # ------------------------------------------------------------ requests

    async def _revoke(self, argument: str) -> object:
        """Revoke a node by name or PeerID."""
        node = self._node
        if REVOKE not in node.credentials.certificate.roles:
            raise RequestError("this node may not revoke: it has no role 'revoke'; ask on the node that made the grid")
        found = [card.node for card in node.membership.members() if argument in (card.node, card.name)]
        if len(found) > 1:
            raise RequestError(f"{len(found)} nodes are called {argument!r}; give the PeerID, see 'gridnode peers'")
        target = found[0] if found else argument
        if target in (node.credentials.node, node.name):
            raise RequestError("a node cannot revoke itself; do it on another node with role 'revoke'")
        revocations = node.credentials.revocations
        try:
            raw_public_of(target)
            document = revocations.sign_next(
                node.credentials.grid_id,
                node.credentials.key.private,
                now_s=node.credentials.grid_time.now_s(),
                chain=node.credentials.chain,
                nodes=(target,),
            )
            node.membership.take_revocations(document)
        except TransportError as error:
            raise RequestError(f"{argument!r} was not revoked: {error}; see 'gridnode peers' for names") from error
        return {"revoked": target, "version": revocations.version}

    async def _invite(self, argument: str) -> object:
        """Make a join token."""
        try:
            request = msgspec.json.decode(argument or "{}", type=InviteRequest)
        except msgspec.MsgspecError as error:
            raise RequestError(f"request for an invite is malformed: {error}") from error

        def make() -> str:
            return self._node.admitting.invite(roles=request.roles, life_s=request.life_s)

        token = make()
        with trio.move_on_after(5.0):
            await self._node.admitting.wait_door_open()
        return {"token": token, "life_s": request.life_s, "roles": request.roles}

    # ------------------------------------------------------------ pieces

    def _health(self) -> str:
        node = self._node
        now_s = node.credentials.grid_time.now_s()
        if node.core.statistics().draining:
            return "draining"
        if not node.is_ready:
            return "starting"
        if now_s > node.credentials.certificate.not_after_s:
            return "certificate expired"
        trust = node.signed.status()
        if trust.expired:
            return "trust expired" if trust.expires_s else "waiting for signed state"
        if node.mesh.statistics().isolated_s is not None and node.membership.members():
            return "isolated"
        return "ok"

    def _workers(self) -> tuple[WorkerStatus, ...]:
        return tuple(
            WorkerStatus(
                model=worker.name,
                digest=worker.digest,
                pid=worker.pid,
                memory_bytes=worker.memory_bytes,
                runs=worker.runs,
                errors=worker.errors,
                restarts=worker.restarts,
                running=worker.running,
                waiting=worker.waiting,
                cpu_share=worker.cpu_share,
                confinement=worker.confinement,
                providers=worker.providers,
            )
            for worker in self._node.house.workers()
        )

    def _peer(self, card: NodeCard, seen: PeerSnapshot | None, *, is_neighbour: bool) -> PeerStatus:
        standing = self._node.watch.status(card.node)
        state = seen.state if seen else None
        return PeerStatus(
            node=card.node,
            name=card.name,
            status=standing.value if standing else "unknown",
            reachable=self._node.membership.is_reachable(card.node),
            neighbour=is_neighbour,
            address=_text((card.data[0].host, card.data[0].port)) if card.data else "",
            roles=card.certificate.roles,
            certificate_expires_s=card.certificate.not_after_s,
            backlog_s=state.backlog_s if state else None,
            slots=state.slots if state else None,
            slow_down=state.slow_down if state else None,
            memory_free_bytes=state.memory_free_bytes if state else None,
            draining=state.draining if state else False,
            state_age_s=trio.current_time() - seen.heard_s if seen and state else None,
            window=seen.window if seen else None,
            in_flight=seen.in_flight if seen else None,
            rtt_ms=_ms(seen.rtt_s if seen else None),
        )

    def _decision(self, decision: Decision, now_s: float) -> DecisionStatus:
        name_of = self._node.membership.name_of
        return DecisionStatus(
            key=decision.key.hex(),
            at_s=now_s - decision.at_s,
            chosen=name_of(decision.chosen) if decision.chosen else "",
            reason=decision.reason,
            candidates=tuple(
                CandidateStatus(
                    node=candidate.node_id,
                    name=name_of(candidate.node_id),
                    predicted_ms=_ms(candidate.finish_s),
                    note=candidate.verdict,
                )
                for candidate in decision.candidates
            ),
        )


def _add_recorded(text: MetricsText, recorded: Recorded) -> None:
    text.counter("gridnode_trace_jobs", "Jobs written to the trace.", [((), recorded.jobs)])
    text.counter("gridnode_trace_jobs_lost", "Jobs that are not in the trace.", [((), recorded.lost)])
    text.gauge("gridnode_trace_failing", "Whether the trace cannot be written.", [((), int(recorded.is_failing))])


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else value_s * 1e3


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}" if address[0] else ""
