"""Judged classes as tables for people, as rows of CSV, and as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from medkit.evaluation.bootstrap import Estimate
from medkit.evaluation.classes.metrics import BY_CLASS, OVERALL, reliability
from medkit.evaluation.classes.predictions import PROBABILITY
from medkit.evaluation.classes.run import ALL, ANSWERED, Judged
from medkit.evaluation.report import finite, number_text
from medkit.terminal.tables import Layout, aligned

TITLES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "ece": "calibration error",
    "brier": "Brier score",
}
_INTERVAL = ("95% from", "95% to")


def table(judged: Judged, layout: Layout = aligned) -> str:
    """Return lines for people: the measures, those of each class, and the confusion matrix."""
    parts = [_heading(judged), *(part(judged, layout) for part in (_measures, _classes, _confusion))]
    return "\n\n".join(parts) + "\n"


def csv_text(judged: Judged) -> str:
    """Return CSV with a row for each case and its true class, in the form of table that `medkit evaluate` reads."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    classes = judged.given.classes
    names = [PROBABILITY + name for name in classes]
    writer.writerow(["path", "class", "confidence", "abstained", *names, "reference", "result"])
    given = judged.given
    for n, case in enumerate(judged.cases):
        facts = [classes[given.chosen[n]], repr(float(given.confidence[n])), "yes" if case.abstained else "no"]
        probabilities = [repr(float(p)) for p in given.probabilities[n]]
        writer.writerow([case.case, *facts, *probabilities, classes[given.truth[n]], case.file])
    return out.getvalue()


def as_data(judged: Judged) -> dict[str, Any]:
    """JSON data; null for what is not defined."""
    given = judged.given
    bins = reliability(given)
    out = {
        "kind": "classes",
        "classes": list(given.classes),
        "n": len(judged.cases),
        "abstained": {"n": int(judged.abstained.sum()), "share": float(judged.abstained.mean())},
        "summary": {group: _estimates(found) for group, found in judged.measures.items()},
        "by_class": {name: _estimates(found) for name, found in judged.by_class.items()},
        "confusion": {group: counts.tolist() for group, counts in judged.confusion.items()},
        "reliability": {name: values.tolist() for name, values in bins.items()},
        "cases": [
            {
                "case": str(case.case),
                "result": str(case.file),
                "class": given.classes[given.chosen[n]],
                "reference": given.classes[given.truth[n]],
                "confidence": float(given.confidence[n]),
                "abstained": case.abstained,
                "probabilities": dict(zip(given.classes, given.probabilities[n].tolist(), strict=True)),
            }
            for n, case in enumerate(judged.cases)
        ],
        "unmatched": list(judged.unmatched),
        "settings": {"seed": judged.seed},
    }
    data: dict[str, Any] = finite(out)
    return data


def _estimates(found: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: asdict(estimate) for name, estimate in found.items()}


def _heading(judged: Judged) -> str:
    given, abstentions = judged.given, int(judged.abstained.sum())
    count = len(given.classes)
    meaning = f"of {given.classes[1]} against {given.classes[0]}" if count == 2 else f"mean over {count} classes"
    abstained = f"{abstentions} ({abstentions / len(judged.cases):.1%})" if abstentions else "none"
    return f"{len(judged.cases)} cases, {abstained} abstained from; AUC, sensitivity and the like: {meaning}"


def _measures(judged: Judged, layout: Layout) -> str:
    rows = [["measure"]]
    for group in judged.measures:
        rows[0] += ["all cases" if group == ALL else "answered", *_INTERVAL]
    for name in OVERALL:
        values = [found[name] for found in judged.measures.values()]
        rows.append([TITLES[name], *(number_text(n) for v in values for n in (v.value, v.low, v.high))])
    return layout(rows, 1)


def _classes(judged: Judged, layout: Layout) -> str:
    rows = [["class", "n", *(TITLES[name] for name in BY_CLASS)]]
    for number, (name, found) in enumerate(judged.by_class.items()):
        count = int((judged.given.truth == number).sum())
        rows.append([name, str(count), *(number_text(found[measure].value) for measure in BY_CLASS)])
    return layout(rows, 1)


def _confusion(judged: Judged, layout: Layout) -> str:
    """Return the confusion matrix, with references in rows and a separate column for cases that were abstained from."""
    classes, counts = judged.given.classes, judged.confusion.get(ANSWERED, judged.confusion[ALL])
    some = ANSWERED in judged.confusion
    rows = [["reference \\ result", *classes, *(["abstained"] if some else [])]]
    for number, name in enumerate(classes):
        left = int((judged.abstained & (judged.given.truth == number)).sum())
        rows.append([name, *(str(count) for count in counts[number]), *([str(left)] if some else [])])
    return layout(rows, 1)
