"""`--data`: the items a training works on, found in a datalist, a folder of a known layout, or a plain folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.errors import InputError, listed
from medkit.pipe.names import ANALYZE_SUFFIXES, IMAGE_SUFFIXES, split_bids, stem

Item = dict[str, Any]

_PICTURES = (".png", ".jpg", ".jpeg", ".npy")
_LABEL_WORDS = ("label", "seg", "mask")
"""A key with one of these in it stands for labels, any other for an image."""
_OF_DERIVATIVES = ("desc", "space", "label", "seg", "res", "den", "atlas")
"""BIDS entities that labels may have and their image has not."""
VALIDATION_SHARE = 10
"""One item in so many validates where the data does not say which."""


@dataclass(frozen=True)
class DataList:
    """The items of a training: dicts of absolute paths, and whatever else a datalist says about them."""

    training: tuple[Item, ...]
    validation: tuple[Item, ...]
    root: Path
    """The folder the items are found in."""


def find_items(data: Path, keys: Sequence[str]) -> DataList:
    """The items of a datalist file or a folder.

    `keys` are those that the config's transforms read, such as `("image", "label")`. Taken are a datalist (MONAI's and
    the Medical Decathlon's JSON with `training` and `validation`), a folder with `dataset.json` or `imagesTr` and
    `labelsTr` (Decathlon, nnU-Net), a BIDS dataset, and a plain folder: with one key every image file is an item, with
    several `x_<key>.nii.gz` or files of the same name in folders `<key>` or `<key>s`. Without validation items the last
    tenth of the training items, at least one and never all, validate.

    Raises InputError where nothing fits, or a file that an item names is missing.
    """
    if data.is_file():
        found = _from_datalist(data, keys)
    elif data.is_dir():
        found = _from_folder(data, keys)
    else:
        raise InputError(f"--data {data}: expected a folder or a datalist's .json, got neither")
    check_files((*found.training, *found.validation), keys, data)
    return found if found.validation else _split(found)


def find_unpaired(data: Sequence[Path], keys: Sequence[str]) -> DataList:
    """The items of things that do not belong together, each with one of `keys`.

    Taken are a folder for each key, in their order, a folder that has such folders `<key>` or `<key>s`, and a datalist
    whose items each have one of the keys. Nothing is set aside for validation unless a datalist says so.

    Raises InputError where nothing fits, or a file that an item names is missing.
    """
    first, *others = data
    if not others and first.is_file():
        found = _from_datalist(first, keys)
        for number, item in enumerate((*found.training, *found.validation)):
            if len(has := [key for key in keys if key in item]) != 1:
                raise InputError(
                    f"{first}: item {number} has {listed(has or ['none'])} of {listed(keys)}; expected one"
                )
            check_files([item], has, first)
        items = found.training
    else:
        if not others:
            data = [p if (p := first / f"{key}s").is_dir() else first / key for key in keys]
        if len(data) != len(keys) or not all(folder.is_dir() for folder in data):
            wanted = " and ".join(f"one of {key} images" for key in keys)
            given = listed([str(folder) for folder in data])
            raise InputError(f"--data {given}: expected {len(keys)} folders, {wanted}, or a datalist's .json")
        lists = [find_items(folder, [key]) for folder, key in zip(data, keys, strict=True)]
        found = DataList((), (), data[0])
        items = tuple(item for part in lists for item in (*part.training, *part.validation))
    if absent := [key for key in keys if not any(key in item for item in items)]:
        raise InputError(f"--data {first}: no images of {listed(absent)}")
    return DataList(items, found.validation, found.root)


def check_files(items: Iterable[Item], keys: Sequence[str], source: object) -> None:
    """Raises InputError unless every item has every key, and every file that one names exists."""
    for number, item in enumerate(items):
        for key in keys:
            if key not in item:
                raise InputError(f"{source}: item {number} has no {key}; the config reads {listed(keys)}")
            values = item[key] if isinstance(item[key], list) else [item[key]]
            for value in values:
                if isinstance(value, str) and not Path(value).is_file():
                    raise InputError(f"{source}: item {number} names the {key} {value}, which is not there")


def _split(found: DataList) -> DataList:
    items = found.training
    count = max(1, len(items) // VALIDATION_SHARE) if len(items) > 1 else 0
    return DataList(items[: len(items) - count], items[len(items) - count :], found.root)


# ---- a datalist


def _from_datalist(path: Path, keys: Sequence[str]) -> DataList:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"--data {path}: cannot be read as JSON: {error}") from None
    parts = content if isinstance(content, dict) else {"training": content}
    training, validation = (_items(path, part, parts.get(part, []), keys) for part in ("training", "validation"))
    if not training:
        raise InputError(f"--data {path}: expected a list `training` with items, got {_summary(content)}")
    return DataList(tuple(training), tuple(validation), path.parent)


def _items(path: Path, part: str, entries: Any, keys: Sequence[str]) -> list[Item]:
    if not isinstance(entries, list):
        raise InputError(f"--data {path}: expected a list as {part}, got {_summary(entries)}")
    if len(keys) == 1:
        entries = [{keys[0]: e} if isinstance(e, str) else e for e in entries]
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"--data {path}: {part} {number}: expected an object, got {_summary(entry)}")
    return [{k: _located(v, path.parent, must=k in keys) for k, v in entry.items()} for entry in entries]


def _located(value: Any, folder: Path, *, must: bool) -> Any:
    """A path made absolute; what is no path stays. `must`: a string is one even if nothing is there."""
    if isinstance(value, list):
        return [_located(v, folder, must=must) for v in value]
    if not isinstance(value, str) or not value:
        return value
    path = folder / value
    channel = path.with_name(f"{stem(path)}_0000{path.name[len(stem(path)) :]}")
    if not is_file(path) and is_file(channel):  # nnU-Net's dataset.json leaves the number of the channel out
        return str(channel)
    return str(path) if must or is_file(path) else value


def is_file(path: Path) -> bool:
    """Whether a file is there; False of a text, such as a report, that is no file's name on any system."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a character that no name has
        return False


