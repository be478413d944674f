"""An evaluation as a table for people, as rows of CSV, and as JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from medkit.evaluation.results import CASE_METRICS, ROW_METRICS, Evaluation, Scores, Summary
from medkit.terminal.tables import Layout, aligned

TITLES = {
    "dice": "Dice",
    "hd95_mm": "HD95 mm",
    "assd_mm": "ASSD mm",
    "volume_error_percent": "volume error %",
    "volume_error_mm3": "volume error mm3",
    "absolute_volume_error_percent": "|volume error| %",
    "absolute_volume_error_mm3": "|volume error| mm3",
    "mse": "MSE",
    "ssim": "SSIM",
    "psnr_db": "PSNR dB",
    "ncc": "NCC",
    "data_range": "data range",
    "tre_mm": "TRE mm",
    "mean_tre_mm": "mean TRE mm",
    "median_tre_mm": "median TRE mm",
    "max_tre_mm": "max TRE mm",
}
_STATISTICS = {"mean": "mean", "sd": "SD", "low": "95% from", "high": "95% to", "n": "n"}


def table(evaluation: Evaluation, per_label: bool = False, layout: Layout = aligned) -> str:
    """Return lines for people: the cases and their summary, and with `per_label` also the labels, or the points."""
    parts = [_cases(evaluation, layout)]
    if per_label and evaluation.settings.kind == "labels":
        parts.append(_labels(evaluation, layout))
    elif per_label:
        parts += [_points(score, layout) for score in evaluation.scores if score.rows]
    return "\n\n".join(parts) + "\n"


def csv_text(evaluation: Evaluation) -> str:
    """Return CSV with a row for each case, or for each label or point of a case; the last columns are the files."""
    kind = evaluation.settings.kind
    metrics = ROW_METRICS[kind] or (*CASE_METRICS[kind], "data_range")
    keys = {"labels": ("label", "name"), "images": (), "points": ("point",)}[kind]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["case", *keys, *metrics, "result", "reference"])
    for score in evaluation.scores:
        rows = [((r.label, r.name)[: len(keys)], r.values) for r in score.rows] if keys else [((), score.values)]
        for key, values in rows:
            files = [score.pair.result, score.pair.reference]
            writer.writerow([score.pair.name, *key, *(_exact(values[metric]) for metric in metrics), *files])
    return out.getvalue()


def as_data(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation as JSON data, with null for values that are not defined or infinite."""
    settings = evaluation.settings
    out = {
        "kind": settings.kind,
        "cases": [_case_data(score) for score in evaluation.scores],
        "summary": {metric: asdict(summary) for metric, summary in evaluation.summary.items()},
        "labels": [
            {"label": int(label), "name": evaluation.names.get(label, "")}
            | {metric: asdict(summary) for metric, summary in summaries.items()}
            for label, summaries in evaluation.labels.items()
        ],
        "failed": [
            {"case": f.pair.name, "result": str(f.pair.result), "reference": str(f.pair.reference), "error": f.error}
            for f in evaluation.failures
        ],
        "settings": {
            "labels": list(settings.labels),
            "resample": settings.resample,
            "data_range": settings.data_range,
            "seed": settings.seed,
        },
    }
    data: dict[str, Any] = finite(out)
    return data


def _case_data(score: Scores) -> dict[str, Any]:
    pair = score.pair
    files = {"result": pair.result, "reference": pair.reference, "mask": pair.mask, "transform": pair.transform}
    out = {"case": pair.name} | {role: str(path) for role, path in files.items() if path is not None}
    rows = [{"label": row.label, "name": row.name, **row.values} for row in score.rows]
    return out | {"metrics": dict(score.values), "rows": rows, "warnings": list(score.warnings)}


def finite(value: Any) -> Any:
    """Return nested data with NaN and infinity replaced by None, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cases(evaluation: Evaluation, layout: Layout) -> str:
    kind = evaluation.settings.kind
    metrics = CASE_METRICS[kind]
    shown = (*metrics, "data_range") if kind == "images" else metrics
    rows = [["case", *(TITLES[metric] for metric in shown)]]
    rows += [[score.pair.name, *(number_text(score.values[m]) for m in shown)] for score in evaluation.scores]
    if len(evaluation.scores) > 1:
        rows.append([])
        rows += [
            [title, *(_statistic(evaluation.summary[metric], statistic) for metric in metrics)]
            for statistic, title in _STATISTICS.items()
        ]
    return layout(rows, 1)


def _labels(evaluation: Evaluation, layout: Layout) -> str:
    """Return the means over the cases, and for several cases also the deviation and interval of Dice."""
    metrics = ROW_METRICS["labels"]
    several = len(evaluation.scores) > 1
    extra = {k: v for k, v in _STATISTICS.items() if k != "mean"} if several else {}
    rows = [["label", "name", *(TITLES[m] for m in metrics), *(f"Dice {title}" for title in extra.values())]]
    for label, summaries in evaluation.labels.items():
        means = [number_text(summaries[m].mean) for m in metrics]
        spread = [_statistic(summaries["dice"], statistic) for statistic in extra]
        rows.append([label, evaluation.names.get(label, ""), *means, *spread])
    return layout(rows, 2)


def _points(score: Scores, layout: Layout) -> str:
    rows = [[f"point of {score.pair.name}", TITLES["tre_mm"]]]
    rows += [[row.label, number_text(row.values["tre_mm"])] for row in score.rows]
    return layout(rows, 1)


def _statistic(summary: Summary, name: str) -> str:
    return number_text(getattr(summary, name))


def number_text(value: float) -> str:
    """Return a number with four digits, as a whole number from 1000 on; `-` if it is not defined."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _exact(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
