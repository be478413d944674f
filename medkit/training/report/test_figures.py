"""What a finished bundle states about its figures on held-out items: metadata and model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import WEIGHTS, read_metadata
from medkit.pipe.atomic import write_atomically
from medkit.pipe.records import sha256_of
from medkit.training.report.card import CARD, with_section

BEGIN, END = "<!-- medkit test: begin -->", "<!-- medkit test: end -->"
"""Marks around the part of the model card that the test writes."""
_TEST_PREFIX = "test_"
"""Start of the names of its figures in `eval_metrics`."""


@dataclass(frozen=True)
class TestFigures:
    """How good a bundle is on held-out items."""

    items: int
    """Number of items with a result."""
    subjects: int
    failed: Sequence[str]
    """A sentence for each item without a result."""
    by: str
    """What has measured it, in words."""
    summary: Mapping[str, tuple[float, float, float]]
    """Measure -> value and its 95 % interval over the items; NaN where there is none."""
    by_label: Mapping[str, float]
    """Name of a label or class -> main measure."""


def is_tested(folder: Path) -> bool:
    """Return whether a bundle states figures of a test of its weights."""
    test = _training(read_metadata(folder)).get("test")
    return isinstance(test, Mapping) and test.get("weights_sha256") == sha256_of(folder / WEIGHTS)


def write_test(folder: Path, figures: TestFigures) -> None:
    """Add the figures of a test to a bundle's metadata and its card, each completely or not at all."""
    metadata = read_metadata(folder)
    digits = {name: [_rounded(value) for value in values] for name, values in figures.summary.items()}
    _training(metadata)["test"] = {
        "items": figures.items,
        "subjects": figures.subjects,
        "failed": list(figures.failed),
        "by": figures.by,
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "summary": {name: {"value": v[0], "low": v[1], "high": v[2]} for name, v in digits.items()},
        "by_label": {name: _rounded(value) for name, value in figures.by_label.items()},
    }
    others = {k: v for k, v in (metadata.get("eval_metrics") or {}).items() if not k.startswith(_TEST_PREFIX)}
    own = {f"{_TEST_PREFIX}{name}": values[0] for name, values in digits.items() if values[0] is not None}
    metadata["eval_metrics"] = others | own
    write_atomically(folder / "configs" / "metadata.json", json.dumps(metadata, indent=4) + "\n")
    card = folder / "docs" / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {folder.name}\n"
    write_atomically(card, with_section(text, _section(figures), BEGIN, END))


def _training(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the metadata about the training, which is added if there is none."""
    found: dict[str, Any] = metadata.setdefault("medkit", {}).setdefault("training", {})
    return found


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _section(figures: TestFigures) -> str:
    of = f"{figures.items} items of {figures.subjects} subjects" if figures.items != 1 else "1 item"
    lines = [
        "## Test", "",
        f"{of}, held out: none of them trained or chose the weights. Measured by {figures.by}.", "",
        "| measure | value | 95 % interval over items |", "|---|---|---|",
        *(f"| {name} | {_text(v)} | {_text(low)} to {_text(high)} |" if math.isfinite(low) else
          f"| {name} | {_text(v)} | |" for name, (v, low, high) in figures.summary.items()),
        "",
    ]  # fmt: skip
    if figures.failed:
        lines += ["Without a result:", "", *(f"- {text}" for text in figures.failed), ""]
    if figures.by_label:
        main = next(iter(figures.summary))
        lines += [f"| label | {main} |", "|---|---|"]
        lines += [f"| {name} | {_text(value)} |" for name, value in figures.by_label.items()]
    return "\n".join(lines)


def _text(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""