def _summary(value: Any) -> str:
    return f"an object with {listed(sorted(value) or ['no keys'])}" if isinstance(value, dict) else repr(value)[:60]


# ---- folders


def _from_folder(folder: Path, keys: Sequence[str]) -> DataList:
    """The first layout that gives items."""
    listing = folder / "dataset.json"
    if listing.is_file() and _has_training(listing):
        return _from_datalist(listing, keys)
    layouts: tuple[Callable[[Path, Sequence[str]], list[Item]], ...] = (_from_decathlon, _from_bids, _from_plain)
    for layout in layouts:
        if items := layout(folder, keys):
            return DataList(tuple(items), (), folder)
    raise InputError(f"--data {folder}: expected {_expected(keys)}; got {_contents(folder)}")


def _has_training(listing: Path) -> bool:
    try:
        content = json.loads(listing.read_bytes())
    except ValueError as error:
        raise InputError(f"{listing}: no JSON: {error}") from None
    return isinstance(content, dict) and bool(content.get("training"))


def _expected(keys: Sequence[str]) -> str:
    if len(keys) == 1:
        return f"image files for {keys[0]}, a datalist dataset.json, imagesTr and labelsTr, or a BIDS dataset"
    pairs = listed([f"x_{key}.nii.gz" for key in keys])
    return (
        f"files {pairs}, folders {listed([f'{key}s' for key in keys])} with files of equal names, a datalist "
        f"dataset.json, imagesTr and labelsTr, or a BIDS dataset"
    )


def _contents(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "an empty folder") + more


def _images_in(folder: Path) -> dict[str, Path]:
    """Stem -> image file, sorted; hidden files left out. Raises InputError where two differ in their type alone."""
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


def _is_label(key: str) -> bool:
    return any(word in key.lower() for word in _LABEL_WORDS)


def _from_decathlon(folder: Path, keys: Sequence[str]) -> list[Item]:
    """`imagesTr` and `labelsTr`; nnU-Net's channels `x_0000`, `x_0001` of an image become a list."""
    labels = _images_in(folder / "labelsTr")
    channels = _images_in(folder / "imagesTr")
    images: dict[str, Any] = {}
    for name, path in channels.items():
        case, _, number = name.rpartition("_")
        if case in labels and len(number) == 4 and number.isdigit():
            images.setdefault(case, []).append(str(path))
        else:
            images[name] = [str(path)]
    sources = {key: labels if _is_label(key) else images for key in keys}
    shared = sorted(set.intersection(*(set(s) for s in sources.values())))
    items = [{key: sources[key][name] for key in keys} for name in shared]
    return [{k: _single(v) for k, v in item.items()} for item in items]


def _single(value: Any) -> Any:
    if isinstance(value, list):
        return value[0] if len(value) == 1 else value
    return str(value)


def _from_bids(folder: Path, keys: Sequence[str]) -> list[Item]:
    """Images and the `_dseg` or `_mask` files, of the dataset or of its derivatives, that belong to them."""
    files = sorted(p for p in folder.rglob("sub-*") if p.is_file() and _is_image(p) and not _hidden(p, folder))
    labels = [p for p in files if split_bids(p)[1] in ("dseg", "mask")]
    images = [p for p in files if p not in labels and "derivatives" not in p.relative_to(folder).parts]
    if len(keys) == 1:
        return [{keys[0]: str(path)} for path in (labels if _is_label(keys[0]) else images)]
    if sum(_is_label(key) for key in keys) != 1 or len(keys) != 2:
        return []
    items = []
    for path in labels:
        image = _image_of(path, images)
        items.append({key: str(path if _is_label(key) else image) for key in keys})
    return items


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _image_of(labels: Path, images: Sequence[Path]) -> Path:
    """The image that BIDS labels belong to. Raises InputError where none or several do."""
    wanted = {k: v for k, v in split_bids(labels)[0].items() if k not in _OF_DERIVATIVES}
    fitting = [p for p in images if split_bids(p)[0] == wanted]
    if len(fitting) > 1:
        fitting = [p for p in fitting if split_bids(p)[1] == "T1w"] or fitting
    if len(fitting) != 1:
        there = listed([p.name for p in fitting] or ["none"])
        raise InputError(f"{labels}: expected one image that it belongs to, got {there}")
    return fitting[0]


def _from_plain(folder: Path, keys: Sequence[str]) -> list[Item]:
    """Folders named after the keys, or files that end in them; with one key simply all images."""
    within = {key: _images_in(folder / f"{key}s") or _images_in(folder / key) for key in keys}
    if not all(within.values()):
        here = _images_in(folder)
        if len(keys) == 1 and not any(name.endswith(f"_{keys[0]}") for name in here):
            return [{keys[0]: str(path)} for path in here.values()]
        endings = {key: f"_{key}" for key in keys}
        within = {k: {n.removesuffix(e): p for n, p in here.items() if n.endswith(e)} for k, e in endings.items()}
    everything = set().union(*within.values())
    for key, files in within.items():
        if files and (alone := sorted(everything - set(files))):
            raise InputError(f"--data {folder}: no {key} for {listed(alone[:5])}")
    return (
        [{key: str(within[key][name]) for key in keys} for name in sorted(everything)] if all(within.values()) else []
    )
