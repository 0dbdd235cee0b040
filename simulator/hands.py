"""Carries out what a node's core asks for: one method per kind of action. The twin of gridnode.hands."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from scheduler import actions
from scheduler.types import Reason
from simulator.answers import Answer, Failure
from simulator.errands import ProbeErrand, SendErrand, StealErrand, TableErrand

if TYPE_CHECKING:
    from simulator.node import SimNode


class Hands:
    """The hands of one node.

    Parameters
    ----------
    node : SimNode
        Whose core is obeyed.
    """

    def __init__(self, node: "SimNode") -> None:
        self._node = node

    def by_action(self) -> dict[type, Callable[..., object]]:
        """Tie each kind of action to what carries it out; given the action, and what was posted with its event."""
        return {
            actions.Execute: self._execute,
            actions.Send: self._send,
            actions.Offer: self._send,
            actions.Steal: lambda action, _: StealErrand(self._node, action),
            actions.Accept: self._rule,
            actions.NackOffer: self._rule,
            actions.GrantLease: lambda action, _: self._node.inbound.grant(action),
            actions.Reply: self._reply,
            actions.Reject: self._reject,
            actions.Nack: self._nack,
            actions.Acknowledge: self._acknowledge,
            actions.Progress: self._progress,
            actions.Cancel: self._cancel,
            actions.LoadModel: lambda action, _: self._node.machine.load(action.model),
            actions.EvictModel: lambda action, _: self._node.machine.evict(action.model),
            actions.Advertise: lambda action, _: self._node.gossip.publish(action.state),
            actions.PullTable: lambda action, _: TableErrand(self._node, action.peer),
            actions.Probe: lambda action, _: ProbeErrand(self._node, action),
            actions.Drained: self._drained,
        }

    def _execute(self, action: actions.Execute, _: object) -> None:
        self._node.machine.execute(action)

    def _send(self, action: actions.Send | actions.Offer, _: object) -> None:
        SendErrand(self._node, action, self._node.jobs[action.handle])

    def _rule(self, action: actions.Accept | actions.NackOffer, _: object) -> None:
        self._node.inbound.rule(action)

    def _reply(self, action: actions.Reply, attachment: object) -> None:
        node, handle = self._node, action.handle
        entry = node.jobs.pop(handle)
        outcome = attachment.get(handle) if isinstance(attachment, dict) else attachment
        if isinstance(outcome, Answer):
            if node.lie is not None and entry.job.entry != node.name:
                late_s, outcome = node.lie.answered(outcome, node.machine.told_means_s())
                node.engine.at(node.engine.now_s + late_s, entry.answerer.answer, outcome, action.state)
                return
            entry.answerer.answer(outcome, action.state)
        else:
            failure = outcome if isinstance(outcome, Failure) else Failure(reason=Reason.LOST)
            entry.answerer.fail(failure, action.state, None)

    def _reject(self, action: actions.Reject, attachment: object) -> None:
        failure = Failure(reason=action.why, message=action.reason)
        if isinstance(attachment, Failure) and action.why in (Reason.MODEL_FAILED, Reason.EXPIRED):
            failure = attachment
        self._node.jobs.pop(action.handle).answerer.fail(failure, action.state, action.estimate_s)

    def _nack(self, action: actions.Nack, _: object) -> None:
        self._node.jobs.pop(action.handle).answerer.give_back(action.why, action.state, action.estimate_s)

    def _acknowledge(self, action: actions.Acknowledge, _: object) -> None:
        entry = self._node.jobs.get(action.handle)
        if entry is not None:
            entry.answerer.accepted(action.state)

    def _progress(self, action: actions.Progress, _: object) -> None:
        entry = self._node.jobs.get(action.handle)
        if entry is not None:
            entry.answerer.progress(action.state)

    def _cancel(self, action: actions.Cancel, _: object) -> None:
        if not self._node.machine.cancel(action.command):
            errand = self._node.errands.get(action.command)
            if errand is not None:
                errand.cancel()

    def _drained(self, action: actions.Drained, _: object) -> None:
        self._node.is_drained = True
