"""Facts about a case besides its image: numbers and a text, as the row of values that a network takes.

A bundle that was trained with facts stores their names, means and spreads and its vocabulary in
`models/context.json`, so that inference encodes them in the same way.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import BundleError, InputError, listed
from medkit.inference import Bundle
from medkit.task import absolute, record_of, write_atomically
from medkit_classify.context import Context
from medkit_classify.fact_tables import Sources, number

FAR = 5.0
"""Largest standard score; larger ones are clipped, because a network has not been trained on them."""
UNKNOWN, FIRST_WORD = 1, 2
"""Number of a word outside the vocabulary, and of the first word in it; 0 means no word."""
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Given:
    """The facts about one case."""

    features: Mapping[str, float | None] = field(default_factory=dict)
    """Name -> value; None if it is missing."""
    text: str | None = None
    """None if there is no text."""


@dataclass(frozen=True)
class Feature:
    """A number that a bundle reads, and its distribution in the training cases."""

    name: str
    mean: float
    """Mean over the training cases."""
    spread: float
    """Standard deviation over the training cases; 1 if all have the same value."""


@dataclass(frozen=True)
class Facts:
    """What a bundle reads besides an image, and how it becomes a row of numbers."""

    features: tuple[Feature, ...] = ()
    """The numbers that it reads."""
    words: tuple[str, ...] = ()
    """The vocabulary, the most frequent word first."""
    length: int = 0
    """Number of words that are read from the start of a text."""

    @property
    def numbers(self) -> int:
        """Length of the features' part of a row: for each feature a standard score, and whether it is missing."""
        return max(2 * len(self.features), 1)

    @property
    def size(self) -> int:
        """Length of a row."""
        return self.numbers + max(self.length, 1)

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        return {word: n for n, word in enumerate(self.words, start=FIRST_WORD)}

    def row(self, given: Given) -> np.ndarray:
        """Return (size,) float32: standard scores, 0 if missing; 1 for each missing feature; numbers of the words."""
        out = np.zeros(self.size, np.float32)
        for n, feature in enumerate(self.features):
            value = given.features.get(feature.name)
            if value is None:
                out[len(self.features) + n] = 1
            else:
                out[n] = np.clip((value - feature.mean) / feature.spread, -FAR, FAR)
        words = [self._vocabulary.get(word, UNKNOWN) for word in words_of(given.text)[: self.length]]
        out[self.numbers : self.numbers + len(words)] = words
        return out

    def summary(self, given: Given) -> dict[str, Any]:
        """Return which of a case's facts are read, for its sidecar."""
        known = {f.name: given.features[f.name] for f in self.features if given.features.get(f.name) is not None}
        words = words_of(given.text)[: self.length]
        return {
            "features": known,
            "missing": [f.name for f in self.features if f.name not in known],
            "words": len(words),
            "unknown_words": sum(word not in self._vocabulary for word in words),
        }

    def require(self, given: Given, name: object) -> None:
        """Raise InputError, which starts with `name`, if a feature or the text is not given at all."""
        absent = [f.name for f in self.features if f.name not in given.features]
        if absent:
            raise InputError(
                f"{name}: the bundle also reads {listed(absent[:6])}{' ...' if len(absent) > 6 else ''}: "
                f"--features TABLE needs a column for each, with empty cells for missing values"
            )
        if self.words and given.text is None:
            raise InputError(f"{name}: the bundle also reads a text: --text FILE, a folder or a column of --features")

    def rows(self, items: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
        """Return the items of a datalist, each with its row under `context`."""
        return tuple({**item, "context": self.row(given_of(item))} for item in items)

    def write(self, path: Path) -> None:
        """Write it as JSON, which `read` takes."""
        content = {
            "features": [{"name": f.name, "mean": f.mean, "spread": f.spread} for f in self.features],
            "length": self.length,
            "words": list(self.words),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read(file: str | Path) -> Facts:
    """Read what a bundle reads from a file of `Facts.write`. Raises BundleError."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        features = tuple(Feature(str(f["name"]), float(f["mean"]), float(f["spread"])) for f in content["features"])
        return Facts(features, tuple(map(str, content["words"])), int(content["length"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file}: expected what the bundle reads besides images: {error}") from None


def facts_of(bundle: Bundle) -> Facts | None:
    """Return what a bundle reads besides images; None if it reads only images. Raises BundleError."""
    return read(bundle.root / str(bundle.block["context"])) if "context" in bundle.block else None


def words_of(text: str | None) -> list[str]:
    """Return the words of a text, in small letters.

    >>> words_of("No effusion; 2.5 cm")
    ['no', 'effusion', '2', '5', 'cm']
    """
    return _WORD.findall(text.lower()) if text else []


# ---- training


def described(
    items: Sequence[Mapping[str, Any]],
    features: str | None = None,
    text: str | None = None,
    columns: str | Sequence[str] | None = None,
) -> tuple[dict[str, Any], ...]:
    """Return the items of a datalist with `features` (name -> value or None) and, if known, `text`.

    They come from the items themselves, else from a table and texts, else from the sidecar of the label map that an
    item names as `labels`, or of the image.

    Args:
        items: those of a datalist.
        features: a table, as `--features` of `medkit run classify`.
        text: a file, a folder or a column, as `--text` of `medkit run classify`.
        columns: the features to train with, a list or a text with commas; None: all. Needed if the table also holds
            the class.

    Raises InputError.
    """
    sources = Sources.of(absolute(features) if features else None, text)
    picked = columns.split(",") if isinstance(columns, str) else columns
    out = []
    for item in items:
        path = image_of(item)
        stated = dict(item.get("features") or {})
        known = {
            **Context.of_record(record_of(Path(item.get("labels", path)))).features(),
            **sources.features(path),
            **stated,
        }
        if picked is not None:
            known = _picked(known, picked, path)
        words = item.get("text") or sources.text(path)
        out.append({**item, "features": known, **({} if words is None else {"text": words})})
    return tuple(out)


def _picked(known: Mapping[str, Any], columns: Sequence[str], path: Path) -> dict[str, Any]:
    """Return the features with these names. Raises InputError if one of them is not known."""
    if absent := [name for name in columns if name not in known]:
        raise InputError(f"{path}: no feature {listed(absent)}; there is {listed(list(known) or ['none'])}")
    return {name: known[name] for name in columns}


def learnt(
    items: Sequence[Mapping[str, Any]], most_words: int = 1000, least_often: int = 2, longest: int = 128
) -> Facts:
    """Return what training items hold besides their images: their features, and the words of their texts.

    Args:
        items: those of a datalist, with `features` and `text`.
        most_words: largest size of the vocabulary.
        least_often: smallest number of texts that hold a word of the vocabulary.
        longest: largest number of words that are read from a text.

    Raises InputError if the items have neither features nor words.
    """
    given = [given_of(item) for item in items]
    columns = {name: _present(given, name) for name in dict.fromkeys(n for case in given for n in case.features)}
    texts = [words_of(case.text) for case in given]
    counts = Counter(word for text in texts for word in set(text))
    frequent = sorted((w for w, n in counts.items() if n >= least_often), key=lambda w: (-counts[w], w))[:most_words]
    features = [Feature(n, float(np.mean(v)), float(np.std(v)) or 1.0) for n, v in columns.items() if v]
    if not features and not frequent:
        raise InputError(
            "the training's items hold nothing besides their images: expected `features` or `text` in the datalist, "
            "--set features=TABLE or --set text=FOLDER"
        )
    length = min(longest, max(map(len, texts))) if frequent else 0
    return Facts(tuple(features), tuple(frequent), length)


def _present(given: Sequence[Given], name: str) -> list[float]:
    """Return the values of a feature, without missing ones."""
    return [value for case in given if (value := case.features.get(name)) is not None]


def given_of(item: Mapping[str, Any]) -> Given:
    """Return the facts of a datalist's item: its `features`, and its `text` or the file `.txt` named there.

    Raises InputError for a value that is not a number, and for a text that cannot be read.
    """
    name = image_of(item)
    features = {str(key): number(value, f"{name}: {key}") for key, value in dict(item.get("features") or {}).items()}
    text = item.get("text")
    if isinstance(text, str) and text.endswith(".txt") and "\n" not in text:
        text = _content(Path(text))
    return Given(features, text)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a text: {error.strerror}") from None


def image_of(item: Mapping[str, Any]) -> Path:
    """Return the file of an item's image, the first one if there are several."""
    value = item.get("image", "")
    return Path(str(value[0] if isinstance(value, list | tuple) else value))


class KeepFacts:
    """A handler for train configs: writes what the bundle reads to its folder when the training starts."""

    def __init__(self, facts: Facts, file: str) -> None:
        self.facts, self.file = facts, Path(file)

    def attach(self, engine: Any) -> None:
        """Write the file before the first step of a trainer."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, lambda _: self.facts.write(self.file))
