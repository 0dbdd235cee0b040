"""Scenarios from files: those that are shipped by name, others by path, with the recordings that they replay.

Errors are the author's: `SimulationInputError` names the file, and in it line, key, value and what is allowed.
"""

import csv
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from gridnode.errors import ConfigError
from gridnode.simulation.recorded import Entry, is_recording, read_recording
from gridnode.simulation.timeline import labels, on_one_clock
from simulator.scenario import Scenario
from simulator.scenariorules import check
from simulator.scenariotext import altered, parse
from simulator.sources import RecordedJob, ReplaySource
from simulator.tomllines import line_of
from simulator.values import ScenarioError

SUFFIX: Final = ".toml"
ARRIVALS_MAX: Final = 5_000_000
"""Timestamps read from one file: 40 MB of memory."""


class SimulationInputError(ConfigError):
    """A file or an argument of a simulation is wrong; its author can put it right."""


def shipped() -> dict[str, Traversable]:
    """Return the scenarios that come with the simulator, by name."""
    found = files("simulator").joinpath("scenarios").iterdir()
    return {each.name.removesuffix(SUFFIX): each for each in sorted(found, key=lambda each: each.name)}


def load(name: str, changes: Mapping[str, object] | None = None) -> Scenario:
    """Load a scenario.

    Parameters
    ----------
    name : str
        Path of a TOML file, or the name of a shipped scenario.
    changes : mapping of str to object, optional
        Values in place of the file's, by key; see simulator.scenariotext.parse.

    Returns
    -------
    Scenario
        With all recordings that it replays.

    Raises
    ------
    SimulationInputError
        When there is no such file, or something in it is wrong.
    """
    path = Path(name)
    if path.suffix == SUFFIX or path.exists():
        text, folder = _read(path), path.parent
    else:
        known = shipped()
        if name not in known:
            listed = ", ".join(known)
            raise SimulationInputError(f"no scenario is named {name!r}; there are {listed}, and paths of .toml files")
        text, folder = known[name].read_text(encoding="utf-8"), Path()
    try:
        scenario = parse(text, changes)
    except ScenarioError as error:
        raise SimulationInputError(f"{name}: {error}") from None
    try:
        return _with_recordings(scenario, folder)
    except ScenarioError as error:
        line = line_of(text, error.path)
        raise SimulationInputError(f"{name}: {ScenarioError(error.message, error.path, line)}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SimulationInputError(f"{path} cannot be read: {reason}") from None


def changes_of(settings: Iterable[str]) -> dict[str, object]:
    """Read `key=value` arguments; a value is TOML, or else a text.

    Examples
    --------
    >>> changes_of(["duration_s=20", "policy=jsq(d=2)", "nodes.pi.models=['m']"])
    {'duration_s': 20, 'policy': 'jsq(d=2)', 'nodes.pi.models': ['m']}
    """
    changes: dict[str, object] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip():
            raise SimulationInputError(f"--set {setting!r} is no key=value; write it like sources.0.load=0.8")
        changes[key.strip()] = toml_value(value.strip())
    return changes


def with_changes(scenario: Scenario, changes: Mapping[str, object]) -> Scenario:
    """Return a scenario with other values; raises SimulationInputError."""
    try:
        return altered(scenario, changes)
    except ScenarioError as error:
        raise SimulationInputError(f"--set: {error}") from None


def toml_value(text: str) -> object:
    """Read one TOML value; what is none is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


# ---------------------------------------------------------------- recordings


def _with_recordings(scenario: Scenario, folder: Path) -> Scenario:
    """Read what the sources of a scenario replay; what hangs together is checked again with it."""
    sources = []
    for number, source in enumerate(scenario.sources):
        if isinstance(source, ReplaySource) and source.file:
            names = (source.file,) if isinstance(source.file, str) else source.file
            try:
                source = _replayed(source, [folder / name for name in names])
            except ConfigError as error:
                raise ScenarioError(str(error), ("sources", number, "file")) from None
        sources.append(source)
    if sources == list(scenario.sources):
        return scenario
    scenario = msgspec.structs.replace(scenario, sources=tuple(sources))
    check(scenario)
    return scenario


def _replayed(source: ReplaySource, paths: Sequence[Path]) -> ReplaySource:
    """Return a source with what is in its files: the times of a CSV file, or the jobs of daemons' traces."""
    if len(paths) == 1 and not is_trace_file(paths[0]):
        return msgspec.structs.replace(source, file="", times_s=arrivals_of(paths[0]))
    recordings = [read_recording(path) for path in paths]
    names, merged = labels(recordings), on_one_clock(recordings, align=source.align)
    times_s = tuple([at_s for at_s, _, _ in merged])
    jobs = tuple([recorded_job(names[each.node], entry) for _, each, entry in merged])
    return msgspec.structs.replace(source, file="", times_s=times_s, jobs=jobs)


def is_trace_file(path: Path) -> bool:
    """Return whether a file is a trace that a daemon recorded; raises SimulationInputError where it cannot be read."""
    try:
        return is_recording(path)
    except OSError as error:
        raise SimulationInputError(f"{path} cannot be read: {error.strerror}") from None


def recorded_job(node: str, entry: Entry) -> RecordedJob:
    """Return a recorded job as a scenario has it, without its time."""
    return RecordedJob(
        entry=node,
        models=entry.models,
        deadline_s=entry.budget_s,
        priority=entry.priority,
        input_bytes=entry.input_bytes,
        output_bytes=entry.output_bytes,
        stream=entry.stream,
        newest_wins=entry.newest_wins,
    )


def arrivals_of(path: Path) -> tuple[float, ...]:
    """Read the times of a CSV file, in seconds from the first, ascending.

    The first column counts: seconds as numbers, or dates such as `2023-11-16 18:15:46.6805900` as public traces of
    inference have them (`TIMESTAMP,ContextTokens,GeneratedTokens`). A first line that is neither is a header.

    Raises
    ------
    SimulationInputError
        For a file that cannot be read, or a line that is neither.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(islice(csv.reader(file), ARRIVALS_MAX + 2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SimulationInputError(f"{path} cannot be read: {reason}") from None
    found = []
    for line, row in enumerate(rows, start=1):
        if not row or not row[0].strip():
            continue
        at_s = _time_s(row[0].strip())
        if at_s is None and line > 1:
            raise SimulationInputError(f"{path}, line {line}: {row[0]!r} is neither seconds nor a date")
        if at_s is not None:
            found.append(at_s)
    if not found or len(found) > ARRIVALS_MAX:
        raise SimulationInputError(f"{path} has {len(found)} arrivals; 1 to {ARRIVALS_MAX} can be replayed")
    found.sort()
    return tuple([at_s - found[0] for at_s in found])


def _time_s(text: str) -> float | None:
    """Return a time in seconds; None for what is none."""
    try:
        value = float(text)
        return value if abs(value) < float("inf") else None
    except ValueError:
        pass
    whole, _, fraction = text.partition(".")
    digits = fraction.rstrip("Z")
    try:
        moment = datetime.fromisoformat(whole.rstrip("Z"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # Seven digits are common, datetime keeps six: the rest is added here.
    return moment.timestamp() + (float(f"0.{digits}") if digits.isdecimal() else 0.0)
