"""What rich prints, as text; rich is imported when something is drawn."""

from __future__ import annotations

import io
from typing import Any


class _Paper(io.StringIO):
    """Where rich prints; it draws with ASCII where the encoding has nothing else."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def rendered(renderable: Any, columns: int, encoding: str) -> str:
    """Return what rich draws for a terminal of so many columns, with colours unless NO_COLOR is set."""
    from rich.console import Console

    paper = _Paper(encoding)
    console = Console(file=paper, width=columns, force_terminal=True, highlight=False)
    console.print(renderable)
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().rstrip("\n").split("\n"))
