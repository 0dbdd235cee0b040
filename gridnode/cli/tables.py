"""How the daemon's records look in a terminal. Pure: records in, renderables out; fits 80 columns, uses 120."""

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gridnode.cli.output import millis, size, span
from gridnode.modelcheck import Verdict
from gridnode.status import DecisionStatus, ModelStatus, NodeStatus, PeerStatus, WorkerStatus
from models.manifest import DetectionPostprocessing, Manifest, TensorSpec

WIDE: Final = 100
"""Columns from which tables show their less needed columns."""

_GOOD: Final = {"ok", "alive", "ready"}
_FINE: Final = {"cold", "fetching", "checking", "starting", "draining", "left", "unwanted", "unknown"}


def state_text(state: str) -> Text:
    """Colour a state by how much it should worry."""
    style = "green" if state in _GOOD else "yellow" if state in _FINE else "bold red"
    return Text(state, style=style)


def short(node: str) -> str:
    """Return the tail of a PeerID; the heads are all alike."""
    return node[-8:]


def grid_table(*, title: str = "") -> Table:
    """Return an empty table in the house's look."""
    return Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
        collapse_padding=True,
        padding=(0, 2, 0, 0),
    )


def _pairs(rows: Sequence[tuple[str, RenderableType]]) -> Table:
    """Lay out names and values."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


# ---------------------------------------------------------------- status


def status_view(status: NodeStatus, *, now_s: float) -> RenderableType:
    """Draw `gridnode status`; ``now_s`` is seconds since 1970."""
    head = Text.assemble(
        (status.name, "bold"), "  ", (short(status.node), "dim"), "  ", state_text(status.health), "  grid "
    )
    head.append(status.grid_name, style="bold")
    parts: list[RenderableType] = [head, Padding(_pairs(_facts(status, now_s)), (0, 0, 0, 2), expand=False)]
    if status.workers:
        parts += ["", workers_table(status.workers)]
    return Group(*parts)


def _facts(status: NodeStatus, now_s: float) -> list[tuple[str, RenderableType]]:
    return [
        ("up", f"{span(status.uptime_s)}, version {status.version}, life {status.epoch}"),
        ("peers", f"{status.peers_alive} alive, {status.neighbours} control connections" + _isolation(status)),
        (
            "load",
            f"{status.running}/{status.slots} running, {status.queue_length} waiting ({span(status.backlog_s)}), "
            f"{status.away} away{_lanes(status.lanes)}, slow-down {status.slow_down:.2f}",
        ),
        (
            "work",
            f"{status.answered} answered ({status.by_lane} by lane), {status.executed} executed here, "
            f"{status.offloaded} offloaded, {status.received} received, {status.stolen} stolen, "
            f"{status.granted} granted",
        ),
        ("ended", _ended(status.ended)),
        (
            "times",
            f"p50 {millis(status.p50_ms)}, p99 {millis(status.p99_ms)}, service {millis(status.service_ms)}",
        ),
        ("memory", f"{size(status.memory_bytes)} daemon, {size(status.memory_free_bytes)} free" + _heat(status)),
        ("trust", _trust(status, now_s)),
        ("certificate", f"{span(status.certificate_expires_s - now_s)} left, roles {', '.join(status.roles)}"),
        ("listens", f"control {status.control_address}, data {status.data_address}"),
        ("", f"http {status.http_address or 'off'}, metrics {status.metrics_address or 'off'}, socket {status.socket}"),
        ("policy", f"{status.policy}, cpu share {status.cpu_share:g}, threads {status.threads}"),
    ]


def _lanes(count: int) -> str:
    return "" if not count else ", 1 lane with a ticket" if count == 1 else f", {count} lanes with tickets"


def _isolation(status: NodeStatus) -> str:
    return "" if status.isolated_s is None else f", isolated for {span(status.isolated_s)}"


def _heat(status: NodeStatus) -> str:
    return "" if status.temperature_c is None else f", {status.temperature_c:.0f} °C"


def _ended(ended: Mapping[str, int]) -> str:
    counted = [f"{count} {reason}" for reason, count in sorted(ended.items()) if count]
    return ", ".join(counted) or "none without a result"


def _trust(status: NodeStatus, now_s: float) -> RenderableType:
    text = f"root {status.root_version}, signed state {status.timestamp_version}"
    if status.trust_expired:
        return Text(f"{text}, EXPIRED: nothing new is installed", style="bold red")
    return f"{text}, {span(status.trust_expires_s - now_s)} left"


def workers_table(workers: Sequence[WorkerStatus]) -> Table:
    """Draw the loaded models."""
    table = grid_table()
    for name in ("worker", "pid", "memory", "runs", "errors", "restarts", "busy", "share", "confinement"):
        table.add_column(name, justify="left" if name in ("worker", "confinement") else "right", overflow="fold")
    for worker in workers:
        table.add_row(
            worker.model,
            str(worker.pid or "–"),
            size(worker.memory_bytes),
            str(worker.runs),
            str(worker.errors),
            str(worker.restarts),
            f"{worker.running}+{worker.waiting}",
            f"{worker.cpu_share:g}",
            _confinement(worker.confinement),
        )
    return table


def _confinement(text: str) -> str:
    """Shorten a list of steps to its number; --json has them all."""
    steps = text.split()
    return f"{len(steps)} steps" if len(steps) > 1 else text or "–"


# ---------------------------------------------------------------- peers


def peers_table(peers: Sequence[PeerStatus], *, columns: int, now_s: float) -> Table:
    """Draw `gridnode peers` for a terminal of so many columns."""
    wide = columns >= WIDE
    table = grid_table()
    table.add_column("peer", no_wrap=True)
    table.add_column("id", style="dim", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for name in ("backlog", "flight", "rtt", "seen"):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        for name in ("slow", "window", "free", "cert"):
            table.add_column(name, justify="right", no_wrap=True)
    table.add_column("address", overflow="fold")
    for peer in peers:
        table.add_row(*_peer_row(peer, wide=wide, now_s=now_s))
    return table


def _peer_row(peer: PeerStatus, *, wide: bool, now_s: float) -> list[RenderableType]:
    row: list[RenderableType] = [
        Text(peer.name or short(peer.node), style="bold" if peer.neighbour else ""),
        short(peer.node),
        state_text(_standing(peer)),
        span(peer.backlog_s),
        _number(peer.in_flight),
        millis(peer.rtt_ms),
        span(peer.state_age_s),
    ]
    if wide:
        row += [
            "–" if peer.slow_down is None else f"{peer.slow_down:.2f}",
            "–" if peer.window is None else f"{peer.window:.1f}",
            size(peer.memory_free_bytes),
            span(peer.certificate_expires_s - now_s),
        ]
    return [*row, peer.address]


def _standing(peer: PeerStatus) -> str:
    """Return what keeps a peer from being used, or that nothing does."""
    if peer.status != "alive":
        return peer.status
    if not peer.reachable:
        return "unreachable"
    return "draining" if peer.draining else "alive"


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


# ---------------------------------------------------------------- models


def models_table(models: Sequence[ModelStatus], *, columns: int) -> Table:
    """Draw `gridnode model list` for a terminal of so many columns."""
    table = grid_table()
    table.add_column("model", no_wrap=True)
    table.add_column("digest", style="dim", no_wrap=True)
    table.add_column("state")
    for name in ("size", "mean", "p95", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    if columns >= WIDE:
        table.add_column("rungs", overflow="fold")
    problems = any(model.problem for model in models)
    if problems:
        table.add_column("problem", overflow="fold", style="red")
    for model in models:
        row: list[RenderableType] = [
            model.name,
            model.digest[:12],
            state_text(model.state),
            _progress(model),
            millis(model.mean_ms),
            millis(model.p95_ms),
            size(model.memory_bytes),
        ]
        if columns >= WIDE:
            row.append(", ".join(model.rungs) or "–")
        table.add_row(*row, *([model.problem] if problems else []))
    return table


def _progress(model: ModelStatus) -> str:
    if model.state == "fetching" and model.size_bytes:
        return f"{model.fetched_bytes / model.size_bytes:.0%} of {size(model.size_bytes)}"
    return size(model.size_bytes)


# ---------------------------------------------------------------- explain


def decisions_view(decisions: Sequence[DecisionStatus]) -> RenderableType:
    """Draw `gridnode explain`: each placement with the nodes it compared."""
    parts: list[RenderableType] = []
    for number, decision in enumerate(decisions, start=1):
        head = Text.assemble(
            (f"{number}. ", "dim"),
            (decision.chosen or "nowhere", "bold"),
            f"  {decision.reason}  ",
            (f"job {decision.key[-12:]}, {span(decision.at_s)} ago", "dim"),
        )
        parts.append(head)
        table = grid_table()
        table.add_column("candidate", no_wrap=True)
        table.add_column("predicted", justify="right")
        table.add_column("note", overflow="fold")
        for candidate in decision.candidates:
            table.add_row(candidate.name or short(candidate.node), millis(candidate.predicted_ms), candidate.note)
        if decision.candidates:
            parts.append(Padding(table, (0, 0, 0, 3), expand=False))
    return Group(*parts)


# ---------------------------------------------------------------- manifests


def manifest_view(digest: str, manifest: Manifest) -> RenderableType:
    """Draw `gridnode model show`."""
    rows: list[tuple[str, RenderableType]] = [
        ("digest", digest),
        ("version", str(manifest.version)),
        ("description", Text(manifest.description or "–")),
        ("licence", Text(manifest.licence or "–")),
        ("inputs", Text("\n".join(_tensor(spec) for spec in manifest.inputs))),
        ("outputs", Text("\n".join(_tensor(spec) for spec in manifest.outputs))),
        ("pictures", _pictures(manifest)),
        ("results", _results(manifest)),
        ("memory", f"{size(manifest.peak_memory_bytes)} of a worker"),
        ("providers", ", ".join(manifest.requirements.providers)),
        ("rungs", ", ".join(manifest.rungs) or "–"),
        ("golden", f"rtol {manifest.golden.rtol:g}, atol {manifest.golden.atol:g}" if manifest.golden else "none"),
    ]
    rows += [
        (f"shard {shard.name}", f"{size(shard.size_bytes)}, {len(shard.chunks)} chunks, sha256 {shard.sha256[:16]}")
        for shard in manifest.shards
    ]
    return Group(Text(manifest.name, style="bold"), Padding(_pairs(rows), (0, 0, 0, 2), expand=False))


def _tensor(spec: TensorSpec) -> str:
    sizes = " × ".join("any" if number == -1 else str(number) for number in spec.shape)
    return f"{spec.name}  {spec.dtype}  {sizes or 'scalar'}"


def _pictures(manifest: Manifest) -> str:
    picture = manifest.preprocessing
    if picture is None:
        return "taken as tensors only"
    return f"{picture.resize} to {picture.width}x{picture.height} for {picture.input!r}, {picture.colour}"


def _results(manifest: Manifest) -> Text:
    post = manifest.postprocessing
    if post is None:
        return Text("raw tensors")
    names = ", ".join(post.class_names[:8]) + (", ..." if len(post.class_names) > 8 else "")
    kind = "detections" if isinstance(post, DetectionPostprocessing) else "classes"
    return Text(f"{kind}: {names}")


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """Draw `gridnode model verify`."""
    table = grid_table()
    for name in ("", "model", "digest", "signed", "on disk", "problem"):
        table.add_column(name, overflow="fold", style="dim" if name == "digest" else None)
    for verdict in verdicts:
        mark = Text("BAD", style="bold red") if verdict.problem else Text("ok", style="green")
        table.add_row(
            mark,
            verdict.name or "(signed state)",
            verdict.digest[:12],
            verdict.signed,
            verdict.on_disk,
            Text(verdict.problem),
        )
    return table
