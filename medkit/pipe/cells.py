"""Cells of medkit's tables: a tab or a line break in a text, such as an odd file name, is written as an escape."""

from __future__ import annotations

import re

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_TEXTS = {escape: character for character, escape in _ESCAPES.items()}


def cell_of(text: str) -> str:
    """Return a text as it stands in a cell: a backslash, tab, newline or carriage return as an escape, all else as is.

    >>> print(cell_of("a" + chr(9) + "b"))
    a\\tb
    """
    return "".join(_ESCAPES.get(character, character) for character in text)


def text_of(cell: str) -> str:
    """Return the text that `cell_of` made the cell of; a backslash before another character stays."""
    return re.sub(r"\\[\\tnr]", lambda escape: _TEXTS[escape[0]], cell)
