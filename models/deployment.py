"""Which models the owner wants to run in the grid: a target of the signed state. Pure.

Owns the record and its bytes. Who is told and what a node does about it is not known here.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.manifest import ManifestError, check_name

DEPLOYMENT_PATH = "deployment.json"
DEPLOYMENT_MAX_BYTES = 128 * 1024
"""Room for 1024 names of 64 characters and more."""


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What the grid should run. Fields that a newer owner's tool adds are ignored."""

    format: Literal[1] = 1
    version: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """Grows by one with every change; going back to an older model is a new version too."""
    models: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()
    """Names of the models wanted, sorted. Their digests stand beside them in the signed state."""

    def __post_init__(self) -> None:
        for name in self.models:
            check_name(name, what="deployed model name")


def encode_deployment(deployment: Deployment) -> bytes:
    """Encode a deployment so that equal ones give equal bytes."""
    return msgspec.json.encode(deployment, order="deterministic")


def decode_deployment(data: bytes) -> Deployment:
    """Decode a deployment; raises ManifestError for anything else."""
    if len(data) > DEPLOYMENT_MAX_BYTES:
        raise ManifestError(f"deployment has {len(data)} bytes, at most {DEPLOYMENT_MAX_BYTES} are accepted")
    try:
        return msgspec.json.decode(data, type=Deployment)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ManifestError(f"deployment is malformed: {error}") from error
