"""Cases that a killed process has left: the claim on their result is still there, and nobody holds it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medkit.pipe.atomic import lock


@dataclass(frozen=True)
class Death:
    """A result whose process was killed."""

    result: str
    """The main result that it was making, absolute."""
    host: str
    """The machine that it ran on."""
    pid: int
    """The number of the process."""


def find_deaths(folders: Iterable[Path]) -> list[Death]:
    """Return the results in and below some folders whose process was killed, in the order of their names."""
    claims = {claim for folder in folders for claim in _claims(folder)}
    return [death for claim in sorted(claims) if (death := _death(claim)) is not None]


def _claims(folder: Path) -> Iterator[Path]:
    for place, _, files in os.walk(folder):
        yield from (Path(place, name) for name in files if name.startswith(".") and name.endswith(".claim"))


def _death(claim: Path) -> Death | None:
    """Return who has left a claim; None if it is held, or the file system does not tell."""
    try:
        descriptor = os.open(claim, os.O_RDWR)
    except OSError:
        return None
    try:
        lock(descriptor, wait=False)
        holder = os.fsdecode(os.pread(descriptor, 4096, 0))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    result = claim.name.removeprefix(".").removesuffix(".claim")
    match = re.fullmatch(rf"\.{re.escape(result)}\.(.+)\.(\d+)\.part", holder)
    return Death(str(claim.with_name(result)), match[1], int(match[2])) if match else None
