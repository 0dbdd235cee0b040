"""One loaded model: from a request's bytes to a result's bytes, in the worker process.

Owns onnxruntime; no other module imports it. Knows nothing of processes, sockets or slots. The order of one answer:
check the request against the manifest, make the input, run, read the output, lay raw tensors out.
"""

import contextlib
import ctypes
import gc
import io
import sys
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_state  # type: ignore[import-untyped]

from models.bodies import ClassRecord, DetectionRecord, RequestBody, ResultBody, encode_result
from models.detection import Geometry, classify, detect
from models.manifest import DetectionPostprocessing, ImagePreprocessing, Manifest, TensorSpec
from models.ndarrays import Array
from models.plans import Plan, Plans, frame_size, with_raw
from models.tensors import InferenceError

RunOptions = onnxruntime.RunOptions

LOG_SEVERITY: Final = 3
"""onnxruntime logs errors and above; its warnings repeat for each load and say nothing a node can act on."""

_EXTEND_AS_REQUESTED: Final = 1
"""onnxruntime's number for the strategy kSameAsRequested of an arena."""

RUNTIME_FAULTS: Final = (
    runtime_state.EPFail,
    runtime_state.EngineError,
    runtime_state.Fail,
    runtime_state.InvalidArgument,
    runtime_state.InvalidGraph,
    runtime_state.InvalidProtobuf,
    runtime_state.ModelRequiresCompilation,
    runtime_state.NoModel,
    runtime_state.NotFound,
    runtime_state.NotImplemented,
    runtime_state.RuntimeException,
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
)
"""What onnxruntime raises for a model or an input it cannot deal with."""

COPIED_MAX_BYTES: Final = 32 * 1024 * 1024
"""Largest graph of which there is a second copy for runs that go at once."""


def prepare(manifest: Manifest) -> None:
    """Touch what libraries load on first use, because no file can be opened later.

    Pillow takes 5 MB and a tenth of a second on a small board, so a model without pictures goes without.
    """
    if manifest.preprocessing is None:
        return
    from PIL import Image

    from models.imaging import FORMATS, ImageError, preprocess

    blank = Image.new("RGB", (16, 16))
    preprocessing = ImagePreprocessing(input="x", width=8, height=8)
    for form in FORMATS:
        encoded = io.BytesIO()
        blank.save(encoded, form)
        preprocess(encoded.getvalue(), preprocessing)
    with contextlib.suppress(ImageError):
        preprocess(b"no picture", preprocessing)


