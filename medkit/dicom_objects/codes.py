"""What structures, classes and algorithms are, as codes: of SNOMED CT, of DICOM, or of a private scheme."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medkit.dicom_objects.identity import MANUFACTURER, PRIVATE_SCHEME, one_line
from medkit.errors import BundleError

_LONGEST = 16
"""Characters of a code."""
_SIDES = {"left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right")}


@dataclass(frozen=True)
class Code:
    """A concept of a terminology."""

    value: str
    scheme: str
    """Designator of the coding scheme: `SCT`, `DCM`, ..."""
    meaning: str

    def concept(self) -> Any:
        """Return it as highdicom takes it."""
        from highdicom.sr import CodedConcept

        return CodedConcept(self.value, self.scheme, self.meaning)


FINDING = Code("121071", "DCM", "Finding")
"""The question of a classification that asks one only."""


@dataclass(frozen=True)
class Meaning:
    """What a label or a class stands for."""

    type: Code
    side: str | None = None
    """`left` or `right`."""
    category: Code = Code("91723000", "SCT", "Anatomical Structure")

    @property
    def side_code(self) -> Code | None:
        """The side as a concept."""
        return Code(*_SIDES[self.side]) if self.side else None


@dataclass(frozen=True)
class Algorithm:
    """What made a result."""

    task: str
    name: str
    """Of the bundle, the method or the task."""
    version: str
    learned: bool = False
    """Whether it is a network."""

    @property
    def family(self) -> Code:
        """The family of algorithms that it belongs to (DICOM's context group 7162)."""
        if self.learned:
            return Code("123110", "DCM", "Artificial Intelligence")
        return Code("123101", "DCM", "Neighborhood Analysis")

    @property
    def description(self) -> str:
        """In words, such as `medkit segment: brain_mri_segmentation 0.5.0`."""
        name = self.task if self.name == self.task else f"{self.task}: {self.name}"
        return one_line(f"{MANUFACTURER} {name} {self.version}")


def private_code(name: str) -> Code:
    """Return a code of medkit's own for a name: the name, or where it is too long its beginning and a digest."""
    meaning = one_line(name) or "unnamed"
    if len(meaning) <= _LONGEST and meaning.isascii():
        return Code(meaning, PRIVATE_SCHEME, meaning)
    plain = "".join(c for c in meaning if c.isascii() and (c.isalnum() or c in " -_"))
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    return Code(f"{plain[:7].strip()}-{digest[:8]}", PRIVATE_SCHEME, meaning)


def meanings_of(names: Mapping[int, str], stated: Any, owner: str) -> dict[str, Meaning]:
    """Return name -> meaning of labels or classes, from `codes` in the `medkit` block of a bundle's metadata.

    names: number -> name; stated: number (as text) or name -> `{"type": [value, scheme, meaning], "side": "left",
    "category": [...]}`, the last two optional. Raises BundleError if it is anything else.
    """
    out = {}
    for key, entry in (stated or {}).items():
        name = names.get(int(key)) if str(key).isdigit() else str(key)
        if name is None:
            continue
        try:
            side = entry.get("side")
            if side not in (None, *_SIDES):
                raise ValueError(f'side "{side}"')
            category = {"category": _code(entry["category"])} if "category" in entry else {}
            out[name] = Meaning(_code(entry["type"]), side, **category)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f'{owner}: expected "codes" as docs/bundles.md describes, got {entry} ({error})'
            ) from None
    return out


def _code(stated: Any) -> Code:
    value, scheme, meaning = stated
    if not all(isinstance(text, str) and text for text in (value, scheme, meaning)) or len(value) > _LONGEST:
        raise ValueError("a code has three texts")
    return Code(value, scheme, meaning)


def meaning_of(name: str, known: Mapping[str, Meaning]) -> Meaning:
    """Return what a name means; by a private code where nothing is known."""
    return known.get(name) or Meaning(private_code(name))
