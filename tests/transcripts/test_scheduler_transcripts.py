"""Transcripts of one core: commands, `----`, and the full log of its actions.

The files under `scheduler/` are read as documentation of how the core behaves; a change of behaviour shows as a diff
of text. To accept one, run

    GRIDNODE_REWRITE=1 pytest tests/transcripts/test_scheduler_transcripts.py

and review the diff. Commands, one per line, each at a time in seconds:

    core KEY=VALUE ...                       make the core of node a; keys are dotted paths of CoreConfig
    models NAME=SECONDS[/cold] ...           the models of this node
    peer NAME MODEL=SECONDS[/cold] ... [backlog=S] [until=S]   a peer's state and table
    job HANDLE [models=A,B] [budget=S] [bytes=N] [priority=N] [stream=S frame=N]
               [from=PEER hops=N visited=A,B entry=A estimate=S offer=N stolen]
    offer N from=PEER ...                    as job
    any other event by its name, see `EVENTS`
    until                                    let all timers up to the line's time fire
    statistics                               counters that are not zero
"""

import os
import random
from pathlib import Path

import msgspec
import pytest

from scheduler import events as ev
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.types import Capability, CapabilityTable, Job, LinkSample, PeerState, Reason, ServiceTimes

FOLDER = Path(__file__).parent / "scheduler"
TRANSCRIPTS = sorted(FOLDER.glob("*.txt"))


def parse(words):
    """Split words into plain ones and KEY=VALUE pairs."""
    plain = [word for word in words if "=" not in word]
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    return plain, pairs


def number(text):
    return float(text) if any(mark in text for mark in ".einf") else int(text)


def capability(model, text):
    seconds, _, cold = text.partition("/")
    entry = Capability(
        model=model, mean_s=float(seconds), p95_s=float(seconds), memory_bytes=100, load_s=1.0, max_batch=1
    )
    return entry, not cold


