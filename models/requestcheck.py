"""Does a request fit a model? Judged from its body and the manifest, before anything is allocated or run for it. Pure.

Every refusal says what was seen and what the model takes: the developer of a program reads it.
"""

from collections.abc import Sequence

from models.bodies import RequestBody
from models.manifest import Manifest, TensorSpec
from models.tensors import ALIGNMENT_BYTES, PAYLOAD_MAX_BYTES, BadInputError, TensorHeader, layout


def check_request(manifest: Manifest, body: RequestBody, payload_bytes: int) -> None:
    """Check that a request fits a model, before anything is allocated or run for it.

    Parameters
    ----------
    manifest : Manifest
        Of the model that is to answer.
    body : RequestBody
        As decoded.
    payload_bytes : int
        Length of the payload that came with it, >= 0.

    Raises
    ------
    BadInputError
        The sender's fault: an input is missing, unknown, of another dtype or shape, sizes do not add up, or a
        picture goes to a model without pre-processing. The message says what was seen and what is wanted.
    """
    if payload_bytes > PAYLOAD_MAX_BYTES:
        raise BadInputError(f"payload has {payload_bytes} bytes, at most {PAYLOAD_MAX_BYTES} are accepted; shrink it")
    if body.kind == "tensors":
        _check_tensors(manifest, body, payload_bytes)
        return
    if body.tensors:
        raise BadInputError(f"request of kind {body.kind!r} names tensors; leave them out or use kind 'tensors'")
    _check_takes_pictures(manifest)
    if body.kind == "image" and payload_bytes == 0:
        raise BadInputError("request of kind 'image' has an empty payload; send an encoded JPEG or PNG")
    wanted = body.width * body.height * 3
    if body.kind == "array" and (wanted == 0 or wanted != payload_bytes):
        raise BadInputError(
            f"frame of {body.width}x{body.height} needs {wanted} bytes of RGB, the payload has {payload_bytes}; "
            "send uint8 of shape (height, width, 3) with its size"
        )


def _check_takes_pictures(manifest: Manifest) -> None:
    """Refuse a picture where the manifest does not say how it becomes all of the model's inputs."""
    if manifest.preprocessing is None:
        raise BadInputError(
            f"model {manifest.name!r} takes no pictures, its manifest has no pre-processing; send its inputs as "
            f"tensors: {_wanted(manifest.inputs)}"
        )
    others = [spec.name for spec in manifest.inputs if spec.name != manifest.preprocessing.input]
    if others:
        raise BadInputError(f"model {manifest.name!r} needs more than a picture: {', '.join(others)}; send tensors")


def _check_tensors(manifest: Manifest, body: RequestBody, payload_bytes: int) -> None:
    """Check headers against the manifest's inputs and the payload's length."""
    specs = {spec.name: spec for spec in manifest.inputs}
    seen: set[str] = set()
    for header in body.tensors:
        if header.name in seen:
            raise BadInputError(f"input {header.name!r} is given twice; give each input once")
        seen.add(header.name)
        if header.name not in specs:
            raise BadInputError(
                f"model {manifest.name!r} has no input {header.name!r}; it takes {_wanted(manifest.inputs)}"
            )
        _check_tensor(header, specs[header.name])
    missing = [spec for spec in manifest.inputs if spec.name not in seen]
    if missing:
        raise BadInputError(f"model {manifest.name!r} got no input {_wanted(missing)}; send it too")
    _, total = layout(body.tensors)
    if total != payload_bytes:
        raise BadInputError(
            f"payload has {payload_bytes} bytes, its tensor headers add up to {total} with each tensor at a "
            f"multiple of {ALIGNMENT_BYTES}; send both alike"
        )


def _check_tensor(header: TensorHeader, spec: TensorSpec) -> None:
    """Compare one header with the manifest."""
    if header.dtype != spec.dtype:
        raise BadInputError(f"input {header.name!r} is {header.dtype}, the model takes {spec.dtype}; cast it")
    fits = len(header.shape) == len(spec.shape) and all(
        seen >= 1 and wanted in (-1, seen) for seen, wanted in zip(header.shape, spec.shape, strict=False)
    )
    if not fits:
        raise BadInputError(
            f"input {header.name!r} has shape {header.shape}, the model takes {spec.shape} (-1: any size); reshape it"
        )


def _wanted(specs: Sequence[TensorSpec]) -> str:
    """List inputs for a message."""
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs)
