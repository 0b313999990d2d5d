"""Pages for man(1), from texts as this program has them.

In a text, `words` between backquotes are set bold and *words* between asterisks in italics.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from jfsd import __version__

_MARKUP = re.compile(r"`([^`]+)`|\*([a-z]+)\*")


def head(name: str, section: int, kind: str, summary: str) -> str:
    """Return the beginning of a page."""
    title = f'.TH {escape(name.upper())} {section} "" "jfsd {__version__}" "{kind}"\n'
    return f"{title}.SH NAME\n{escape(name)} \\- {escape(summary)}\n"


def section(title: str, *parts: str) -> str:
    """Return a section with its parts."""
    return f".SH {escape(title.upper())}\n" + "".join(parts)


def subsection(title: str, *parts: str) -> str:
    """Return a part of a section with a title of its own."""
    return f".SS {escape(title)}\n" + "".join(parts)


def paragraph(text: str) -> str:
    """Return a paragraph; line breaks of the text do not matter."""
    return f".PP\n{_filled(text)}\n"


def item(tag: str, text: str) -> str:
    """Return a tag with an indented text."""
    return f".TP\n{_filled(tag)}\n{_filled(text)}\n"


def items(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a list of tags with their texts."""
    return "".join(item(tag, text) for tag, text in pairs)


def literal(text: str) -> str:
    """Return lines as they are."""
    plain = escape(text.strip("\n")).replace("'", "\\(aq").replace("`", "\\(ga")
    lines = "".join(f"{_safe(line)}\n" for line in plain.splitlines())
    return f".PP\n.nf\n{lines}.fi\n"


def escape(text: str) -> str:
    """Return the text so that roff sets each of its characters."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha").replace("~", "\\(ti")


def _filled(text: str) -> str:
    """Return a text on one line, with its markup."""
    marked = _MARKUP.sub(
        lambda found: f"\\fB{found[1]}\\fR" if found[1] else f"\\fI{found[2]}\\fR",
        escape(" ".join(text.split())),
    )
    return _safe(marked)


def _safe(line: str) -> str:
    """Return a line that is no request, whatever it begins with."""
    return f"\\&{line}" if line.startswith((".", "'")) else line
