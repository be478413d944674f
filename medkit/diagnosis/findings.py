"""The parts of `medkit doctor`: each is looked at by itself, so that what is broken hides nothing else."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit import __version__
from medkit.diagnosis.children import Child, gpus_of_driver, torch_facts
from medkit.diagnosis.wording import Wording

if TYPE_CHECKING:
    from medkit.bundles.bundle import Bundle
    from medkit.plugins import Registry

DIGESTED = 1 << 30
"""Bytes of weights that are digested in all: as many as take about a second."""
_SCHEDULERS = {"SLURM_JOB_ID": "Slurm", "PBS_JOBID": "PBS", "LSB_JOBID": "LSF", "SGE_TASK_ID": "Grid Engine"}
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "bf16")
"""Features of processors that networks gain from, as Linux names them."""
_LEAST_FREE = 1 << 30
"""Bytes below which a disk counts as full."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    facts: Mapping[str, Any]
    """Name of a part -> what was found, as JSON data."""
    problems: tuple[str, ...]
    """What should be mended, a sentence each."""


@dataclass
class _Looking:
    """What the parts share while they are looked at."""

    wording: Wording = field(default_factory=Wording)
    problems: list[str] = field(default_factory=list)

    def part(self, name: str, look: Callable[[], Any]) -> Any:
        """Return what a part finds; if it fails, the error, which is a problem too."""
        try:
            return look()
        except (Exception, SystemExit) as error:
            text = self.wording.public(f"{type(error).__name__}: {error}")
            self.problems.append(f"{name}: {text}")
            return {"error": text}


def diagnose() -> Diagnosis:
    """Look at everything, within a second or two if nothing hangs; torch is imported in a process of its own."""
    looking = _Looking()
    torch, driver = Child(torch_facts()), Child(gpus_of_driver())
    parts: dict[str, Callable[[], Any]] = {
        "medkit": _program,
        "packages": lambda: _packages(looking),
        "processor": _processor,
        "memory": lambda: _memory(looking),
        "threads": _threads,
        "plugins": lambda: _plugins(looking),
        "bundles": lambda: _bundles(looking),
        "folders": lambda: _folders(looking),
        "settings": lambda: _settings(looking),
    }
    facts = {name: looking.part(name, look) for name, look in parts.items()}
    facts["torch"] = looking.part("torch", lambda: _torch(torch, driver, looking))
    facts["auto"] = looking.part("auto", lambda: _auto(facts["torch"]))
    return Diagnosis(facts, tuple(looking.problems))


# ---- the program and the machine


def _program() -> dict[str, Any]:
    return {
        "version": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "virtual_environment": sys.prefix != sys.base_prefix,
    }


def _packages(looking: _Looking) -> dict[str, Any]:
    """Return package -> version, of all that medkit asks for; None if one is not installed."""
    from packaging.requirements import Requirement

    found: dict[str, dict[str, str | None]] = {"required": {}, "optional": {}}
    for text in requires("medkit") or ():
        wanted = Requirement(text)
        extra = wanted.marker is not None and "extra" in str(wanted.marker)
        if extra and not _is_for_users(str(wanted.marker)):
            continue
        there = _version(wanted.name)
        found["optional" if extra else "required"][wanted.name] = there
        if there is None and not extra:
            looking.problems.append(f"{wanted.name} is not installed: expected {wanted.specifier or 'any version'}")
        elif there is not None and not wanted.specifier.contains(there, prereleases=True):
            looking.problems.append(f"{wanted.name} {there} is installed: expected {wanted.specifier}")
    return {kind: dict(sorted(names.items())) for kind, names in found.items()}


def _is_for_users(marker: str) -> bool:
    return not re.search(r"extra == .(test|bench)", marker)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:  # not Linux
        lines = []
    stated = {key.strip(): value.strip() for line in lines for key, _, value in [line.partition(":")]}
    flags = (stated.get("flags") or stated.get("Features") or "").split()
    return {
        "name": stated.get("model name") or platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
        "features": [flag for flag in _FLAGS if flag in flags],
        "bf16": bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags)),
        "amx": "amx_tile" in flags,
    }


def _memory(looking: _Looking) -> dict[str, Any]:
    from medkit.machine.cgroups import memory_left
    from medkit.machine.memory import machine_left

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = {"total": total, "free": machine_left(), "left_in_group": memory_left()}
    least = min(value for value in (found["free"], found["left_in_group"]) if value is not None)
    if least < _LEAST_FREE:
        looking.problems.append(f"only {least >> 20} MiB of memory are free")
    return found


def _threads() -> dict[str, Any]:
    from medkit.machine.threads import granted_threads, grants

    return {"granted": granted_threads(), "grants": grants()}


# ---- torch


def _torch(torch: Child, driver: Child, looking: _Looking) -> dict[str, Any]:
    """Return what torch finds; on what went wrong, a problem each."""
    found = torch.answer()
    gpus = driver.answer().get("gpus", [])
    if error := found.get("error"):
        found["error"] = looking.wording.public(str(error))
        looking.problems.append(f"torch cannot be used: {found['error']}")
    elif gpus and not found.get("gpus"):
        looking.problems.append(
            f"the driver shows {len(gpus)} GPUs, torch {found.get('version')} uses none: it is built without CUDA, or "
            f"for another driver"
        )
    return found | {"driver_gpus": gpus}


