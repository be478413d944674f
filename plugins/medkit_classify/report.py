"""Findings as rows of a table, as numbers of a sidecar, and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medkit.inference import Bundle
from medkit.task import Record
from medkit_classify.calibration import Finding, rounded
from medkit_classify.context import Context

FIRST = ("candidate", "class", "probability", "confidence", "abstained", "reason", "distance")
LAST = ("bundle", "version")
NOT_A_DEVICE = "Research only. Not a medical device: no decision about a person may rest on this."


def columns(classes: Iterable[str]) -> tuple[str, ...]:
    """Those of a table for bundles with these classes: the network's probability of each has a column of its own."""
    return (*FIRST, *(f"probability_{name}" for name in dict.fromkeys(classes)), *LAST)


def as_numbers(findings: Sequence[Finding]) -> dict[str, Any]:
    """For the sidecar; what is said of an image as a whole stands at the top as well."""
    rows = [
        {
            "candidate": found.candidate or None,
            "class": None if found.abstained else found.name,
            "probability": None if found.abstained else rounded(found.probabilities[found.name]),
            "confidence": None if found.abstained else rounded(found.confidence),
            "abstained": found.abstained,
            "reason": found.reason or None,
            "distance": rounded(found.distance),
            "probabilities": {name: rounded(p) for name, p in found.probabilities.items()},
        }
        for found in findings
    ]
    whole = {k: v for k, v in rows[0].items() if k != "candidate"} if [r["candidate"] for r in rows] == [None] else {}
    return {**whole, "findings": rows}


def rows_of(record: Record) -> list[dict[str, str]]:
    """The rows of a finished case, from its record."""
    block = record.medkit
    return _rows(block["metrics"]["findings"], block.get("choice") or block["bundle"])


def as_tsv(numbers: Mapping[str, Any], bundle: Bundle) -> str:
    """The table of one case."""
    names = columns(name for found in numbers["findings"] for name in found["probabilities"])
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
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


# ---- in words


@dataclass(frozen=True)
class Told:
    """One finding and what is known about where it comes from."""

    finding: Finding
    where: str = ""
    """Which part of the image speaks for it, in words; empty where nothing was asked."""


def in_words(name: str, told: Sequence[Told], bundle: Bundle, context: Context, notes: Sequence[str]) -> str:
    """What was found in a case, how sure that is, what speaks for it and what comes next; lines of text."""
    lines = [f"{name}: {bundle.name} {bundle.version}", ""]
    for one in told:
        lines += [*_finding(one, bundle), ""]
    if context.volumes_mm3:
        largest = sorted(context.volumes_mm3.items(), key=lambda pair: -pair[1])[:3]
        lines.append("Volumes from the stage before: " + ", ".join(f"{n} {v / 1000:.1f} ml" for n, v in largest) + ".")
    lines += [f"An earlier stage says: {text}." for text in context.warnings]
    lines += [f"{note[0].upper()}{note[1:]}." for note in notes]
    return "\n".join([*lines, NOT_A_DEVICE, ""])


def beside(read: Mapping[str, Any]) -> str:
    """What was read beside the image (`Facts.told`), in words."""
    parts = [f"{name} {value:g}" for name, value in read["features"].items()]
    parts += [f"{name} (missing)" for name in read["missing"]]
    if read["words"]:
        unknown = f", {read['unknown_words']} of them unknown to the bundle" if read["unknown_words"] else ""
        parts.append(f"a text of {read['words']} words{unknown}")
    return f"read beside the image: {', '.join(parts) or 'nothing'}"


def _finding(told: Told, bundle: Bundle) -> Iterable[str]:
    found = told.finding
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
    sure = "not known" if found.confidence is None else f"{found.confidence:.0%}, calibrated on validation images"
    yield f"  How sure: {sure} (the network says {says})."
    reasons = [told.where] if told.where else []
    if found.distance is not None:
        reasons.append(f"the image is like those of the training ({found.distance:.2f} of the distance allowed)")
    if reasons:
        yield f"  What speaks for it: {'; '.join(reasons)}."
    steps = bundle.block.get("next_step")
    if isinstance(steps, Mapping) and found.name in steps:
        yield f"  Next step: {steps[found.name]}"
