"""An executor that waits instead of computing: service times come from a device profile.

Owns nothing but the waiting. For calibrating the simulator against the daemon and for experiments with more devices
than there are; results are marked as emulated and hold no numbers. Requests are checked like real ones. On a virtual
clock it takes no time at all.
"""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import trio
from msgspec import Meta

from models.bodies import ResultBody, decode_request, encode_result
from models.executor import (
    ExecutorStatistics,
    ModelChange,
    ModelNotLoadedError,
    ModelRefusedError,
    OnEnd,
    RunDeadlineError,
    RunOutcome,
    RunRequest,
)
from models.manifest import Manifest
from models.requestcheck import check_request
from models.segments import Segment
from models.tensors import BadInputError, InferenceError

if TYPE_CHECKING:
    from models.lanes import OnWord

_RESULT: Final = encode_result(ResultBody(emulated=True))


class EmulatedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model costs on the emulated device."""

    mean_s: Annotated[float, Meta(gt=0)]
    """Mean service time in seconds."""
    cv: Annotated[float, Meta(ge=0, le=10)] = 0.1
    """Coefficient of variation of service times: standard deviation over mean; 0 for a constant."""
    load_s: Annotated[float, Meta(ge=0)] = 0.0
    memory_bytes: Annotated[int, Meta(ge=0)] = 0


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An emulated device."""

    models: Mapping[str, EmulatedModel]
    """By model name (not digest), as in a scenario."""
    default: EmulatedModel | None = None
    """For models not named; without it they are refused."""
    slots: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Runs of one model at once."""


class _Loaded:
    """A model that is loaded, or being loaded."""

    def __init__(self, manifest: Manifest, cost: EmulatedModel, slots: int) -> None:
        self.manifest = manifest
        self.cost = cost
        self.slots = trio.Semaphore(slots, max_value=slots)
        self.ready = trio.Event()
        self.runs = 0
        self.errors = 0
        self.terminated = 0


class EmulatedExecutor:
    """A models.executor.Executor without processes.

    Parameters
    ----------
    device : DeviceProfile
        What is emulated.
    rng : random.Random
        Draws service times.
    """

    def __init__(self, device: DeviceProfile, rng: random.Random) -> None:
        self._device = device
        self._rng = rng
        self._models: dict[str, _Loaded] = {}
        # Nothing changes by itself here; the sender only keeps the channel open.
        self._changes_in, self._changes_out = trio.open_memory_channel[ModelChange](1)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait until cancelled; forgets all models at the end."""
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._models.clear()

    async def load(self, digest: str, manifest: Manifest, graph_path: Path) -> None:
        """Wait out the load time; the graph is not read. See models.executor.Executor.load."""
        model = self._models.get(digest)
        if model is not None:
            await model.ready.wait()
            return
        cost = self._device.models.get(manifest.name, self._device.default)
        if cost is None:
            raise ModelRefusedError(f"the device profile has no service time for model {manifest.name!r}; add one")
        model = self._models[digest] = _Loaded(manifest, cost, self._device.slots)
        try:
            await trio.sleep(cost.load_s)
        except trio.Cancelled:
            self._models.pop(digest, None)
            raise
        finally:
            model.ready.set()

    async def unload(self, digest: str) -> None:
        """Let go of a model; runs in hand still end. See models.executor.Executor.unload."""
        self._models.pop(digest, None)
        await trio.lowlevel.checkpoint()

    def begin(self, digest: str, request: RunRequest, on_end: OnEnd) -> Callable[[], None] | None:
        """Start nothing: waiting needs a task. See models.executor.Executor.begin."""
        return None

    async def run(
        self, digest: str, requests: Sequence[RunRequest], *, on_started: Callable[[], None] | None = None
    ) -> list[RunOutcome | InferenceError]:
        """Wait out a service time per request; see models.executor.Executor.run."""
        model = self._models.get(digest)
        if model is None or not model.ready.is_set():
            raise ModelNotLoadedError(f"model {digest[:12]} is not loaded here")
        outcomes: list[RunOutcome | InferenceError] = []
        for request in requests:
            with trio.move_on_at(request.deadline_s):
                async with model.slots:
                    if on_started is not None:
                        on_started()
                        on_started = None
                    outcomes.append(await self._serve_one(model, request))
                    continue
            model.terminated += 1
            outcomes.append(RunDeadlineError("the deadline passed before the result was there; allow more time"))
        return outcomes

    async def _serve_one(self, model: _Loaded, request: RunRequest) -> RunOutcome | InferenceError:
        """Check a request and wait out its service time."""
        try:
            body = decode_request(request.body)
            check_request(model.manifest, body, memoryview(request.payload).nbytes)
        except BadInputError as error:
            model.errors += 1
            await trio.lowlevel.checkpoint()
            return error
        service_s = self._draw_s(model.cost)
        await trio.sleep(service_s)
        model.runs += 1
        return RunOutcome(body=_RESULT, payload=bytearray(), service_s=service_s)

    def _draw_s(self, cost: EmulatedModel) -> float:
        """Draw a service time: gamma distributed, which is positive and has any variation one likes."""
        if cost.cv == 0:
            return cost.mean_s
        shape = 1 / cost.cv**2
        return self._rng.gammavariate(shape, cost.mean_s / shape)

    def open_lane(self, digest: str, segment: Segment, descriptor: int, on_word: "OnWord") -> None:
        """Open none: there is no worker to speak to."""
        os.close(descriptor)

    def forget_segment(self, segment: Segment) -> None:
        """Do nothing: payloads are not read here."""

    def loaded(self) -> frozenset[str]:
        """Return the digests of the models that are ready."""
        return frozenset(digest for digest, model in self._models.items() if model.ready.is_set())

    def statistics(self) -> tuple[ExecutorStatistics, ...]:
        """Return a snapshot per model, sorted by digest."""
        return tuple(self._statistics(digest, self._models[digest]) for digest in sorted(self._models))

    def _statistics(self, digest: str, model: _Loaded) -> ExecutorStatistics:
        return ExecutorStatistics(
            digest=digest,
            name=model.manifest.name,
            pid=0,
            memory_bytes=model.cost.memory_bytes,
            memory_bytes_peak=model.cost.memory_bytes,
            load_s=model.cost.load_s,
            slots=self._device.slots,
            running=self._device.slots - model.slots.value,
            waiting=model.slots.statistics().tasks_waiting,
            runs=model.runs,
            errors=model.errors,
            restarts=0,
            terminated=model.terminated,
            confinement="emulated",
            cpu_share=1.0,
            providers=("Emulated",),
        )

    def changes(self) -> trio.MemoryReceiveChannel[ModelChange]:
        """Return the channel of changes; nothing ever comes."""
        return self._changes_out
