"""What a node does with a state record that passed: it is read once, and never taken for another."""

from gridnode import gossip as module
from gridnode.gossip import Gossip
from transport.base import STATE_TOPIC, GossipMessage
from transport.wire import StateRecord, encode


class Everybody:
    """Holds everybody's card."""

    node = "me"
    revocation_version = 0

    def is_good(self, node):
        return True


class Posts:
    """A driver that keeps what is posted, and a control plane that keeps no validator."""

    def __init__(self):
        self.sequences = []

    def post(self, event):
        self.sequences.append(event.state.sequence)

    def set_validator(self, topic, validator):
        pass


def record(sequence):
    data = encode(StateRecord(1, "a", 1, sequence, 0.0, 1, 0.0, 1.0, 0, 1 << 30, False, 0, bytes(8)))
    return GossipMessage(topic=STATE_TOPIC, origin="a", forwarder="b", data=data)


def make():
    posts = Posts()
    told = []
    gossip = Gossip(Everybody(), control=posts, driver=posts, introductions=None, on_trust_news=told.append)
    return gossip, posts


def test_a_record_is_read_once(monkeypatch):
    gossip, posts = make()
    read = []
    decode = module.decode_state
    monkeypatch.setattr(module, "decode_state", lambda data: (read.append(data), decode(data))[1])
    for sequence in (1, 2):
        message = record(sequence)
        assert gossip.is_good(message)
        gossip.take(message)
    assert (posts.sequences, len(read)) == ([1, 2], 2)


def test_records_judged_before_others_are_taken_stay_themselves():
    gossip, posts = make()
    messages = [record(sequence) for sequence in (1, 2, 3)]
    assert all(gossip.is_good(message) for message in messages)
    for message in messages:
        gossip.take(message)
    assert posts.sequences == [1, 2, 3]
