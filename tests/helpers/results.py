"""Results as medkit leaves them, without the work: sidecars, records, and pictures of `--qc`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medkit.figures.mosaic import write_png
from medkit.run.pictures import OWNER, owner_digest


def write_result(
    path: Path,
    source: Path,
    *,
    task: str = "label",
    kind: str = "labels",
    metrics: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    look: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a main output without content and its sidecar; return the main output."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    own = path.parent
    sidecar = {
        "path": path.name,
        "kind": kind,
        "Sources": [str(source)],
        "Description": f"made from {source.name}",
        "GeneratedBy": [{"Name": "medkit", "Version": "9.9"}],
        "medkit": {
            "task": task,
            "status": "ok",
            "outputs": {"labels": {"path": path.name, "sha256": path.name}},
            "inputs": {"image": {"path": str(source), "sha256": "0"}},
            "bundle": {"name": "toys", "version": "1.2.3"},
            "arguments": {"clean": True, "labels": []},
            "metrics": dict(metrics or {}),
            "warnings": list(warnings),
            "look": look,
            "seconds": 1.5,
            **(more or {}),
        },
    }
    name = path.name.removesuffix(".gz").rpartition(".")[0]
    (own / f"{name}.json").write_text(json.dumps(sidecar))
    return path


def failed_record(path: Path, error: str, task: str = "label", **block: Any) -> str:
    """A line of JSON: a case that failed."""
    return json.dumps(
        {"path": str(path), "kind": "image", "medkit": {"task": task, "status": "failed", "error": error, **block}}
    )


def write_picture(folder: Path, result: Path, grey: int = 90, size: tuple[int, int] = (60, 80)) -> Path:
    """Write a picture of a result as `--qc` does, with a dot that differs from case to case."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), grey, np.uint8)
    pixels[5:9, 5:9] = 250
    path = folder / f"{result.name.partition('.')[0]}.png"
    write_png(pixels, path, {OWNER: owner_digest(result, folder)})
    return path


def group(folder: Path, count: int = 12) -> list[Path]:
    """Write `count` results with volumes and pictures: the second one to look at, the third one an outlier."""
    made = []
    for number in range(count):
        scan = folder / "scans" / f"s{number:02}.nii.gz"
        scan.parent.mkdir(parents=True, exist_ok=True)
        scan.write_bytes(b"")
        volume = 4000.0 if number == 2 else 1000.0 + 10 * number
        result = write_result(
            folder / "labels" / f"s{number:02}_dseg.nii.gz",
            scan,
            metrics={"total_mm3": volume + 500, "volumes_mm3": {"caudate": volume, "putamen": 500.0 - number}},
            warnings=["look at this one: cut off"] if number == 1 else [],
            look=number == 1,
            more={"labels": {"1": "caudate", "2": "putamen"}},
        )
        write_picture(folder / "qc", result, 40 + 10 * (number % 20))
        made.append(result)
    return made
