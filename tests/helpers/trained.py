"""What a training has written: its log, its weights, and whether two trainings are the same."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any


def table(folder: Path) -> list[dict[str, str]]:
    """The log without the seconds."""
    with open(folder / "training" / "log.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = torch.load(folder / "models" / "model.pt", weights_only=True)
    return found


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two state dicts are the same to the bit."""
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and bool((a[k] == b[k]).all()) for k in a)


def is_like(folder: Path, unbroken: Path) -> bool:
    """Whether a training gave the same curve, the same state and the same weights to the bit."""
    import torch

    states = [torch.load(f / "training" / "checkpoint.pt", weights_only=True) for f in (folder, unbroken)]
    rows = [[(row[0], *row[2:]) for row in state["rows"]] for state in states]
    return (
        rows[0] == rows[1]
        and table(folder) == table(unbroken)
        and equal(weights(folder), weights(unbroken))
        and all(equal(states[0][part], states[1][part]) for part in ("network", "ema", "best_weights"))
    )
