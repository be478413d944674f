"""A finished bundle on items that it has not seen: its task is run on them, and the results are compared.

Both as the user would: by `medkit run`, in a process of its own, and by what `medkit evaluate` uses.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import Bundle
from medkit.bundles.contract import contract_of
from medkit.errors import TrainingError
from medkit.evaluation.bootstrap import Estimate
from medkit.evaluation.classes.run import judge, predictions_in
from medkit.evaluation.results import EvaluationSettings, Kind, Pair, Summary
from medkit.evaluation.run import evaluate

_KINDS: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    "labels": ("labels", ("label", "labels")),
    "image": ("images", ("target", "reference", "label")),
    "table": ("classes", ("label",)),
}
"""Kind of a bundle's output -> kind of evaluation, and keys of an item that may hold the reference."""
_METRICS: Mapping[str, tuple[str, ...]] = {
    "labels": ("dice", "hd95_mm"),
    "images": ("ssim", "psnr_db"),
    "classes": ("auc", "accuracy", "balanced_accuracy", "ece"),
}
"""Kind of evaluation -> the measures that are kept, the main one first."""
_KEPT = ("MEDKIT_BUNDLES", "MEDKIT_TRUST", "MEDKIT_DEVICE", "MEDKIT_THREADS")
"""Variables that the run obeys; others, such as that for records, are about the user's own runs."""


_Compared = tuple[Path, str, str]
"""A result, its reference (a file or a class), and the image that it was made of."""


@dataclass(frozen=True)
class BundleTest:
    """How good a bundle is on held-out items."""

    kind: Kind
    cases: int
    """Number of items that have a result."""
    failed: tuple[str, ...]
    """A sentence for each item without one."""
    summary: Mapping[str, tuple[float, float, float]]
    """Measure -> mean, and its 95 % interval over the items."""
    by_label: Mapping[str, float]
    """Name or number of a label, or class -> mean of the main measure."""


def testable(bundle: Bundle, items: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether all items have what the bundle reads, as files, and a reference for its result."""
    contract = contract_of(bundle)
    main, keys = contract.keys[0], _KINDS[contract.kind][1]
    return bool(items) and all(_files(item.get(main)) and _reference(item, main, keys) is not None for item in items)


def run_test(
    bundle: Bundle,
    task: str,
    items: Sequence[Mapping[str, Any]],
    options: Sequence[str] = (),
    seed: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> BundleTest | None:
    """Run a bundle, whose code is trusted, on items, and compare the results with the items' references.

    `task`: the word after `medkit run`; `options`: further options of it; `stopped`: asked now and then. Returns None
    if it answered yes. Raises TrainingError if no item has a result.
    """
    contract = contract_of(bundle)
    kind, keys = _KINDS[contract.kind]
    main = contract.keys[0]
    with tempfile.TemporaryDirectory(prefix="medkit-test-") as name:
        folder = Path(name)
        lines = [_line(item[main], contract.channels) for item in items]
        records, last_words = _run(bundle, task, lines, folder, options, stopped)
        if stopped():
            return None
        made = {_input_of(record): record for record in records}
        found = [(item, made.get(_files(item[main])[0])) for item in items]
        results = [(item, Path(record["path"])) for item, record in found if record and not _error(record)]
        failed = [f"{_files(item[main])[0]}: {error}" for item, record in found if (error := _error(record))]
        if not results:
            raise TrainingError("\n".join(["no item of the test has a result", *(failed or last_words)]))
        references = [(path, str(_reference(item, main, keys)), _files(item[main])[0]) for item, path in results]
        if kind == "classes":
            return _classes(references, dict(contract.classes), tuple(failed), seed, folder)
        return _pairs(kind, references, tuple(failed), seed)


def _files(value: Any) -> list[str]:
    """Return the files that a value of an item names."""
    found = value if isinstance(value, list | tuple) else [value]
    return [str(path) for path in found if isinstance(path, str | Path)]


def _reference(item: Mapping[str, Any], main: str, keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if key != main and item.get(key) not in (None, "")), None)


# ---- running


def _line(value: Any, channels: Sequence[str]) -> str:
    """Return the record that stands for the files of an item."""
    first, *others = _files(value)
    roles = dict(zip(channels, [first, *others], strict=True)) if others else {}
    return json.dumps({"path": first, **({"inputs": roles} if roles else {})})


def _run(
    bundle: Bundle, task: str, lines: Sequence[str], folder: Path, options: Sequence[str], stopped: Callable[[], bool]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records that the task prints, failed ones too, and the last lines of its messages."""
    given = [json.loads(line)["path"] for line in lines]
    root = os.path.commonpath([Path(path).parent for path in given])
    (folder / "list").write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
    command = [sys.executable, "-P", "-m", "medkit", "run", task, "--bundle", str(bundle.root), "--list",
               str(folder / "list"), "--json", "-o", str(folder / "out"), "--keep-tree", root, *options]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MEDKIT_") or k in _KEPT}
    paths = os.pathsep.join(map(os.path.abspath, filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")])))
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as messages:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=messages,
            env=kept | {"MEDKIT_NO_PROGRESS": "1", "PYTHONPATH": paths},
        )  # fmt: skip
        try:
            _wait(process, stopped)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    records = list(_records((folder / "stdout").read_text()))
    return records, (folder / "stderr").read_text(errors="replace").strip().split("\n")[-3:]


def _wait(process: subprocess.Popen[bytes], stopped: Callable[[], bool]) -> None:
    """Wait for a process; end it if the user stops this one."""
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        if stopped() and process.poll() is None:
            process.terminate()


def _records(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _input_of(record: Mapping[str, Any]) -> str:
    """Return the input that a record belongs to."""
    return str((record.get("Sources") or [record["path"]])[0])


def _error(record: Mapping[str, Any] | None) -> str:
    """Return why an item has no result; empty if it has one."""
    if record is None:
        return "no result"
    block = record.get("medkit") or {}
    return str(block.get("error") or "no result") if block.get("status") == "failed" else ""


# ---- comparing


def _pairs(kind: Kind, references: Sequence[_Compared], failed: tuple[str, ...], seed: int) -> BundleTest:
    pairs = [Pair(Path(image).name, result, Path(reference)) for result, reference, image in references]
    done = evaluate(pairs, EvaluationSettings(kind=kind, seed=seed))
    failed += tuple(f"{failure.pair.result.name}: {failure.error}" for failure in done.failures)
    if not done.scores:
        raise TrainingError("\n".join(["no item of the test can be compared", *failed]))
    main = _METRICS[kind][0]
    by_label = {done.names.get(label, label): found[main].mean for label, found in done.labels.items()}
    summary = {metric: _summary(done.summary[metric]) for metric in _METRICS[kind]}
    return BundleTest(kind, len(done.scores), failed, summary, by_label)


def _classes(
    references: Sequence[_Compared], names: Mapping[int, str], failed: tuple[str, ...], seed: int, folder: Path
) -> BundleTest:
    table = folder / "truth.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class"])
        for _, truth, image in references:
            writer.writerow([image, names.get(int(truth), truth) if truth.isdigit() else truth])
    cases, bad = predictions_in([result for result, _, _ in references])
    done = judge(cases, str(table), seed)
    measures = done.measures["all"]
    summary = {metric: _estimate(measures[metric]) for metric in _METRICS["classes"]}
    by_class = {name: found["auc"].value for name, found in done.by_class.items() if "auc" in found}
    return BundleTest("classes", len(done.cases), (*failed, *bad, *done.unmatched.values()), summary, by_class)


def _summary(found: Summary) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


def _estimate(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high
