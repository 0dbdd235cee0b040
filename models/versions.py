"""Versions of installed packages, read from the names of their metadata folders.

importlib.metadata would parse the metadata with the standard library's mail parser: 40 modules, a megabyte, and 30 ms
on a small board, for a name that stands in the folder's own.
"""

from importlib.machinery import PathFinder
from pathlib import Path


def installed_version(package: str) -> str:
    """Return the version of an installed package whose import name is also its project's; "unknown" for none found.

    Examples
    --------
    >>> installed_version("msgspec")[0].isdigit(), installed_version("no_such_package")
    (True, 'unknown')
    """
    spec = PathFinder.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return "unknown"
    beside = Path(spec.submodule_search_locations[0]).parent
    found = sorted(folder.name for folder in beside.glob(f"{package}-*.dist-info"))
    return found[0].removeprefix(f"{package}-").removesuffix(".dist-info") if found else "unknown"
