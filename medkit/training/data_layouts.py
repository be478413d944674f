"""Layouts of folders that `--data` may name: Decathlon and nnU-Net, BIDS, and plain folders.

Each layout is a function of a folder and the keys that a config reads. It returns the items of the folder, dicts of
absolute paths, or none if the folder has another layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medkit.errors import InputError, listed
from medkit.pipe.names import ANALYZE_SUFFIXES, IMAGE_SUFFIXES, split_bids, stem

Item = dict[str, Any]

_PICTURES = (".png", ".jpg", ".jpeg", ".npy")
_LABEL_WORDS = ("label", "seg", "mask")
"""A key that contains one of these stands for labels, any other for an image."""
_OF_DERIVATIVES = ("desc", "space", "label", "seg", "res", "den", "atlas")
"""BIDS entities that labels may have while their image has not."""


def _images_in(folder: Path) -> dict[str, Path]:
    """Return stem -> image file, sorted, without hidden files. Raises InputError if two differ only in their suffix."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.is_file() or not _is_image(path):
            continue
        name = stem(path) if stem(path) != path.name else path.stem
        if name in found:
            raise InputError(f"{folder}: {found[name].name} and {path.name} are both files of {name}")
        found[name] = path
    return found


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith((*IMAGE_SUFFIXES, *ANALYZE_SUFFIXES, *_PICTURES))


def is_label(key: str) -> bool:
    """Return whether a key of an item stands for labels."""
    return any(word in key.lower() for word in _LABEL_WORDS)


def from_decathlon(folder: Path, keys: Sequence[str]) -> list[Item]:
    """Return the items of `imagesTr` and `labelsTr`; nnU-Net's channels `x_0000`, `x_0001` become a list."""
    labels = _images_in(folder / "labelsTr")
    channels = _images_in(folder / "imagesTr")
    images: dict[str, Any] = {}
    for name, path in channels.items():
        case, _, number = name.rpartition("_")
        if case in labels and len(number) == 4 and number.isdigit():
            images.setdefault(case, []).append(str(path))
        else:
            images[name] = [str(path)]
    sources = {key: labels if is_label(key) else images for key in keys}
    shared = sorted(set.intersection(*(set(s) for s in sources.values())))
    items = [{key: sources[key][name] for key in keys} for name in shared]
    return [{k: _single(v) for k, v in item.items()} for item in items]


def _single(value: Any) -> Any:
    if isinstance(value, list):
        return value[0] if len(value) == 1 else value
    return str(value)


def from_bids(folder: Path, keys: Sequence[str]) -> list[Item]:
    """Return images with their `_dseg` or `_mask` files, of the dataset or of its derivatives."""
    files = sorted(p for p in folder.rglob("sub-*") if p.is_file() and _is_image(p) and not _hidden(p, folder))
    labels = [p for p in files if split_bids(p)[1] in ("dseg", "mask")]
    images = [p for p in files if p not in labels and "derivatives" not in p.relative_to(folder).parts]
    if len(keys) == 1:
        return [{keys[0]: str(path)} for path in (labels if is_label(keys[0]) else images)]
    if sum(is_label(key) for key in keys) != 1 or len(keys) != 2:
        return []
    items = []
    for path in labels:
        image = _image_of(path, images)
        items.append({key: str(path if is_label(key) else image) for key in keys})
    return items


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _image_of(labels: Path, images: Sequence[Path]) -> Path:
    """Return the image of BIDS labels. Raises InputError if there is none, or several."""
    wanted = {k: v for k, v in split_bids(labels)[0].items() if k not in _OF_DERIVATIVES}
    fitting = [p for p in images if split_bids(p)[0] == wanted]
    if len(fitting) > 1:
        fitting = [p for p in fitting if split_bids(p)[1] == "T1w"] or fitting
    if len(fitting) != 1:
        there = listed([p.name for p in fitting] or ["none"])
        raise InputError(f"{labels}: expected one image for these labels, got {there}")
    return fitting[0]


def from_plain(folder: Path, keys: Sequence[str]) -> list[Item]:
    """Return the items of folders named after the keys, or of files that end in them; with one key, of all images."""
    within = {key: _images_in(folder / f"{key}s") or _images_in(folder / key) for key in keys}
    if not all(within.values()):
        here = _images_in(folder)
        if len(keys) == 1 and not any(name.endswith(f"_{keys[0]}") for name in here):
            return [{keys[0]: str(path)} for path in here.values()]
        endings = {key: f"_{key}" for key in keys}
        within = {k: {n.removesuffix(e): p for n, p in here.items() if n.endswith(e)} for k, e in endings.items()}
    everything = set().union(*within.values())
    for key, files in within.items():
        if files and (unmatched := sorted(everything - set(files))):
            raise InputError(f"--data {folder}: no {key} for {listed(unmatched[:5])}")
    if not all(within.values()):
        return []
    return [{key: str(within[key][name]) for key in keys} for name in sorted(everything)]


LAYOUTS: tuple[Callable[[Path, Sequence[str]], list[Item]], ...] = (from_decathlon, from_bids, from_plain)
"""In the order in which they are tried."""
