"""Many runs at once, through the interface of `concurrent.futures.Executor`.

Processes of this machine by default; whatever offers the interface may be passed instead: `Client.get_executor()` of
Dask, or a pool of Ray's. What travels is bytes, so both sides need the same version of gridnode and nothing else.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Final

import msgspec

from gridnode.errors import GridError
from gridnode.simulation.load import SimulationInputError
from simulator.results import Result
from simulator.runner import core_config, run
from simulator.scenario import Scenario
from simulator.values import ScenarioError

JOBS_MAX: Final = 256
"""Processes on one machine."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    scenario: Scenario
    seed: str
    policy: str


_TASKS: Final = msgspec.msgpack.Decoder(Task)
_RESULTS: Final = msgspec.msgpack.Decoder(Result)


def run_task(data: bytes) -> bytes:
    """Run an encoded Task, return its encoded Result: what a worker does."""
    task = _TASKS.decode(data)
    return msgspec.msgpack.encode(run(task.scenario, seed=task.seed, policy=task.policy))


def seeds_of(scenario: Scenario, replications: int) -> tuple[str, ...]:
    """Return the seeds of replications.

    Examples
    --------
    >>> from simulator.scenario import ModelSpec, NodeGroup
    >>> seeds_of(Scenario(name="s", models=(ModelSpec(name="m"),), nodes=(NodeGroup(device="d"),)), 2)
    ('1.1', '1.2')
    """
    return tuple(f"{scenario.seed}.{number}" for number in range(1, replications + 1))


def run_all(
    tasks: Sequence[Task],
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    progress: Callable[[float], object] | None = None,
) -> list[Result]:
    """Run all tasks.

    Parameters
    ----------
    tasks : sequence of Task
        What to run.
    executor : Executor, optional
        Where; it stays open.
    jobs : int, default 1
        Processes of this machine where no executor is given; 1 runs all in this one.
    progress : callable, optional
        Told of the share that is done, 0 to 1.

    Returns
    -------
    list of Result
        In the order of the tasks.

    Raises
    ------
    SimulationInputError
        What only a run can find wrong with a scenario.
    GridError
        A worker process ended.
    """
    try:
        for policy, scenario in {task.policy: task.scenario for task in tasks}.items():
            # Before anything runs: what is wrong with the last policy must not cost the runs of the first.
            core_config(msgspec.structs.replace(scenario, policy=policy))
        if executor is None and jobs == 1:
            return _run_here(tasks, progress)
        with contextlib.ExitStack() as stack:
            used = executor if executor is not None else stack.enter_context(_processes(min(jobs, len(tasks) or 1)))
            return _run_there(tasks, used, progress)
    except ScenarioError as error:
        raise SimulationInputError(str(error)) from None
    except BrokenProcessPool:
        raise GridError("a process that simulated has ended, maybe for want of memory; try fewer with --jobs") from None


def _run_here(tasks: Sequence[Task], progress: Callable[[float], object] | None) -> list[Result]:
    results = []
    for number, task in enumerate(tasks):
        told = None if progress is None else _part(progress, number, len(tasks))
        results.append(run(task.scenario, seed=task.seed, policy=task.policy, progress=told))
    return results


def _part(progress: Callable[[float], object], number: int, count: int) -> Callable[[float], object]:
    return lambda share: progress((number + share) / count)


def _run_there(tasks: Sequence[Task], executor: Executor, progress: Callable[[float], object] | None) -> list[Result]:
    futures = {executor.submit(run_task, msgspec.msgpack.encode(task)): place for place, task in enumerate(tasks)}
    results: dict[int, Result] = {}
    try:
        for future in as_completed(futures):
            results[futures[future]] = _RESULTS.decode(future.result())
            if progress is not None:
                progress(len(results) / len(tasks))
    finally:
        for future in futures:
            future.cancel()
    return [results[place] for place in range(len(tasks))]


@contextmanager
def _processes(jobs: int) -> Iterator[Executor]:
    """Open a pool; what has not begun when the block ends early never does, and Ctrl-C ends what has."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_end_at_ctrl_c)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_at_ctrl_c() -> None:
    """Have Ctrl-C, which a terminal sends to all processes of a command, end this one at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def cores() -> int:
    """Return how many processes may run at once on this machine."""
    return min(JOBS_MAX, len(os.sched_getaffinity(0)))


@contextmanager
def dask(address: str) -> Iterator[Executor]:
    """Open an executor on a cluster of Dask.

    Parameters
    ----------
    address : str
        Of its scheduler, such as tcp://10.0.0.1:8786.

    Raises
    ------
    SimulationInputError
        Dask is not installed, or nothing answers there.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise SimulationInputError("--dask needs the package distributed: pip install distributed") from None
    try:
        client = distributed.Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise SimulationInputError(f"no Dask scheduler answers at {address!r}: {error}") from None
    with client:
        # pure: runs of one seed are equal, but a result kept by the cluster would hide a change of its code.
        yield client.get_executor(pure=False)
