"""pyfuse3 with its native completion, in the order in which they must be loaded.

Everything in this package that needs pyfuse3 takes it from here. The C module's
symbols must be global before pyfuse3 is loaded, or pyfuse3 binds to libfuse
directly; and pyfuse3 imports trio, which it does not use under asyncio and which
takes longer to load than all else together: an empty module stands in for it.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

if "pyfuse3" in sys.modules:
    raise ImportError("jfsd.fuse.native must be imported before pyfuse3")

_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
try:
    from jfsd.fuse import _native
finally:
    sys.setdlopenflags(_flags)

_stand_in = "trio" not in sys.modules
if _stand_in:
    sys.modules["trio"] = ModuleType("trio")
try:
    import pyfuse3
finally:
    if _stand_in:
        del sys.modules["trio"]

JOURNAL_BYTES = _native.JOURNAL_BYTES
JOURNAL_NOTES_AT = _native.JOURNAL_NOTES_AT
JOURNAL_STAGED_AT = _native.JOURNAL_STAGED_AT
attached = _native.attached
body = _native.body
caught_up = _native.caught_up
current = _native.current
ended = _native.ended
init_out = _native.init_out
note_crashes = _native.note_crashes
on_interrupt = _native.on_interrupt
lost = _native.lost
opcode = _native.opcode
pack_entries = _native.pack_entries
payload = _native.payload
prepare = _native.prepare
resent = _native.resent
take_answered = _native.take_answered
unanswered = _native.unanswered
unique = _native.unique

__all__ = [
    "JOURNAL_BYTES",
    "JOURNAL_NOTES_AT",
    "JOURNAL_STAGED_AT",
    "attached",
    "body",
    "caught_up",
    "current",
    "ended",
    "init_out",
    "lost",
    "note_crashes",
    "on_interrupt",
    "opcode",
    "pack_entries",
    "payload",
    "prepare",
    "pyfuse3",
    "resent",
    "take_answered",
    "unanswered",
    "unique",
]
