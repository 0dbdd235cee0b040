"""What the local way costs beside gRPC: client -> own daemon -> worker, against one unary gRPC call of the same bytes.

Both answer with a few bytes; the model takes a slice of its input, so that nearly all of the time is transport. One
run interleaves in-process onnxruntime, gRPC (sync server of its own process, plaintext, loopback TCP) and gridnode
(default settings, real daemon, real worker process), checks every answer, and prints the median over rounds.

    overhead = p50 of gridnode - p50 of the same model in this process; goal: <= 1.5 x p50 of gRPC
    CPU ms   = processor time of all processes that take part, per call

Usage: .venv/bin/python benches/local_overhead.py [--rounds N] [--calls N] [--json FILE]
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from gridnode.client import Grid
from gridnode.errors import GridError

SIZES = {"10 kB": 10_000, "150 kB": 150_528, "600 kB": 602_112, "2.7 MB": 2_764_800}
WARM_UP = 20
METHOD = "/bench.Echo/Call"


def make_model(path: Path, size_bytes: int) -> None:
    """Write a model that returns the first 16 of its uint8 inputs."""
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [size_bytes])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [16])
    names = ("starts", "ends")
    tensors = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in zip(names, (0, 16), strict=True)]
    graph = helper.make_graph([helper.make_node("Slice", ["x", *names], ["y"])], "slice", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)


def serve_grpc() -> None:
    """Answer calls with their first 16 bytes; prints the port."""

    def call(request: bytes, context: grpc.ServicerContext) -> bytes:
        return request[:16]

    handler = grpc.unary_unary_rpc_method_handler(call)
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 64 << 20)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Call": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "gridnode", *words]


def start_grid(folder: Path, models: dict[str, Path]) -> tuple[subprocess.Popen, Grid]:
    """Make a grid of one node with the models published, and start its daemon."""
    state, socket = str(folder / "node"), str(folder / "node.sock")
    run = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(command("grid", "create", "bench", "--state-dir", state, "--owner-dir", f"{folder}/owner"), **run)
    for name, path in models.items():
        words = ("model", "publish", str(path), "--name", name, "--state-dir", state, "--owner-dir", f"{folder}/owner")
        subprocess.run(command(*words, "--socket", socket), **run)
    words = ("run", "--preset", "loopback", "--state-dir", state, "--socket", socket, "--log-level", "warning")
    daemon = subprocess.Popen(command(*words, "--set", "metrics.enabled=false"))
    grid = Grid(socket)
    limit_s = time.monotonic() + 120
    while time.monotonic() < limit_s:
        try:
            if sum(item["state"] == "ready" for item in grid.models()["items"]) == len(models):
                return daemon, grid
        except GridError:
            pass
        time.sleep(0.2)
    daemon.kill()
    raise SystemExit("the daemon did not become ready within 120 s")


def measure(call, calls: int) -> list[float]:
    times_s = []
    for _ in range(calls):
        start_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - start_s)
    return times_s


def cpu_s(pids: list[int]) -> float:
    """Return the processor time of processes so far, all their threads, to the nanosecond."""
    spent_ns = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
                spent_ns += int((thread / "schedstat").read_text().split()[0])
    return spent_ns / 1e9


def bench_size(name: str, size_bytes: int, grid: Grid, daemon: int, server: int, channel, folder: Path, options):
    """Interleave the three ways for one size."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size_bytes, dtype=np.uint8)
    raw, head = x.tobytes(), x[:16]
    session = ort.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    unary = channel.unary_unary(METHOD)

    def in_process() -> None:
        assert np.array_equal(session.run(None, {"x": x})[0], head)

    def by_grpc() -> None:
        assert unary(raw) == head.tobytes()

    def by_gridnode() -> None:
        result = grid.infer(name, {"x": x}, deadline_s=10.0, raw_outputs=True)
        assert np.array_equal(result.tensors["y"], head)

    worker = [item["pid"] for item in grid.status()["workers"] if item["model"] == name]
    ways = {"in-process": in_process, "gRPC": by_grpc, "gridnode local": by_gridnode}
    processes = {"in-process": [], "gRPC": [server], "gridnode local": [daemon, *worker]}
    for call in ways.values():
        measure(call, WARM_UP)
    rounds = {way: {"p50": [], "p99": [], "cpu": []} for way in ways}
    for _ in range(options.rounds):
        for way, call in ways.items():
            pids = [os.getpid(), *processes[way]]
            before_s = cpu_s(pids)
            times_s = sorted(measure(call, options.calls))
            rounds[way]["cpu"].append((cpu_s(pids) - before_s) / options.calls * 1e3)
            rounds[way]["p50"].append(times_s[len(times_s) // 2] * 1e3)
            rounds[way]["p99"].append(times_s[int(len(times_s) * 0.99)] * 1e3)
    return {way: {key: statistics.median(values) for key, values in found.items()} for way, found in rounds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved repetitions (default 7)")
    parser.add_argument("--calls", type=int, default=200, help="calls per way and round (default 200)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--grpc-server", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grpc_server:
        serve_grpc()
        return 0
    folder = Path(tempfile.mkdtemp(prefix="gridnode-bench-"))
    server = subprocess.Popen([sys.executable, __file__, "--grpc-server"], stdout=subprocess.PIPE, text=True)
    daemon = None
    try:
        names = {f"slice{size}": size for size in SIZES.values()}
        models = {name: folder / f"{name}.onnx" for name in names}
        for name, path in models.items():
            make_model(path, names[name])
        assert server.stdout is not None
        port = int(server.stdout.readline())
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", 64 << 20)])
        daemon, grid = start_grid(folder, models)
        found = {
            label: bench_size(f"slice{size}", size, grid, daemon.pid, server.pid, channel, folder, options)
            for label, size in SIZES.items()
        }
        grid.close()
        channel.close()
    finally:
        server.terminate()
        server.wait()
        if daemon is not None:
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
    print_table(found, options)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "figures": found}, indent=2) + "\n")
    return 0


def machine() -> dict[str, object]:
    """Describe where the figures come from."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def print_table(found, options) -> None:
    print(f"machine {machine()}; median of {options.rounds} rounds of {options.calls} calls; plaintext, loopback\n")
    print(f"{'size':>8}  {'way':<15} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>8} {'overhead / gRPC p50':>20}")
    for label, ways in found.items():
        for way, figures in ways.items():
            ratio = ""
            if way == "gridnode local":
                overhead_ms = figures["p50"] - ways["in-process"]["p50"]
                ratio = f"{overhead_ms / ways['gRPC']['p50']:.2f}x"
            print(
                f"{label:>8}  {way:<15} {figures['p50']:8.3f} {figures['p99']:8.3f} {figures['cpu']:8.3f} {ratio:>20}"
            )


if __name__ == "__main__":
    raise SystemExit(main())
