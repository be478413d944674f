"""Making a new bundle to train in a folder, completely or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medkit.bundles.archive import METADATA
from medkit.bundles.bundle import Bundle
from medkit.bundles.store import bundle_files
from medkit.errors import BundleError, OutputError, UsageError, listed, size_text
from medkit.training.creation.architectures import Architecture
from medkit.training.creation.classes import with_classes
from medkit.training.creation.segmentation import Wishes, inference_config, train_config
from medkit.training.report.card import BASE_, CARD, LICENCE, without_claims

VERSION = "0.1.0"
"""Version of a new bundle."""
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""MONAI's schema of metadata."""
_UNSTATED = {
    "authors": "not stated",
    "copyright": "not stated",
    "intended_use": "Not stated. Research only, not a medical device.",
    "data_source": "not stated: the bundle is not trained yet",
}
"""What the user may state in the metadata."""


def make_from_architecture(
    root: Path, network: Architecture, wishes: Wishes, task: str, *, overwrite: bool = False
) -> None:
    """Write a bundle that learns labels by a network of MONAI. Raises OutputError, and UsageError for a wrong patch."""
    if fault := network.fault_of(wishes.patch):
        raise UsageError(f"--patch: {fault}")
    with _new_folder(root, overwrite) as folder:
        _write(folder / "configs" / "inference.json", inference_config(network, wishes))
        _write(folder / "configs" / "train.json", train_config(network, wishes))
        _write(folder / METADATA, _metadata(root.name, network, wishes, task))
        (folder / "LICENSE").write_text("The licence of this bundle is not stated yet.\n")
        (folder / "docs" / CARD).write_text(_card(root.name, f"{network.title}, by `medkit bundle new`", wishes, task))


def make_from_bundle(root: Path, bundle: Bundle, classes: tuple[str, ...], *, overwrite: bool = False) -> list[str]:
    """Write a copy of a bundle without its weights and what its authors state of them; return what else is different.

    `classes`: names of other classes to learn, without the background; empty: the bundle's own. Raises OutputError, and
    BundleError if the bundle has no train config, or does not say where its classes are.
    """
    if not bundle.has_config("train"):
        raise BundleError(
            f"bundle {bundle.name}: has no config train, so it cannot be trained; "
            f"medkit bundle new --from ARCHITECTURE makes one that can"
        )
    with _new_folder(root, overwrite) as folder:
        for entry in bundle_files(bundle.root):
            if not _is_claim(entry.name):
                target = folder / _new_name(entry.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with entry.open() as source, open(target, "wb") as copy:
                    shutil.copyfileobj(source, copy)
        metadata, block, base = without_claims(bundle)
        notes = with_classes(folder, metadata, block, classes) if classes else []
        line = f"made by medkit bundle new from {bundle.name} {bundle.version}"
        metadata |= _UNSTATED | {
            "version": VERSION,
            "changelog": {VERSION: line},
            "name": root.name,
            "task": str(bundle.task or "not stated"),
            "description": f"Not trained yet: the configs of {bundle.name} {bundle.version}.",
            "medkit": block | ({"task": bundle.task} if bundle.task else {}) | {"base": base},
        }
        _write(folder / METADATA, metadata)
        text = _card(root.name, f"`medkit bundle new` from {bundle.name} {bundle.version}", None, str(bundle.task))
        (folder / "docs" / CARD).write_text(text)
    return notes


def _is_claim(name: str) -> bool:
    """Return whether a file of a bundle is about its weights, besides texts that are kept as those of the base."""
    first = name.split("/", 1)[0]
    pictures = name.startswith("docs/") and name.endswith((".png", ".jpg", ".svg"))
    return first in ("models", "training") or pictures or name == METADATA or name.startswith("large_files")


def _new_name(name: str) -> str:
    return f"docs/{BASE_}{name.removeprefix('docs/')}" if name in (f"docs/{CARD}", f"docs/{LICENCE}") else name


@contextlib.contextmanager
def _new_folder(root: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder that becomes `root` if the block succeeds. Raises OutputError if something else is there."""
    if root.exists() and not (overwrite and (root / METADATA).is_file()):
        what = "exists; --overwrite replaces it" if (root / METADATA).is_file() else "exists and is not a bundle"
        raise OutputError(f"{root}: {what}")
    part = root.with_name(f".{root.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for name in ("configs", "docs", "models"):
            (part / name).mkdir(parents=True)
        yield part
        if root.exists():
            shutil.rmtree(root)
        os.replace(part, root)
    except OSError as error:
        raise OutputError(f"{root}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _metadata(name: str, network: Architecture, wishes: Wishes, task: str) -> dict[str, Any]:
    labels = ["background", *wishes.classes]
    kind = {"format": "hounsfield" if wishes.modality == "CT" else "magnitude"}
    tensor = {"type": "image", "modality": wishes.modality, "spatial_shape": list(wishes.patch), "dtype": "float32",
              "value_range": [], "is_patch_data": True}  # fmt: skip
    return {
        "schema": _SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "made by medkit bundle new"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"medkit": f">={version('medkit')}", "nibabel": "5.2.0"},
        "supported_apps": {},
        "name": name,
        "task": f"Segmentation of {listed(list(wishes.classes))}",
        "description": f"Not trained yet: {network.title}.",
        **_UNSTATED,
        "data_type": "nibabel",
        "network_data_format": {
            "inputs": {"image": tensor | kind | {
                "num_channels": len(wishes.channels), "channel_def": _numbered(wishes.channels),
            }},
            "outputs": {"pred": tensor | {
                "format": "segmentation", "num_channels": wishes.outputs, "channel_def": _numbered(labels),
            }},
        },
        "medkit": {"task": task, "modality": wishes.modality,
                   "labels": {str(n): label for n, label in enumerate(wishes.classes, start=1)}},
    }  # fmt: skip


def _numbered(names: tuple[str, ...] | list[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def _card(name: str, origin: str, wishes: Wishes | None, task: str) -> str:
    """Return the model card of a bundle that is not trained."""
    lines = [f"# {name}", "", f"Made as {origin}. It has no weights yet, so nothing is known of its quality.", ""]
    if wishes is not None:
        lines += [
            f"Input: {listed(list(wishes.channels))} ({wishes.modality}), resampled to voxels of "
            f"{size_text(wishes.spacing, '.3g')} mm; the network sees {size_text(wishes.patch)} voxels at once.",
            "", "| label | meaning |", "|---|---|",
            *(f"| {number} | {label} |" for number, label in enumerate(wishes.classes, start=1)), "",
        ]  # fmt: skip
    lines += ["```text", f"medkit train {task} --bundle {name} --data DATA -o {name}_trained", "```", ""]
    return "\n".join(lines)
