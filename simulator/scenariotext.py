"""TOML text to a scenario, with changes from a command line, and errors that one can act on.

An error names the line, the key, the value, and what is allowed. `tomllib` keeps no lines and msgspec no values, so
both are found again: the line of a key by a scan of the text, the rule that is broken by a walk through the records.
"""

import difflib
import math
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from simulator.scenario import Scenario
from simulator.scenariorules import check
from simulator.tomllines import Path, line_of
from simulator.values import ScenarioError

_TEXT_MAX: Final = 1_000_000
"""Characters of a scenario; the largest shipped has 3,000."""
_AT: Final = re.compile(r"(?s)(.*?)(?: - at `\$\.?([^`]*)`)?")
_STEP: Final = re.compile(r"\[(\d+|\.\.\.)\]|([^.\[\]]+)")


def parse(text: str, changes: Mapping[str, object] | None = None) -> Scenario:
    """Make a scenario of TOML text.

    Parameters
    ----------
    text : str
        The file.
    changes : mapping of str to object, optional
        Values in place of the text's or besides them, by key: `duration_s`, `core.placement.slack`, `sources.0.load`,
        `sources.*.load` for every one, `nodes.pi.count` for the one of that name.

    Returns
    -------
    Scenario

    Raises
    ------
    ScenarioError
        The author's fault: what is wrong, and where.
    """
    if len(text) > _TEXT_MAX:
        raise ScenarioError(f"the text has {len(text)} characters; at most {_TEXT_MAX} are read")
    try:
        data: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as broken:
        raise _broken_toml(str(broken)) from None
    changed: set[Path] = set()
    for key, value in (changes or {}).items():
        changed.update(_change(data, key, value))
    try:
        for path in _nan(data, ()):
            raise ScenarioError("nan; a number is needed", path)
        scenario = _convert(data)
        check(scenario)
    except ScenarioError as error:
        is_changed = any(error.path[: len(path)] == path for path in changed)
        line = None if is_changed else line_of(text, error.path)
        raise ScenarioError(error.message, error.path, line) from None
    return scenario


def altered(scenario: Scenario, changes: Mapping[str, object]) -> Scenario:
    """Return a scenario with other values; see parse.

    Raises
    ------
    ScenarioError
        The author's fault: what is wrong with them.
    """
    if not changes:
        return scenario
    data: Any = msgspec.msgpack.decode(msgspec.msgpack.encode(scenario))  # lists, as of a text, which tuples are not
    for key, value in changes.items():
        for path in _change(data, key, value):
            for place in _nan(value, path):
                raise ScenarioError("nan; a number is needed", place)
    changed = _convert(data)
    check(changed)
    return changed


def _broken_toml(message: str) -> ScenarioError:
    found = re.search(r" \(at line (\d+), column \d+\)$", message)
    if found is None:
        return ScenarioError(f"no valid TOML: {message}")
    return ScenarioError(f"no valid TOML: {message[: found.start()]}", line=int(found[1]))


def _nan(data: object, path: Path) -> Iterator[Path]:
    """Yield where nan stands: it passes every comparison of a bound."""
    if isinstance(data, float) and math.isnan(data):
        yield path
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _nan(value, (*path, key))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _nan(value, (*path, number))


# ---------------------------------------------------------------- changes


def _change(data: Any, key: str, value: object) -> Iterator[Path]:  # noqa: ANN401
    """Put a value at a key; yields the paths that it means."""
    *parents, last = key.split(".")
    places: list[tuple[Any, Path]] = [(data, ())]
    for step in parents:
        places = [child for place, path in places for child in _children(place, path, step, key)]
    for place, path in places:
        if isinstance(place, dict):
            place[last] = value
            yield (*path, last)
        else:
            raise ScenarioError(f"{key!r} is no key of a scenario: {'.'.join(parents)} is no table")


def _children(place: Any, path: Path, step: str, key: str) -> list[tuple[Any, Path]]:  # noqa: ANN401
    """Return what a step of a key leads to: a table, or entries of a list by number, by name, or all of them."""
    if isinstance(place, dict):
        return [(place.setdefault(step, {}), (*path, step))]
    if isinstance(place, list):
        names = [entry.get("name") or entry.get("device") if isinstance(entry, dict) else None for entry in place]
        wanted = [number for number, name in enumerate(names) if step in ("*", str(number), name)]
        if wanted:
            return [(place[number], (*path, number)) for number in wanted]
        listed = ", ".join(f"{number} ({name})" if name else str(number) for number, name in enumerate(names))
        raise ScenarioError(f"{key!r} leads nowhere: there is no {step!r} in it; there are {listed or 'none'}, and *")
    raise ScenarioError(f"{key!r} is no key of a scenario: {step!r} is inside of a value")


# ---------------------------------------------------------------- what is wrong


def _convert(data: Any) -> Scenario:  # noqa: ANN401
    core = data.get("core") if isinstance(data, dict) else None
    if isinstance(core, dict):
        core.setdefault("explain", False)  # a tenth of the time, and nobody reads it
    try:
        return msgspec.convert(data, Scenario)
    except msgspec.ValidationError as error:
        raise _explain(str(error), data) from None


