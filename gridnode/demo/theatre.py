"""Where a grid of throw-away daemons plays: a folder of its own, and an end in good order whatever ends it."""

import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import trio

from gridnode.errors import GridError

T = TypeVar("T")


async def perform(play: Callable[[Path], Awaitable[T]], *, keep: Path | None, prefix: str) -> T:
    """Run a play in a folder; SIGTERM and SIGHUP end it as Ctrl-C does.

    Parameters
    ----------
    play : async callable
        Given the folder; cleans its processes up when cancelled.
    keep : Path or None
        An empty folder whose content stays; None for a folder that is thrown away.
    prefix : str
        Of the name of a folder that is thrown away.

    Raises
    ------
    GridError
        The folder cannot be made or is not empty, or what the play raises.
    """
    folder = keep if keep is not None else Path(tempfile.mkdtemp(prefix=prefix))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise GridError(f"folder {folder} cannot be made: {error.strerror}; give another with --keep") from None
    if not is_empty:
        raise GridError(f"folder {folder} is not empty; give one that the daemons have for themselves")
    found: list[T] = []
    try:
        with _plainly():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_obey_signals)
                found.append(await play(folder))
                nursery.cancel_scope.cancel()
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return found[0]


async def _obey_signals() -> None:
    """End as at Ctrl-C when a service manager or a closed terminal tells us to."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            raise KeyboardInterrupt


@contextmanager
def _plainly() -> Iterator[None]:
    """Let one foreseen error, or Ctrl-C, leave a nursery as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, GridError | KeyboardInterrupt):
            raise error from None
        raise
