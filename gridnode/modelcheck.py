"""Looks at a node's signed state and model files from outside of its daemon: manifests, signatures, digests. Blocks."""

from pathlib import Path

import msgspec

from gridnode.credentials import read_grid_file
from gridnode.errors import StateDirectoryError, UnknownModelError
from gridnode.publish import signed_copy
from gridnode.statedir import StateDirectory
from models.chunkfile import hash_file
from models.manifest import Manifest, ModelError, Shard, model_digest
from models.trust import TrustClient


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What verifying one model, or the signed state itself (name ""), came to."""

    name: str
    digest: str = ""
    signed: str
    """What stands in the signed state."""
    on_disk: str = ""
    problem: str = ""
    """Empty where all is well."""


def read_manifest(state: StateDirectory, name: str) -> tuple[str, Manifest]:
    """Return digest and manifest of a published model; raises UnknownModelError, StateDirectoryError."""
    with signed_copy(state.trust, read_grid_file(state.grid).grid_id) as client:
        if client is None:
            raise StateDirectoryError(f"{state.trust} is missing: this node holds no signed state yet")
        return _published(client)[name] if name in client.models() else _unknown(client, name)


def verify(state: StateDirectory, name: str | None, *, now_s: float) -> list[Verdict]:
    """Check the signatures of the signed state, and read what is on disk of one model or of all.

    Raises
    ------
    StateDirectoryError
        There is no signed state, or its signatures do not hold.
    UnknownModelError
        No model of that name is published.
    """
    try:
        with signed_copy(state.trust, read_grid_file(state.grid).grid_id) as client:
            if client is None:
                raise StateDirectoryError(f"{state.trust} is missing: this node holds no signed state yet")
            if name is not None and name not in client.models():
                _unknown(client, name)
            verdicts = [_judge_state(client, now_s)]
            for published, digest in client.models().items():
                if name in (None, published):
                    verdicts.append(_judge_model(client, published, digest, state.store / "shards"))
            return verdicts
    except (ModelError, OSError) as error:
        raise StateDirectoryError(f"the signed state in {state.trust} cannot be used: {error}") from error


def _published(client: TrustClient) -> dict[str, tuple[str, Manifest]]:
    return {name: (digest, client.manifest(name)) for name, digest in client.models().items()}


def _unknown(client: TrustClient, name: str) -> tuple[str, Manifest]:
    known = ", ".join(client.models()) or "none"
    raise UnknownModelError(f"no model {name!r} is published in this grid; published are: {known}")


def _judge_state(client: TrustClient, now_s: float) -> Verdict:
    status = client.status(now_s)
    signed = f"root {status.root_version}, targets {status.targets_version}, timestamp {status.timestamp_version}"
    problem = "expired: nothing new is installed" if status.expired else ""
    if status.damaged:
        problem = f"damaged files: {', '.join(status.damaged)}"
    return Verdict(name="", signed=signed, problem=problem)


def _judge_model(client: TrustClient, name: str, digest: str, shards: Path) -> Verdict:
    """Compare a manifest with its signed digest, and each shard on disk with its own."""
    try:
        manifest = client.manifest(name)
    except ModelError as error:
        return Verdict(name=name, digest=digest, signed="manifest missing", problem=str(error))
    if model_digest(manifest) != digest:
        return Verdict(
            name=name, digest=digest, signed="manifest differs", problem="the manifest is not the signed one"
        )
    whole, damaged = 0, []
    for shard in manifest.shards:
        found = _judge_shard(shards / shard.sha256, shard)
        whole += found == "whole"
        if found == "damaged":
            damaged.append(shard.name)
    on_disk = f"{whole} of {len(manifest.shards)} shards"
    problem = f"damaged: {', '.join(damaged)}; the daemon fetches it anew when it is used" if damaged else ""
    return Verdict(name=name, digest=digest, signed=f"version {manifest.version}", on_disk=on_disk, problem=problem)


def _judge_shard(path: Path, shard: Shard) -> str:
    if not path.exists():
        return "absent"
    return "whole" if path.stat().st_size == shard.size_bytes and hash_file(path) == shard.sha256 else "damaged"
