"""Packs the models that come with gridnode, for ``gridnode model publish --zoo`` and the demo."""

from pathlib import Path

from gridnode.errors import UnknownModelError
from gridnode.publish import Built, build
from models.zoo.packages import ZOO, ZooModel


def zoo_names(name: str) -> tuple[str, ...]:
    """Return a model of the zoo and its rungs; raises UnknownModelError."""
    if name not in ZOO:
        raise UnknownModelError(f"no model {name!r} comes with gridnode; there are: {', '.join(sorted(ZOO))}")
    return (name, *ZOO[name].rungs)


async def build_zoo(name: str) -> list[Built]:
    """Pack a model of the zoo and its rungs; about two seconds each. Raises UnknownModelError, PublishError."""
    return [await _build(ZOO[member]) for member in zoo_names(name)]


async def _build(model: ZooModel) -> Built:
    return await build(
        Path(model.graph_path),
        name=model.name,
        golden_inputs=model.golden_inputs(),
        preprocessing=model.preprocessing,
        postprocessing=model.postprocessing,
        rungs=model.rungs,
    )
