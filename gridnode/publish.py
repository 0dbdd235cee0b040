"""The owner's publishing: builds packages, signs them into the grid's state, and leaves both for the local daemon.

Owns the order: take over the newest signed state first (else two owners sign one version twice), build and really run
the model, sign, then put the shards and last the publication into the node's state directory. The daemon takes them
from there; nothing here writes what belongs to it. Times are seconds since 1970. All but build() block.
"""

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

from gridnode.credentials import read_grid_file
from gridnode.errors import GridError
from gridnode.gridsetup import REPOSITORY_NAME
from gridnode.statedir import StateDirectory
from models import ndarrays
from models.bodies import RequestBody, decode_result, encode_request
from models.durable import PARTIAL_SUFFIX, write_durably
from models.executor import RunOutcome, RunRequest
from models.manifest import Manifest, ModelError, canonical_bytes, model_digest, parse_manifest
from models.metadata import decode_publication, model_path
from models.ndarrays import Array
from models.owner import OwnerRepository
from models.package import Package, RunReport, build_package
from models.profile import Profile, profile
from models.runtime import Runtime, RuntimeConfig
from models.trust import TrustClient
from transport.files import StateFileError
from transport.gridtime import GridTime

GOLDEN_RUN_MAX_S: Final = 120.0
COPY_TRIES: Final = 5
"""A daemon may replace a state file while its folder is copied."""


class PublishError(GridError):
    """Nothing was published; the message says why and what to do."""


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A package that was run on this machine."""

    package: Package
    profile: Profile


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One model as it stands in the signed state now."""

    name: str
    digest: str
    version: int
    unchanged: bool
    """Whether just this model was published before."""
    size_bytes: int
    peak_memory_bytes: int
    service_ms: float
    """Measured while it was packed."""
    rungs: tuple[str, ...]
    notes: tuple[str, ...]


# ---------------------------------------------------------------- building


async def build(
    source: Path,
    *,
    name: str | None = None,
    threads: int = 1,
    golden_inputs: Mapping[str, Array] | None = None,
    **fields: object,
) -> Built:
    """Make a package of an ONNX file or folder, with golden data and memory of a real run in a real worker.

    Parameters
    ----------
    source : Path
        As models.package.build_package takes it, ``name`` and the further fields too.
    threads : int
        Of a run.
    golden_inputs : mapping, optional
        Inputs of the golden run; drawn where None.

    Raises
    ------
    PublishError
        The model would be refused, does not load, or fails.
    """
    measured: list[Profile] = []
    runtime = Runtime(RuntimeConfig(threads=threads), random.Random(0))

    def run(manifest: Manifest, graph: Path, inputs: Mapping[str, Array]) -> RunReport:
        outputs, found = trio.from_thread.run(_run_once, runtime, manifest, graph, inputs)
        measured.append(found)
        return RunReport(outputs=outputs, peak_memory_bytes=found.memory_bytes)

    make: Callable[[], Package] = partial(
        build_package,
        source,
        name=name,
        run=run,
        golden_inputs=golden_inputs,
        **fields,  # type: ignore[arg-type]
    )
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(runtime.serve)
            package = await trio.to_thread.run_sync(make)
            nursery.cancel_scope.cancel()
    except* (ModelError, ValueError, OSError) as errors:
        raise PublishError(f"{source} was not packed: {_first(errors)}") from None
    return Built(package=package, profile=measured[0])


async def _run_once(
    runtime: Runtime, manifest: Manifest, graph: Path, inputs: Mapping[str, Array]
) -> tuple[dict[str, Array], Profile]:
    """Load a model, run it once on golden inputs, measure it, unload it."""
    digest = model_digest(manifest)
    await runtime.load(digest, manifest, graph)
    headers, payload = ndarrays.pack(inputs)
    body = encode_request(RequestBody(kind="tensors", tensors=headers, raw_outputs=True))
    request = RunRequest(body=body, payload=payload, deadline_s=trio.current_time() + GOLDEN_RUN_MAX_S)
    [outcome] = await runtime.run(digest, [request])
    if not isinstance(outcome, RunOutcome):
        raise outcome
    result = decode_result(outcome.body)
    outputs = {name: array.copy() for name, array in ndarrays.views(result.tensors, outcome.payload).items()}
    found = await profile(runtime, digest, manifest, None)
    await runtime.unload(digest)
    return outputs, found


def _first(errors: BaseExceptionGroup) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


# ---------------------------------------------------------------- signing


def publish(
    state: StateDirectory, owner_dir: Path, built: Sequence[Built], *, clock: Callable[[], float]
) -> list[Published]:
    """Sign packages into the grid's state and leave them for the daemon of this state directory.

    Parameters
    ----------
    state : StateDirectory
        Of a node of the grid; a daemon may run on it or not.
    owner_dir : Path
        With the owner's keys.
    clock : callable
        The system clock.

    Raises
    ------
    PublishError
        A key is missing, or a file cannot be written. Nothing was handed to the daemon.
    """
    with _blaming():
        owner = open_owner(state, owner_dir)
        now_s = grid_time_s(state, clock)
        published = [_sign(owner, entry, now_s) for entry in built]
        for entry in built:
            _leave_shards(state, entry.package)
        hand_over(state, owner.publication())
    return published


