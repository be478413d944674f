"""`medkit train halves`, the tiny bundle of `tiny.py`, as a command and in this process."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medkit.cli import main


def arguments(place: Path, out: Path, *more: object, bundle: Path | None = None, data: object = "") -> list[str]:
    """Return the arguments of a training on `place / "labels"`, or `data`, into `out`."""
    command = ["train", "halves", "--bundle", bundle or place / "halves", "--trust", "--data", data or place / "labels"]
    return [str(a) for a in (*command, "-o", out, "--threads", 1, *more)]


def call(*command: object) -> int:
    """Run `medkit` in this process, and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in command])
    return int(stop.value.code or 0)


@contextlib.contextmanager
def undone() -> Iterator[None]:
    """Put back, in the end, what a training sets in its process."""
    import torch

    threads, path = torch.get_num_threads(), list(sys.path)
    yield
    torch.set_num_threads(threads)
    sys.path[:] = path
    sys.modules.pop("halves_code", None)
    for name in ("medkit.training", "medkit.training.progress"):
        logging.getLogger(name).setLevel(logging.NOTSET)