def _explain(message: str, data: Any) -> ScenarioError:  # noqa: ANN401
    """Make an error of msgspec's, which knows no value."""
    match = _AT.fullmatch(message)
    assert match is not None
    rule, where = match[1], match[2] or ""
    path: Path = ()
    place: Any = data
    for number, key in _STEP.findall(where):
        step = key if key else number
        if step == "...":
            step = _wrong(place, _element(_type_at(data, path)))
        path = (*path, int(number) if number.isdecimal() else step)
        place = _enter(place, path[-1])
    found = re.fullmatch(r"Object contains unknown field `(.*)`", rule)
    if found:
        known = _keys(_type_at(data, path))
        near = difflib.get_close_matches(found[1], known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return ScenarioError(f"no such key; {hint}There are {', '.join(known)}", (*path, found[1]))
    found = re.fullmatch(r"Object missing required field `(.*)`", rule)
    if found:
        return ScenarioError("missing; it has to be given", (*path, found[1]))
    found = re.fullmatch(r"(?:\w+\.)*(\w+) is (.*)", rule)
    if found and isinstance(place, dict) and found[1] in place:
        return ScenarioError(found[2], (*path, found[1]))  # from the checks of the configuration's records
    return ScenarioError(f"{_short(place)}; {_rule(rule, _type_at(data, path), path)}", path)


def _enter(place: Any, key: str | int) -> Any:  # noqa: ANN401
    """Return what is at a key; None for nothing."""
    if isinstance(place, dict):
        return place.get(key)
    return place[key] if isinstance(place, list) and isinstance(key, int) else None


def _wrong(place: Any, type_: Any) -> str | int:  # noqa: ANN401
    """Return the first key of a table whose value does not fit; msgspec does not tell it."""
    for key, value in place.items():
        try:
            msgspec.convert(value, type_)
        except msgspec.ValidationError:
            return str(key)
    return ""


def _short(value: object) -> str:
    text = "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) and value else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _rule(rule: str, type_: Any, path: Path) -> str:  # noqa: ANN401
    """Say what is allowed, from msgspec's message and the type of the field."""
    bounds = [
        f"{word} {value:g}"
        for meta in _metas(type_)
        for word, value in (("at least", meta.ge), ("above", meta.gt), ("at most", meta.le), ("below", meta.lt))
        if value is not None
    ]
    if bounds and re.match(r"Expected `(int|float)\b", rule):
        return f"it must be a {'whole number' if '`int' in rule else 'number'} {' and '.join(bounds)}"
    choices = _choices(type_, path)
    if choices and rule.startswith("Invalid"):
        return f"it must be one of {', '.join(choices)}"
    if "matching regex" in rule:
        return "it must begin with a letter and go on with letters, digits, _ . or -, at most 63 in all"
    return rule[0].lower() + rule[1:].replace("`", "")


def _metas(type_: Any) -> Iterator[msgspec.Meta]:  # noqa: ANN401
    if get_origin(type_) is Annotated:
        yield from (each for each in type_.__metadata__ if isinstance(each, msgspec.Meta))
    elif get_origin(type_) in (Union, types.UnionType):
        yield from _metas(next(each for each in get_args(type_) if each is not type(None)))


def _choices(type_: Any, path: Path) -> list[str]:  # noqa: ANN401
    if get_origin(type_) is Literal:
        return [str(each) for each in get_args(type_)]
    if path and path[-1] == "kind":
        return sorted(each.__struct_config__.tag for each in get_args(type_))
    return []


def _type_at(data: Any, path: Path) -> Any:  # noqa: ANN401
    """Return the type of the field at a path; of a `kind`, the union that it chooses from."""
    type_: Any = Scenario
    place = data
    for key in path:
        structs = _structs(type_)
        if key == "kind" and len(structs) > 1:
            return Union[tuple(structs)]  # noqa: UP007
        place = _enter(place, key)
        if structs and isinstance(key, str):
            type_ = get_type_hints(structs[0], include_extras=True).get(key, Any)
        else:
            type_ = _element(type_)
        chosen = [each for each in _structs(type_) if isinstance(place, dict) and _tag(each) == place.get("kind")]
        if chosen:
            type_ = chosen[0]
    return type_


def _tag(struct: Any) -> object:  # noqa: ANN401
    return struct.__struct_config__.tag


def _plain(type_: Any) -> Any:  # noqa: ANN401
    while get_origin(type_) is Annotated:
        type_ = get_args(type_)[0]
    return type_


def _structs(type_: Any) -> list[Any]:  # noqa: ANN401
    """Return the records that a type allows."""
    type_ = _plain(type_)
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return [type_]
    if get_origin(type_) in (Union, types.UnionType):
        return [struct for each in get_args(type_) for struct in _structs(each)]
    return []


def _element(type_: Any) -> Any:  # noqa: ANN401
    """Return the type of an entry of a list or table."""
    type_ = _plain(type_)
    if get_origin(type_) in (Union, types.UnionType):
        return next((_element(each) for each in get_args(type_) if get_args(_plain(each))), Any)
    arguments = get_args(type_)
    return arguments[-1] if get_origin(type_) is dict else arguments[0] if arguments else Any


def _keys(type_: Any) -> list[str]:  # noqa: ANN401
    structs = _structs(type_)
    return [field for struct in structs[:1] for field in struct.__struct_fields__]
