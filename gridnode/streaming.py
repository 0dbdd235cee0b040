"""The sync stream: a thread reads the source, the consumer's thread takes the outcomes. Owns that thread's life."""

import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gridnode.calls import StreamPlan, item_of, make_request
from gridnode.carrier import Carrier
from gridnode.errors import GridError
from gridnode.window import Flight, StreamItem

if TYPE_CHECKING:
    from gridnode.inputs import Input


class _Feed:
    """The source's side of a stream.

    All fields of the window are read and changed under the carrier's lock; inputs are encoded and sent outside of it.
    """

    def __init__(self, carrier: Carrier, frames: "Iterable[Input]", plan: "StreamPlan[Input]") -> None:
        self._carrier = carrier
        self._frames = frames
        self._plan = plan
        self.window = plan.window
        self.is_stopped = False
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Read the source to its end, or until the consumer stops."""
        try:
            for image in self._frames:
                if not self._take(image):
                    break
        except BaseException as error:
            # The source is the user's code: whatever it raises belongs to the consumer, in his thread.
            self.failure = error
        finally:
            with self._carrier.lock:
                self.window.source_ended = True
                self._carrier.notify()

    def _take(self, image: "Input") -> bool:
        """Put one frame into the window; returns False when the stream is over."""
        self._carrier.wait(lambda: self.is_over or self.window.can_arrive)
        with self._carrier.lock:
            if self.is_over:
                return False
            self.window.arrive(image)
            # Taken at once: the consumer's thread, woken to find a frame that can go, would only be in the way.
            flight = self.window.take_to_send()
            self._carrier.notify()
        if flight is not None:
            self._send(flight)
        elif self._carrier.wait(lambda: self.is_over or self.window.can_send, timeout_s=0):
            self.send()
        if self.window.mode == "all":
            self._carrier.wait(lambda: self.is_over or self.window.can_arrive or self.window.can_send)
            self.send()
        return not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether no frame is wanted any more."""
        return self.is_stopped or self._carrier.is_closed

    def send(self) -> None:
        """Send the waiting frame if there is room for it."""
        with self._carrier.lock:
            flight = self.window.take_to_send()
        if flight is not None:
            self._send(flight)

    def _send(self, flight: "Flight[Input]") -> None:
        """Send a frame that was taken for it."""
        try:
            request = make_request(self._plan.model, flight.image, self._plan.options, frame=flight.frame)
            flight.job = self._carrier.submit(request, self._plan.deadline_s)
        except (GridError, TypeError) as error:
            flight.error = error
        with self._carrier.lock:
            self._carrier.notify()

    def stop(self) -> None:
        """Take no more frames and cancel those in the grid."""
        with self._carrier.lock:
            self.is_stopped = True
            jobs = self.window.open_jobs()
            self._carrier.notify()
        for job in jobs:
            self._carrier.cancel(job)


def run_stream(carrier: Carrier, frames: "Iterable[Input]", plan: "StreamPlan[Input]") -> Iterator[StreamItem]:
    """Yield the outcomes of a stream; see Grid.stream."""
    feed, window = _Feed(carrier, frames, plan), plan.window
    # A daemon thread: one that hangs in a camera must not keep the program from ending.
    threading.Thread(target=feed.run, name="gridnode-stream", daemon=True).start()
    try:
        while True:
            carrier.wait(lambda: window.has_outcome or window.can_send or window.is_finished)
            feed.send()
            with carrier.lock:
                if window.is_finished:
                    break
                outcome = window.take_outcome() if window.has_outcome else None
            if outcome is not None:
                yield item_of(outcome)
    finally:
        feed.stop()
    if feed.failure is not None:
        raise feed.failure
