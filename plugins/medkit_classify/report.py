"""Findings as rows of a table, as metrics of a sidecar, and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medkit.inference import Bundle
from medkit.task import Record
from medkit_classify.context import Context
from medkit_classify.finding import Finding

FIRST = ("candidate", "class", "probability", "confidence", "abstained", "reason", "distance")
"""The first columns of a table, before the probabilities of the classes."""
LAST = ("bundle", "version")
"""The last columns of a table, after the probabilities of the classes."""
NOT_A_DEVICE = "Research only. Not a medical device: no decision about a person may rest on this."


def columns(classes: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of a table for these classes; the network's probability of each class is a column."""
    return (*FIRST, *(f"probability_{name}" for name in dict.fromkeys(classes)), *LAST)


def as_numbers(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings for the sidecar; that about an image as a whole is at the top level as well."""
    rows = [
        {
            "candidate": finding.candidate or None,
            "class": None if finding.abstained else finding.name,
            "probability": None if finding.abstained else _rounded(finding.probabilities[finding.name]),
            "confidence": None if finding.abstained else _rounded(finding.confidence),
            "abstained": finding.abstained,
            "reason": finding.reason or None,
            "distance": _rounded(finding.distance),
            "probabilities": {name: _rounded(p) for name, p in finding.probabilities.items()},
        }
        for finding in findings
    ]
    whole = {k: v for k, v in rows[0].items() if k != "candidate"} if [r["candidate"] for r in rows] == [None] else {}
    return {**whole, "findings": rows}


def _rounded(value: float | None) -> float | None:
    """Return a number with six digits after the point."""
    return None if value is None else round(float(value), 6)


def rows_of(record: Record) -> list[dict[str, str]]:
    """Return the rows of a finished case, from its record."""
    block = record.medkit
    return _rows(block["metrics"]["findings"], block.get("choice") or block["bundle"])


def as_tsv(numbers: Mapping[str, Any], bundle: Bundle, classes: Sequence[str]) -> str:
    """Return the table of one case; `classes` of the bundle, for a case without candidates."""
    names = columns([name for found in numbers["findings"] for name in found["probabilities"]] or classes)
    lines = _rows(numbers["findings"], {"name": bundle.name, "version": bundle.version})
    return "\n".join(["\t".join(names), *("\t".join(line.get(n, "n/a") for n in names) for line in lines), ""])


def _rows(findings: Sequence[Mapping[str, Any]], bundle: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {name: _shown(found[name]) for name in FIRST}
        | {f"probability_{name}": _shown(p) for name, p in found["probabilities"].items()}
        | {"bundle": str(bundle["name"]), "version": str(bundle["version"])}
        for found in findings
    ]


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


# ---- in words


@dataclass(frozen=True)
class LocatedFinding:
    """A finding, and the part of the image that speaks for it."""

    finding: Finding
    where: str = ""
    """The part of the image that speaks for the class, in words; empty if not known."""


def in_words(
    name: str, findings: Sequence[LocatedFinding], bundle: Bundle, context: Context, notes: Sequence[str]
) -> str:
    """Return the findings of a case as lines of text: class, confidence, what speaks for it, and the next step."""
    lines = [f"{name}: {bundle.name} {bundle.version}", ""]
    lines += [] if findings else ["There are no candidates in this image.", ""]
    for finding in findings:
        lines += [*_finding_in_words(finding, bundle), ""]
    if context.volumes_mm3:
        largest = sorted(context.volumes_mm3.items(), key=lambda pair: -pair[1])[:3]
        lines.append("Volumes from the stage before: " + ", ".join(f"{n} {v / 1000:.1f} ml" for n, v in largest) + ".")
    lines += [f"An earlier stage says: {text}." for text in context.warnings]
    lines += [f"{note[0].upper()}{note[1:]}." for note in notes]
    return "\n".join([*lines, NOT_A_DEVICE, ""])


def facts_in_words(read: Mapping[str, Any]) -> str:
    """Return in words what was read besides the image, from `Facts.summary`."""
    parts = [f"{name} {value:g}" for name, value in read["features"].items()]
    parts += [f"{name} (missing)" for name in read["missing"]]
    if read["words"]:
        unknown = f", {read['unknown_words']} of them unknown to the bundle" if read["unknown_words"] else ""
        parts.append(f"a text of {read['words']} words{unknown}")
    return f"read besides the image: {', '.join(parts) or 'nothing'}"


def sure_text(found: Finding) -> str:
    """Return how sure a class is, in words that no rounding makes certain.

    >>> sure_text(Finding("", "x", {}, 0.9991))
    'over 99.9 % sure, calibrated on validation images'
    """
    if found.confidence is None:
        return "how sure is not known"
    percent = "over 99.9" if found.confidence > 0.999 else f"{100 * found.confidence:.1f}"
    return f"{percent} % sure, calibrated on validation images"


def times_text(distance: float) -> str:
    """Return a multiple of the largest distance allowed, which rounding never takes across it.

    >>> times_text(0.53), times_text(1.002), times_text(1.4), times_text(123.4)
    ('0.53 times', 'slightly more than', '1.40 times', '123 times')
    """
    if 1 < distance < 1.005:
        return "slightly more than"
    if 0.995 <= distance <= 1:
        return "almost"
    return f"{distance:.2f} times" if distance < 10 else f"{distance:.0f} times"


def _finding_in_words(located: LocatedFinding, bundle: Bundle) -> Iterable[str]:
    found = located.finding
    subject = f"Candidate {found.candidate}: " if found.candidate else ""
    if found.candidate in bundle.block.get("aspects", ()):
        subject = f"{found.candidate.capitalize()}: "
    says = ", ".join(f"{name} {p:.2f}" for name, p in found.probabilities.items())
    if found.abstained:
        yield f"{subject}no class is given."
        yield f"  Why: {found.reason}."
        yield "  Next step: have somebody look at the image; it may be of another kind, or damaged."
        return
    yield f"{subject}{found.name}."
    yield f"  How sure: {sure_text(found)} (the network says {says})."
    reasons = [located.where] if located.where else []
    if found.distance is not None:
        reasons.append(f"the image is like those of the training ({times_text(found.distance)} the distance allowed)")
    if reasons:
        yield f"  What speaks for it: {'; '.join(reasons)}."
    steps = bundle.block.get("next_step")
    if isinstance(steps, Mapping) and found.name in steps:
        yield f"  Next step: {steps[found.name]}"
