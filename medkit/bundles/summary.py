"""Facts about a bundle that need no running of it, for `medkit bundle list` and `show`: standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.archive import printable
from medkit.bundles.bundle import WEIGHTS, Bundle, installed, read_record, tensors
from medkit.bundles.contract import contract_of
from medkit.bundles.requirements import version_notes
from medkit.errors import BundleError, size_text
from medkit.pipe.records import sha256_of
from medkit.terminal.tables import Layout, aligned

if TYPE_CHECKING:
    from medkit.plugins import Registry

BY_USER = "installed by you"
CARD_LINES = 6
"""Number of lines of the model card that `show` prints."""


@dataclass(frozen=True)
class BundleRow:
    """One bundle in the list."""

    name: str
    version: str
    task: str | None
    distribution: str | None
    """The distribution that brings it, `installed by you`, or None for a folder."""
    kinds: tuple[str, ...]
    """Kinds of file it takes (see `medkit.specs.KINDS`)."""
    modality: str | None
    """`MR`, `CT` and so on; None if it takes any modality."""
    weights_bytes: int | None
    """Size of the weights; None if they are missing."""
    root: str
    error: str | None = None
    """Why its metadata cannot be read; None if they can."""


def rows(registry: Registry) -> list[BundleRow]:
    """Return a row for each bundle that plugins bring or the user installed."""
    return [row(bundle) for bundle in installed(registry)]


def row(bundle: Bundle) -> BundleRow:
    """Return the list's row for a bundle, also for one whose metadata cannot be read."""
    try:
        metadata, error = bundle.metadata, None
    except BundleError as problem:
        metadata, error = {}, str(problem)
    return BundleRow(
        name=bundle.name,
        version=str(metadata.get("version", "?")),
        task=bundle.task,
        distribution=BY_USER if bundle.by_user else bundle.distribution,
        kinds=("image",) if error else bundle.kinds,
        modality=None if error else bundle.modality,
        weights_bytes=_size(weights_of(bundle.root)),
        root=str(bundle.root),
        error=error,
    )


def weights_of(root: Path) -> Path:
    """Return a bundle's file of weights: models/model.pt, or the largest of `models` if there is none of that name."""
    others = [path for path in (root / "models").glob("*") if path.suffix in (".pt", ".pth", ".ts", ".pt2", ".onnx")]
    path = root / WEIGHTS
    return path if path.is_file() or not others else max(others, key=lambda other: other.stat().st_size)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return everything that `show` prints, as JSON data. Raises BundleError if the metadata cannot be read."""
    metadata = bundle.metadata
    head = row(bundle)
    record = read_record(bundle.root) if bundle.by_user else None
    licence = bundle.root / "LICENSE"
    return {
        "name": bundle.name,
        "title": metadata.get("name"),
        "version": head.version,
        "task": bundle.task,
        "distribution": head.distribution,
        "root": str(bundle.root),
        "purpose": metadata.get("task"),
        "description": metadata.get("description"),
        "intended_use": metadata.get("intended_use"),
        "authors": metadata.get("authors"),
        "copyright": metadata.get("copyright"),
        "licence": _first_line(licence),
        "kinds": list(head.kinds),
        "modality": head.modality,
        "inputs": dict(tensors(metadata, "inputs")),
        "outputs": dict(tensors(metadata, "outputs")),
        "labels": bundle.block.get("labels") or {},
        "changelog": metadata.get("changelog") or {},
        "figures": {
            "eval_metrics": metadata.get("eval_metrics") or {},
            "training": bundle.block.get("training") or {},
        },
        "weights": _weights(weights_of(bundle.root)),
        "sha256": record.get("sha256") if record else None,
        "runs": _runs(bundle),
        "card": _card(bundle.root / "docs" / "README.md"),
    }


def _runs(bundle: Bundle) -> dict[str, Any]:
    """Return whether `medkit run bundle` refuses a bundle, and why, as far as its files tell without running them."""
    found = {"refused": None, "task": bundle.task, "notes": [] if bundle.distribution else version_notes(bundle)}
    try:
        contract = contract_of(bundle)
    except BundleError as error:
        return found | {"refused": str(error).removeprefix(f"bundle {bundle.name}: ")}
    if "context" in bundle.block:
        found["refused"] = "reads facts besides images"
    return found | {"returns": contract.kind, "takes": list(dict.fromkeys([contract.keys[0], *contract.accepts]))}


def _weights(path: Path) -> dict[str, Any] | None:
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_of(path)} if path.is_file() else None


def _first_line(path: Path) -> str | None:
    """Return the first line of a licence that is not empty: its name."""
    return next((line.strip() for line in _text(path).splitlines() if line.strip()), None)


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(100_000).decode(errors="replace")
    except OSError:
        return ""


def _card(path: Path) -> list[str]:
    """Return the first lines of prose in the model card: without headings, pictures, tables and comments."""
    text = re.sub(r"<!--.*?-->|```.*?```", "", _text(path), flags=re.DOTALL)
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith(("#", "!", "|", "<", "---"))][:CARD_LINES]


# ---- for people


def list_lines(found: list[BundleRow], layout: Layout = aligned) -> Iterator[str]:
    """Yield the list as columns, and below each bundle why it cannot be read."""
    if not found:
        yield "no bundles"
        return
    head = ("name", "version", "task", "from", "takes", "modality", "weights")
    table = [head] + [
        (
            r.name, r.version, r.task or "?", r.distribution or "a folder", ",".join(r.kinds), r.modality or "any",
            "missing" if r.weights_bytes is None else megabytes(r.weights_bytes),
        )
        for r in found
    ]  # fmt: skip
    table = [tuple(printable(cell) for cell in line) for line in table]  # type: ignore[misc]
    lines = layout(table, len(head)).split("\n")
    errors = {number: f"    {printable(row.error)}" for number, row in enumerate(found, start=1) if row.error}
    if len(lines) > len(table):  # cells are wrapped
        yield from lines
        yield from (f"{found[number - 1].name}: {error.strip()}" for number, error in errors.items())
        return
    for number, line in enumerate(lines):
        yield line
        if number in errors:
            yield errors[number]


def megabytes(size: int) -> str:
    """Return a size for people.

    >>> megabytes(4_700_000)
    '4.7 MB'
    """
    return f"{size / 1e6:.1f} MB"


def show_lines(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield the result of `describe` as lines for people."""
    yield from (printable(line) for line in _show_lines(about))


