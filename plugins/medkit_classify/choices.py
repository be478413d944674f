"""What the user asks of a classification, besides its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medkit_classify.facts import Given

if TYPE_CHECKING:
    from medkit_classify.explanation import Method


@dataclass(frozen=True)
class ClassifyChoices:
    """What to make from each case in addition to its table, and which files all cases use."""

    explain: Method | None = None
    """How to find the part of an image that speaks for the class; None: not asked for."""
    report: bool = False
    """Whether to write the findings in words."""
    features: bool = False
    """Whether to write the network's features."""
    points: Path | None = None
    """Candidates of all cases."""
    labels: Path | None = None
    """A label map whose pieces are the candidates of all cases."""
    frame: str = "RAS"
    """Frame of points in tables, RAS or LPS."""
    table: Path | None = None
    """Features of all cases, a row for each."""
    text: Path | None = None
    """Texts of all cases: a file, a folder or a table."""
    column: str | None = None
    """The column of `table` that holds the texts."""
    known: Mapping[Path, Given] = field(default_factory=dict)
    """Path of an image -> its facts, if they do not have to be looked up."""