class Session:
    """A model ready to run.

    Parameters
    ----------
    graph : bytes
        The ONNX file.
    manifest : Manifest
        What the model takes and gives.
    threads : int
        Threads of one run.
    providers : tuple of str
        Execution providers to try, best first; those this build lacks are left out.

    Raises
    ------
    One of RUNTIME_FAULTS
        The runtime does not take the model.
    """

    def __init__(self, graph: bytes, manifest: Manifest, *, threads: int, providers: tuple[str, ...]) -> None:
        onnxruntime.disable_telemetry_events()
        onnxruntime.set_default_logger_severity(LOG_SEVERITY)
        _register_arena()
        available = onnxruntime.get_available_providers()
        chosen = [name for name in providers if name in available]
        if not chosen:
            raise ValueError(f"onnxruntime here has {', '.join(available)}, the model needs one of {providers}")
        self._chosen = chosen
        self._threads = threads
        self._session = self._make(graph, threads)
        self._crowded = self._session
        """For runs that go at once."""
        self._manifest = manifest
        self._plans = Plans(manifest)
        self._output_names = [spec.name for spec in manifest.outputs]
        names = getattr(manifest.postprocessing, "class_names", ())
        self._class_indices = {name: index for index, name in reversed(list(enumerate(names)))}
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())

    def share_threads(self, graph: bytes, *, runs: int) -> None:
        """Let so many runs that go at once share the threads of one; takes as long as loading the model.

        A run that goes alone is done soonest by all threads. Of several, each is done soonest by its own: threads that
        wait for one another at every operator cost a tenth of the work, or more where others want the processor, too.
        The runtime fixes threads per copy of a model, so this is a second one; large models do with one.
        """
        threads = max(1, self._threads // runs)
        on_processor = self.providers == ("CPUExecutionProvider",)
        if threads == self._threads or len(graph) > COPIED_MAX_BYTES or not on_processor:
            return
        try:
            crowded = self._make(graph, threads)
        except RUNTIME_FAULTS as error:
            sys.stderr.write(f"runs that go at once are not given threads of their own: {error}\n")
            return
        self._warm_up(crowded)
        self._crowded = crowded

    def _make(self, graph: bytes, threads: int) -> runtime_state.InferenceSession:
        """Load the graph."""
        # The class behind onnxruntime.InferenceSession, which keeps the graph's bytes for as long as it lives.
        session = runtime_state.InferenceSession(_options(threads), graph, False, False)
        session.initialize_session(self._chosen, [{} for _ in self._chosen], set())
        return session

    def warm_up(self) -> None:
        """Run once on zeros, so that the first request finds memory and threads ready.

        A model that cannot run on zeros is not to blame: the golden check judges it.
        """
        self._warm_up(self._session)

    def _warm_up(self, session: runtime_state.InferenceSession) -> None:
        feeds = {spec.name: _zeros(spec) for spec in self._manifest.inputs}
        options = RunOptions()
        # The first run takes memory piece by piece while the runtime learns what a run needs; all later ones take it
        # as one block. The pieces would never be used again: for squeezenet 3 of 16 MB.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            session.run(self._output_names, feeds, options)
        except RUNTIME_FAULTS as error:
            sys.stderr.write(f"warm-up run failed: {error}\n")

    def answer(
        self,
        body: bytes,
        payload: memoryview,
        output: memoryview,
        options: onnxruntime.RunOptions,
        *,
        is_shared: bool = False,
        is_alone: bool = True,
    ) -> tuple[bytes, int]:
        """Answer one request.

        Parameters
        ----------
        body : bytes
            An encoded RequestBody.
        payload : memoryview
            Read in place as plain numbers; an encoded picture is copied before it is parsed.
        output : memoryview
            Writable; raw outputs are laid out at its start.
        options : RunOptions
            Setting its ``terminate`` from another thread ends the run.
        is_shared : bool
            Whether a program may change the payload meanwhile: then only numbers that a model computes with are read
            in place.
        is_alone : bool
            Whether no other run goes on as this one begins.

        Returns
        -------
        body : bytes
            An encoded ResultBody.
        size : int
            Bytes of the output used.

        Raises
        ------
        BadInputError
            The sender's fault.
        InferenceError, OutputError, or one of RUNTIME_FAULTS
            The model's.
        """
        plan = self._plans.find(body, payload.nbytes)
        feeds, geometry = self._feeds(plan, payload, is_shared=is_shared)
        post = self._manifest.postprocessing
        names = self._output_names if plan.is_raw or post is None else [post.output]
        session = self._session if is_alone else self._crowded
        outputs = dict(zip(names, session.run(names, feeds, options), strict=True))
        if not plan.is_raw:
            return encode_result(self._read(plan.request, outputs, geometry)), 0
        layout = plan.lay_out(outputs)
        layout.write(outputs, output)
        if post is None:
            return layout.body, layout.size_bytes
        result = with_raw(self._read(plan.request, outputs, geometry), layout)
        return encode_result(result), layout.size_bytes

    def _feeds(
        self, plan: Plan, payload: memoryview, *, is_shared: bool
    ) -> tuple[Mapping[str, Array], Geometry | None]:
        """Return the inputs, and how the frame lies in them where there is a frame."""
        if plan.has_tensors:
            return plan.feeds(payload, is_shared=is_shared), plan.geometry
        preprocessing = self._manifest.preprocessing
        assert preprocessing is not None, "a picture was let in without pre-processing"
        picture: bytes | Array = bytes(payload)
        if plan.request.kind == "array":
            picture = np.frombuffer(payload, np.uint8).reshape(plan.request.height, plan.request.width, 3)
        from models.imaging import preprocess  # there since prepare()

        tensor, geometry = preprocess(picture, preprocessing)
        return {preprocessing.input: self._cast(tensor, preprocessing.input)}, geometry

    def _cast(self, tensor: Array, name: str) -> Array:
        """Give the picture's tensor the type that the model takes."""
        wanted = next(spec.dtype for spec in self._manifest.inputs if spec.name == name)
        return tensor if tensor.dtype.name == wanted else tensor.astype(wanted)

    def _read(self, request: RequestBody, outputs: Mapping[str, Array], geometry: Geometry | None) -> ResultBody:
        """Make records of the output, as the manifest says."""
        post = self._manifest.postprocessing
        width, height = frame_size(geometry)
        if isinstance(post, DetectionPostprocessing):
            if geometry is None:
                raise InferenceError(f"model {self._manifest.name!r} has detections but no input of shape (1, 3, h, w)")
            if request.score_threshold is not None:
                post = msgspec.structs.replace(post, score_threshold=request.score_threshold)
            found = tuple(
                DetectionRecord(
                    class_index=self._class_indices[d.class_name], class_name=d.class_name, score=d.score, box=d.box
                )
                for d in detect(outputs[post.output], post, geometry)
            )
            return ResultBody(detections=found, image_width=width, image_height=height)
        assert post is not None, "a model without post-processing has no result beside its outputs"
        classes = tuple(
            ClassRecord(class_index=self._class_indices[c.class_name], class_name=c.class_name, score=c.score)
            for c in classify(outputs[post.output], post)
        )
        return ResultBody(classes=classes, image_width=width, image_height=height)


def give_back() -> None:
    """Return to the machine what was only needed to load a model: the file's bytes, its parsed form, other garbage.

    The C library keeps freed memory below the last piece in use, for squeezenet 9 MB.
    """
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc's own; others return memory by themselves or not at all
        ctypes.CDLL(None).malloc_trim(0)


def _register_arena() -> None:
    """Make an arena that grows by what is asked for, not to the next power of two; one per process."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    unset = -1
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(0, _EXTEND_AS_REQUESTED, unset, unset))


def _options(threads: int) -> onnxruntime.SessionOptions:
    """Return settings for many small models on a small machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_SEVERITY
    # Large activations straight from malloc cost new pages in every run: a convolution over 1280x720 took 22 ms
    # instead of 8 ms. The arena of _register_arena keeps them.
    options.add_session_config_entry("session.use_env_allocators", "1")
    # A thread that spins for its next piece of work takes the core from other models and from the daemon.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _zeros(spec: TensorSpec) -> Array:
    """Return an input of zeros, every free size being 1."""
    return np.zeros([max(1, size) for size in spec.shape], spec.dtype)
