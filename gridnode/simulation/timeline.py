"""Recordings of several nodes on one time line, under names that tell the nodes apart. Reads no file."""

from collections.abc import Sequence
from typing import Final

from gridnode.simulation.recorded import Entry, Recording, RecordingError

GAP_MAX_S: Final = 600.0
"""Silence between recordings that are replayed together: what clocks of a grid may differ by."""
Merged = list[tuple[float, Recording, Entry]]
"""Time from the first job, the node, the job; ascending."""


def labels(recordings: Sequence[Recording]) -> dict[str, str]:
    """Return a name for each node by PeerID; nodes of one name get the tail of their PeerID, too."""
    names = [each.name for each in recordings]
    return {
        each.node: each.name if names.count(each.name) == 1 else f"{each.name}.{each.node[-8:]}" for each in recordings
    }


def on_one_clock(recordings: Sequence[Recording], *, align: str) -> Merged:
    """Return the jobs of several nodes in the order in which they came, in seconds from the first.

    Parameters
    ----------
    recordings : sequence of Recording
        One per node.
    align : {"clock", "start"}
        Whether their clocks say when they began beside one another, or all began at once.

    Raises
    ------
    RecordingError
        Two are of one node, none has a job, or clocks say that they were recorded at different times.
    """
    for number, each in enumerate(recordings):
        for other in recordings[:number]:
            if each.node == other.node:
                raise RecordingError(f"{each.path} and {other.path} are of one node, {each.name}; give one of them")
    full = [each for each in recordings if each.jobs]
    if not full:
        listed = ", ".join(each.path for each in recordings)
        raise RecordingError(f"{listed}: no job yet; a job is recorded when it has its outcome")
    if align == "clock":
        _check_overlap(full)
    first_s = min(each.jobs[0].at_s for each in full)
    begins_s = {each.node: first_s if align == "clock" else each.jobs[0].at_s for each in full}
    merged = [(entry.at_s - begins_s[each.node], each, entry) for each in full for entry in each.jobs]
    return sorted(merged, key=lambda item: item[0])


def _check_overlap(recordings: Sequence[Recording]) -> None:
    """Refuse recordings with a time between them in which no node recorded: a replay would be mostly silence."""
    spans = sorted((each.jobs[0].at_s, each.jobs[-1].at_s, each.path) for each in recordings)
    end_s, last = spans[0][1], spans[0][2]
    for begin_s, until_s, path in spans[1:]:
        if begin_s > end_s + GAP_MAX_S:
            raise RecordingError(
                f"{path} begins {begin_s - end_s:.0f} s after {last} ended: they are of different times, or a "
                'clock was wrong; lay them over one another with align = "start" (--align start)'
            )
        if until_s > end_s:
            end_s, last = until_s, path
