"""Files that only the user may read: the secret, and the table of who is who."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_private(path: Path, text: str, *, replace: bool) -> bool:
    """Write a file whole, with mode 600; False if it exists and is not to be replaced. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(part, path)
        else:
            os.link(part, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    return True
