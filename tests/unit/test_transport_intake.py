"""Whom an admitted gossip message is given to, and what becomes of those that wait."""

from transport.base import HEALTH_TOPIC, GossipMessage
from transport.intake import GossipIntake


def message(number):
    return GossipMessage(topic=HEALTH_TOPIC, origin="a", forwarder="b", data=bytes([number]))


def make():
    bugs = []
    return GossipIntake(clock=lambda: 0.0, on_bug=bugs.append), bugs


def test_what_waits_comes_first_and_the_rest_in_the_call_that_delivers_it():
    intake, bugs = make()
    heard = []
    for number in (1, 2):
        intake.deliver(message(number))
    intake.consume(heard.append)
    assert heard == [message(1), message(2)]
    intake.deliver(message(3))
    assert heard[-1] == message(3)
    assert (intake.statistics().delivered, bugs) == (3, [])


def test_without_a_consumer_messages_wait_in_the_channel_again():
    intake, _ = make()
    heard = []
    intake.consume(heard.append)
    intake.consume(None)
    intake.deliver(message(1))
    assert (intake.messages.receive_nowait(), heard) == (message(1), [])


def test_a_consumer_that_raises_is_a_bug_and_costs_nobody_else_a_message():
    intake, bugs = make()
    heard = []

    def take(given):
        if given == message(1):
            raise ZeroDivisionError("a bug")
        heard.append(given)

    intake.consume(take)
    for number in (1, 2):
        intake.deliver(message(number))
    assert [str(bug) for bug in bugs] == ["a bug"]
    assert (heard, intake.statistics().bugs) == ([message(2)], 1)
