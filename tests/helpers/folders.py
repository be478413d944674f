"""What lies in folders."""

from __future__ import annotations

from pathlib import Path


def names(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
