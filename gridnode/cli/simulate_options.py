"""What the commands of `gridnode simulate` have in common: which scenario, how often, where."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from concurrent.futures import Executor

REPLICATIONS_MAX: Final = 10_000
JOBS_MAX: Final = 256


def add_scenario(parser: argparse.ArgumentParser, *, is_needed: bool = True, more: str = "") -> None:
    """Add what every command needs that runs a scenario."""
    parser.add_argument(
        "scenario",
        metavar="SCENARIO",
        nargs=None if is_needed else "?",
        help=f"path of a .toml file, or a name of `gridnode simulate list`{more}",
    )
    parser.add_argument("--seed", metavar="SEED", help="in place of the scenario's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a value in place of the scenario's, such as sources.0.load=0.9, nodes.pi.count=8 or "
        "core.steal.enabled=false; may be given several times",
    )


def changes_asked(options: argparse.Namespace) -> "dict[str, object]":
    """Return what `--set` and `--seed` change of the scenario; raises SimulationInputError."""
    from gridnode.simulation.load import changes_of

    changes = changes_of(options.settings)
    if options.seed is not None:
        changes["seed"] = options.seed
    return changes


def add_pool(parser: argparse.ArgumentParser, *, replications: int) -> None:
    """Add how often and where scenarios run."""
    parser.add_argument(
        "--replications",
        type=lambda text: whole(text, REPLICATIONS_MAX),
        default=replications,
        metavar="N",
        help=f"runs of each, with a seed of their own (default: {replications})",
    )
    parser.add_argument(
        "--jobs",
        type=lambda text: whole(text, JOBS_MAX),
        metavar="N",
        help="processes on this machine (default: one per processor)",
    )
    parser.add_argument("--dask", metavar="ADDRESS", help="run on a cluster of Dask, given its scheduler's address")


def whole(text: str, most: int) -> int:
    """Read a whole number from 1."""
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {most}")
    return int(text)


def prepare_folder(options: argparse.Namespace) -> None:
    """Make the folder that `--out` names, where it is given: before anything runs, which may take an hour.

    Raises
    ------
    SimulationInputError
        When it cannot be made or written to.
    """
    from gridnode.simulation.tables import make_folder

    if options.out is not None:
        make_folder(options.out)


@contextmanager
def pool_of(options: argparse.Namespace) -> "Iterator[tuple[Executor | None, int]]":
    """Give an executor, or None, and the processes to use in its place."""
    from gridnode.simulation.executors import cores, dask

    if options.dask is not None:
        with dask(options.dask) as executor:
            yield executor, 1
    else:
        yield None, options.jobs or cores()
