"""Files of a page: written completely or not at all."""

from __future__ import annotations

from pathlib import Path

from medkit.errors import OutputError
from medkit.pipe.atomic import made_folder, write_atomically


def write_file(path: Path, content: bytes) -> None:
    """Write a file, and the folders that lead to it. Raises OutputError."""
    try:
        with made_folder(path.parent):
            write_atomically(path, content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
