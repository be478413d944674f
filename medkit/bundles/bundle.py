"""A MONAI bundle as a folder: its metadata, configs, weights and texts, and where bundles are found.

Nothing of a bundle is executed here. Its configs run code once MONAI builds what they describe, so the user has to
allow bundles that no installed plugin brings (`--trust`, see `medkit.bundles.safety.trust`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.archive import METADATA, RECORD, unpack
from medkit.bundles.exported import MODELS, is_exported, program_of, unpack_exported
from medkit.bundles.safety.trust import admit
from medkit.errors import BundleError, UsageError, WeightsMissingError, did_you_mean, listed

if TYPE_CHECKING:
    from medkit.plugins import Registry
    from medkit.specs import BundleSpec

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
INFERENCE = "inference"
"""The config that runs a network on images."""
_WORKFLOW = re.compile(rb"class\s+\w+\([^)]*\b(PythonicWorkflow|BundleWorkflow)\b")
"""In Python files of bundles whose steps are not in a config."""
WEIGHTS = "models/model.pt"
"""The state dict that a bundle's inference config loads."""


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and what its plugin or its metadata state about it."""

    root: Path
    """Absolute path of the folder."""
    name: str
    """The name that `--bundle` takes."""
    task: str | None = None
    """The task it is for; None for a folder whose metadata do not state one."""
    distribution: str | None = None
    """The installed distribution that brings it; None for a folder that the user named or installed."""
    by_user: bool = False
    """Whether `medkit bundle install` installed it."""
    spec: BundleSpec | None = None
    """What its plugin states about it."""
    archive: Path | None = None
    """The zip, or the bundle in one file, that was unpacked to `root`, for this process only."""
    configs: tuple[str, ...] = (INFERENCE,)
    """Names of the configs that are run, each one laid over those before it."""

    @property
    def metadata_path(self) -> Path:
        """Path of `configs/metadata.json`."""
        return self.root / METADATA

    @functools.cached_property
    def metadata(self) -> dict[str, Any]:
        """Content of `configs/metadata.json`. Raises BundleError."""
        return read_metadata(self.root)

    @property
    def block(self) -> Mapping[str, Any]:
        """The part of the metadata that only medkit reads, under the key `medkit`."""
        return medkit_block(self.metadata)

    @property
    def version(self) -> str:
        """Version, such as `0.1.0`."""
        return str(self.metadata.get("version", "0.0.0"))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of file it takes (see `medkit.specs.KINDS`)."""
        if self.spec is not None:
            return self.spec.kinds
        stated = self.block.get("kinds")
        return tuple(map(str, stated)) if isinstance(stated, list) else ("image",)

    @property
    def modality(self) -> str | None:
        """`MR`, `CT` and so on; None if it takes any modality, or does not state one."""
        if self.spec is not None:
            return self.spec.modality
        if isinstance(stated := self.block.get("modality"), str):
            return stated
        found = [t.get("modality") for _, t in tensors(self.metadata, "inputs")]
        return str(found[0]) if found and found[0] not in (None, "n/a") else None

    def config(self, name: str) -> Path:
        """Return the path of the config of that name, such as `train`. Raises BundleError if it does not exist."""
        folder = self.root / "configs"
        name = name.removesuffix(Path(name).suffix) if Path(name).suffix in CONFIG_SUFFIXES else name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"bundle {self.name}: expected the name of a config in {folder}, got {name}")
        for suffix in CONFIG_SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
        there = sorted(p.stem for p in folder.glob("*") if p.suffix in CONFIG_SUFFIXES and p.stem != "metadata")
        raise BundleError(
            f"bundle {self.name}: no config {name} in {folder}; there is {listed(there or ['none'])}"
            f"{_in_python(self.root)}"
        )

    def has_config(self, name: str) -> bool:
        """Return whether it has a config of that name."""
        return any((self.root / "configs" / f"{name}{suffix}").is_file() for suffix in CONFIG_SUFFIXES)

    @property
    def has_weights(self) -> bool:
        """Whether it has models/model.pt, or its network as a program."""
        return (self.root / WEIGHTS).is_file() or program_of(self.root) is not None

    @property
    def weights(self) -> Path:
        """Path of the file with its weights. Raises WeightsMissingError."""
        path = self.root / WEIGHTS
        if not path.is_file():
            raise WeightsMissingError(f"bundle {self.name}: no weights at {path}{where_to_fetch(self.root)}")
        return path


