"""How much memory a process takes, from /proc. Blocks for microseconds."""

from pathlib import Path

_UNIT_BYTES = 1024


def memory_now(pid: int) -> int:
    """Return the memory of a process in bytes, 0 where it is gone.

    Proportional set size where the kernel lets us read it (shared pages count once over all processes), else
    resident set size.
    """
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") or _field(Path(f"/proc/{pid}/status"), "VmRSS:")


def memory_peak(pid: int) -> int:
    """Return the largest resident set size of a process so far in bytes, 0 where it is gone."""
    return _field(Path(f"/proc/{pid}/status"), "VmHWM:")


def _field(path: Path, name: str) -> int:
    """Read a line such as ``VmRSS:   1234 kB``."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * _UNIT_BYTES for line in lines if line.startswith(name)), 0)
