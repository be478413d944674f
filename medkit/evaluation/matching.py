"""Matching results with references: by equal names, by names without the words that tools add, or by a pattern."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from glob import escape
from pathlib import Path

from medkit.errors import InputError, UsageError
from medkit.evaluation.results import Kind
from medkit.pipe.names import (
    FIELD_SUFFIXES,
    IMAGE_SUFFIXES,
    LABEL_WORDS,
    TABLE_SUFFIXES,
    TRANSFORM_SUFFIXES,
    kind_of_name,
    stem,
)
from medkit.pipe.records import absolute, record_of
from medkit.transforms.points import POINT_SUFFIXES

_LABELS = f"{LABEL_WORDS}|mask"
"""Last words of the names of label images, and words in the names of their folders."""
_ROLE = (
    f"{_LABELS}|pred|prediction|registered|transformed|enhanced|sr|class|points|landmarks|fiducials|transform|xfm"
    "|reference|truth|groundtruth|gt|manual|output|result"
)
"""Last words of names that state what was done to a case, not which case it is."""
_MODALITY = "t1|t1w|t2|t2w|pd|pdw|flair|ct|mri?|image|img|0000"
"""Last words of names that state the modality; 0000 is nnU-Net's first channel."""
_DERIVED = "(space|desc|res|den|label|from|to|mode|seg)-.*"
"""BIDS entities that are added to the names of derivatives."""
_SHOWN = 3
"""Ids that a message names."""
_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "labels": IMAGE_SUFFIXES,
    "images": IMAGE_SUFFIXES,
    "points": POINT_SUFFIXES,
    "transforms": (*TRANSFORM_SUFFIXES, *FIELD_SUFFIXES),
    "classes": TABLE_SUFFIXES,
}


@dataclass(frozen=True)
class Matches:
    """Results and the references that belong to them."""

    found: Mapping[Path, Path]
    """Result -> its reference."""
    missing: Mapping[Path, str] = field(default_factory=dict)
    """Result without a reference -> the reason."""
    unused: tuple[Path, ...] = ()
    """References without a result."""


def files_of(where: Path, kind: str) -> list[Path]:
    """Return `where` itself, or the files of a kind below it if it is a folder (other than a DICOM series).

    `kind`: labels, images, points, classes or transforms. Hidden files do not count. Raises InputError if `where` does
    not exist.
    """
    if not where.exists():
        raise InputError(f"{where}: no such file or folder")
    if not where.is_dir():
        return [where]
    every = sorted(path for path in where.rglob("*") if path.is_file())
    plain = [path for path in every if not any(part.startswith(".") for part in path.relative_to(where).parts)]
    slices = [path for path in plain if path.suffix.lower() in ("", ".dcm")]
    if slices == plain and plain and kind in ("labels", "images"):
        return [where]
    found = [path for path in plain if path not in slices and path.name.lower().endswith(_SUFFIXES[kind])]
    return [path for path in found if (kind_of_name(path) == "transform") is (kind == "transforms")]


def kind_between(results: Sequence[Path], references: Sequence[Path]) -> Kind:
    """Return the kind of files, by their and their folders' names and their sidecars. Raises UsageError if unclear."""
    if all(_is_points(path) for path in results):
        return "points"
    sides = [{_is_labels(path) for path in side if not _is_points(path)} for side in (results, references)]
    if {True} in sides:
        return "labels"
    if any(True in side for side in sides):
        raise UsageError("the folders hold label images and others: choose with --kind labels or --kind images")
    return "images"


def of_kind(paths: Iterable[Path], kind: str) -> list[Path]:
    """Return the files whose names fit a kind; for labels and classes all files, if no name does."""
    if kind == "classes":
        every = list(paths)
        return [path for path in every if is_class_file(path)] or every
    every = [path for path in paths if kind == "transforms" or _is_points(path) is (kind == "points")]
    labels = [path for path in every if _is_labels(path)]
    if kind == "labels":
        return labels or every
    return [path for path in every if path not in labels] if kind == "images" else every


def match(results: Sequence[Path], where: str, kind: str) -> Matches:
    """Find the reference of each result: `where` is one file for all, a folder, or a pattern with `{id}`.

    In a folder, names match if they are equal, else if they are equal without the words that tools add (`_dseg`,
    `_registered`, `space-` and so on), else without the modality too, as long as only one result and one reference
    share the name. `{id}` is part of a reference's name, and a whole word of its result's name or folders. Raises
    InputError.
    """
    if "{id}" in where:
        return _by_pattern(results, where)
    place = absolute(where)
    candidates = files_of(place, kind)
    if candidates == [place]:
        return Matches(dict.fromkeys(results, place))
    return match_names(results, of_kind(candidates, kind))


def match_names(results: Sequence[Path], references: Sequence[Path]) -> Matches:
    """Find the reference of each result by names only, as `match` does in a folder."""
    found: dict[Path, Path] = {}
    used: set[Path] = set()
    ends: list[Callable[[Path], str]] = [partial(_end, depth=depth) for depth in (3, 2, 1)]
    keys: list[Callable[[Path], str]] = [str, *ends, _case, _subject]
    for key in keys:
        ours = _grouped((r for r in results if r not in found), key)
        theirs = _grouped((r for r in references if r not in used), key)
        for name in ours.keys() & theirs.keys():
            if len(ours[name]) == len(theirs[name]) == 1:
                found[ours[name][0]] = theirs[name][0]
                used.add(theirs[name][0])
    unmatched = _grouped((result for result in results if result not in found), _subject)
    unused = tuple(reference for reference in references if reference not in used)
    fitting = _grouped(unused, _subject) if unmatched else {}
    missing = {r: _reason(rivals, fitting.get(subject, [])) for subject, rivals in unmatched.items() for r in rivals}
    in_order = {result: found[result] for result in results if result in found}
    return Matches(in_order, missing, unused)


