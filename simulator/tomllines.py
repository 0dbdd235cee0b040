"""Where a key stands in TOML text: `tomllib` keeps no lines. A scan, right for text that tomllib takes."""

import re
from collections.abc import Iterator
from typing import Final

Path = tuple[str | int, ...]

_TABLE: Final = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY: Final = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"))*)\s*=")


def line_of(text: str, path: Path) -> int | None:
    """Return the line, from 1, of the key at a path, or of the nearest that it is in; None for neither."""
    best, depth = None, 0
    for line, place in _places(text):
        common = 0
        while common < min(len(place), len(path)) and place[common] == path[common]:
            common += 1
        if common == len(place) and common > depth:
            best, depth = line, common
    return best


def _places(text: str) -> Iterator[tuple[int, Path]]:
    """Yield line and path of each table and key, in the order of the text."""
    counts: dict[Path, int] = {}
    table: Path = ()
    for line, content in enumerate(text.splitlines(), start=1):
        header = _TABLE.fullmatch(content)
        if header is not None:
            table = ()
            names = _names(header[2])
            for name in names[:-1]:
                table = (*table, name)
                if table in counts:
                    table = (*table, counts[table])
            table = (*table, names[-1])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            yield line, table
            continue
        key = _KEY.match(content)
        if key is not None:
            yield line, (*table, *_names(key[1]))


def _names(dotted: str) -> list[str]:
    return [each.strip().strip("\"'") for each in dotted.split(".")]
