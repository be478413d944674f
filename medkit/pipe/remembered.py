"""Small facts that medkit has measured and keeps for later runs, in JSON files of the user's state folder.

A file that cannot be read counts as empty, and one that cannot be written is left: what it holds can be measured again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medkit.pipe.atomic import locked, write_atomically

log = logging.getLogger("medkit")

BACKENDS = "backends.json"
"""What `--backend auto` chose, for each bundle and machine."""


def state_folder() -> Path:
    """Return medkit's folder for what it remembers: `medkit` in the user's state folder."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state).absolute() / "medkit"


def remembered(name: str) -> dict[str, Any]:
    """Return what a file holds: key -> entry, the latest last."""
    try:
        found = json.loads((state_folder() / name).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(name: str, key: str, entry: Mapping[str, Any], *, most: int) -> None:
    """Add an entry to a file, in place of one with its key; of more than `most` entries the oldest are dropped."""
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(folder / f".{name}.lock"):
            kept = {k: v for k, v in remembered(name).items() if k != key} | {key: dict(entry)}
            kept = dict(list(kept.items())[-most:])
            write_atomically(folder / name, json.dumps(kept, indent=1) + "\n")
    except OSError as error:
        log.debug("%s: %s; nothing is remembered", folder / name, error)
