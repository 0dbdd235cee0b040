"""What gossip costs: processor time per delivered state record, and of a daemon that idles among its peers.

`hosts`: real control planes (transport.libp2p_host, a private grid's TLS, 127.0.0.1), one process each. In each round
every variant idles, then publishes signed state records of real size at such a rate that each node hears RATE of
them per second. Variants take turns within one run, so that they see the same machine:

    yamux   libp2p's muxer, as another implementation would speak it
    mux     our own muxer (transport.libp2p_mux)
    base    another checkout of this project, with --against DIR

    per record = processor time of all processes over distinct records delivered to nodes other than the origin;
                 "net" without what the same nodes used while nothing was published, "gross" with it
    M instr    = million instructions per record, gross (perf): what a busy machine does not change
    copies     = messages that arrived per distinct record: duplicates of the mesh cost, too
    Goal: <= 1.0 ms net, stretch 0.4 ms.

`daemons`: whole daemons (gridnode run, no model) that idle, N - 1 peers each; processor time and memory (PSS) per
daemon. Goal: <= 0.5 % of a core with 5 peers, <= 2 % with 20; stretch 0.2 % and 1 %.

Usage: .venv/bin/python benches/gossip_cost.py [hosts|daemons|all] [--nodes 5,20] [--rounds N] [--against DIR]
                                               [--variants yamux,mux] [--json FILE]
"""

import argparse
import base64
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
RATE_HZ = 8.0
"""Records that each node hears per second: what the core's budget lets it hear (scheduler.advertise)."""
IDLE_S = 6.0
LOAD_S = 12.0
SETTLE_S = 6.0
"""From the last dial to the first measurement: meshes are grafted within a few heartbeats."""
GRACE_S = 1.5
"""From the last record published to the count."""
GOALS = {"record": (1.0, 0.4), 5: (0.5, 0.2), 20: (2.0, 1.0)}
"""(goal, stretch): ms per record; per cent of a core by number of peers."""
MUXERS = {"yamux": ("/yamux/1.0.0",), "mux": ("/gridnode/mux/1.0.0", "/yamux/1.0.0")}


# ---------------------------------------------------------------- one host, in a process of its own


