"""Wire message to scheduler type and back. Pure.

The wire's side is distrusted and already checked in form (transport.wire); here its meaning is fitted to this
node: budgets become deadlines on the local clock, reasons of newer peers become known ones.
"""

import hashlib
from collections.abc import Iterable

import msgspec

from scheduler.types import Capability, CapabilityTable, Job, PeerState, Reason
from transport.wire import CapabilityRecord, JobHeader, StateRecord, Table

STATE_VERSION = 1
"""Version byte of the state records this node writes."""

_REASONS = {reason.value: reason for reason in Reason}


def state_to_wire(state: PeerState) -> StateRecord:
    """Turn our own state into a record to send."""
    return StateRecord(
        STATE_VERSION,
        state.node_id,
        state.epoch,
        state.sequence,
        min(max(state.backlog_s, 0.0), 1e6),
        state.slots,
        min(max(state.running_until_s, 0.0), 1e6),
        min(max(state.slow_down, 1.0), 1e6),
        state.warm & (2**63 - 1),
        max(state.memory_free_bytes, 0),
        state.draining,
        state.power_class,
        # A node that has just begun to listen knows no table of its own yet: it can run nothing.
        state.table_digest or _NO_CAPABILITIES,
    )


def state_from_wire(record: StateRecord) -> PeerState:
    """Turn a peer's record into what the core knows."""
    return PeerState(
        node_id=record.node,
        epoch=record.epoch,
        sequence=record.sequence,
        backlog_s=record.backlog_s,
        slots=max(1, record.slots),
        running_until_s=record.running_until_s,
        slow_down=record.slow_down,
        warm=record.warm,
        memory_free_bytes=record.memory_free_bytes,
        draining=record.draining,
        power_class=record.power_class,
        table_digest=record.table_digest,
    )


def job_to_wire(job: Job, body: bytes, *, now_s: float) -> JobHeader:
    """Describe a job for its next node; the core has brought hops, visited nodes and attempt up to date."""
    return JobHeader(
        key=job.key,
        attempt=job.attempt,
        entry=job.entry,
        hops=job.hops,
        visited=job.visited,
        client=job.client,
        tenant=job.tenant,
        priority=job.priority,
        stream=job.stream,
        frame=job.frame,
        newest_wins=job.newest_wins,
        budget_s=min(max(0.0, job.deadline_s - now_s), 1e6),
        models=job.models,
        input_bytes=job.input_bytes,
        output_bytes=job.output_bytes,
        parent=job.parent,
        body=body,
    )


def job_from_wire(header: JobHeader, *, now_s: float) -> Job:
    """Turn a received header into a job of this node, with its deadline on the local clock."""
    return Job(
        key=header.key,
        attempt=header.attempt,
        entry=header.entry,
        hops=header.hops,
        visited=header.visited,
        client=header.client,
        tenant=header.tenant,
        priority=header.priority,
        stream=header.stream,
        frame=header.frame,
        newest_wins=header.newest_wins,
        input_bytes=header.input_bytes,
        output_bytes=header.output_bytes,
        arrival_s=now_s,
        deadline_s=now_s + header.budget_s,
        models=header.models,
        parent=header.parent,
    )


def reason_from_wire(text: str) -> Reason:
    """Return the reason a peer gave; a reason of a newer peer counts as LOST, which is tried elsewhere."""
    return _REASONS.get(text, Reason.LOST)


def table_digest(capabilities: Iterable[Capability]) -> bytes:
    """Return the 8 bytes that name a capability table: the head of the SHA-256 of its entries as on the wire."""
    entries = tuple(_capability_to_wire(capability) for capability in capabilities)
    return hashlib.sha256(msgspec.msgpack.encode(entries)).digest()[:8]


def table_to_wire(table: CapabilityTable) -> Table:
    """Turn our own table into a message."""
    entries = tuple(_capability_to_wire(capability) for capability in table.entries)
    return Table(node=table.node_id, digest=table.digest, entries=entries)


def table_from_wire(message: Table) -> CapabilityTable:
    """Turn a peer's table into what the core knows; entries are sorted, as the warm bits expect."""
    entries = tuple(
        Capability(
            model=entry.model,
            mean_s=entry.mean_s,
            p95_s=entry.p95_s,
            memory_bytes=entry.memory_bytes,
            load_s=entry.load_s,
            max_batch=entry.max_batch,
            providers=entry.providers,
        )
        for entry in sorted(message.entries, key=lambda entry: entry.model)
    )
    return CapabilityTable(node_id=message.node, digest=message.digest, entries=entries)


def _capability_to_wire(capability: Capability) -> CapabilityRecord:
    return CapabilityRecord(
        capability.model,
        capability.mean_s,
        capability.p95_s,
        capability.memory_bytes,
        capability.load_s,
        capability.max_batch,
        capability.providers,
    )


_NO_CAPABILITIES = table_digest(())
