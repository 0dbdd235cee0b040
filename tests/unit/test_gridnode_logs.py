"""Log lines: one event a line whatever a peer puts into it, bounded in length and rate."""

import io
import logging

import pytest

from gridnode.logs import LINES_PER_SECOND_MAX, VALUE_MAX_CHARS, EventLog, set_up_logging, short


@pytest.fixture
def written():
    """Give a stream that events go to, and take the set-up back afterwards."""
    root = logging.getLogger("gridnode")
    before = root.handlers[:], root.level, root.propagate
    stream = io.StringIO()
    yield stream
    root.handlers[:], root.propagate = before[0], before[2]
    root.setLevel(before[1])


def test_an_event_is_one_line_with_its_keys(written):
    set_up_logging(level="info", journal=False, stream=written)
    EventLog("part").info("job_done", peer="abc", wait_s=0.123456789, empty="", text='say "hi"')
    line = written.getvalue()
    assert line.endswith('info    part: job_done peer=abc wait_s=0.1235 empty="" text="say \\"hi\\""\n')


def test_a_value_can_neither_end_the_line_nor_fill_the_disk(written):
    set_up_logging(level="debug", journal=False, stream=written)
    EventLog("part").warning("odd", a="x\nerror forged: y\r\x1b[2J\u202e", b="z" * 100_000)
    assert written.getvalue().count("\n") == 1
    assert "\x1b" not in written.getvalue()
    assert "\u202e" not in written.getvalue()
    assert len(written.getvalue()) < 2 * VALUE_MAX_CHARS + 200


def test_on_a_journal_the_level_goes_first(written):
    set_up_logging(level="debug", journal=True, stream=written)
    log = EventLog("part")
    for say in (log.debug, log.info, log.warning, log.error):
        say("event")
    assert [line[:3] for line in written.getvalue().splitlines()] == ["<7>", "<6>", "<4>", "<3>"]


def test_levels_below_the_chosen_one_are_left_out(written):
    set_up_logging(level="warning", journal=True, stream=written)
    EventLog("part").info("event")
    assert written.getvalue() == ""


def test_a_flood_is_cut_and_counted_but_errors_pass(written):
    set_up_logging(level="info", journal=True, stream=written)
    log = EventLog("part")
    for _ in range(LINES_PER_SECOND_MAX * 2):
        log.info("flood")
    log.error("grave")
    lines = written.getvalue().splitlines()
    assert len(lines) <= LINES_PER_SECOND_MAX + 1
    assert "grave" in lines[-1]
    assert f"held_back={LINES_PER_SECOND_MAX}" in lines[-1]


def test_a_peer_goes_by_its_last_characters():
    assert short("12D3KooWabcdefgh") == "abcdefgh"
