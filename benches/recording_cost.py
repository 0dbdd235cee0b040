"""What recording a trace costs a daemon, in processor time per job, encoding and writing both counted.

Three ways are interleaved over the same jobs: no recorder (the test that hands make when `trace.path` is empty), a
recorder that writes to a disk, and the same with streams, whose names are veiled. Median over rounds; the file's bytes
per job beside it, and the longest time that one job held up the event loop.

Usage: .venv/bin/python benches/recording_cost.py [--rounds N] [--jobs N] [--folder DIR] [--json FILE]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import trio

from gridnode.jobtable import Answer
from gridnode.recording import Machine, Recorder
from gridnode.tracefile import DiskTraceFile, before
from gridnode.tracerecords import Header
from scheduler.types import Capability, Job

HEADER = Header(
    node="me", name="board", software="0", epoch=1, grid_s=0.0, clock_s=0.0, policy="capd", executor="onnxruntime"
)
MODEL = Capability(model="d" * 64, mean_s=0.03, p95_s=0.04, memory_bytes=1, load_s=1.0)
MACHINE = Machine(slots=1, cpu_share=1.0, threads=1, slow_down=1.0, models=(MODEL,), rtts_s={"peer": 0.002})
ANSWER = Answer(model="d" * 64, node="me", hops=0, waiting_s=0.01, service_s=0.03, body=b"b" * 90, payload=b"")
BURST = 100
"""Jobs between two turns of the event loop."""


def make_jobs(count: int, stream: str) -> list[Job]:
    return [
        Job(
            key=number.to_bytes(24, "big"),
            entry="me",
            client="0123456789abcdef",
            stream=stream,
            input_bytes=150_000,
            arrival_s=number * 0.01,
            deadline_s=number * 0.01 + 0.5,
            models=("d" * 64,),
        )
        for number in range(count)
    ]


def measure(jobs: list[Job], path: Path | None) -> tuple[float, float]:
    """Return processor seconds for all jobs, all threads, and the longest call."""
    recorder = None
    if path is not None:
        recorder = Recorder(
            DiskTraceFile(path, most_bytes=1 << 29),
            limit_bytes=1 << 29,
            header=HEADER,
            machine=lambda: MACHINE,
            model_name=lambda digest: "street",
            node_name=lambda node: "board",
            grid_s=time.time,
            secret=b"secret",
        )

    async def main() -> tuple[float, float]:
        longest_s = 0.0
        async with trio.open_nursery() as nursery:
            if recorder is not None:
                nursery.start_soon(recorder.serve)
            await trio.sleep(0.05)
            begun_s = time.process_time()
            for start in range(0, len(jobs), BURST):
                for job in jobs[start : start + BURST]:
                    called_s = time.perf_counter()
                    if recorder is not None:
                        recorder.answered(job, ANSWER, now_s=job.arrival_s + 0.04)
                    longest_s = max(longest_s, time.perf_counter() - called_s)
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        return time.process_time() - begun_s, longest_s

    spent = trio.run(main)
    if recorder is not None:
        assert recorder.statistics().jobs == len(jobs), recorder.statistics()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--folder", type=Path, help="on the disk to write to (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plain, frames = make_jobs(options.jobs, ""), make_jobs(options.jobs, "0123456789abcdef/door")
    spent: dict[str, list[float]] = {"off": [], "requests": [], "frames": []}
    longest: dict[str, list[float]] = {name: [] for name in spent}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "jobs.trace"
        for number in range(options.rounds + 1):  # the first warms up
            for name, jobs, where in (("off", plain, None), ("requests", plain, path), ("frames", frames, path)):
                cpu_s, longest_s = measure(jobs, where)
                if number:
                    spent[name].append(cpu_s / options.jobs * 1e6)
                    longest[name].append(longest_s * 1e6)
                if where is not None:
                    size_bytes = path.stat().st_size
                    path.unlink()
                    before(path).unlink(missing_ok=True)
    off_us = statistics.median(spent["off"])
    found = {
        name: {
            "cpu_us_per_job": statistics.median(values) - (off_us if name != "off" else 0.0),
            "longest_call_us": statistics.median(longest[name]),
        }
        for name, values in spent.items()
    }
    found["bytes_per_frame"] = size_bytes / options.jobs
    for name in ("off", "requests", "frames"):
        each = found[name]
        print(
            f"{name:10} {each['cpu_us_per_job']:6.2f} us of CPU per job   longest call {each['longest_call_us']:.0f} us"
        )
    print(f"{found['bytes_per_frame']:.0f} bytes per frame ('off' is the loop itself, taken from the others)")
    if options.json:
        found |= {"machine": platform.machine(), "python": platform.python_version(), "jobs": options.jobs}
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
