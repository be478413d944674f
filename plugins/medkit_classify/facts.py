"""What is known of a case beside its image: numbers and a text, as the row of values that a network is given.

A bundle that learnt from them keeps their names, means and spreads and its vocabulary in `models/context.json`, so that
the same numbers and words mean the same to it later.
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
"""Standard scores are cut off there: further out a network has seen nothing."""
UNKNOWN, FIRST_WORD = 1, 2
"""Numbers of a word that is not in the vocabulary, and of the first one that is; 0 is no word."""
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Given:
    """What is known of one case."""

    features: Mapping[str, float | None] = field(default_factory=dict)
    """Name -> value; None: missing."""
    text: str | None = None
    """None: there is none."""


@dataclass(frozen=True)
class Feature:
    """A number that a bundle reads, and how it lies among the training cases."""

    name: str
    mean: float
    spread: float
    """Standard deviation; 1 where all cases have one value."""


@dataclass(frozen=True)
class Facts:
    """What a bundle reads beside an image."""

    features: tuple[Feature, ...] = ()
    words: tuple[str, ...] = ()
    """Its vocabulary, the most frequent word first."""
    length: int = 0
    """Words of a text that are read, from its beginning."""

    @property
    def numbers(self) -> int:
        """Length of the part of a row that holds features: a standard score and whether it is missing for each."""
        return max(2 * len(self.features), 1)

    @property
    def size(self) -> int:
        """Length of a row."""
        return self.numbers + max(self.length, 1)

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        return {word: n for n, word in enumerate(self.words, start=FIRST_WORD)}

    def row(self, given: Given) -> np.ndarray:
        """(size,) float32: standard scores, 0 where missing; 1 for each that is missing; the numbers of the words."""
        out = np.zeros(self.size, np.float32)
        for place, feature in enumerate(self.features):
            value = given.features.get(feature.name)
            if value is None:
                out[len(self.features) + place] = 1
            else:
                out[place] = np.clip((value - feature.mean) / feature.spread, -FAR, FAR)
        found = [self._vocabulary.get(word, UNKNOWN) for word in words_of(given.text)[: self.length]]
        out[self.numbers : self.numbers + len(found)] = found
        return out

    def told(self, given: Given) -> dict[str, Any]:
        """What of a case is read, for its sidecar."""
        known = {f.name: given.features[f.name] for f in self.features if given.features.get(f.name) is not None}
        found = words_of(given.text)[: self.length]
        return {
            "features": known,
            "missing": [f.name for f in self.features if f.name not in known],
            "words": len(found),
            "unknown_words": sum(word not in self._vocabulary for word in found),
        }

    def want(self, given: Given, name: object) -> None:
        """Raises InputError where nothing is said about features or a text that are read."""
        absent = [f.name for f in self.features if f.name not in given.features]
        if absent:
            raise InputError(
                f"{name}: the bundle also reads {listed(absent[:6])}{' ...' if len(absent) > 6 else ''}: "
                f"--features TABLE has a column for each, with empty cells for what is missing"
            )
        if self.words and given.text is None:
            raise InputError(f"{name}: the bundle also reads a text: --text FILE, a folder or a column of --features")

    def rows(self, items: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
        """Items of a datalist, each with its row under `context`."""
        return tuple({**item, "context": self.row(given_of(item))} for item in items)

    def write(self, path: Path) -> None:
        """Writes the file."""
        content = {
            "features": [{"name": f.name, "mean": f.mean, "spread": f.spread} for f in self.features],
            "length": self.length,
            "words": list(self.words),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read(file: str | Path) -> Facts:
    """From a file. Raises BundleError."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        features = tuple(Feature(str(f["name"]), float(f["mean"]), float(f["spread"])) for f in content["features"])
        return Facts(features, tuple(map(str, content["words"])), int(content["length"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file}: expected what the bundle reads beside images: {error}") from None


def facts_of(bundle: Bundle) -> Facts | None:
    """What a bundle reads beside images; None of one that reads images alone. Raises BundleError."""
    return read(bundle.root / str(bundle.block["context"])) if "context" in bundle.block else None


def words_of(text: str | None) -> list[str]:
    """The words of a text, in small letters.

    >>> words_of("No effusion; 2.5 cm")
    ['no', 'effusion', '2', '5', 'cm']
    """
    return _WORD.findall(text.lower()) if text else []


# ---- learning


def described(
    items: Sequence[Mapping[str, Any]],
    features: str | None = None,
    text: str | None = None,
    columns: str | Sequence[str] | None = None,
) -> tuple[dict[str, Any], ...]:
    """Items of a datalist with `features` (name -> value or None) and `text`, as far as they are known.

    They come from the items themselves, else from a table and from texts (as `--features` and `--text` of
    `medkit run classify`), else from the sidecar of the label map that an item names as `labels`, or of the image.
    `columns`, a list or a text with commas, are the features to learn from where not all are: a table may hold the
    answer, too. Raises InputError.
    """
    sources = Sources.of(absolute(features) if features else None, text)
    picked = columns.split(",") if isinstance(columns, str) else columns
    out = []
    for item in items:
        path = image_of(item)
        own = dict(item.get("features") or {})
        known = {
            **Context.of_record(record_of(Path(item.get("labels", path)))).features(),
            **sources.features(path),
            **own,
        }
        if picked is not None:
            known = _picked(known, picked, path)
        told = item.get("text") or sources.text(path)
        out.append({**item, "features": known, **({} if told is None else {"text": told})})
    return tuple(out)


def _picked(known: Mapping[str, Any], columns: Sequence[str], path: Path) -> dict[str, Any]:
    if absent := [name for name in columns if name not in known]:
        raise InputError(f"{path}: no feature {listed(absent)}; there is {listed(list(known) or ['none'])}")
    return {name: known[name] for name in columns}


def learnt(
    items: Sequence[Mapping[str, Any]], most_words: int = 1000, least_often: int = 2, longest: int = 128
) -> Facts:
    """What training items say beside their images: their features, and the words of their texts.

    Args:
        items: those of a datalist, with `features` and `text`.
        most_words: words of the vocabulary at most.
        least_often: how many texts a word of it is in at least.
        longest: words of a text that are read at most.

    Raises InputError where the items say nothing.
    """
    given = [given_of(item) for item in items]
    columns = {name: _present(given, name) for name in dict.fromkeys(n for one in given for n in one.features)}
    texts = [words_of(one.text) for one in given]
    counts = Counter(word for text in texts for word in set(text))
    frequent = sorted((w for w, n in counts.items() if n >= least_often), key=lambda w: (-counts[w], w))[:most_words]
    features = [Feature(n, float(np.mean(v)), float(np.std(v)) or 1.0) for n, v in columns.items() if v]
    if not features and not frequent:
        raise InputError(
            "the training's items say nothing beside their images: expected `features` or `text` in the datalist, "
            "--set features=TABLE or --set text=FOLDER"
        )
    length = min(longest, max(map(len, texts))) if frequent else 0
    return Facts(tuple(features), tuple(frequent), length)


def _present(given: Sequence[Given], name: str) -> list[float]:
    return [value for one in given if (value := one.features.get(name)) is not None]


def given_of(item: Mapping[str, Any]) -> Given:
    """From an item of a datalist: its `features`, and its `text` or the `.txt` that this names. Raises InputError."""
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
    """The file of an item's image, the first one of several."""
    value = item.get("image", "")
    return Path(str(value[0] if isinstance(value, list | tuple) else value))


class KeepFacts:
    """A handler for train configs: writes what the bundle reads into its folder when the training starts."""

    def __init__(self, facts: Facts, file: str) -> None:
        self.facts, self.file = facts, Path(file)

    def attach(self, engine: Any) -> None:
        """Writes before the first step of a trainer."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, lambda _: self.facts.write(self.file))
