"""Who trains, who validates and who is held out for the test; the images of one subject are never on two sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medkit.errors import InputError, UsageError
from medkit.pipe.names import split_bids
from medkit.pipe.tables import SUBJECT, column

Item = dict[str, Any]

VALIDATION_SHARE = 10
"""One item of this many validates, if the data do not say which."""
CLASS_VALIDATION_SHARE = 5
"""One subject of this many validates, for each class."""


@dataclass(frozen=True)
class DataList:
    """The items of a training: dicts of absolute paths and of any other values of a datalist."""

    training: tuple[Item, ...]
    validation: tuple[Item, ...]
    root: Path
    """Folder that the items were found in."""
    test: tuple[Item, ...] = ()
    """Items held out: the finished bundle is evaluated on them."""
    subjects: Mapping[str, str] = field(default_factory=dict)
    """Path of an image -> its subject, where the layout of the data says so; see `subject_of`."""


@dataclass(frozen=True)
class Split:
    """How items are shared out where the data do not say it."""

    folds: int | None = None
    """Number of parts of the subjects, each of which validates once; None: no cross-validation."""
    fold: int | None = None
    """The part that validates, from 1."""
    test_fraction: float | None = None
    """Share of the subjects that is held out for the test."""
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.folds is None) != (self.fold is None):
            raise UsageError("--folds and --fold need each other, as in --folds 5 --fold 2")
        if self.folds is not None and self.fold is not None and not 1 <= self.fold <= self.folds:
            raise UsageError(f"--fold {self.fold}: expected a number from 1 to {self.folds}, that of --folds")

    @property
    def text(self) -> str:
        """The fold in words; empty without folds."""
        return f"fold {self.fold} of {self.folds}" if self.folds else ""


# ---- subjects


def subject_of(item: Mapping[str, Any], keys: Sequence[str], data: DataList) -> str:
    """Return what all items of one person share.

    That is the item's `subject` (or `participant_id` and so on), else what the data's layout says, else the BIDS
    subject in the name of a file or its folders, else the file itself.
    """
    name = column(item, SUBJECT)
    if name is not None and item[name] not in (None, ""):
        return str(item[name])
    paths = files_of(item, keys)
    for path in paths:
        if str(path) in data.subjects:
            return data.subjects[str(path)]
        if label := split_bids(path)[0].get("sub"):
            return f"sub-{label}"
        if folder := next((part for part in reversed(path.parent.parts) if part.startswith("sub-")), ""):
            return folder
    if not paths:
        return repr(sorted(item.items(), key=str))
    first = paths[0]
    # below the data's folder, so that the split does not depend on where that is
    return str(first.relative_to(data.root) if first.is_relative_to(data.root) else first)


def files_of(item: Mapping[str, Any], keys: Sequence[str]) -> list[Path]:
    """Return the files that an item names under the keys."""
    values = (item[key] for key in keys if key in item)
    texts = (text for value in values for text in (value if isinstance(value, list | tuple) else [value]))
    return [Path(text) for text in texts if isinstance(text, str | Path)]


def count_subjects(items: Iterable[Mapping[str, Any]], keys: Sequence[str], data: DataList) -> int:
    """Return the number of subjects that items are of."""
    return len({subject_of(item, keys, data) for item in items})


# ---- who is where


def share_out(found: DataList, keys: Sequence[str], split: Split, by: str = "") -> DataList:
    """Return items with the test and the fold of a split set aside, by subject.

    `by`: key of the class, of which each part should have its share. If nothing says what validates, the last tenth of
    the items does, or with `by` one subject in five of each class. Raises InputError if there are too few subjects.
    """
    owner = {id(item): subject_of(item, keys, found) for item in (*found.training, *found.validation)}
    if split.test_fraction is not None:
        found = _held_out(found, owner, split, by)
    pool = (*found.training, *found.validation) if split.folds else found.training
    if split.folds:
        parts = fold_of(grouped(pool, owner, by), split.folds, split.seed, found.root)
        validating = {subject for subject, number in parts.items() if number == split.fold}
    elif found.validation:
        return found
    else:
        by_class = grouped(pool, owner, by)
        validating = drawn(by_class, 1 / CLASS_VALIDATION_SHARE, split.seed) if by else _last(pool, owner)
    return replace(found, training=_of(pool, owner, validating, False), validation=_of(pool, owner, validating, True))


def _held_out(found: DataList, owner: Mapping[int, str], split: Split, by: str) -> DataList:
    """Return items with a share of the subjects set aside for the test, none of those that the data let validate."""
    share = split.test_fraction or 0.0
    if found.test:
        raise UsageError(f"--test-fraction {share:g}: {found.root} states itself what the test is")
    stays = set() if split.folds else {owner[id(item)] for item in found.validation}
    by_class = {name: held - stays for name, held in grouped(found.training, owner, by).items()}
    out = drawn(by_class, share, split.seed, "test")
    training, validation = (_of(part, owner, out, False) for part in (found.training, found.validation))
    if not training:
        raise InputError(f"--test-fraction {share:g}: leaves nothing of {found.root} to train on")
    test = _of((*found.training, *found.validation), owner, out, True)
    return replace(found, training=training, validation=validation, test=test)


def _of(items: Sequence[Item], owner: Mapping[int, str], subjects: set[str], inside: bool) -> tuple[Item, ...]:
    """Return the items of some subjects, or of all others."""
    return tuple(item for item in items if (owner[id(item)] in subjects) == inside)


def _last(items: Sequence[Item], owner: Mapping[int, str]) -> set[str]:
    """Return the subjects of the last tenth of the items, at least one and never all."""
    counts = Counter(owner[id(item)] for item in items)
    wanted, chosen = max(1, len(items) // VALIDATION_SHARE), set[str]()
    for item in reversed(items):
        if sum(counts[subject] for subject in chosen) >= wanted or len(counts) - len({*chosen, owner[id(item)]}) < 1:
            break
        chosen.add(owner[id(item)])
    return chosen


def grouped(items: Iterable[Mapping[str, Any]], owner: Mapping[int, str], by: str) -> dict[Any, set[str]]:
    """Return value under `by` -> the subjects that have items of it; one group if `by` is empty."""
    out: dict[Any, set[str]] = {}
    for item in items:
        out.setdefault(item.get(by) if by else None, set()).add(owner[id(item)])
    return out


def drawn(groups: Mapping[Any, set[str]], share: float, seed: int, word: str = "") -> set[str]:
    """Return subjects: of each group, the rarest first, a share in an order that `seed` and `word` draw."""
    order = _order(f"{seed} {word} " if word else f"{seed} ")
    chosen: set[str] = set()
    for held in sorted(groups.values(), key=len):
        wanted = max(1, int(len(held) * share + 1e-9)) - len(held & chosen)
        chosen |= set(sorted(held - chosen, key=order)[: max(0, wanted)])
    return chosen


def fold_of(groups: Mapping[Any, set[str]], folds: int, seed: int, source: object) -> dict[str, int]:
    """Return subject -> its part, 1 to `folds`; every group is spread evenly, in an order that `seed` draws.

    Raises InputError with fewer subjects than parts.
    """
    if (count := len(set().union(*groups.values()))) < folds:
        raise InputError(f"--folds {folds}: expected at least {folds} subjects, got {count} in {source}")
    order = _order(f"{seed} folds ")
    parts: dict[str, int] = {}
    for held in sorted(groups.values(), key=len):
        own = [sum(parts.get(subject) == n for subject in held) for n in range(1, folds + 1)]
        sizes = [sum(number == n for number in parts.values()) for n in range(1, folds + 1)]
        for subject in sorted(held - set(parts), key=order):
            n = min(range(folds), key=lambda n: (own[n], sizes[n], n))
            parts[subject] = n + 1
            own[n], sizes[n] = own[n] + 1, sizes[n] + 1
    return parts


def _order(start: str) -> Callable[[str], bytes]:
    return lambda name: hashlib.sha256(f"{start}{name}".encode(errors="surrogateescape")).digest()