def _reason(rivals: Sequence[Path], fitting: Sequence[Path]) -> str:
    """Return why results of one name have no reference, although `fitting` ones have that name too."""
    if not fitting:
        return "no name in the folder fits its name"
    several = fitting if len(fitting) > 1 else rivals
    return f"not clear which belong together: {', '.join(path.name for path in several)}"


def _by_pattern(results: Sequence[Path], pattern: str) -> Matches:
    ids = files_of_pattern(pattern)
    found: dict[Path, Path] = {}
    missing: dict[Path, str] = {}
    for result in results:
        fitting = _longest(ids, result)
        if len(fitting) == 1:
            found[result] = fitting[0]
        else:
            missing[result] = _misfit(pattern, result, fitting, ids)
    return Matches(found, missing, tuple(path for path in ids if path not in found.values()))


def files_of_pattern(pattern: str) -> dict[Path, str]:
    """Return file -> what stands for `{id}` in its name. Raises InputError if there is none."""
    first, *others = str(absolute(pattern)).split("{id}")
    expression = re.escape(first) + "([^/]+)" + r"\1".join(map(re.escape, others))
    wildcard = "*".join(map(escape, [first, *others]))
    candidates = sorted(Path("/").glob(wildcard.lstrip("/")))
    ids = {path: whole[1] for path in candidates if (whole := re.fullmatch(expression, str(path)))}
    if not ids:
        raise InputError(f"{pattern}: no file matches this pattern")
    return ids


class FilesOfCases:
    """The files that belong to cases by a pattern with `{id}`; the folder is listed again if a file may be new."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._ids: dict[Path, str] = {}

    def of(self, case: Path) -> Path:
        """Return the file of a case. Raises InputError if none fits, or several do."""
        fitting = _longest(self._ids, case)
        if len(fitting) != 1:
            self._ids = files_of_pattern(self.pattern)
            fitting = _longest(self._ids, case)
        if len(fitting) != 1:
            raise InputError(f"{case}: {_misfit(self.pattern, case, fitting, self._ids)}")
        return fitting[0]


def shared_and_own(
    given: Mapping[str, Path],
) -> tuple[dict[str, Path], Callable[[Path], Mapping[str, Path]] | None]:
    """Split role -> path into the files that all cases share, and those that `{id}` in the path gives each case.

    The two are `shared` and `own` of a `Task`; `own` is None if no path has `{id}`.
    """
    shared = {role: path for role, path in given.items() if "{id}" not in str(path)}
    patterns = {role: FilesOfCases(str(path)) for role, path in given.items() if role not in shared}
    return shared, partial(_own_files, patterns=patterns) if patterns else None


def _own_files(case: Path, *, patterns: Mapping[str, FilesOfCases]) -> dict[str, Path]:
    return {role: files.of(case) for role, files in patterns.items()}


def _misfit(pattern: str, case: Path, fitting: Sequence[Path], ids: Mapping[Path, str]) -> str:
    """Return why not exactly one file of a pattern belongs to a case; `ids` are all files, with what `{id}` is."""
    name = Path(pattern).name
    if fitting:
        return f"{len(fitting)} files named {name} fit its name: {', '.join(path.name for path in fitting)}"
    words = sorted(set(ids.values()))
    there = ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")
    expected = absolute(pattern.replace("{id}", _subject(case)))
    return f"no file named {name} fits its name, as {expected} would; there {{id}} is {there}"


def _longest(ids: Mapping[Path, str], result: Path) -> list[Path]:
    """Return the references with the longest id that is a word of the result's name, else of its folders."""
    for text in (result.name, str(result.parent)):
        fitting = [path for path, word in ids.items() if re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text)]
        if fitting:
            longest = max(len(ids[path]) for path in fitting)
            return [path for path in fitting if len(ids[path]) == longest]
    return []


def _grouped(paths: Iterable[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(key(path), []).append(path)
    return groups


def _end(path: Path, *, depth: int) -> str:
    """Return the last `depth` parts of a path without suffix, such as `bert/mri/aseg`."""
    return "/".join((*path.parts[-depth:-1], stem_of(path)))


def stem_of(path: Path) -> str:
    """Return a file's name without the suffix of an image, points or a transform."""
    suffix = next((s for s in POINT_SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: -len(suffix)] if suffix else stem(path)


def _case(path: Path) -> str:
    """Return a name without the words that tools add."""
    return _stripped(path, _ROLE)


def _subject(path: Path) -> str:
    """Return a name without the words that tools add and without the modality."""
    return _stripped(path, f"{_ROLE}|{_MODALITY}")


def _stripped(path: Path, words: str) -> str:
    """Return a stem without BIDS entities of derivatives, and without last words that match `words`.

    If nothing is left, return the folder's name, as for `anna/labels.nii.gz`.
    """
    kept = [word for word in stem_of(path).split("_") if not re.fullmatch(_DERIVED, word)]
    while kept and re.fullmatch(words, kept[-1].lower()):
        kept.pop()
    return "_".join(kept) or path.parent.name


def _is_points(path: Path) -> bool:
    return path.name.lower().endswith(POINT_SUFFIXES)


def is_class_file(path: Path) -> bool:
    """Return whether a file is, by its name, one that holds the classes of a case."""
    return path.name.lower().endswith(("_class.tsv", "_class.csv"))


def _is_labels(path: Path) -> bool:
    """Return whether a file holds labels, by its name, its folder's name or its sidecar."""
    folder = path.parent.name.lower()
    named = folder.startswith("labels") or any(re.fullmatch(_LABELS, word) for word in re.split(r"[\W_]+", folder))
    return named or record_of(path).kind in ("labels", "mask")