def withdraw(state: StateDirectory, owner_dir: Path, name: str, *, clock: Callable[[], float]) -> None:
    """Take a model out of the grid's state; raises PublishError."""
    with _blaming():
        owner = open_owner(state, owner_dir)
        known = owner.models()
        if name not in known:
            raise PublishError(f"no model {name!r} is published; published are: {', '.join(sorted(known)) or 'none'}")
        owner.remove_model(name, grid_time_s(state, clock))
        hand_over(state, owner.publication())


def open_owner(state: StateDirectory, owner_dir: Path) -> OwnerRepository:
    """Open the owner's folder and take over what the local node's copies of the signed state have newer."""
    owner = OwnerRepository(owner_dir, owner_dir / REPOSITORY_NAME)
    grid = read_grid_file(state.grid)
    if owner.grid_id != grid.grid_id:
        raise PublishError(
            f"{owner_dir} holds the owner's keys of grid {owner.grid_id[:16]}, the node in {state.path} is of "
            f"{grid.grid_id[:16]}; give the right --owner-dir or --state-dir"
        )
    for folder in (state.desk, state.trust):
        with signed_copy(folder, grid.grid_id) as client:
            if client is not None and client.versions()[1]:
                owner.pull(client.file)
    return owner


@contextlib.contextmanager
def signed_copy(folder: Path, grid_id: str) -> Iterator[TrustClient | None]:
    """Open a copy of a folder of signed state, checked; None where there is none.

    The folder itself belongs to a daemon, which would not like its half-written files to be tidied away.
    """
    if not folder.is_dir():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="gridnode-signed-") as scratch:
        target = Path(scratch) / "copy"
        for attempt in range(COPY_TRIES):
            try:
                shutil.copytree(folder, target, ignore=shutil.ignore_patterns(f"*{PARTIAL_SUFFIX}", ".refresh-*"))
                break
            except (shutil.Error, FileNotFoundError):
                shutil.rmtree(target, ignore_errors=True)
                if attempt == COPY_TRIES - 1:
                    raise
        yield TrustClient(target, grid_id)


def _sign(owner: OwnerRepository, built: Built, now_s: float) -> Published:
    """Sign one package, in the version after the one that is published."""
    manifest = built.package.manifest
    present = _present(owner, manifest.name)
    unchanged = present is not None and _content(present) == _content(manifest)
    if present is not None:
        version = present.version if unchanged else max(manifest.version, present.version + 1)
        manifest = present if unchanged else msgspec.structs.replace(manifest, version=version)
    deployed = manifest.name in owner.deployment().models
    if not (unchanged and deployed):
        owner.publish_model(canonical_bytes(manifest), now_s)
    return Published(
        name=manifest.name,
        digest=model_digest(manifest),
        version=manifest.version,
        unchanged=unchanged,
        size_bytes=sum(shard.size_bytes for shard in manifest.shards),
        peak_memory_bytes=manifest.peak_memory_bytes,
        service_ms=round(built.profile.mean_s * 1e3, 3),
        rungs=manifest.rungs,
        notes=built.package.notes,
    )


def _present(owner: OwnerRepository, name: str) -> Manifest | None:
    if name not in owner.models():
        return None
    return parse_manifest(decode_publication(owner.publication()).files[model_path(name)])


def _content(manifest: Manifest) -> Manifest:
    """Return a manifest without what differs from one packing to the next."""
    return msgspec.structs.replace(manifest, version=1, peak_memory_bytes=0)


# ---------------------------------------------------------------- handing over


def _leave_shards(state: StateDirectory, package: Package) -> None:
    """Put a package's shards where the daemon looks for them, each under its digest."""
    state.incoming.mkdir(mode=0o700, exist_ok=True)
    give_to_node(state, state.incoming)
    for shard in package.manifest.shards:
        content = package.files[shard.name]
        target = state.incoming / shard.sha256
        write_durably(target, content.read_bytes() if isinstance(content, Path) else content)
        give_to_node(state, target)


def hand_over(state: StateDirectory, publication: bytes) -> None:
    """Leave a publication for the daemon; it is the last file written."""
    write_durably(state.inbox, publication)
    give_to_node(state, state.inbox)


def give_to_node(state: StateDirectory, path: Path) -> None:
    """Let the state directory's owner, who may be a service's user, have what root wrote."""
    owner = state.path.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def grid_time_s(state: StateDirectory, clock: Callable[[], float]) -> float:
    """Return the grid time of a node whose daemon may not run; raises StateFileError."""
    return GridTime.load(clock, state.grid_time).now_s()


@contextlib.contextmanager
def _blaming() -> Iterator[None]:
    """Translate what may go wrong below into PublishError."""
    try:
        yield
    except (ModelError, StateFileError, OSError, ValueError, shutil.Error) as error:
        raise PublishError(f"not published: {error}") from error
