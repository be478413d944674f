"""A MONAI bundle as a folder: its metadata, configs, weights and texts, and where bundles are found.

Nothing of a bundle is executed here. Its configs run code once MONAI reads them, so bundles that no installed plugin
brings need the user's word (`--trust`, see `medkit.bundles.safety.trust`).
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.archive import RECORD, unpack
from medkit.bundles.safety import trust as trusted
from medkit.errors import BundleError, UsageError, WeightsMissingError, listed

if TYPE_CHECKING:
    from medkit.plugins import Registry
    from medkit.specs import BundleSpec

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
WEIGHTS = "models/model.pt"
"""The state dict that a bundle's inference config loads."""


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and what its plugin or its metadata say about it."""

    root: Path
    """Absolute."""
    name: str
    """What `--bundle` calls it."""
    task: str | None = None
    """The task it is for; None where it is a folder whose metadata does not say."""
    distribution: str | None = None
    """The installed distribution that brings it; None for a folder that the user names or installed."""
    by_user: bool = False
    """Whether `medkit bundle install` put it where it lies."""
    spec: BundleSpec | None = None
    """What its plugin says about it."""
    archive: Path | None = None
    """The zip that `root` was unpacked from, for this process alone."""

    @functools.cached_property
    def metadata(self) -> dict[str, Any]:
        """The content of `configs/metadata.json`. Raises BundleError."""
        return read_metadata(self.root)

    @property
    def block(self) -> Mapping[str, Any]:
        """What its metadata say to medkit alone, under `medkit`."""
        return _block(self.metadata)

    @property
    def version(self) -> str:
        """Its version, such as `0.1.0`."""
        return str(self.metadata.get("version", "0.0.0"))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of file it takes (see `medkit.specs.KINDS`)."""
        if self.spec is not None:
            return self.spec.kinds
        stated = self.block.get("kinds")
        return tuple(map(str, stated)) if isinstance(stated, list) else ("image",)

    @property
    def modality(self) -> str | None:
        """`MR`, `CT` and so on; None where it takes any, or does not say."""
        if self.spec is not None:
            return self.spec.modality
        if isinstance(stated := self.block.get("modality"), str):
            return stated
        found = [t.get("modality") for _, t in tensors(self.metadata, "inputs")]
        return str(found[0]) if found and found[0] not in (None, "n/a") else None

    def config(self, name: str) -> Path:
        """The config file of that name, such as `train`. Raises BundleError."""
        folder = self.root / "configs"
        for suffix in CONFIG_SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
        there = sorted(p.stem for p in folder.glob("*") if p.suffix in CONFIG_SUFFIXES and p.stem != "metadata")
        raise BundleError(f"bundle {self.name}: no config {name} in {folder}; there is {listed(there or ['none'])}")

    def has_config(self, name: str) -> bool:
        """Whether it has a config of that name."""
        return any((self.root / "configs" / f"{name}{suffix}").is_file() for suffix in CONFIG_SUFFIXES)

    @property
    def weights(self) -> Path:
        """The file with its weights. Raises WeightsMissingError."""
        path = self.root / WEIGHTS
        if not path.is_file():
            raise WeightsMissingError(f"bundle {self.name}: no weights at {path}")
        return path


