"""The demo's films: drawn by child processes, kept in a cache.

A film is one street at FILM_FPS, from afternoon into the night. It is kept under a name made of its seed, its length
and a digest of the code that draws it, so a changed drawing is never mixed with an old film. Films are data: frames
and truth in one MessagePack file, written whole or not at all.

Run as a module it draws one film: ``python -P -m gridnode.demo.film SEED FRAMES FILE``.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
import trio

from gridnode.demo.children import child_environment
from gridnode.errors import GridError
from models.average_precision import Truth
from models.durable import write_durably

FILM_FPS: Final = 5.0
"""Frames per second of a film, what a street camera behind a detector gives."""
FILM_S: Final = 10.0
"""Length of a film, in seconds; cameras go round it from different places. A longer one would keep the first frame of
a first demo waiting: drawing takes 25 ms of a core per frame, while the daemons start."""
FILE_MAX_BYTES: Final = 256 * 1024 * 1024
FILMS_KEPT: Final = 8
"""Films in the cache; about 2 MB each."""
_SOURCES: Final = ("scenes", "stage", "scenery", "light", "figures", "people", "vehicles")


class FilmError(GridError):
    """A film could not be drawn; the machine's fault."""


class Film(msgspec.Struct, frozen=True, kw_only=True):
    """One camera's pictures and what is really on them."""

    frames: tuple[bytes, ...]
    """JPEG files."""
    truth: tuple[tuple[Truth, ...], ...]
    """For each frame."""


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Return where films and pictures are kept (XDG Base Directory specification)."""
    base = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "/tmp")) / ".cache")
    return Path(base) / "gridnode"


def film_name(seed: str, frames: int) -> str:
    """Return a film's file name; it changes with the code that draws."""
    code = hashlib.sha256()
    for module in _SOURCES:
        spec = find_spec(f"models.zoo.street.{module}")
        if spec is not None and spec.origin is not None:
            code.update(Path(spec.origin).read_bytes())
    return f"film-{seed}-{frames}-{code.hexdigest()[:12]}.bin"


async def get_film(seed: str, frames: int, folder: Path) -> Film:
    """Return a film from the cache, or draw it in a process of its own; raises FilmError."""
    path = folder / film_name(seed, frames)
    film = await trio.to_thread.run_sync(read_film, path)
    if film is not None and len(film.frames) == frames:
        return film
    await trio.to_thread.run_sync(_make_room, folder)
    command = [sys.executable, "-P", "-m", "gridnode.demo.film", seed, str(frames), str(path)]
    done = await trio.run_process(
        command, env=child_environment(), capture_stderr=True, stdin=subprocess.DEVNULL, check=False
    )
    film = await trio.to_thread.run_sync(read_film, path)
    if film is None:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise FilmError(f"the film could not be drawn: {last[0] if last else f'exit code {done.returncode}'}")
    return film


def read_film(path: Path) -> Film | None:
    """Read a film; None where there is none or it is damaged. Blocks."""
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            return None
        return msgspec.msgpack.decode(path.read_bytes(), type=Film)
    except (OSError, msgspec.MsgspecError):
        return None


def draw_film(seed: str, frames: int) -> Film:
    """Draw a film; about 25 ms of CPU per frame."""
    from models.zoo.street.scenes import render_video

    drawn = list(render_video(seed=seed, frames=frames, fps=FILM_FPS))
    return Film(frames=tuple(jpeg for jpeg, _ in drawn), truth=tuple(tuple(truth) for _, truth in drawn))


def _make_room(folder: Path) -> None:
    """Drop the oldest films; a missing cache is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        films = sorted(folder.glob("film-*.bin"), key=lambda path: path.stat().st_mtime)
        for path in films[: max(0, len(films) - FILMS_KEPT + 1)]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise FilmError(f"cache {folder} cannot be used: {error}; set XDG_CACHE_HOME to another folder") from error


def _main() -> None:
    seed, frames, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    os.nice(4)  # the daemons start meanwhile, and they take longer
    write_durably(path, msgspec.msgpack.encode(draw_film(seed, frames)), mode=0o644)


if __name__ == "__main__":
    _main()