def run_host() -> None:
    """Serve one host; commands and answers are JSON lines on stdin and stdout."""
    from transport.libp2p_imports import leave_out

    leave_out()
    import trio
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from transport.base import STATE_TOPIC, Dial, GossipMessage
    from transport.certificates import GridTrust, NothingRevoked
    from transport.gridtime import GridTime
    from transport.identity import NodeKey
    from transport.libp2p_host import Libp2pConfig, Libp2pHost
    from transport.wire import StateRecord, decode_state, encode

    told = json.loads(sys.stdin.readline())
    key = NodeKey(Ed25519PrivateKey.from_private_bytes(base64.b64decode(told["raw"])))
    trust = GridTrust(
        told["ca"].encode(), told["grid_id"], revocations=NothingRevoked(), grid_time=GridTime(lambda: told["now_s"])
    )
    options = {"muxers": tuple(told["muxers"])} if "muxers" in Libp2pConfig.__struct_fields__ else {}
    options |= told["config"]
    host = Libp2pHost(
        key,
        grid_id=told["grid_id"],
        epoch=1,
        listen=("127.0.0.1", 0),
        trust=trust,
        chain_pem=told["chain"].encode(),
        on_bug=sys.exit,
        config=Libp2pConfig(**options),
    )
    latencies: list[float] = []
    published = copies = 0
    numbers = iter(range(1, 1 << 40))

    def judge(message: GossipMessage) -> bool:
        record = decode_state(message.data)
        return record.node == message.origin

    def count_copies() -> None:
        nonlocal copies
        push = host._pubsub.push_msg

        async def counted(forwarder: Any, msg: Any) -> None:
            nonlocal copies
            copies += forwarder != host._pubsub.my_id
            await push(forwarder, msg)

        host._pubsub.push_msg = counted  # type: ignore[method-assign]

    def copies_now() -> int:
        found = host.statistics()
        return found.copies if hasattr(found, "copies") else copies

    def record() -> bytes:
        now_s = time.monotonic() % 1e6  # in place of the backlog: says when it was published
        return encode(StateRecord(1, key.node, 1, next(numbers), now_s, 2, 0.25, 1.5, 7, 1 << 30, False, 0, bytes(8)))

    async def hear() -> None:
        async for message in host.messages():
            latencies.append(time.monotonic() % 1e6 - decode_state(message.data).backlog_s)

    async def load(rate_hz: float, until_s: float, seed: str) -> None:
        nonlocal published
        rng = random.Random(seed)
        await trio.sleep(rng.uniform(0, 1 / rate_hz))
        while time.monotonic() < until_s:
            await host.publish(STATE_TOPIC, record())
            published += 1
            await trio.sleep(rng.uniform(0.9, 1.1) / rate_hz)

    async def main() -> None:
        nonlocal published
        host.set_validator(STATE_TOPIC, judge)
        if not hasattr(host.statistics(), "copies"):
            count_copies()
        async with trio.open_nursery() as nursery:
            address = await nursery.start(host.serve)
            nursery.start_soon(hear)
            print(json.dumps({"port": address[1], "size": len(record())}), flush=True)
            text = b""
            async for part in trio.lowlevel.FdStream(os.dup(0)):
                text += part
                while b"\n" in text:
                    line, text = text.split(b"\n", 1)
                    command = json.loads(line)
                    match command["do"]:
                        case "dial":
                            for node, port in command["peers"]:
                                await host.connect(Dial(node=node, host="127.0.0.1", port=port))
                        case "load":
                            nursery.start_soon(load, command["rate_hz"], command["until_s"], command["seed"])
                    answer = {
                        "cpu_s": time.process_time(),
                        "latencies": latencies.copy(),
                        "copies": copies_now(),
                        "published": published,
                        "neighbours": len(host.neighbours()),
                        "mesh": sum(map(len, host._gossip.mesh.values())) / 5,
                        "faults": host.statistics().faults,
                    }
                    latencies.clear()
                    print(json.dumps(answer), flush=True)
            nursery.cancel_scope.cancel()

    profile = os.environ.get("GOSSIP_PROFILE")
    if profile and told["number"] == 0:
        import cProfile

        profiler = cProfile.Profile()
        profiler.runcall(trio.run, main)
        profiler.dump_stats(profile)
    else:
        trio.run(main)


