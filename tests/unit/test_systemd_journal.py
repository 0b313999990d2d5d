"""Records as the journal gets them: over a real socket would be tests/system."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import pytest

from jfsd import log as logs
from jfsd.systemd import journal, unit

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sent(monkeypatch) -> list[dict[str, str]]:
    """What was sent, as fields; the process is about nothing yet."""
    found: list[dict[str, str]] = []
    monkeypatch.setattr(logs, "_about", {})

    def sendv(*words: bytes) -> None:
        pairs = (word.decode(errors="surrogateescape").split("=", 1) for word in words)
        found.append(dict(pairs))

    monkeypatch.setattr(journal.journal, "sendv", sendv)
    return found


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger, handler = logging.getLogger("jfsd.test"), journal.JournalHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield logger
    logger.removeHandler(handler)


def test_a_record_says_how_bad_it_is_and_what_it_is_about(sent, logger) -> None:
    logs.about(mountpoint="/mnt/\udcff", volume="v")
    logger.warning("%s waits", "Redis")
    (fields,) = sent
    assert fields["MESSAGE"] == "Redis waits"
    assert fields["PRIORITY"] == "4"
    assert fields["LOGGER"] == "jfsd.test"
    assert fields["SYSLOG_IDENTIFIER"] == "jfsd"
    assert (fields["JFSD_MOUNTPOINT"], fields["JFSD_VOLUME"]) == ("/mnt/\udcff", "v")
    assert "JFSD_EVENT_KIND" not in fields


def test_an_event_has_its_numbers_as_fields(sent, logger) -> None:
    event = {"kind": "restart", "at": 1.5, "pid": 7, "load": 12.5, "gap_ms": 80.25, "resent": 2}
    logger.info("event", extra={"jfsd_event": event})
    (fields,) = sent
    own = {name: value for name, value in fields.items() if name.startswith("JFSD_")}
    assert own == {
        "JFSD_EVENT_KIND": "restart",
        "JFSD_PID": "7",
        "JFSD_LOAD_MS": "12.5",
        "JFSD_GAP_MS": "80.25",
        "JFSD_RESENT": "2",
    }
    assert fields["MESSAGE_ID"] == journal.EVENT_ID


def test_an_exception_is_told_whole(sent, logger) -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.exception("bad")
    assert sent[0]["MESSAGE"].startswith("bad\nTraceback")
    assert sent[0]["PRIORITY"] == "3"


@pytest.mark.parametrize(("level", "number"), [(10, 7), (20, 6), (30, 4), (40, 3), (50, 2)])
def test_levels_are_priorities(level: int, number: int) -> None:
    assert journal.priority(level) == number


def test_a_journal_that_is_away_stops_nobody(logger, monkeypatch, capsys) -> None:
    def away(*_: bytes) -> None:
        raise OSError("no journal")

    monkeypatch.setattr(journal.journal, "sendv", away)
    logger.info("lost")
    assert "no journal" in capsys.readouterr().err


def test_stderr_is_known_by_its_inode(tmp_path, monkeypatch) -> None:
    with (tmp_path / "x").open("w") as out:
        found = os.fstat(out.fileno())
        monkeypatch.setattr(sys, "stderr", out)
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert unit.stderr_is_journal()
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:1")
        assert not unit.stderr_is_journal()
    assert not unit.stderr_is_journal()
