"""onnxruntime in the caller's own process: the floor that every other way is compared with."""

from collections.abc import Sequence
from typing import ClassVar

from benches.peers.ways import Call, Flood, Way, flood_by_threads
from benches.peers.workloads import Requests, describe


class InProcess(Way):
    """The same session as the servers', called directly."""

    name = "inprocess"
    label = "in-process onnxruntime"
    encrypted = "in memory"
    between = 0
    stands = False
    spinning: ClassVar[bool] = False

    def start(self, models: Sequence[str]) -> None:
        from benches.peers.serving import Model

        self._loaded = {
            name: Model(self.folder, describe(self.folder, name), spinning=self.spinning) for name in models
        }

    def caller(self, requests: Requests) -> Call:
        run, raw = self._loaded[requests.workload.name].run, requests.raw
        return lambda number: run(raw[number % len(raw)])

    def flood(self, requests: Requests, in_flight: int, seconds: float) -> Flood:
        """Use two threads of one core each: what more requests in flight would wait for anyway."""
        from benches.peers.serving import THREADS, Model

        if in_flight == 1:
            return super().flood(requests, 1, seconds)
        model, raw = Model(self.folder, requests.workload, threads=1), requests.raw
        callers: list[Call] = [lambda number: model.run(raw[number % len(raw)])] * THREADS
        return flood_by_threads(callers, requests, seconds)

    def stop(self) -> None:
        self._loaded = {}


class Spinning(InProcess):
    """onnxruntime's own default: threads spin between pieces of work."""

    name = "inprocess-spinning"
    label = "in-process, threads spin"
    spinning = True
