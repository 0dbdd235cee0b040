"""The models published in this grid, by name: what the signed state says, and what a name stands for.

Owns reading names, manifests and the deployment from the signed state, and which models may answer a request. Knows
nothing of what this node has of them; that is gridnode.modelhouse's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from gridnode.errors import UnknownModelError
from gridnode.logs import EventLog
from models.bodies import decode_request
from models.manifest import Manifest, ModelError, Shard
from models.requestcheck import check_request
from models.trust import TrustClient

log = EventLog("models")

ACCEPTABLE_MAX: Final = 8
"""Models that may answer one job, itself and its rungs: as many as a job header holds."""
ALL: Final = "*"
"""In a node's list of models: all of the deployment."""
ACCEPTED_MAX: Final = 128
"""Verdicts kept, of up to 48 KiB of words each: a node's programs have a handful."""


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's name stands for now."""

    manifest: Manifest
    digests: tuple[str, ...]
    """Acceptable models, best first."""


class Catalogue:
    """What is published at one moment. Never changed: a new one takes its place, so threads may read it.

    accept() alone, which remembers verdicts, is the event loop's.

    Parameters
    ----------
    digests : mapping of str to str
        Digest of each published model by its name.
    manifests : mapping of str to Manifest
        By digest.
    deployed : frozenset of str
        Names that the grid should run.
    """

    def __init__(
        self, digests: Mapping[str, str], manifests: Mapping[str, Manifest], deployed: frozenset[str] = frozenset()
    ) -> None:
        self._digests = digests
        self._manifests = manifests
        self._deployed = deployed
        self._accepted: dict[tuple[str, bool, bytes, int], tuple[str, ...]] = {}

    def manifest(self, digest: str) -> Manifest | None:
        """Return the manifest of a published model."""
        return self._manifests.get(digest)

    def shards(self) -> Iterator[Shard]:
        """Return the shards of all published models."""
        return (shard for manifest in self._manifests.values() for shard in manifest.shards)

    def published(self) -> dict[str, tuple[str, Manifest]]:
        """Return digest and manifest of all published models by name."""
        return {name: (digest, self._manifests[digest]) for name, digest in sorted(self._digests.items())}

    def name_of(self, digest: str) -> str:
        """Return the name of a model, or the head of its digest."""
        manifest = self._manifests.get(digest)
        return manifest.name if manifest is not None else digest[:12]

    def chosen(self, names: Sequence[str]) -> dict[str, Manifest]:
        """Return digest and manifest of the models that a node with this list of names runs; ALL may be among them."""
        return {
            digest: self._manifests[digest]
            for name, digest in self._digests.items()
            if name in names or (ALL in names and name in self._deployed)
        }

    def accept(self, name: str, *, rungs: bool, body: bytes, payload_bytes: int) -> tuple[str, ...]:
        """Return the models that may answer a request, best first.

        A camera sends the same words with each frame, so the verdict on them is kept; tensors and raw frames have the
        same length each time, encoded pictures have not and are judged anew.

        Parameters
        ----------
        name : str
            Name, or name@digest.
        rungs : bool
            Whether smaller variants may answer too.
        body : bytes
            An encoded models.bodies.RequestBody.
        payload_bytes : int
            Length of its payload, >= 0.

        Raises
        ------
        UnknownModelError
            No such model is published.
        BadInputError
            The request does not fit the model. The sender's fault, as above.
        """
        words = (name, rungs, body, payload_bytes)
        found = self._accepted.get(words)
        if found is None:
            request = decode_request(body)
            resolved = self.resolve(name, rungs=rungs, pictures=request.kind != "tensors")
            check_request(resolved.manifest, request, payload_bytes)
            found = resolved.digests
            if request.kind != "image":
                if len(self._accepted) >= ACCEPTED_MAX:
                    self._accepted.clear()
                self._accepted[words] = found
        return found

    def resolve(self, name: str, *, rungs: bool, pictures: bool) -> Resolved:
        """Return what a name, or name@digest, stands for; raises UnknownModelError.

        A rung may answer where it takes the same inputs, or where the request is a picture and both take pictures.
        """
        plain, _, digest = name.partition("@")
        current = self._digests.get(plain)
        if current is None or (digest and not current.startswith(digest)):
            known = ", ".join(sorted(self._digests)) or "none yet"
            raise UnknownModelError(f"no model {name!r} is published in this grid; published are: {known}")
        manifest = self._manifests[current]
        digests = [current]
        if rungs and not digest:
            for rung in manifest.rungs:
                found = self._digests.get(rung)
                if found is not None and _may_stand_in(manifest, self._manifests[found], pictures=pictures):
                    digests.append(found)
        return Resolved(manifest=manifest, digests=tuple(dict.fromkeys(digests))[:ACCEPTABLE_MAX])


def read_catalogue(client: TrustClient, before: Catalogue) -> Catalogue:
    """Read what is published now; manifests that were read before are not read again. Blocks."""
    digests: dict[str, str] = {}
    manifests: dict[str, Manifest] = {}
    for name, digest in client.models().items():
        try:
            manifests[digest] = before.manifest(digest) or client.manifest(name)
            digests[name] = digest
        except ModelError as error:
            log.debug("manifest_missing", model=name, error=error)
    try:
        deployed = frozenset(client.deployment().models)
    except ModelError as error:
        log.warning("deployment_missing", error=error)
        deployed = frozenset()
    return Catalogue(digests, manifests, deployed)


def _may_stand_in(manifest: Manifest, rung: Manifest, *, pictures: bool) -> bool:
    if pictures:
        return rung.preprocessing is not None
    return rung.inputs == manifest.inputs
