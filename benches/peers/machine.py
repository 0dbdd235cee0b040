"""Where figures come from: machine, load, versions, commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from benches.peers.processes import ROOT

LIBRARIES = ("numpy", "onnxruntime", "grpcio", "eclipse-zenoh", "fastapi", "uvicorn", "uvloop", "ray", "trio", "libp2p")


def describe() -> dict[str, object]:
    """Return what a reader must know to repeat a run, or to doubt it."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
    }


def line(machine: dict[str, object]) -> str:
    """Say it in one paragraph."""
    libraries = machine["libraries"]
    assert isinstance(libraries, dict)
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    load = machine["load"]
    assert isinstance(load, list)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, Linux {machine['kernel']}, "
        f"load {load[0]} before the run; Python {machine['python']}, {versions}; commit {machine['commit']}"
    )


def _cpu_model() -> str:
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith(("model name", "Model")):
            return text.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
