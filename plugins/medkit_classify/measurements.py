"""Findings as the answers of a DICOM structured report (`--dicom sr`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from medkit.dicom_objects import FINDING, Meaning, meaning_of, meanings_of, private_code
from medkit.inference import BundleOptions, contract_of

if TYPE_CHECKING:
    from medkit.dicom_objects import Answer
    from medkit.task import Result


def answers_of_bundles(chosen: BundleOptions) -> Callable[[Result], list[Answer]]:
    """Return what makes answers of a result, with the codes of the classes that the bundles state."""
    meanings: dict[str, Meaning] = {}
    aspects: set[str] = set()
    for bundle in chosen.of_task("classify"):
        meanings |= meanings_of(contract_of(bundle).classes, bundle.block.get("codes"), f"bundle {bundle.name}")
        aspects |= set(bundle.block.get("aspects") or ())
    return functools.partial(answers_of, meanings=meanings, aspects=frozenset(aspects))


def answers_of(result: Result, *, meanings: Mapping[str, Meaning], aspects: frozenset[str]) -> list[Answer]:
    """Return one answer for each finding of a result: an image, an aspect of it, or a candidate in it."""
    from medkit.dicom_objects import Answer

    if not result.metrics["findings"]:  # a report has to say something
        none = "no candidates"
        return [Answer(question=FINDING, name=none, found=private_code(none), probabilities=[])]
    return [
        Answer(
            question=private_code(found["candidate"]) if found["candidate"] in aspects else FINDING,
            name=": ".join(filter(None, [found["candidate"], found["class"] or "no class is given"])),
            found=meaning_of(found["class"], meanings).type if found["class"] else None,
            probabilities=list(found["probabilities"].items()),
            remark=found["reason"] or "",
        )
        for found in result.metrics["findings"]
    ]
