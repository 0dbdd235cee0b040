"""Writes the tables of a scenario's keys into docs/scenario_keys.md, from the records that read a scenario.

`python packaging/scenario_keys.py` rewrites the part between the marks; a test holds the page against the code.
"""

import ast
import inspect
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec

from scheduler.config import CoreConfig
from simulator import faultspecs, scenario, sources

PAGE: Final = Path(__file__).parent.parent / "docs" / "scenario_keys.md"
BEGIN: Final = "<!-- keys: written by packaging/scenario_keys.py -->\n"
END: Final = "<!-- end of keys -->\n"
SECTIONS: Final = (
    ("The top of the file", "", scenario.Scenario),
    ("`[[models]]`", "models[].", scenario.ModelSpec),
    ("`[[nodes]]`", "nodes[].", scenario.NodeGroup),
    ("A link: `[network.link]` for all, `[nodes.link]` for a group", "network.link.", scenario.LinkSpec),
    ("`[network]`", "network.", scenario.NetworkSpec),
    ("`[[sources]]`: all kinds", "sources[].", sources.AnySource),
    ("`[[sources]]`: `poisson`, `mmpp`, `square`, `gamma`", "sources[].", sources.RatedSource),
    ("`kind = \"mmpp\"`, `kind = \"square\"`", "sources[].", sources.BurstySource),
    ("`kind = \"gamma\"`", "sources[].", sources.GammaSource),
    ("`kind = \"camera\"`", "sources[].", sources.CameraSource),
    ("`kind = \"replay\"`", "sources[].", sources.ReplaySource),
    ("`[sources.hot_spot]`", "sources[].hot_spot.", sources.HotSpot),
    ("`[sources.then]`", "sources[].then.", sources.Stage),
    ("`[[faults]]`: all kinds but `partition`", "faults[].", faultspecs.NodeFault),
    ("`kind = \"crash\"`", "faults[].", faultspecs.CrashFault),
    ("`kind = \"pause\"`", "faults[].", faultspecs.PauseFault),
    ("`kind = \"slow\"`", "faults[].", faultspecs.SlowFault),
    ("`kind = \"drift\"`", "faults[].", faultspecs.DriftFault),
    ("`kind = \"liar\"`", "faults[].", faultspecs.LiarFault),
    ("`kind = \"churn\"`", "faults[].", faultspecs.ChurnFault),
    ("`kind = \"partition\"`", "faults[].", faultspecs.PartitionFault),
    ("`[measure]`", "measure.", scenario.MeasureSpec),
)  # fmt: skip
"""Heading, path of the keys, record; a record's keys that its parent has too are not repeated."""


def tables() -> str:
    """Return all tables as Markdown."""
    parts = [_table(f"### {heading}", prefix, record) for heading, prefix, record in SECTIONS]
    for field in msgspec.structs.fields(CoreConfig):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            parts.append(_table(f"### `[core.{field.name}]`", f"core.{field.name}.", field.type))
    plain = [field for field in msgspec.structs.fields(CoreConfig) if not _is_record(field.type)]
    parts.append(_table("### `[core]`", "core.", CoreConfig, only={field.name for field in plain}))
    return "\n".join(parts)


def _is_record(type_: object) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def _table(heading: str, prefix: str, record: Any, *, only: set[str] | None = None) -> str:
    parents = [parent for parent in record.__mro__[1:] if _is_record(parent) and parent is not msgspec.Struct]
    inherited = {name for parent in parents for name in parent.__struct_fields__}
    about = " ".join(inspect.cleandoc(record.__doc__ or "").split("\n\n")[0].split())
    lines = [heading, "", about, "", "| key | default | allowed | |", "|---|---|---|---|"]
    said, ranges = _said(record), _ranges(record)
    hints = get_type_hints(record, include_extras=True)
    for field in msgspec.structs.fields(record):
        if field.name in inherited or (only is not None and field.name not in only):
            continue
        allowed = ranges.get(field.name) or _allowed(hints[field.name])
        # A scenario leaves explanations out, which nobody reads.
        default = "false" if record is CoreConfig and field.name == "explain" else _default(field)
        cells = (f"`{prefix}{field.name}`", default, allowed, said.get(field.name, ""))
        lines.append("| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- what the code says


def _class(record: Any) -> ast.ClassDef:
    module = ast.parse(inspect.getsource(sys.modules[record.__module__]))
    return next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == record.__name__)


def _said(record: Any) -> dict[str, str]:
    """Return the text under each field of a record."""
    found: dict[str, str] = {}
    name = ""
    for node in _class(record).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            continue
        if name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = " ".join(str(node.value.value).split())
        name = ""
    return found


def _ranges(record: Any) -> dict[str, str]:
    """Return the ranges that `__post_init__` holds a configuration's fields to."""
    words = {"_check_positive": "above 0", "_check_not_negative": "0 or more"}
    found = {}
    for call in (node for node in ast.walk(_class(record)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in words:
            found.update({str(each.value): words[call.func.id] for each in call.args if isinstance(each, ast.Constant)})
        elif isinstance(call.func, ast.Name) and call.func.id == "_check_between":
            name, low, high = (each.value for each in call.args if isinstance(each, ast.Constant))
            found[str(name)] = f"{low:g} to {high:g}"
    return found


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:
        if field.default_factory is msgspec.NODEFAULT:
            return "needed"
        value = field.default_factory()
    if value is None or isinstance(value, msgspec.Struct):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "inf" if math.isinf(value) else f"{value:g}"
    return {"()": "[]", "": '""'}.get(str(value), str(value))


_WORDS: Final = {int: "whole number", float: "number", str: "text"}


def _allowed(type_: Any) -> str:
    """Write what a type allows."""
    metas: list[msgspec.Meta] = []
    while get_origin(type_) is Annotated:
        metas += type_.__metadata__
        type_ = get_args(type_)[0]
    origin, arguments = get_origin(type_), get_args(type_)
    if origin in (Union, types.UnionType):
        kinds = [_allowed(each) for each in arguments if each is not type(None)]
        return "a table" if set(kinds) == {"a table"} else " or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is tuple:
        least = next((f" of at least {meta.min_length}" for meta in metas if meta.min_length), "")
        return f"list{least}: {_allowed(arguments[0])}"
    if origin is dict:
        return f"table of name = {_allowed(arguments[1])}"
    if type_ is bool:
        return "`true`, `false`"
    if _is_record(type_):
        return "a table"
    if any(meta.pattern for meta in metas):
        return "a name"
    bounds = " and ".join(_bounds(metas))
    return f"{_WORDS.get(type_, 'a table')} {bounds}".strip()


def _bounds(metas: list[msgspec.Meta]) -> Iterator[str]:
    for meta in metas:
        for word, value in (("at least", meta.ge), ("above", meta.gt), ("at most", meta.le), ("below", meta.lt)):
            if value is not None:
                yield f"{word} {value:,g}" if value < 1000 else f"{word} {value:,}"


def written(page: str) -> str:
    """Return a page with its tables written anew."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + "\n" + tables() + "\n" + END + tail


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
