"""Status and messages of each check that runs a bundle's code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping

from medkit.bundles.checks.case import check_case
from medkit.bundles.checks.configs import check_properties, check_references
from medkit.bundles.checks.network import check_export, check_in_out, check_weights
from medkit.bundles.checks.subject import CheckedBundle, Note, Skipped
from medkit.bundles.config import one_line

CHECKS: Mapping[str, tuple[Callable[[CheckedBundle], Iterator[str]], str]] = {
    "references": (check_references, "MONAI reads all configs; every reference and every class exists"),
    "properties": (check_properties, "the inference has the ids that MONAI's applications ask for"),
    "in_out": (check_in_out, "the network takes and returns what the metadata state"),
    "weights": (check_weights, "contain only numbers, and fit the network exactly"),
    "export": (check_export, "the scripted network equals the network"),
    "case": (check_case, "a synthetic scan went from file to file, and the result lies where it should"),
}
"""Name of a check -> its function, which yields what is wrong (a `Note`: what else to know), and a sentence if nothing
is."""


def outcome(name: str, subject: CheckedBundle) -> tuple[str, list[str]]:
    """Run one check and return its status and messages, whatever the bundle's code does."""
    check, success = CHECKS[name]
    try:
        with warnings.catch_warnings(action="ignore"), subject.building():
            found = list(check(subject))
    except Skipped as reason:
        return "skipped", [str(reason)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit: a bundle's code may exit
        return "failed", [one_line(error)]
    notes = [text for text in found if isinstance(text, Note)]
    problems = [text for text in found if not isinstance(text, Note)]
    return ("failed", problems) if problems else ("ok", [success, *map(str, notes)])
