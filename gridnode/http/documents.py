"""What is served beside inference: health, metadata, the index of models. Also which path means what."""

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from gridnode import __version__
from gridnode.catalogue import Resolved
from gridnode.errors import UnknownModelError
from gridnode.http.heads import Head, HttpError
from gridnode.http.oip import describe_model
from gridnode.http.responses import Reply, document_reply
from models.manifest import Manifest
from models.tensors import Buffer

EXTENSIONS: Final = ("binary_tensor_data", "schedule_policy", "model_repository")
VERSION_DIGITS_MAX: Final = 7
"""Digits of a version number; longer texts are digests, or their heads of 8 hex digits or more."""


class Shelf(Protocol):
    """Knows the published models, and which of them can be had."""

    def resolve(self, name: str) -> Resolved:
        """Return what a name, or name@digest, stands for; raises UnknownModelError."""
        ...

    def published(self) -> dict[str, tuple[str, Manifest]]:
        """Return digest and manifest of all published models by name."""
        ...


class IndexRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which models are to be listed."""

    ready: bool = False
    """Only those that are ready."""


class Documents:
    """Answers all that is no inference.

    Parameters
    ----------
    models : Shelf
        Published models.
    is_ready : callable
        Says whether the node takes work.
    offered : callable
        Returns the digests of the models that any node reachable runs, this one included.
    """

    def __init__(self, models: Shelf, *, is_ready: Callable[[], bool], offered: Callable[[], frozenset[str]]) -> None:
        self._models = models
        self._is_ready = is_ready
        self._offered = offered

    def model_to_run(self, head: Head) -> tuple[str, Resolved] | None:
        """Return the model that a request wants to run, name and what it stands for; None where it wants none.

        Raises
        ------
        HttpError
            No such model, or another method than POST.
        """
        if not head.path.endswith("/infer"):
            return None
        words = head.path.split("/")
        if words[:3] != ["", "v2", "models"] or len(words) not in (5, 7):
            return None
        name = self._name(words[3:-1])
        _allow(head, "POST")
        return name, self._resolve(name)

    def answer(self, head: Head, text: Buffer) -> Reply:
        """Answer a request that is no inference; raises HttpError."""
        match head.path.rstrip("/").split("/")[1:]:
            case ["v2"]:
                _allow(head, "GET")
                return document_reply({"name": "gridnode", "version": __version__, "extensions": EXTENSIONS})
            case ["v2", "health", ("live" | "ready") as what]:
                _allow(head, "GET")
                return _state(what == "live" or self._is_ready(), "this node takes no work now")
            case ["v2", "repository", "index"]:
                _allow(head, "POST")
                return document_reply(self._index(text))
            case ["v2", "models", *words] if words and words[-1] == "ready":
                _allow(head, "GET")
                [digest, *_] = self._resolve(self._name(words[:-1])).digests
                return _state(digest in self._offered(), "no node reachable offers this model now")
            case ["v2", "models", *words] if words:
                name = self._name(words)
                _allow(head, "GET")
                resolved = self._resolve(name)
                return document_reply(describe_model(resolved.manifest, resolved.digests[0]))
        raise _unknown_path(head.path)

    def _index(self, text: Buffer) -> list[dict[str, str]]:
        try:
            wanted = msgspec.json.decode(text, type=IndexRequest) if len(text) else IndexRequest()
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise HttpError(400, f"request for the index is malformed: {error}") from error
        offered = self._offered()
        return [
            {
                "name": name,
                "version": digest,
                "state": "READY" if digest in offered else "UNAVAILABLE",
                "reason": "" if digest in offered else "no node reachable offers it now",
            }
            for name, (digest, _) in self._models.published().items()
            if digest in offered or not wanted.ready
        ]

    def _name(self, words: list[str]) -> str:
        """Return a model's name, or name@digest, from the words of a path."""
        match words:
            case [name] if "@" not in name:
                return name
            case [name, "versions", version] if "@" not in name:
                return f"{name}@{self._digest(name, version)}"
        raise _unknown_path("/v2/models/" + "/".join(words))

    def _digest(self, name: str, version: str) -> str:
        """Return the digest, or its head, that a version means."""
        if not version.isalnum():
            raise HttpError(404, f"version {version[:80]!r} of model {name!r} is no digest")
        if len(version) > VERSION_DIGITS_MAX:
            return version
        resolved = self._resolve(name)
        if version != str(resolved.manifest.version):
            raise HttpError(
                404,
                f"model {name!r} has no version {version!r}; published is {resolved.manifest.version}, digest "
                f"{resolved.digests[0]}",
            )
        return resolved.digests[0]

    def _resolve(self, name: str) -> Resolved:
        try:
            return self._models.resolve(name)
        except UnknownModelError as error:
            raise HttpError(404, str(error), reason="unknown_model") from error


def _allow(head: Head, method: str) -> None:
    if head.method != method and (head.method, method) != ("HEAD", "GET"):
        raise HttpError(405, f"{head.path} takes {method}, not {head.method}", allowed=method)


def _state(is_good: bool, problem: str) -> Reply:
    if not is_good:
        raise HttpError(503, problem, retry_after_s=1)
    return Reply(parts=())


def _unknown_path(path: str) -> HttpError:
    return HttpError(404, f"nothing is served at {path[:200]!r}; see docs/http.md for what is")