class Player:
    """Runs the commands of one transcript."""

    def __init__(self):
        self.core = None
        self.now_s = 0.0
        self.sequences = {}
        self.tables = {}

    def play(self, line):
        time_text, command, *words = line.split()
        self.now_s = float(time_text)
        plain, pairs = parse(words)
        if command == "core":
            return self.make_core(pairs)
        if command == "until":
            return self.let_timers_fire()
        if command == "statistics":
            return self.tell_statistics()
        if command == "decision":
            return self.tell_decision()
        lines = self.let_timers_fire(is_strict=True)
        for event in getattr(self, "on_" + command.replace("-", "_"))(plain, pairs):
            lines += self.feed(event)
        return lines

    def make_core(self, pairs):
        tree = {"steal": {"enabled": False}}
        for path, value in pairs.items():
            *parents, leaf = path.split(".")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[leaf] = {"on": True, "off": False}.get(value, value)
        for branch in tree.values():
            if isinstance(branch, dict):
                branch.update({key: number(value) for key, value in branch.items() if is_number(value)})
        config = msgspec.convert(tree, CoreConfig)
        self.core = Core(config, node_id="a", epoch=1, rng=random.Random("7/a"), now_s=self.now_s)
        return []

    def feed(self, event):
        return [self.tell(action) for action in self.core.handle(event, now_s=self.now_s)]

    def let_timers_fire(self, *, is_strict=False):
        end_s, lines = self.now_s, []
        while True:
            due_s = self.core.next_deadline_s()
            if due_s is None or due_s > end_s or (is_strict and due_s == end_s):
                self.now_s = end_s
                return lines
            self.now_s = due_s
            lines += self.feed(ev.TimerFired())

    def tell_statistics(self):
        counters = msgspec.to_builtins(self.core.statistics())
        texts = []
        for name, value in counters.items():
            if isinstance(value, dict):
                value = " ".join(f"{key}:{count}" for key, count in value.items())
            if value:
                texts.append(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}")
        return texts

    def tell_decision(self):
        decision = self.core.decisions()[-1]
        head = f"job {decision.handle}: {decision.reason} -> {decision.chosen} {decision.model}"
        return [head] + [f"  {each.node_id} {each.finish_s:.3f} s {each.verdict}" for each in decision.candidates]

    # Events.

    def on_models(self, plain, pairs):
        entries = [capability(model, text) for model, text in sorted(pairs.items())]
        loaded = frozenset(entry.model for entry, is_loaded in entries if is_loaded)
        yield ev.ModelChanged(
            table_digest=b"table-of", capabilities=tuple(entry for entry, _ in entries), loaded=loaded
        )

    def state(self, name, pairs):
        sequence = self.sequences[name] = self.sequences.get(name, 0) + 1
        return PeerState(
            node_id=name,
            epoch=1,
            sequence=sequence,
            backlog_s=float(pairs.get("backlog", 0)),
            slots=1,
            running_until_s=float(pairs.get("until", 0)),
            slow_down=1.0,
            warm=self.tables.get(name, (0, ()))[0],
            memory_free_bytes=0,
            draining="draining" in pairs,
            power_class=0,
            table_digest=name.encode().ljust(8, b"-"),
        )

    def on_peer(self, plain, pairs):
        name = plain[0]
        known = {key: pairs[key] for key in pairs if key not in ("backlog", "until", "draining")}
        if known:
            entries = [capability(model, text) for model, text in sorted(known.items())]
            warm = sum(1 << index for index, (_, is_loaded) in enumerate(entries) if is_loaded)
            self.tables[name] = (warm, tuple(entry for entry, _ in entries))
        state = self.state(name, pairs)
        yield ev.AdvertReceived(state=state)
        if known:
            yield ev.TableReceived(
                table=CapabilityTable(node_id=name, digest=state.table_digest, entries=self.tables[name][1])
            )

    def job(self, plain, pairs):
        origin = pairs.get("from")
        return Job(
            key=int(plain[0]).to_bytes(24, "big"),
            entry=pairs.get("entry", origin or "a"),
            hops=int(pairs.get("hops", 0 if origin is None else 1)),
            visited=tuple(pairs["visited"].split(",")) if "visited" in pairs else (origin,) if origin else (),
            client="camera",
            priority=int(pairs.get("priority", 1)),
            stream=pairs.get("stream", ""),
            frame=int(pairs.get("frame", 0)),
            newest_wins="stream" in pairs,
            input_bytes=int(pairs.get("bytes", 10_000)),
            arrival_s=self.now_s,
            deadline_s=self.now_s + float(pairs.get("budget", 2.0)),
            models=tuple(pairs.get("models", "large").split(",")),
        )

    def on_job(self, plain, pairs):
        yield ev.JobArrived(
            handle=int(plain[0]),
            job=self.job(plain, pairs),
            origin=pairs.get("from"),
            offer=int(pairs["offer"]) if "offer" in pairs else None,
            stolen="stolen" in plain,
            sender_estimate_s=float(pairs["estimate"]) if "estimate" in pairs else None,
        )

    def on_offer(self, plain, pairs):
        yield ev.OfferReceived(offer=int(plain[0]), peer=pairs["from"], job=self.job(plain, pairs))

    def answer_state(self, pairs):
        return self.state(pairs["from"], pairs) if "from" in pairs else None

    def on_probe_answered(self, plain, pairs):
        yield ev.ProbeAnswered(command=int(plain[0]), state=self.answer_state(pairs))

    def on_probe_failed(self, plain, pairs):
        yield ev.SendFailed(command=int(plain[0]), connected=False)

    def on_offer_answered(self, plain, pairs):
        yield ev.OfferAnswered(command=int(plain[0]), state=self.answer_state(pairs), rtt_s=0.004)

    def on_accepted(self, plain, pairs):
        yield ev.Accepted(command=int(plain[0]), state=self.answer_state(pairs), covered=(int(plain[0]),))

    def on_progressed(self, plain, pairs):
        yield ev.Progressed(command=int(plain[0]), state=self.answer_state(pairs))

    def on_nacked(self, plain, pairs):
        yield ev.Nacked(command=int(plain[0]), reason=Reason(plain[1]), state=self.answer_state(pairs))

    def on_reply(self, plain, pairs):
        failure = Reason(pairs["failure"]) if "failure" in pairs else None
        yield ev.ReplyReceived(
            command=int(plain[0]),
            model=None if failure else pairs.get("model", "large"),
            failure=failure,
            state=self.answer_state(pairs),
            times=None if failure else ServiceTimes(waiting_s=0.0, service_s=float(pairs.get("service", 0.02))),
            link=LinkSample(rtt_s=0.004, sent_bytes=0, sent_s=0.0),
        )

    def on_send_failed(self, plain, pairs):
        yield ev.SendFailed(command=int(plain[0]), connected="unreached" not in plain)

    def on_started(self, plain, pairs):
        yield ev.ServiceStarted(command=int(plain[0]))

    def on_finished(self, plain, pairs):
        yield ev.ServiceFinished(command=int(plain[0]), service_s=float(pairs["service"]))

    def on_failed(self, plain, pairs):
        yield ev.ServiceFailed(command=int(plain[0]), reason=Reason(plain[1]))

    def on_cancel(self, plain, pairs):
        yield ev.CancelRequested(handle=int(plain[0]))

    def on_steal_requested(self, plain, pairs):
        yield ev.StealRequested(
            request=int(plain[0]),
            peer=pairs["from"],
            state=self.answer_state(pairs),
            models=tuple(pairs["models"].split(",")),
            room=int(pairs.get("room", 4)),
        )

    def on_steal_answered(self, plain, pairs):
        yield ev.StealAnswered(command=int(plain[0]), granted=int(plain[1]), state=self.answer_state(pairs))

    def on_suspect(self, plain, pairs):
        yield ev.PeerSuspected(peer=plain[0])

    def on_refute(self, plain, pairs):
        yield ev.PeerRefuted(peer=plain[0])

    def on_peer_lost(self, plain, pairs):
        yield ev.PeerLost(peer=plain[0])

    def on_drain(self, plain, pairs):
        yield ev.DrainRequested()

    # Actions as text.

    def tell(self, action):
        words = [f"{self.now_s:.3f}", type(action).__name__]
        for name in action.__struct_fields__:
            value = getattr(action, name)
            if name == "reason":
                continue
            words.append(f"{name}={self.tell_value(value)}")
        return " ".join(words) + f" ({action.reason})"

    def tell_value(self, value):
        if isinstance(value, PeerState):
            flags = " draining" if value.draining else ""
            return f"[{value.epoch}.{value.sequence} backlog {value.backlog_s:.3f}{flags}]"
        if isinstance(value, Job):
            return f"[attempt {value.attempt} hops {value.hops} visited {','.join(value.visited)}]"
        if isinstance(value, float):
            return f"{value:.3f}"
        if isinstance(value, tuple):
            return "(" + ",".join(str(self.tell_value(each)) for each in value) + ")"
        return str(value)


def is_number(value):
    return isinstance(value, str) and value.replace(".", "", 1).isdigit()


def replay(text):
    """Return a transcript with its outputs as they are now."""
    player, written, commands, is_output = Player(), [], [], False
    for line in text.splitlines():
        if line == "----":
            written.append(line)
            for command in commands:
                written += player.play(command)
            commands, is_output = [], True
        elif is_output and line:
            continue
        else:
            is_output = False
            written.append(line)
            if line and not line.startswith("#"):
                commands.append(line)
    assert not commands, f"no ---- after {commands}"
    return "\n".join(written) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=[path.stem for path in TRANSCRIPTS])
def test_transcript(path):
    text = path.read_text()
    replayed = replay(text)
    if os.environ.get("GRIDNODE_REWRITE") == "1":
        path.write_text(replayed)
        return
    assert replayed.splitlines() == text.splitlines()


def test_there_are_transcripts():
    assert len(TRANSCRIPTS) >= 12
