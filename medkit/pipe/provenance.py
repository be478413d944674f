"""How a file was made, in words: from its record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from medkit.pipe.records import Record


def command_line(record: Record) -> str | None:
    """Return the command that makes this result again, for a shell; None if the sidecar does not hold it."""
    words = record.medkit.get("command")
    if not (isinstance(words, list) and words and all(map(_is_word, words))):
        return None
    return shlex.join(["medkit", *map(_text_of, words)])


def in_words(record: Record) -> str:
    """Return which task made a file and with which settings, for sidecars without the command."""
    settings = record.medkit.get("arguments")
    named = ", ".join(f"{k}: {json.dumps(v)}" for k, v in settings.items()) if isinstance(settings, Mapping) else ""
    return f"{record.medkit.get('task', '?')}{f' with {named}' if named else ''}"


def _is_word(word: Any) -> bool:
    return isinstance(word, str) or (isinstance(word, Mapping) and isinstance(word.get("path"), str))


def _text_of(word: str | Mapping[str, Any]) -> str:
    """Return a word of a command; an input that came with further ones is a record, which a task takes as a line."""
    if isinstance(word, str):
        return word
    return json.dumps(word) if len(word) > 1 else str(word["path"])
