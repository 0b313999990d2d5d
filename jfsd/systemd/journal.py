"""Log records for the journal, with fields of their own instead of one line of text."""

from __future__ import annotations

import logging

from systemd import journal

from jfsd import log as logs

EVENT_ID = "a3b7e9d05f6c4d1c9a0b8f2d4e6c1b75"
"""MESSAGE_ID of the record that a server writes about its start: journalctl MESSAGE_ID=..."""

IDENTIFIER = "jfsd"
_COUNTS = ("generation", "left", "pid", "resent")


class JournalHandler(logging.Handler):
    """Gives each record to the journal: PRIORITY, LOGGER, CODE_*, and what it is about.

    JFSD_MOUNTPOINT and JFSD_VOLUME are in all records, as far as they are known; that of an
    event has JFSD_EVENT_KIND and one field for each of its numbers.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; a journal that is away loses it."""
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": priority(record.levelno),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
            **{f"JFSD_{name.upper()}": value for name, value in logs.about().items()},
        }
        event = getattr(record, "jfsd_event", None)
        if event is not None:
            fields["MESSAGE_ID"] = EVENT_ID
            fields.update(event_fields(event))
        try:
            journal.sendv(*(_assignment(name, value) for name, value in fields.items()))
        except OSError:
            self.handleError(record)


def event_fields(event: dict[str, object]) -> dict[str, object]:
    """Return the fields of an event: JFSD_EVENT_KIND, counts, and times as JFSD_..._MS."""
    fields: dict[str, object] = {"JFSD_EVENT_KIND": event.get("kind", "")}
    for name, value in event.items():
        if name in ("kind", "at"):
            continue
        plain = name in _COUNTS or name.endswith("_ms") or not isinstance(value, int | float)
        fields[f"JFSD_{name.upper()}{'' if plain else '_MS'}"] = value
    return fields


def priority(level: int) -> int:
    """Return the syslog priority of a level of logging."""
    for least, number in ((50, 2), (40, 3), (30, 4), (20, 6)):
        if level >= least:
            return number
    return 7


def _assignment(name: str, value: object) -> bytes:
    return f"{name}={value}".encode(errors="surrogateescape")