def _show_lines(about: Mapping[str, Any]) -> Iterator[str]:
    yield f"{about['name']} {about['version']}" + (f": {about['title']}" if about["title"] else "")
    yield f"  {about['root']}"
    facts = {
        "task": about["task"], "from": about["distribution"] or "a folder", "purpose": about["purpose"],
        "description": about["description"], "use": about["intended_use"], "authors": about["authors"],
        "copyright": about["copyright"], "licence": about["licence"], "takes": ", ".join(about["kinds"]),
        "modality": about["modality"], "sha256": about["sha256"],
    }  # fmt: skip
    yield from (f"  {key:<12}{value}" for key, value in facts.items() if value)
    weights = about["weights"]
    yield "  weights     " + (f"{megabytes(weights['bytes'])}, sha256 {weights['sha256']}" if weights else "missing")
    for side in ("inputs", "outputs"):
        for name, tensor in about[side].items():
            yield f"{side[:-1]} {name}: {_tensor_line(tensor)}"
            yield from _numbered(tensor.get("channel_def"))
    yield from _runs_lines(about["runs"])
    for title, key in (("labels", "labels"), ("changelog", "changelog")):
        if about[key]:
            yield title
            yield from _numbered(about[key])
    for title, figures in about["figures"].items():
        if figures:
            yield title.replace("eval_metrics", "evaluation")
            yield from _numbered(figures)
    if about["card"]:
        yield "model card"
        yield from (f"  {line}" for line in about["card"])


def _runs_lines(runs: Mapping[str, Any]) -> Iterator[str]:
    if runs["task"]:
        yield f"medkit run {runs['task']} runs it"
    if runs["refused"]:
        yield f"medkit run bundle refuses it: {runs['refused']}"
    else:
        kind = {
            "labels": "label maps", "image": "images", "table": "tables of classes", "boxes": "tables of boxes",
            "points": "tables of points",
        }[runs["returns"]]  # fmt: skip
        yield f"medkit run bundle makes {kind} of: {', '.join(runs['takes'])}"
    yield from (f"  {note}" for note in runs["notes"])


def _tensor_line(tensor: Mapping[str, Any]) -> str:
    shape = tensor.get("spatial_shape")
    size = size_text(shape) if isinstance(shape, list) else "?"
    words = [f"{tensor.get('num_channels', '?')} x {size}", tensor.get("format"), tensor.get("dtype")]
    if tensor.get("value_range"):
        words.append(f"values {tensor['value_range']}")
    return ", ".join(str(w) for w in words if w)


def _numbered(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        yield from (f"  {key}  {value}" for key, value in values.items())