def read_metadata(root: Path) -> dict[str, Any]:
    """The content of a bundle's `configs/metadata.json`. Raises BundleError where it is missing or no JSON object."""
    path = root / "configs" / "metadata.json"
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; a bundle's folder has configs/metadata.json") from None
    except ValueError as error:
        raise BundleError(f"{path}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise BundleError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _block(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    block = metadata.get("medkit")
    return block if isinstance(block, dict) else {}


def tensors(metadata: Mapping[str, Any], side: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and description of the network's `inputs` or `outputs`, of those that are described as they should be."""
    formats = metadata.get("network_data_format")
    found = formats.get(side) if isinstance(formats, dict) else None
    return [(n, t) for n, t in found.items() if isinstance(t, dict)] if isinstance(found, dict) else []


# ---- lookup


USER = "user"
"""What stands before the name of a bundle that the user installed, where a plugin's has the same: `user:NAME`."""


def user_folder() -> Path:
    """Where the user's bundles are installed: MEDKIT_BUNDLES, else `medkit/bundles` in the user's data folder."""
    if given := os.environ.get("MEDKIT_BUNDLES"):
        return Path(given).absolute()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data).absolute() / "medkit" / "bundles"


def read_record(root: Path) -> dict[str, Any] | None:
    """What was written down when a bundle was installed; None for a folder that is no installed bundle."""
    try:
        found = json.loads((root / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def installed(registry: Registry) -> list[Bundle]:
    """The bundles that the plugins bring, and those that the user installed."""
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


def find(text: str, registry: Registry) -> Bundle:
    """The bundle that `--bundle` names: `NAME`, `distribution:NAME`, or the path of a folder or zip.

    Raises UsageError for a name that nobody or several have, BundleError for a folder or zip that is no bundle.
    """
    known = installed(registry)
    qualifier, _, name = text.rpartition(":")
    if matches := [b for b in known if b.name == name and qualifier in ("", _qualifier(b))]:
        if len(matches) > 1:
            choices = [f"{_qualifier(b)}:{b.name}" for b in matches]
            raise UsageError(f"--bundle {text}: several plugins bring one; choose {' or '.join(choices)}")
        return matches[0]
    if text.endswith(".zip") and Path(text).is_file():
        return _from_zip(Path(text))
    if os.sep in text or Path(text).is_dir():
        return _from_folder(Path(text), known)
    names = listed(sorted(b.name for b in known) or ["none"])
    raise UsageError(f"--bundle {text}: neither a folder, a zip nor the name of an installed bundle; there is {names}")


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
    """The task that a bundle's metadata say it is for."""
    task = _block(read_metadata(root)).get("task")
    return task if isinstance(task, str) else None


def _from_zip(archive: Path) -> Bundle:
    """A bundle unpacked into a folder that goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="medkit-bundle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = unpack(archive, folder)
    return Bundle(root, root.name, _own_task(root), archive=archive.absolute())


AUTO = "auto"
"""What `--bundle` says where each case is to be given to the bundle that fits it (see `medkit.inference.choice`)."""


def bundles_for_task(text: str, task: str, registry: Registry, *, trust: bool) -> tuple[Bundle, ...]:
    """The bundles that may run for a task: the one that `text` names, or with `auto` all that its plugins bring.

    Raises as `bundle_for_task` does.
    """
    if text != AUTO:
        return (bundle_for_task(text, task, registry, trust=trust),)
    own = [b for b in installed(registry) if b.task == task and (b.spec is None or b.spec.auto)]
    # what a script runs without naming it stays the same when the user installs another
    own = [b for b in own if not b.by_user] or own
    if not own:
        return (bundle_for_task(None, task, registry, trust=trust),)
    for bundle in own:
        require_trust(bundle, trust=trust)
    return tuple(own)


def bundle_for_task(
    text: str | None, task: str, registry: Registry, *, trust: bool, configs: Sequence[str] = ()
) -> Bundle:
    """The bundle whose configs may run for a task: the one that `text` names, or the only one that the task has.

    Of several the one that has all `configs`.

    Raises UsageError for a task that no bundle is for, for a bundle of another task, and for one that no plugin brings
    unless `trust` says that its code may run, now or before (see `medkit.bundles.safety.trust`).
    """
    known = installed(registry)
    bundle = find(text, registry) if text else None
    tasks = {b.task for b in (*known, *([bundle] if bundle else [])) if b.task}
    if task not in tasks:
        raise UsageError(f"task {task}: no bundle is for it; there are bundles for {listed(sorted(tasks) or ['none'])}")
    if bundle is None:
        own = [b for b in known if b.task == task]
        # what a script runs without naming it stays the same when the user installs another
        own = [b for b in own if not b.by_user] or own
        own = [b for b in own if all(b.has_config(name) for name in configs)] or own
        if len(own) > 1:
            raise UsageError(f"task {task} has several bundles; choose one with --bundle: {_names(own)}")
        bundle = own[0]
    if bundle.task not in (task, None):
        raise UsageError(f"--bundle {bundle.name}: is for {bundle.task}, not for {task}")
    require_trust(bundle, trust=trust)
    return bundle


def require_trust(bundle: Bundle, *, trust: bool) -> None:
    """Raises UsageError for a bundle that no plugin brings unless `trust` says that its code may run, now or before."""
    if bundle.distribution is None:
        trusted.admit(bundle.root, trust=trust, shown=bundle.archive)


def _names(bundles: list[Bundle]) -> str:
    names = [b.name for b in bundles]
    return ", ".join(b.name if names.count(b.name) == 1 else f"{_qualifier(b)}:{b.name}" for b in bundles)


# ---- what makes a bundle whole