class Host:
    """One process with one host."""

    def __init__(self, grid: Any, number: int, *, muxers: tuple[str, ...], tree: Path, config: dict[str, Any]) -> None:
        self.member = grid.make_node()
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(tree)},
            cwd=tree,
        )
        told = {
            "number": number,
            "raw": base64.b64encode(self.member.key.raw_private).decode(),
            "chain": self.member.chain_pem.decode(),
            "ca": grid.ca_pem.decode(),
            "grid_id": grid.grid_id,
            "now_s": grid.now_s,
            "muxers": muxers,
            "config": config,
        }
        self.tell(told)

    def tell(self, what: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"host {self.process.pid} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Fleet:
    """N hosts of one variant, connected as discovery connects them: about eight neighbours each."""

    def __init__(self, name: str, nodes: int, options: argparse.Namespace) -> None:
        from transport.sandbox import SandboxGrid

        self.name = name
        tree = Path(options.against).resolve() if name == "base" else HERE
        muxers = MUXERS.get(name, MUXERS["mux"])
        grid = SandboxGrid()
        self.hosts = []
        for number in range(nodes):  # a few at a time: each start costs half a second of processor
            config = {} if name == "base" else json.loads(options.config)
            self.hosts.append(Host(grid, number, muxers=muxers, tree=tree, config=config))
        ports = [host.hear()["port"] for host in self.hosts]
        reach = min(4, nodes - 1)
        rng = random.Random(7)
        for i, host in enumerate(self.hosts):
            chosen = list(range(i)) if nodes <= 9 else rng.sample([j for j in range(nodes) if j != i], reach)
            host.tell({"do": "dial", "peers": [(self.hosts[j].member.node, ports[j]) for j in chosen]})
            host.hear()

    def ask(self, **command: Any) -> list[dict[str, Any]]:
        for host in self.hosts:
            host.tell({"do": "mark"} | command)
        return [host.hear() for host in self.hosts]

    def close(self) -> None:
        for host in self.hosts:
            host.close()


class Instructions:
    """Counts the instructions of a fleet, user's and kernel's, by perf; nought where there is no perf.

    They depend on neither the clock of the processor nor on who else is busy, so they compare where times do not.
    """

    def __init__(self, fleet: Fleet) -> None:
        pids = ",".join(str(host.process.pid) for host in fleet.hosts)
        command = ["perf", "stat", "-x,", "-e", "instructions:u,instructions:k", "-p", pids]
        self._process = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def stop(self) -> float:
        if self._process is None:
            return 0.0
        self._process.send_signal(signal.SIGINT)
        counted = [line.split(",")[0] for line in self._process.communicate()[1].splitlines()]
        return float(sum(int(count) for count in counted if count.isdigit()))


def spent_s(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> float:
    return sum(b["cpu_s"] - a["cpu_s"] for a, b in zip(before, after, strict=True))


def bench_hosts(nodes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the variants with N nodes each."""
    names = options.variants.split(",") + (["base"] if options.against else [])
    fleets: list[Fleet] = []
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for name in names:
            fleets.append(Fleet(name, nodes, options))
        time.sleep(SETTLE_S)
        for number in range(options.rounds):
            begin = [fleet.ask() for fleet in fleets]
            time.sleep(options.idle_s)
            idle = {
                fleet.name: spent_s(before, fleet.ask()) / options.idle_s
                for fleet, before in zip(fleets, begin, strict=True)
            }
            for fleet in fleets[number % len(fleets) :] + fleets[: number % len(fleets)]:
                rounds[fleet.name].append(measure(fleet, nodes, idle[fleet.name], options, number))
                print(nodes, fleet.name, rounds[fleet.name][-1], file=sys.stderr, flush=True)
    finally:
        for fleet in fleets:
            fleet.close()
    return {name: {key: statistics.median(r[key] for r in found) for key in found[0]} for name, found in rounds.items()}


def measure(fleet: Fleet, nodes: int, idle: float, options: argparse.Namespace, number: int) -> dict[str, float]:
    """Publish for a while; returns figures of this round."""
    until_s = time.monotonic() + options.load_s
    began_s = time.monotonic()
    before = fleet.ask()
    counter = Instructions(fleet)
    for i, host in enumerate(fleet.hosts):
        rate_hz = options.rate / (nodes - 1)
        host.tell({"do": "load", "rate_hz": rate_hz, "until_s": until_s, "seed": f"{number}/{i}"})
        host.hear()
    time.sleep(max(0.0, until_s - time.monotonic()) + GRACE_S)
    instructions = counter.stop()
    after = fleet.ask()
    length_s = time.monotonic() - began_s
    latencies = sorted(latency for answer in after for latency in answer["latencies"])
    delivered = len(latencies)
    published = sum(b["published"] - a["published"] for a, b in zip(before, after, strict=True))
    copies = sum(b["copies"] - a["copies"] for a, b in zip(before, after, strict=True))
    gross_s = spent_s(before, after)
    faults = [answer["faults"] for answer in after if answer["faults"]]
    if faults:
        print("faults:", faults, file=sys.stderr)
    return {
        "net_ms": 1e3 * (gross_s - idle * length_s) / max(delivered, 1),
        "gross_ms": 1e3 * gross_s / max(delivered, 1),
        "million_instructions": instructions / 1e6 / max(delivered, 1),
        "idle_percent_per_node": 100 * idle / nodes,
        "load_percent_per_node": 100 * gross_s / length_s / nodes,
        "heard_hz": delivered / nodes / options.load_s,
        "copies": copies / max(delivered, 1),
        "delivery": delivered / max(published * (nodes - 1), 1),
        "p50_ms": 1e3 * latencies[len(latencies) // 2] if latencies else -1.0,
        "p99_ms": 1e3 * latencies[int(len(latencies) * 0.99)] if latencies else -1.0,
        "neighbours": statistics.fmean(answer["neighbours"] for answer in after),
        "mesh": statistics.fmean(answer["mesh"] for answer in after),
    }


# ---------------------------------------------------------------- whole daemons


class Daemons:
    """Daemons of one grid, from one checkout."""

    def __init__(self, nodes: int, folder: Path, tree: Path, settings: list[str]) -> None:
        self.tree = tree
        self.folder = folder
        self.settings = settings
        self.processes: list[subprocess.Popen[bytes]] = []
        self._grid()
        for number in range(1, nodes):
            self._join(number)

    def _run(self, code: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *words],
            env=os.environ | {"PYTHONPATH": str(self.tree)},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def _grid(self) -> None:
        code = (
            "import sys, time; from pathlib import Path; from gridnode.gridsetup import create_grid;"
            "from gridnode.statedir import StateDirectory as S; f = Path(sys.argv[1]);"
            "create_grid(S(f / 'n0'), f / 'owner', 'bench', now_s=time.time())"
        )
        self._run(code, str(self.folder))
        self._start(0)
        self._wait(lambda: self.ask(0, "status"))

    def _join(self, number: int) -> None:
        code = (
            "import sys, time, trio, functools; from pathlib import Path; from gridnode.joining import join_grid;"
            "from gridnode.statedir import StateDirectory as S; folder, token, name = sys.argv[1:];"
            "trio.run(functools.partial(join_grid, S(Path(folder)), token, name=name, clock=time.time))"
        )
        token = self.ask(0, "invite")["token"]
        self._run(code, str(self.folder / f"n{number}"), token, f"n{number}")
        self._start(number)

    def _start(self, number: int) -> None:
        folder = self.folder / f"n{number}"
        sets = [word for setting in self.settings for word in ("--set", setting)]
        log = (self.folder / f"n{number}.log").open("ab")
        with log:
            self.processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-P", "-m", "gridnode", "run", "--preset", "loopback"),
                        *("--state-dir", str(folder), "--name", f"n{number}", "--socket", self._socket(number), *sets),
                    ],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": str(self.tree)},
                )
            )

    def _socket(self, number: int) -> str:
        return str(self.folder / f"n{number}.sock")

    def _wait(self, condition: Any, limit_s: float = 60.0) -> None:
        until_s = time.monotonic() + limit_s
        while True:
            with contextlib.suppress(Exception):
                if condition():
                    return
            if time.monotonic() > until_s:
                raise RuntimeError(f"not within {limit_s} s; logs are in {self.folder}")
            time.sleep(0.2)

    def ask(self, number: int, what: str) -> Any:
        from gridnode.client import Grid

        with Grid(self._socket(number)) as grid:
            return grid.ask(what)

    def wait_met(self) -> None:
        """Wait until every daemon knows every other."""
        wanted = len(self.processes) - 1

        def has_met(number: int) -> bool:
            items = self.ask(number, "peers")["items"]
            return sum(peer["status"] == "alive" and peer["backlog_s"] is not None for peer in items) >= wanted

        for number in range(len(self.processes)):
            self._wait(lambda number=number: has_met(number), 120.0)

    def cpu_s(self) -> list[float]:
        """Processor time of each daemon, all its threads, from the scheduler's own books."""
        found = []
        for process in self.processes:
            tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
            found.append(sum(int(task.read_text().split()[0]) for task in tasks) / 1e9)
        return found

    def pss_mb(self) -> list[float]:
        found = []
        for process in self.processes:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            found.append(next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024)
        return found

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def bench_daemons(peers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure daemons that idle, each with this many peers; checkouts take turns where there are two."""
    trees = {"here": HERE} | ({"base": Path(options.against).resolve()} if options.against else {})
    grids: dict[str, Daemons] = {}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory(prefix="gossip") as folder:
        try:
            for name, tree in trees.items():
                place = Path(folder) / name
                place.mkdir()
                grids[name] = Daemons(peers + 1, place, tree, options.set)
            for grid in grids.values():
                grid.wait_met()
            time.sleep(options.settle_daemons_s)
            for _ in range(options.daemon_rounds):
                before = {name: grid.cpu_s() for name, grid in grids.items()}
                began_s = time.monotonic()
                time.sleep(options.daemon_s)
                for name, grid in grids.items():
                    length_s = time.monotonic() - began_s
                    spent = [100 * (b - a) / length_s for a, b in zip(before[name], grid.cpu_s(), strict=True)]
                    pss = grid.pss_mb()
                    found[name].append(
                        {
                            "idle_percent": statistics.fmean(spent),
                            "idle_percent_worst": max(spent),
                            "pss_mb": statistics.fmean(pss),
                        }
                    )
                    print(peers, name, found[name][-1], file=sys.stderr, flush=True)
        finally:
            for grid in grids.values():
                grid.close()
    return {name: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for name, rows in found.items()}


# ---------------------------------------------------------------- telling


def machine() -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "commit": commit.stdout.strip(),
    }


def verdict(value: float, goals: tuple[float, float]) -> str:
    return "stretch met" if value <= goals[1] else "met" if value <= goals[0] else "not met"


def print_hosts(nodes: int, found: dict[str, dict[str, float]]) -> None:
    print(f"\n{nodes} nodes, each hears {next(iter(found.values()))['heard_hz']:.1f} records/s (ms of processor time)")
    print("variant  net/record  gross/record  M instr  idle %  load %  copies  delivery  p50 ms  p99 ms  goal")
    for name, row in found.items():
        print(
            f"{name:8} {row['net_ms']:10.2f} {row['gross_ms']:13.2f} {row['million_instructions']:8.2f}"
            f" {row['idle_percent_per_node']:7.2f} {row['load_percent_per_node']:7.2f} {row['copies']:7.2f}"
            f" {row['delivery']:9.4f} {row['p50_ms']:7.1f} {row['p99_ms']:7.1f}"
            f"  {verdict(row['net_ms'], GOALS['record'])}"
        )


def print_daemons(peers: int, found: dict[str, dict[str, float]]) -> None:
    goals = GOALS.get(peers)
    print(f"\nidle daemons with {peers} peers each")
    print("checkout  % of a core  worst  PSS MB  goal")
    for name, row in found.items():
        told = verdict(row["idle_percent"], goals) if goals else "-"
        print(f"{name:8} {row['idle_percent']:12.2f} {row['idle_percent_worst']:6.2f} {row['pss_mb']:7.1f}  {told}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=("hosts", "daemons", "all"))
    parser.add_argument("--nodes", default="5,20")
    parser.add_argument("--peers", default="5,20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=RATE_HZ, help="records that each node hears per second")
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    parser.add_argument("--load-s", type=float, default=LOAD_S)
    parser.add_argument("--daemon-s", type=float, default=30.0)
    parser.add_argument("--daemon-rounds", type=int, default=2)
    parser.add_argument("--settle-daemons-s", type=float, default=20.0)
    parser.add_argument("--variants", default="yamux,mux")
    parser.add_argument("--config", default="{}", help="settings of Libp2pConfig for this checkout, as JSON")
    parser.add_argument("--set", action="append", default=[], help="a setting of the daemons, section.key=value")
    parser.add_argument("--against", help="another checkout of this project, measured in turn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine()}
    print(f"machine {machine()}; medians of {options.rounds} rounds")
    if options.what in ("hosts", "all"):
        result["hosts"] = {}
        for nodes in map(int, options.nodes.split(",")):
            result["hosts"][nodes] = found = bench_hosts(nodes, options)
            print_hosts(nodes, found)
    if options.what in ("daemons", "all"):
        result["daemons"] = {}
        for peers in map(int, options.peers.split(",")):
            result["daemons"][peers] = found = bench_daemons(peers, options)
            print_daemons(peers, found)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    if "--host" in sys.argv:
        run_host()
    else:
        sys.path.insert(0, str(HERE))
        sys.exit(main())
