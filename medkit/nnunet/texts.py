"""Texts of strangers, made harmless."""

from __future__ import annotations

from typing import Any

from medkit.bundles.archive import printable


def plain_text(value: Any) -> str:
    """Return a stranger's text for metadata: printable, short, and nothing that a config would run."""
    text = " ".join(printable(str(value)).split()).lstrip("$@% ")
    return text[:200] or "unnamed"


def short(value: Any) -> str:
    """Return a value for a message: printable, and short."""
    text = printable(str(value))
    return text if len(text) < 80 else text[:80] + " ..."
