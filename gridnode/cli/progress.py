"""A progress bar on stderr for work that tells its share; nothing where stderr is no terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_of(what: str) -> Iterator[Callable[[float], object] | None]:
    """Show a bar while the block runs.

    Parameters
    ----------
    what : str
        Stands before the bar.

    Yields
    ------
    callable or None
        To be told of the share that is done, 0 to 1; None where nobody would see it.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from gridnode.cli.output import console

    # Runs in other processes tell nothing until they end: the time that has passed shows that something goes on.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=False),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.update(task, completed=share)
