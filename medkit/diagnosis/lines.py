"""What `medkit doctor` found, in words on one screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from medkit.bundles.archive import printable
from medkit.diagnosis.findings import Diagnosis

_WIDTH = 11
"""Characters of a line's first word."""


def diagnosis_lines(found: Diagnosis) -> Iterator[str]:
    """Yield the lines of a diagnosis, the problems first."""
    if found.problems:
        yield f"{len(found.problems)} problems" if len(found.problems) > 1 else "1 problem"
        yield from (printable(f"  - {problem}") for problem in found.problems)
    else:
        yield "no problems"
    for name, write in _PARTS.items():
        part = found.facts[name]
        error = part.get("error") if isinstance(part, Mapping) else None
        for number, line in enumerate([f"not known: {error}"] if error and name != "torch" else write(part)):
            yield printable(f"{name if number == 0 else '':<{_WIDTH}}{line}").rstrip()


def _program(part: Mapping[str, Any]) -> Iterator[str]:
    where = "in a virtual environment" if part["virtual_environment"] else "outside any virtual environment"
    yield f"{part['version']}, {part['implementation']} {part['python']} {where}, {part['system']} {part['machine']}"


def _packages(part: Mapping[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{name} {there or 'MISSING'}" for name, there in part["required"].items())
    yield "optional: " + ", ".join(f"{name} {there or '-'}" for name, there in part["optional"].items())


def _processor(part: Mapping[str, Any]) -> Iterator[str]:
    has = [f"bf16 {_yes(part['bf16'])}", f"AMX {_yes(part['amx'])}"]
    features = " ".join(part["features"]) or "no known features"
    yield f"{part['processors']} x {part['name']}: {', '.join(has)} ({features})"


def _memory(part: Mapping[str, Any]) -> Iterator[str]:
    group = f", {_size(part['left_in_group'])} left in the control group" if part["left_in_group"] is not None else ""
    yield f"{_size(part['free'])} of {_size(part['total'])} free{group}"


def _threads(part: Mapping[str, Any]) -> Iterator[str]:
    yield f"{part['granted']}: the least of " + ", ".join(f"{name} {n}" for name, n in part["grants"].items())


def _torch(part: Mapping[str, Any]) -> Iterator[str]:
    if error := part.get("error"):
        yield f"cannot be used: {error}"
    else:
        build = f"CUDA {part['cuda']}" if part["cuda"] else "no CUDA"
        yield (
            f"{part['version']} ({build}, {part['cpu_capability']}, oneDNN {_yes(part['onednn'])}), "
            f"{part['threads']} threads, imported in {part['import_seconds']} s"
        )
        for gpu in part["gpus"]:
            free = f"{_size(gpu['free'])} of {_size(gpu['total'])} free"
            yield f"GPU {gpu['name']}, capability {gpu['capability']}, {free}"
    yield from (f"driver: {gpu}" for gpu in part["driver_gpus"])


def _auto(part: Mapping[str, Any]) -> Iterator[str]:
    backends = part["backends"]
    yield (
        f"--device {part['device'] or '?'}, --precision {part['precision'] or '?'}, "
        f"--backend among {', '.join(backends['installed']) or 'none'}"
    )
    yield from (f"--backend auto found: {words}" for words in backends["remembered"])
    yield from (f"{task}: {', '.join(names)}" for task, names in part["bundles"].items())


def _plugins(part: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for plugin in part:
        offers = ", ".join([*plugin["tasks"], *plugin["commands"]]) or "no task"
        state = f"BROKEN: {plugin['error']}" if plugin["error"] else f"{offers} ({plugin['milliseconds']} ms)"
        yield f"{plugin['name']} ({plugin['distribution']} {plugin['version']}): {state}"
    if not part:
        yield "none"


def _bundles(part: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for bundle in part:
        if "version" not in bundle:
            yield f"{bundle['name']} from {bundle['from']}: BROKEN: {bundle['error']}"
            continue
        digest = bundle.get("sha256")
        digests = f", sha256 {_short(digest['weights'])} {_short(digest['configs'])}" if digest else ""
        size = f"{bundle['weights_bytes'] / 1e6:.1f} MB" if bundle["weights_bytes"] else "NO WEIGHTS"
        fault = f", BROKEN: {bundle['error']}" if "error" in bundle else f", {bundle['trust']}"
        yield f"{bundle['name']} {bundle['version']} from {bundle['from']}: {size}{digests}{fault}"
    if not part:
        yield "none"


def _folders(part: Mapping[str, Any]) -> Iterator[str]:
    for name in ("temporary", "working", "bundles", "trust"):
        folder = part[name]
        yield (
            f"{name}: {_size(folder['free'])} free, {'can' if folder['writable'] else 'CANNOT'} be written to"
            f"{'' if folder['exists'] else ', not made yet'}"
        )
    yield f"caches: only what --backend auto found; {part['left_behind']['count']} temporary folders of runs"


def _settings(part: Mapping[str, Any]) -> Iterator[str]:
    variables = " ".join(f"{name}={value}" for name, value in part["variables"].items()) or "no variables"
    yield f"{variables}; {part['scheduler'] or 'no scheduler'}"


_PARTS: Mapping[str, Callable[[Any], Iterator[str]]] = {
    "medkit": _program,
    "packages": _packages,
    "processor": _processor,
    "memory": _memory,
    "threads": _threads,
    "torch": _torch,
    "auto": _auto,
    "plugins": _plugins,
    "bundles": _bundles,
    "folders": _folders,
    "settings": _settings,
}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "-"


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
