"""pyfuse3 with its native completion, in the order in which they must be loaded.

Everything in this package that needs pyfuse3 takes it from here. The C module's
symbols must be global before pyfuse3 is loaded, or pyfuse3 binds to libfuse
directly. Two modules that pyfuse3 imports and does not need take longer to load than
all else together; while it is imported, others stand in for them: an empty one for
trio, which it does not use under asyncio, and one without packages for
importlib.metadata, which it asks for its own version ("unknown" then).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

if "pyfuse3" in sys.modules:
    raise ImportError("jfsd.fuse.native must be imported before pyfuse3")

_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
try:
    from jfsd.fuse import _native
finally:
    sys.setdlopenflags(_flags)


@contextmanager
def _standing_in(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Let these modules be imported instead of those that are not there yet."""
    absent = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _no_packages() -> ModuleType:
    """Return an importlib.metadata that knows of no package."""

    def version(name: str) -> str:
        raise LookupError(name)

    module = ModuleType("importlib.metadata")
    vars(module).update(PackageNotFoundError=LookupError, version=version)
    return module


with _standing_in({"trio": ModuleType("trio"), "importlib.metadata": _no_packages()}):
    import pyfuse3

ATTR = _native.ATTR
COUNT = _native.COUNT
CREATED = _native.CREATED
DATA = _native.DATA
ENTRY = _native.ENTRY
NOTHING = _native.NOTHING
OPENED = _native.OPENED
JOURNAL_BYTES = _native.JOURNAL_BYTES
JOURNAL_NOTES_AT = _native.JOURNAL_NOTES_AT
JOURNAL_STAGED_AT = _native.JOURNAL_STAGED_AT
attached = _native.attached
body = _native.body
cancel_waiting = _native.cancel_waiting
caught_up = _native.caught_up
current = _native.current
dispatch = _native.dispatch
ended = _native.ended
first_answer_s = _native.first_answer_s
init_out = _native.init_out
note_crashes = _native.note_crashes
note_running = _native.note_running
on_interrupt = _native.on_interrupt
lost = _native.lost
opcode = _native.opcode
pack_entries = _native.pack_entries
prepare = _native.prepare
resent = _native.resent
running = _native.running
take = _native.take
take_answered = _native.take_answered
unanswered = _native.unanswered
unique = _native.unique
waiting = _native.waiting

__all__ = [
    "ATTR",
    "COUNT",
    "CREATED",
    "DATA",
    "ENTRY",
    "JOURNAL_BYTES",
    "JOURNAL_NOTES_AT",
    "JOURNAL_STAGED_AT",
    "NOTHING",
    "OPENED",
    "attached",
    "body",
    "cancel_waiting",
    "caught_up",
    "current",
    "dispatch",
    "ended",
    "first_answer_s",
    "init_out",
    "lost",
    "note_crashes",
    "note_running",
    "on_interrupt",
    "opcode",
    "pack_entries",
    "prepare",
    "pyfuse3",
    "resent",
    "running",
    "take",
    "take_answered",
    "unanswered",
    "unique",
    "waiting",
]
