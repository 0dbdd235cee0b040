"""Packs the models that come with gridnode, for ``gridnode model publish --zoo`` and the demo."""

from pathlib import Path

import trio

from gridnode.errors import UnknownModelError
from gridnode.publish import Built, PublishError, build
from models.zoo.packages import ZOO, ZooModel


def zoo_names(name: str) -> tuple[str, ...]:
    """Return a model of the zoo and its rungs; raises UnknownModelError."""
    if name not in ZOO:
        raise UnknownModelError(f"no model {name!r} comes with gridnode; there are: {', '.join(sorted(ZOO))}")
    return (name, *ZOO[name].rungs)


async def build_zoo(name: str) -> list[Built]:
    """Pack a model of the zoo and its rungs, all at once; takes about two seconds.

    Raises
    ------
    UnknownModelError
        There is no such model.
    PublishError
        One cannot be packed here.
    """
    names = zoo_names(name)
    built: dict[str, Built] = {}
    faults: list[PublishError] = []
    async with trio.open_nursery() as nursery:

        async def pack(member: str) -> None:
            try:
                built[member] = await _build(ZOO[member])
            except PublishError as fault:
                faults.append(fault)
                nursery.cancel_scope.cancel()

        for member in names:
            nursery.start_soon(pack, member)
    if faults:
        raise faults[0]
    return [built[member] for member in names]


async def _build(model: ZooModel) -> Built:
    return await build(
        Path(model.graph_path),
        name=model.name,
        golden_inputs=model.golden_inputs(),
        preprocessing=model.preprocessing,
        postprocessing=model.postprocessing,
        rungs=model.rungs,
    )
