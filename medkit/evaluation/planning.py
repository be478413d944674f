"""From files and folders to the pairs to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from medkit.errors import InputError
from medkit.evaluation.matching import Matches, files_of, kind_between, match, of_kind, stem_of
from medkit.evaluation.results import Kind, Pair
from medkit.pipe.records import absolute


@dataclass(frozen=True)
class PairPlan:
    """The pairs to compare."""

    kind: Kind
    """Kind of the files."""
    pairs: tuple[Pair, ...]
    """Each result with its reference."""
    unmatched: Mapping[Path, str]
    """File without a partner -> a sentence that names it."""


def plan_pairs(
    results: Sequence[Path], reference: str, kind: str = "auto", mask: str | None = None, transform: str | None = None
) -> PairPlan:
    """Find the pairs of `results`, which are files or one folder, with `reference`: a file, a folder or a pattern.

    `kind`: labels, images, points, or auto, which decides by names and sidecars. `mask` and `transform` are found like
    `reference`. References without a result count as unmatched only if the results are a folder. Raises InputError and
    UsageError.
    """
    folder = len(results) == 1 and results[0].is_dir()
    if folder:
        found = _files_of(results[0], kind)
        folder, results = found != list(results), found
    wanted = cast("Kind", kind) if kind != "auto" else kind_between(results, _candidates(reference))
    results = of_kind(results, wanted) if folder else results
    matches = match(results, reference, wanted)
    unmatched = {path: f"{path}: no reference: {why}" for path, why in matches.missing.items()}
    if folder:
        unmatched |= {path: f"{path}: no result for this reference" for path in matches.unused}
    extras = {
        role: match(list(matches.found), where, what)
        for role, where, what in (("mask", mask, "labels"), ("transform", transform, "transforms"))
        if where is not None
    }
    for role, others in extras.items():
        unmatched |= {path: f"{path}: no {role}: {why}" for path, why in others.missing.items()}
    return PairPlan(wanted, tuple(_pairs(matches, extras)), unmatched)


def _pairs(matches: Matches, extras: Mapping[str, Matches]) -> list[Pair]:
    """Return a pair for each result that has all files, named by its stem, or by its path if two have the same stem."""
    results = [r for r in matches.found if all(r in others.found for others in extras.values())]
    stems = [stem_of(result) for result in results]
    return [
        Pair(
            name if stems.count(name) == 1 else str(result),
            result,
            matches.found[result],
            **{role: others.found[result] for role, others in extras.items()},
        )
        for result, name in zip(results, stems, strict=True)
    ]


def _files_of(folder: Path, kind: str) -> list[Path]:
    found = [path for each in ([kind] if kind != "auto" else ["images", "points"]) for path in files_of(folder, each)]
    if not found:
        raise InputError(f"{folder}: no file to compare in this folder")
    return list(dict.fromkeys(found))


def _candidates(reference: str) -> list[Path]:
    place = absolute(reference)
    if "{id}" in reference:
        return [place]
    return [path for kind in ("images", "points") for path in files_of(place, kind)]
