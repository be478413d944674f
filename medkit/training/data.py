"""The items of a training, found by `--data` in a datalist or in a folder of a known layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medkit.errors import InputError, listed
from medkit.pipe.names import stem
from medkit.training.data_layouts import LAYOUTS, Item
from medkit.training.splits import DataList, Split, share_out

_TEST = ("test", "testing")
"""Names of a datalist's list of items that are held out."""
_TEST_KEYS = ("image", "label")
"""What an item of that list has for the finished bundle, next to what the config reads."""


def find_items(data: Path, keys: Sequence[str], split: Split | None = None) -> DataList:
    """Return the items of a datalist file or a folder.

    `keys` are those that the config's transforms read, such as `("image", "label")`. `data` is one of:

    - a datalist: JSON with `training` and `validation`, as of MONAI and the Medical Decathlon;
    - a folder with `dataset.json`, or with `imagesTr` and `labelsTr` (Decathlon, nnU-Net);
    - a BIDS dataset;
    - a plain folder. With one key every image file is an item. With several keys an item is `x_<key>.nii.gz` for each
      key, or files of the same name in folders `<key>` or `<key>s`.

    Without validation items the last tenth of the training items, at least one and never all, validate. All items of
    one subject are on one side. `split`: folds, and what is held out for a test.

    Raises InputError if no layout fits, if files of items are missing, or if there are too few subjects.
    """
    if data.is_file():
        found = read_datalist(data, keys)[0]
    elif data.is_dir():
        found = _from_folder(data, keys)
    else:
        raise InputError(f"--data {data}: expected a folder or a datalist's .json, got neither")
    check_files((*found.training, *found.validation), keys, data)
    return share_out(found, keys, split or Split())


def find_unpaired(data: Sequence[Path], keys: Sequence[str]) -> DataList:
    """Return the items of an unpaired training, each of which has one of `keys`.

    `data` are a folder for each key, in the order of the keys, or one folder that contains folders `<key>` or `<key>s`,
    or a datalist whose items each have one of the keys. No item validates unless a datalist says so.

    Raises InputError if no layout fits, or if a file of an item is missing.
    """
    first, *others = data
    if not others and first.is_file():
        found = _unpaired_datalist(first, keys)
    else:
        folders = data if others else [p if (p := first / f"{key}s").is_dir() else first / key for key in keys]
        found = _unpaired_folders(folders, keys)
    if absent := [key for key in keys if not any(key in item for item in found.training)]:
        raise InputError(f"--data {first}: no images of {listed(absent)}")
    return found


def _unpaired_datalist(path: Path, keys: Sequence[str]) -> DataList:
    """Return the items of a datalist. Raises InputError unless each has exactly one of the keys."""
    found = read_datalist(path, keys)[0]
    for number, item in enumerate((*found.training, *found.validation)):
        if len(has := [key for key in keys if key in item]) != 1:
            raise InputError(f"{path}: item {number} has {listed(has or ['none'])} of {listed(keys)}; expected one")
        check_files([item], has, path)
    return found


def _unpaired_folders(folders: Sequence[Path], keys: Sequence[str]) -> DataList:
    """Return the images of a folder for each key as items for training. Raises InputError."""
    if len(folders) != len(keys) or not all(folder.is_dir() for folder in folders):
        wanted = " and ".join(f"one of {key} images" for key in keys)
        given = listed([str(folder) for folder in folders])
        raise InputError(f"--data {given}: expected {len(keys)} folders, {wanted}, or a datalist's .json")
    lists = [find_items(folder, [key]) for folder, key in zip(folders, keys, strict=True)]
    items = tuple(item for part in lists for item in (*part.training, *part.validation))
    return DataList(items, (), folders[0])


def check_files(items: Iterable[Item], keys: Sequence[str], source: object) -> None:
    """Raise InputError, which lists all faults, unless every item has every key, and every file in it exists."""
    if faults := list(_file_faults(items, keys)):
        raise InputError("\n".join(f"{source}: {fault}" for fault in faults))


def _file_faults(items: Iterable[Item], keys: Sequence[str]) -> Iterator[str]:
    for number, item in enumerate(items):
        for key in keys:
            if key not in item:
                yield f"item {number} has no {key}; the config reads {listed(keys)}"
                continue
            values = item[key] if isinstance(item[key], list) else [item[key]]
            for value in values:
                if isinstance(value, str) and not Path(value).is_file():
                    yield f"item {number} names the {key} {value}, which does not exist"


# ---- a datalist


def read_datalist(path: Path, keys: Sequence[str]) -> tuple[DataList, Any]:
    """Return the items of a datalist, without a check of their files, and the whole content. Raises InputError."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"--data {path}: cannot be read as JSON: {error}") from None
    parts = content if isinstance(content, dict) else {"training": content}
    training, validation = (_items(path, part, parts.get(part, []), keys) for part in ("training", "validation"))
    if not training:
        raise InputError(f"--data {path}: expected a list `training` with items, got {_summary(content)}")
    name = next((name for name in _TEST if parts.get(name)), "test")
    test = _items(path, name, parts.get(name) or [], tuple(dict.fromkeys((*_TEST_KEYS, *keys))))
    return DataList(tuple(training), tuple(validation), path.parent, tuple(test)), content


def _items(path: Path, part: str, entries: Any, keys: Sequence[str]) -> list[Item]:
    if not isinstance(entries, list):
        raise InputError(f"--data {path}: expected a list as {part}, got {_summary(entries)}")
    if len(keys) == 1 or part in _TEST:  # the Medical Decathlon's tests are images without labels
        entries = [{keys[0]: e} if isinstance(e, str) else e for e in entries]
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"--data {path}: {part} {number}: expected an object, got {_summary(entry)}")
    return [{k: _located(v, path.parent, must=k in keys) for k, v in entry.items()} for entry in entries]


def _located(value: Any, folder: Path, *, must: bool) -> Any:
    """Return a path, or each path of a list, made absolute; other values stay. `must`: every text is a path."""
    if isinstance(value, list):
        return [_located(v, folder, must=must) for v in value]
    if not isinstance(value, str) or not value:
        return value
    path = folder / value
    channel = path.with_name(f"{stem(path)}_0000{path.name[len(stem(path)) :]}")
    if not is_file(path) and is_file(channel):  # nnU-Net's dataset.json omits the number of the channel
        return str(channel)
    return str(path) if must or is_file(path) else value


def is_file(path: Path) -> bool:
    """Return whether a file exists; False for a text, such as a report, that cannot be a file name."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a character that names cannot have
        return False


def _summary(value: Any) -> str:
    return f"an object with {listed(sorted(value) or ['no keys'])}" if isinstance(value, dict) else repr(value)[:60]


# ---- folders


def _from_folder(folder: Path, keys: Sequence[str]) -> DataList:
    """Return the items of a folder's `dataset.json`, or those of the first layout that fits."""
    listing = folder / "dataset.json"
    if has_datalist(listing):
        return read_datalist(listing, keys)[0]
    for layout in LAYOUTS:
        if items := layout(folder, keys):
            return DataList(tuple(items), (), folder)
    raise InputError(f"--data {folder}: expected {_expected(keys)}; got {_contents(folder)}")


def has_datalist(listing: Path) -> bool:
    """Return whether a file is there and is a datalist with items to train on. Raises InputError if it is no JSON."""
    if not listing.is_file():
        return False
    try:
        content = json.loads(listing.read_bytes())
    except ValueError as error:
        raise InputError(f"{listing}: not valid JSON: {error}") from None
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