def _in_python(root: Path) -> str:
    """Return the end of a message about a missing config: whether the bundle's steps are a Python class instead."""
    for path in sorted(root.rglob("*.py")):
        with contextlib.suppress(OSError):
            if match := _WORKFLOW.search(path.read_bytes()):
                return (
                    f". Its workflow is written in Python ({path.relative_to(root).as_posix()}, {match[1].decode()}); "
                    f"medkit runs workflows that are configs, python -m monai.bundle run_workflow runs this one"
                )
    return ""


def where_to_fetch(root: Path) -> str:
    """Return the end of a message about missing weights: the addresses that a bundle's `large_files` list states."""
    for name in (f"large_files{suffix}" for suffix in CONFIG_SUFFIXES):
        if (root / name).is_file():
            with open(root / name, "rb") as file:
                text = file.read(100_000).decode(errors="replace")
            urls = re.findall(r"https?://[^\s\"',]+", text)
            return f"; {name} lists what is to be fetched, which medkit does not do: {listed(urls or ['no address'])}"
    return ""


def read_metadata(root: Path) -> dict[str, Any]:
    """Return the content of a bundle's `configs/metadata.json`. Raises BundleError unless it is a JSON object."""
    path = root / METADATA
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; a bundle's folder has configs/metadata.json") from None
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise BundleError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def medkit_block(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a bundle's metadata that only medkit reads; empty if there is none."""
    block = metadata.get("medkit")
    return block if isinstance(block, dict) else {}


def tensors(metadata: Mapping[str, Any], side: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and description of the network's `inputs` or `outputs` (`side`) that have a valid description."""
    formats = metadata.get("network_data_format")
    found = formats.get(side) if isinstance(formats, dict) else None
    return [(n, t) for n, t in found.items() if isinstance(t, dict)] if isinstance(found, dict) else []


# ---- lookup


USER = "user"
"""Prefix for a bundle that the user installed, where a plugin's bundle has the same name: `user:NAME`."""
AUTO = "auto"
"""Value of `--bundle` that gives each case to the bundle that fits it (see `medkit.inference.choice`)."""


def user_folder() -> Path:
    """Return the folder of the user's bundles: MEDKIT_BUNDLES, else `medkit/bundles` in the user's data folder."""
    if given := os.environ.get("MEDKIT_BUNDLES"):
        return Path(given).absolute()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data).absolute() / "medkit" / "bundles"


def read_record(root: Path) -> dict[str, Any] | None:
    """Return the record that `medkit bundle install` wrote; None for a folder that is not an installed bundle."""
    try:
        found = json.loads((root / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def installed(registry: Registry) -> list[Bundle]:
    """Return the bundles that the plugins bring, and those that the user installed."""
    brought = [
        Bundle(spec.root, spec.name, spec.task, plugin.distribution, spec=spec)
        for plugin in registry.plugins
        for spec in plugin.bundles
    ]
    return brought + _installed_by_user()


def _installed_by_user() -> list[Bundle]:
    folders = sorted(p for p in user_folder().glob("*") if not p.name.startswith("."))
    records = [(folder, read_record(folder)) for folder in folders]
    return [Bundle(folder, folder.name, r.get("task"), by_user=True) for folder, r in records if r is not None]


def find_bundle(text: str, registry: Registry) -> Bundle:
    """Return the bundle that `--bundle` names: `NAME`, `distribution:NAME`, or the path of a folder, zip or other file.

    Raises UsageError if no bundle or several have the name, BundleError if the folder or file is not a bundle.
    """
    known = installed(registry)
    qualifier, _, name = text.rpartition(":")
    if matches := [b for b in known if b.name == name and qualifier in ("", _qualifier(b))]:
        if len(matches) > 1:
            choices = [f"{_qualifier(b)}:{b.name}" for b in matches]
            raise UsageError(f"--bundle {text}: several plugins bring one; choose {' or '.join(choices)}")
        return matches[0]
    if (text.endswith(".zip") or is_exported(Path(text))) and Path(text).is_file():
        return _from_file(Path(text))
    if os.sep in text or Path(text).is_dir():
        return _from_folder(Path(text), known)
    names = sorted(b.name for b in known)
    hint = did_you_mean(name, names) or f"; there is {listed(names or ['none'])}"
    raise UsageError(f"--bundle {text}: neither a folder, a zip nor the name of an installed bundle{hint}")


def _qualifier(bundle: Bundle) -> str:
    return USER if bundle.by_user else bundle.distribution or ""


def _from_folder(folder: Path, known: list[Bundle]) -> Bundle:
    if not folder.is_dir():
        raise UsageError(f"--bundle {folder}: no such folder")
    root = folder.resolve()
    for bundle in known:
        if bundle.root.resolve() == root:
            return bundle
    return Bundle(root, root.name, _own_task(root))


def _own_task(root: Path) -> str | None:
    return stated_task(read_metadata(root))


def stated_task(metadata: Mapping[str, Any]) -> str | None:
    """Return the task that a bundle's metadata state; None if they do not state one."""
    task = medkit_block(metadata).get("task")
    return task if isinstance(task, str) else None


def _from_file(archive: Path) -> Bundle:
    """Return a bundle, unpacked into a folder that is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="medkit-bundle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = unpack_exported(archive, folder) if is_exported(archive) else unpack(archive, folder)
    return Bundle(root, root.name, _own_task(root), archive=archive.absolute())


# ---- which bundle may run


def candidate_bundles(text: str, task: str, registry: Registry, *, trust: bool) -> tuple[Bundle, ...]:
    """Return the bundles that may run for a task: the one that `text` names, or with `auto` all of the task.

    Raises as `bundle_for_task` does.
    """
    if text != AUTO:
        return (bundle_for_task(text, task, registry, trust=trust),)
    own = _prefer_plugins([b for b in installed(registry) if b.task == task and (b.spec is None or b.spec.auto)])
    if not own:
        return (bundle_for_task(None, task, registry, trust=trust),)
    for bundle in own:
        require_trust(bundle, trust=trust)
    return tuple(own)


def bundle_for_task(
    text: str | None, task: str, registry: Registry, *, trust: bool, configs: Sequence[str] = ()
) -> Bundle:
    """Return the one bundle that may run for a task: the one that `text` names, or the only one that the task has.

    If the task has several, those that have all of `configs` are preferred.

    Raises UsageError if no bundle is for the task, if several are, if the named bundle is for another task, and if no
    plugin brings it, unless it is trusted: `trust` states that its code may run (see `medkit.bundles.safety.trust`).
    """
    known = installed(registry)
    bundle = find_bundle(text, registry) if text else None
    tasks = {b.task for b in (*known, *([bundle] if bundle else [])) if b.task}
    if task not in tasks:
        raise UsageError(f"task {task}: no bundle is for it; there are bundles for {listed(sorted(tasks) or ['none'])}")
    if bundle is None:
        own = _prefer_plugins([b for b in known if b.task == task])
        own = [b for b in own if all(b.has_config(name) for name in configs)] or own
        if len(own) > 1:
            raise UsageError(f"task {task} has several bundles; choose one with --bundle: {_names(own)}")
        bundle = own[0]
    if bundle.task not in (task, None):
        raise UsageError(f"--bundle {bundle.name}: is for {bundle.task}, not for {task}")
    require_trust(bundle, trust=trust)
    return bundle


def _prefer_plugins(bundles: list[Bundle]) -> list[Bundle]:
    """Leave out the user's bundles if plugins bring others: installing one must not change what a script runs."""
    return [b for b in bundles if not b.by_user] or bundles


def require_trust(bundle: Bundle, *, trust: bool) -> None:
    """Raise UsageError if no plugin brings the bundle and the user does not allow its code to run, now or before."""
    if bundle.distribution is None:
        admit(bundle.root, trust=trust, shown=bundle.archive)


def _names(bundles: list[Bundle]) -> str:
    names = [b.name for b in bundles]
    return ", ".join(b.name if names.count(b.name) == 1 else f"{_qualifier(b)}:{b.name}" for b in bundles)


# ---- whether a bundle is whole


def missing_files(root: Path, *, weights: bool = True) -> list[str]:
    """Return the names of the files that a bundle must have and this one does not; `weights`: models/model.pt too.

    Its network as a program counts as the weights, and so does a `large_files` list, from which large ones are fetched.
    """
    missing = [name for name in ("LICENSE", METADATA, "docs/README.md") if not (root / name).is_file()]
    if not any((root / "configs" / f"inference{suffix}").is_file() for suffix in CONFIG_SUFFIXES):
        missing.append("configs/inference.json")
    sources = (WEIGHTS, *MODELS, *(f"large_files{suffix}" for suffix in CONFIG_SUFFIXES))
    if weights and not any((root / name).is_file() for name in sources):
        missing.append(WEIGHTS)
    return missing