def _auto(torch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `auto` stands for: of --device and --precision, and the bundles that --bundle auto chooses among."""
    from medkit.bundles.bundle import WEIGHTS, installed
    from medkit.plugins import registry

    tasks: dict[str, list[str]] = {}
    for bundle in installed(registry()):
        if bundle.task and bundle.spec is not None and bundle.spec.auto and (bundle.root / WEIGHTS).is_file():
            tasks.setdefault(bundle.task, []).append(bundle.name)
    chosen = {"device": torch.get("device"), "precision": torch.get("precision")}
    return chosen | {"backends": _backends(), "bundles": dict(sorted(tasks.items()))}


def _backends() -> dict[str, list[str]]:
    """Return the libraries that can compute networks here, and what `--backend auto` has found to be the fastest."""
    from medkit.pipe.remembered import BACKENDS, remembered

    entries = [entry for entry in remembered(BACKENDS).values() if isinstance(entry, dict)]
    keys = ("bundle", "version", "backend", "precision")
    words = [" ".join(str(entry.get(key)) for key in keys) for entry in entries]
    installed = [name for name in ("torch", "onnxruntime", "openvino") if _version(name) is not None]
    return {"installed": installed, "remembered": sorted(set(words))}


# ---- plugins and bundles


def _plugins(looking: _Looking) -> list[dict[str, Any]]:
    from medkit.plugins import registry

    found = registry()
    for plugin in found.broken:
        text = looking.wording.public(str(plugin.error))
        looking.problems.append(f"plugin {plugin.name} ({plugin.distribution} {plugin.version}) is broken: {text}")
    looking.problems += [looking.wording.public(sentence) for sentence in found.conflicts()]
    return [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "milliseconds": round(plugin.import_ms),
            "tasks": [spec.name for spec in plugin.tasks],
            "commands": [spec.name for spec in plugin.commands],
            "error": looking.wording.public(plugin.error) if plugin.error else None,
        }
        for plugin in found.plugins
    ]


def _bundles(looking: _Looking) -> list[dict[str, Any]]:
    from medkit.plugins import registry

    found: Registry = registry()
    sized = [(bundle, _weight_files(bundle)) for bundle in _all(found)]
    left, digested = DIGESTED, []
    for bundle, files in sorted(sized, key=lambda pair: sum(pair[1].values())):
        left -= sum(files.values())
        if left >= 0:
            digested.append(bundle.root)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda one: _bundle(one[0], one[1], one[0].root in digested, looking), sized))


def _all(found: Registry) -> list[Bundle]:
    from medkit.bundles.bundle import installed

    return installed(found)


def _weight_files(bundle: Bundle) -> dict[Path, int]:
    return {path: path.stat().st_size for path in sorted((bundle.root / "models").glob("*")) if path.is_file()}


def _bundle(bundle: Bundle, files: Mapping[Path, int], digested: bool, looking: _Looking) -> dict[str, Any]:
    from medkit.bundles.bundle import missing_files
    from medkit.bundles.safety.trust import is_trusted

    found: dict[str, Any] = {"name": bundle.name, "from": "you" if bundle.by_user else bundle.distribution}
    try:
        found |= {"version": bundle.version, "task": bundle.task, "weights_bytes": sum(files.values())}
        found["sha256"] = _digest(bundle.root, files) if digested else None
        brought = bundle.distribution is not None
        found["trust"] = (
            "by its plugin" if brought else _trust(is_trusted(bundle.root)) if digested else "not looked at"
        )
        if missing := missing_files(bundle.root):
            looking.problems.append(f"bundle {bundle.name} has no {', no '.join(missing)}")
    except Exception as error:
        text = looking.wording.public(f"{error}")
        looking.problems.append(f"bundle {bundle.name}: {text}")
        found["error"] = text
    return found


def _digest(root: Path, files: Mapping[Path, int]) -> dict[str, str | None]:
    """Return the digests that sidecars state of a bundle too: of its weights and its configs."""
    from medkit.pipe.records import sha256_of

    return {"weights": sha256_of(root / "models") if files else None, "configs": sha256_of(root / "configs")}


def _trust(is_trusted: bool) -> str:
    return "trusted by you" if is_trusted else "not trusted"


# ---- disks and settings


def _folders(looking: _Looking) -> dict[str, Any]:
    """Return what the folders that medkit writes to have left, without their names."""
    from medkit.bundles.bundle import user_folder
    from medkit.bundles.safety.trust import trust_file

    temporary = Path(tempfile.gettempdir())
    places = {"temporary": temporary, "bundles": user_folder(), "trust": trust_file().parent, "working": Path()}
    found: dict[str, Any] = {}
    for name, path in places.items():
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free
        found[name] = {"exists": path.exists(), "writable": os.access(there, os.W_OK), "free": free}
        if name == "temporary" and (free < _LEAST_FREE or not found[name]["writable"]):
            looking.problems.append(
                f"the folder for temporary files has {free >> 20} MiB free, or cannot be written to"
            )
    left = list(temporary.glob("medkit-*"))
    found["left_behind"] = {"what": "temporary folders of runs, also of those that go on", "count": len(left)}
    return found


def _settings(looking: _Looking) -> dict[str, Any]:
    """Return variables that change what medkit does, and the scheduler that this process is a job of."""
    ours = re.compile(r"(MEDKIT|OMP|MKL|KMP|ONEDNN|CUDA|PYTORCH|TORCH|SLURM_(CPUS|NTASKS|TASKS|GPUS|MEM))(_|$)")
    found = {name: looking.wording.public(value) for name, value in sorted(os.environ.items()) if ours.match(name)}
    scheduler = next((program for name, program in _SCHEDULERS.items() if name in os.environ), None)
    return {"variables": found, "scheduler": scheduler}
