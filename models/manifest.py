"""The manifest of a model package: what a model takes and gives, and the digests of its bytes.

Owns the manifest record, its checks and its canonical bytes. The digest of those bytes names the model
everywhere in the grid (*model digest*). Pure: no files, no clock, no runtime.

A package is one ONNX graph in one or more shards, with golden inputs and outputs beside it. Each shard is
cut into chunks of 1 MiB; a chunk is named by its CIDv1 (raw, sha2-256), so it can be fetched from any peer
and checked before it touches the disk.
"""

import base64
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_SIZE_BYTES = 1 << 20
"""Bytes per chunk. One chunk fits a frame many times over, and a lost one costs little to fetch again."""

MANIFEST_MAX_BYTES = 1 << 20
"""Largest manifest accepted. At 60 B per chunk name this covers models up to about 16 GiB."""

SHARD_MAX_BYTES = 1 << 34
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
DTYPES = ("float32", "float16", "uint8", "int8", "int32", "int64", "bool")
"""Element types a tensor may have. All have a fixed size, so a header alone tells a tensor's bytes."""

_NAME = re.compile(NAME_PATTERN)
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


class ModelError(Exception):
    """Root of all errors of the models package."""


class ManifestError(ModelError):
    """A manifest that is malformed, contradicts itself or exceeds a bound."""


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name, element type and shape of one input or output."""

    name: str
    dtype: str
    """One of DTYPES."""
    shape: tuple[int, ...]
    """Sizes; -1 stands for any size >= 1."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"tensor {self.name!r} has dtype {self.dtype!r}, allowed are {', '.join(DTYPES)}")
        if len(self.shape) > 8 or any(size == 0 or size < -1 for size in self.shape):
            raise ValueError(f"tensor {self.name!r} has shape {self.shape}: up to 8 sizes, each >= 1 or -1 for any")


class ImagePreprocessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a picture becomes the model's input: ``(pixel - mean) * scale`` after the resize."""

    input: str
    """Name of the tensor to fill, shape (1, 3, height, width) or (1, height, width, 3)."""
    width: int
    height: int
    resize: Literal["letterbox", "stretch"] = "letterbox"
    pad_value: int = 114
    """Grey level of the letterbox border, 0..255."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Per channel, on the 0..255 scale."""
    scale: tuple[float, float, float] = (1 / 255, 1 / 255, 1 / 255)
    layout: Literal["nchw", "nhwc"] = "nchw"
    colour: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if not (1 <= self.width <= 8192 and 1 <= self.height <= 8192):
            raise ValueError(f"image size {self.width}x{self.height} is outside 1..8192")
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value {self.pad_value} is outside 0..255")


class DetectionPostprocessing(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="detection", tag_field="kind"
):
    """Boxes from the common YOLO output: shape (1, 4 + classes, n), rows cx, cy, w, h in input pixels, then scores."""

    output: str
    class_names: tuple[str, ...]
    score_threshold: float = 0.25
    iou_threshold: float = 0.45
    max_detections: int = 300


class ClassificationPostprocessing(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="classification", tag_field="kind"
):
    """The k best classes of an output of shape (1, classes)."""

    output: str
    class_names: tuple[str, ...]
    top_k: int = 5
    softmax: bool = True
    """Whether the output is logits, to be turned into probabilities."""


Postprocessing = DetectionPostprocessing | ClassificationPostprocessing


class Shard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the package and the names of its chunks."""

    name: str
    size_bytes: int
    sha256: str
    """Hex digest of the whole file."""
    chunks: tuple[str, ...]
    """CIDv1 of each chunk of CHUNK_SIZE_BYTES, in order; the last may be shorter."""

    def __post_init__(self) -> None:
        check_name(self.name, what="shard name")
        if not 0 < self.size_bytes <= SHARD_MAX_BYTES:
            raise ValueError(f"shard {self.name!r} has {self.size_bytes} bytes, allowed are 1..{SHARD_MAX_BYTES}")
        if not _HEX_DIGEST.fullmatch(self.sha256):
            raise ValueError(f"shard {self.name!r}: sha256 is not 64 hex digits")
        expected = -(-self.size_bytes // CHUNK_SIZE_BYTES)
        if len(self.chunks) != expected:
            raise ValueError(f"shard {self.name!r} lists {len(self.chunks)} chunks, its size needs {expected}")
        for cid in self.chunks:
            parse_cid(cid)


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Known inputs and outputs that a node must reproduce before it advertises the model."""

    shard: str
    """Shard that holds the tensors in the layout of models.golden."""
    rtol: float = 1e-2
    atol: float = 1e-2


class Requirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node must have to run the model."""

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """onnxruntime execution providers; one of them is enough."""
    memory_bytes: int = 0


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a node must know to fetch, check, load and run a model."""

    format: Literal[1] = 1
    name: str
    version: int = 1
    description: str = ""
    licence: str = ""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: ImagePreprocessing | None = None
    postprocessing: Postprocessing | None = None
    peak_memory_bytes: int
    """Memory of a worker that runs the model, measured by the publisher."""
    requirements: Requirements = Requirements()
    rungs: tuple[str, ...] = ()
    """Names of smaller variants that may answer instead, best first."""
    graph: str
    """Name of the shard that holds the ONNX graph."""
    golden: Golden | None = None
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        check_name(self.name, what="model name")
        for rung in self.rungs:
            check_name(rung, what="rung name")
        if self.version < 1:
            raise ValueError(f"version {self.version} is below 1")
        if not self.inputs or not self.outputs:
            raise ValueError("a model needs at least one input and one output")
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise ValueError("two shards have one name")
        if self.graph not in names:
            raise ValueError(f"graph names shard {self.graph!r}, which the package does not hold")
        if self.golden is not None and self.golden.shard not in names:
            raise ValueError(f"golden names shard {self.golden.shard!r}, which the package does not hold")
        if self.preprocessing is not None and self.preprocessing.input not in {spec.name for spec in self.inputs}:
            raise ValueError(f"preprocessing fills input {self.preprocessing.input!r}, which the model does not have")
        if self.postprocessing is not None and self.postprocessing.output not in {spec.name for spec in self.outputs}:
            raise ValueError(f"postprocessing reads output {self.postprocessing.output!r}, which the model has not")

    def shard(self, name: str) -> Shard:
        """Return the shard of that name; raises KeyError where there is none."""
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise KeyError(name)


def check_name(name: str, *, what: str) -> None:
    """Raise ValueError unless the name is safe as a file name and as a TUF target."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r} does not match {NAME_PATTERN}")


def canonical_bytes(manifest: Manifest) -> bytes:
    """Encode a manifest so that equal manifests give equal bytes: JSON, fields in the order of their definition."""
    return msgspec.json.encode(manifest, order="deterministic")


def model_digest(manifest: Manifest) -> str:
    """Return the hex SHA-256 of the canonical bytes, the model's name in the grid."""
    return _sha256(canonical_bytes(manifest)).hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """Decode and check a manifest.

    Raises
    ------
    ManifestError
        The bytes are too long, no manifest, not in canonical form, or contradict themselves.
    """
    if len(data) > MANIFEST_MAX_BYTES:
        raise ManifestError(f"manifest has {len(data)} bytes, at most {MANIFEST_MAX_BYTES} are accepted")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ManifestError(f"manifest is malformed: {error}") from error
    if canonical_bytes(manifest) != data:
        raise ManifestError("manifest is not in canonical form; write it with 'gridnode model publish'")
    return manifest


def chunk_cid(data: bytes | memoryview) -> str:
    """Return the CIDv1 (raw codec, sha2-256, base32) of a chunk.

    Notes
    -----
    Layout of the binary CID: version 0x01, codec raw 0x55, multihash sha2-256 0x12, length 0x20, digest
    (multiformats CID specification, https://github.com/multiformats/cid).
    """
    return _cid_text(b"\x01\x55\x12\x20" + _sha256(data).digest())


def _sha256(data: bytes | memoryview = b"") -> "_Hash":
    # Loads OpenSSL, 3 MB, which a worker that reads a manifest has no use for.
    import hashlib

    return hashlib.sha256(data)


def _cid_text(raw: bytes) -> str:
    return "b" + base64.b32encode(raw).decode("ascii").lower().rstrip("=")


def parse_cid(cid: str) -> bytes:
    """Return the SHA-256 digest in a CID as made by chunk_cid; raises ValueError for any other form."""
    if len(cid) != 59 or not cid.startswith("b") or cid != cid.lower():
        raise ValueError(f"chunk name {cid[:80]!r} is no CIDv1 in base32")
    try:
        raw = base64.b32decode(cid[1:].upper() + "=" * (-len(cid[1:]) % 8))
    except ValueError as error:
        raise ValueError(f"chunk name {cid!r} is no base32") from error
    if raw[:4] != b"\x01\x55\x12\x20" or len(raw) != 36:
        raise ValueError(f"chunk name {cid!r} is no CIDv1 of raw bytes by sha2-256")
    if _cid_text(raw) != cid:
        raise ValueError(f"chunk name {cid!r} has stray bits at its end: one digest must have one name")
    return raw[4:]


def describe_shard(name: str, pieces: Iterable[bytes]) -> Shard:
    """Describe a file given as consecutive pieces of CHUNK_SIZE_BYTES (the last may be shorter)."""
    whole = _sha256()
    size_bytes = 0
    chunks: list[str] = []
    for piece in pieces:
        whole.update(piece)
        size_bytes += len(piece)
        chunks.append(chunk_cid(piece))
    return Shard(name=name, size_bytes=size_bytes, sha256=whole.hexdigest(), chunks=tuple(chunks))
