"""One run of a scenario for a person or a program: progress, the processor time it took, tables as CSV."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time

import msgspec

from gridnode.simulation.load import SimulationInputError
from gridnode.simulation.tables import make_folder, write_csv, write_json
from simulator.node import Observer
from simulator.results import Result, Series
from simulator.runner import Run, run
from simulator.scenario import Scenario
from simulator.trace import Tracer
from simulator.values import ScenarioError


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A run and what it cost."""

    result: Result
    cpu_s: float
    """Processor time of this process."""


def run_scenario(
    scenario: Scenario,
    *,
    seed: str | None = None,
    policy: str | None = None,
    progress: Callable[[float], object] | None = None,
    observers: Iterable[Observer] = (),
    hashed: bool = False,
) -> Outcome:
    """Run a scenario; see simulator.runner.run.

    Raises
    ------
    SimulationInputError
        For what only a run can find wrong: a policy, device or link that there is not.
    """
    begun_s = process_time()
    try:
        with _no_collection():
            result = run(scenario, seed=seed, policy=policy, progress=progress, observers=observers, hashed=hashed)
    except ScenarioError as error:
        raise SimulationInputError(f"{scenario.name}: {error}") from None
    return Outcome(result=result, cpu_s=process_time() - begun_s)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Leave out the search for cycles of garbage: a run makes next to none, and it took half of a large one's start."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run_traced(
    scenario: Scenario,
    path: Path,
    *,
    seed: str | None = None,
    policy: str | None = None,
    progress: Callable[[float], object] | None = None,
    hashed: bool = False,
) -> Outcome:
    """Run a scenario and write its trace, for chrome://tracing or Perfetto.

    Raises
    ------
    SimulationInputError
        For what only a run can find wrong, or when the file cannot be written.
    """
    tracer = Tracer(scenario.measure.trace_jobs)
    begun_s = process_time()
    try:
        # The file first: a typing slip in its path must not cost a run.
        with path.open("wb") as file, _no_collection():
            under_way = Run(scenario, seed=seed, policy=policy, observers=[tracer], hashed=hashed)
            tracer.watch(under_way.world.nodes)
            result = under_way.finish(progress)
            cpu_s = process_time() - begun_s
            file.writelines(tracer.pieces(result))
    except ScenarioError as error:
        raise SimulationInputError(f"{scenario.name}: {error}") from None
    except OSError as error:
        raise SimulationInputError(f"{path} cannot be written: {error.strerror}") from None
    return Outcome(result=result, cpu_s=cpu_s)


# ---------------------------------------------------------------- CSV


def write_tables(result: Result, directory: Path) -> list[Path]:
    """Write the tables of a result as CSV, and all of it as JSON.

    Parameters
    ----------
    result : Result
        Of a run.
    directory : Path
        Made where it is missing; files in it are replaced.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    SimulationInputError
        When it cannot be written to.
    """
    make_folder(directory)
    return [
        write_csv(directory / "summary.csv", ("quantity", "value"), summary_rows(result)),
        write_csv(directory / "nodes.csv", *_node_rows(result)),
        write_csv(directory / "cdf.csv", ("sojourn_s", "share"), result.cdf),
        write_csv(directory / "flows.csv", ("entry", "executor", "jobs"), map(msgspec.structs.astuple, result.flows)),
        write_csv(directory / "series.csv", *_series_rows(result)),
        write_json(directory / "result.json", result),
    ]


def summary_rows(result: Result) -> list[tuple[str, object]]:
    """Return name and value of everything that is one number or text."""
    rows: list[tuple[str, object]] = []
    for name in result.__struct_fields__:
        value = getattr(result, name)
        if isinstance(value, (str, int, float)):
            rows.append((name, value))
        elif name == "refused":
            rows += [(f"refused.{reason}", count) for reason, count in value.items()]
        elif name in ("stages", "little"):
            rows += [(f"{name}.{key}", getattr(value, key)) for key in value.__struct_fields__]
    return rows


def _node_rows(result: Result) -> tuple[list[str], list[list[object]]]:
    names = [
        name for name in (result.nodes[0].__struct_fields__ if result.nodes else ()) if name not in ("backlog", "busy")
    ]
    return names, [[getattr(node, name) for name in names] for node in result.nodes]


def _series_rows(result: Result) -> tuple[list[str], list[list[object]]]:
    """Return one row per step: time, jobs open, answers per second, backlog and utilisation of each node."""
    columns: list[tuple[str, Series]] = []
    for name, series in (("open_jobs", result.open_jobs), ("answers_hz", result.answers)):
        if series is not None:
            columns.append((name, series))
    for node in result.nodes:
        for name, series in (("backlog_s", node.backlog), ("busy", node.busy)):
            if series is not None:
                columns.append((f"{node.name}.{name}", series))
    if not columns:
        return ["at_s"], []
    first = columns[0][1]
    rows: list[list[object]] = [
        [first.start_s + number * first.step_s, *(series.values[number] for _, series in columns)]
        for number in range(len(first.values))
    ]
    return ["at_s", *(name for name, _ in columns)], rows
