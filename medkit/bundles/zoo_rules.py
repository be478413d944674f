"""What MONAI's model zoo asks of a bundle beyond the specification: its guide for contributors, and its own checks.

A bundle may run without any of it, so these are words to its authors and no faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import CONFIG_SUFFIXES, WEIGHTS, read_metadata
from medkit.bundles.config import class_name, read_data, walk
from medkit.bundles.keys import transforms
from medkit.bundles.layers import has_id
from medkit.errors import BundleError, listed

LARGEST = 25 << 20
"""Bytes that a file of the zoo may have; larger ones are downloaded."""
_HASHES = ("md5", "sha1", "sha256", "sha512")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
"""The names of the zoo's bundles: words joined by underscores."""
_INFERENCE = ("bundle_root", "device", "network_def", "inferer")
_TRAIN = ("bundle_root", "device", "dataset_dir")
_PARTS = {
    "train": ("trainer", "trainer::max_epochs", "dataset", "dataset::data", "handlers"),
    "validate": ("evaluator", "handlers", "dataset", "dataset::data"),
}
"""Id in a train config -> the ids below it that the zoo asks for."""
_ABOUT = ("name", "schema")
"""Entries of the metadata that the zoo shows or needs, and that the specification does not require."""


def zoo_notes(root: Path) -> Iterator[str]:
    """Yield what the zoo would ask of a bundle's files, metadata and configs, which are read as data."""
    if not _NAME.fullmatch(root.name):
        yield f"its name {root.name}: names there are words joined by underscores, such as spleen_ct_segmentation"
    large = _large_files(root)
    yield from _files(root, large)
    yield from large if isinstance(large, list) else ()
    try:
        metadata = read_metadata(root)
    except BundleError:  # the check of the metadata reports it
        metadata = {}
    for key in _ABOUT:
        if metadata and not metadata.get(key):
            yield f"metadata: no {key}"
    yield from _configs(root)


def _files(root: Path, large: Any) -> Iterator[str]:
    """Yield missing files, and those that are too large to be stored in the zoo."""
    fetched = set(large) if isinstance(large, Mapping) else set()
    if not (root / WEIGHTS).is_file() and WEIGHTS not in fetched:
        yield f"no {WEIGHTS}, and no large_files.yml that says where it is"
    for name in ("LICENSE", "docs/README.md"):
        if not (root / name).is_file():
            yield f"no {name}"
    if _config(root, "inference") is None:
        yield "no configs/inference.json, .yaml or .yml"
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and path.stat().st_size > LARGEST and name not in fetched:
            size = path.stat().st_size / (1 << 20)
            yield f"{name} has {size:.0f} MB: files of more than 25 MB have to be in large_files.yml"


def _large_files(root: Path) -> dict[str, str] | list[str]:
    """Return path -> link of the files that are downloaded, or what is wrong with the list of them."""
    path = next((p for suffix in CONFIG_SUFFIXES if (p := root / f"large_files{suffix}").is_file()), None)
    if path is None:
        return {}
    try:
        entries = read_data(path.read_bytes(), path.name)["large_files"]
        stated = {str(entry["path"]): str(entry["url"]) for entry in entries}
    except Exception as error:  # yaml's errors share no base class with json's
        words = " ".join(str(error).split())[:200]
        return [f"{path.name}: expected large_files, a list of entries with path and url: {words}"]
    wrong = [f"{path.name}: {name} leads out of the bundle" for name in stated if name.startswith("/") or ".." in name]
    wrong += [f"{path.name}: {name}: {url} is no link" for name, url in stated.items() if "://" not in url]
    for entry in entries:
        kind = str(entry.get("hash_type") or "")
        if entry.get("hash_val") and kind.lower() not in _HASHES:
            wrong.append(f"{path.name}: {entry['path']}: hash_type {kind or 'is missing'}: expected {listed(_HASHES)}")
    return wrong or stated


def _config(root: Path, name: str) -> Path | None:
    """Return the file of a config of this name, in any of the forms; None if there is none."""
    return next((p for suffix in CONFIG_SUFFIXES if (p := root / "configs" / f"{name}{suffix}").is_file()), None)


def _configs(root: Path) -> Iterator[str]:
    for name, wanted in (("inference", _INFERENCE), ("train", _TRAIN)):
        path = _config(root, name)
        if path is None:
            continue
        try:
            content = read_data(path.read_bytes(), path.name)
        except Exception:  # the check of the configs reports it
            continue
        if isinstance(content, dict):
            yield from (f"{path.name}: no id {missing}" for missing in _missing(content, name, wanted))


def _missing(content: Mapping[str, Any], name: str, wanted: tuple[str, ...]) -> Iterator[str]:
    """Yield the ids that a config lacks."""
    yield from (key for key in wanted if key not in content)
    if transforms(content, "Save") and "output_dir" not in content:
        yield "output_dir"
    if name != "train":
        return
    for part, below in _PARTS.items():
        if part in content:
            yield from (f"{part}::{key}" for key in below if not has_id(content, f"{part}::{key}"))
    validates = any(class_name(node) == "ValidationHandler" for _, node in walk(content))
    if validates and "val_interval" not in content:
        yield "val_interval"
