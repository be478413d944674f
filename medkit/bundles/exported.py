"""Bundles in one file: a network that is a program (`.ts`, `.pt2`, `.onnx`), with configs and texts inside.

MONAI's `ckpt_export` writes such TorchScript: `metadata.json` and `inference.json` are further files of its archive.
torch.export has the same place for them, ONNX the properties of its model. Reading them runs nothing of the network.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from medkit.bundles.archive import METADATA, Entry, copy, is_junk, open_zip, problems, write_errors_named
from medkit.errors import BundleError, InputError, UsageError, listed

FORMATS: Mapping[str, str] = {"torchscript": ".ts", "torch-export": ".pt2", "onnx": ".onnx"}
"""Format -> suffix of its files."""
MODELS = tuple(f"models/model{suffix}" for suffix in FORMATS.values())
"""Where a bundle's folder has its network as a program."""
MAX_TEXT = 16 << 20
"""Largest text that is carried, in bytes."""

CALIBRATION = "models/calibration.pt"
"""What a classifier knows of its training images: a small file besides the weights, which travels with the network."""
_BASE64 = ".base64"
"""Suffix of files that travel as texts."""
_CONFIGS = (".json", ".yaml", ".yml")
_TEXTS = (".py", ".md", ".txt")
_LEGAL = ("LICENSE", "NOTICE")
_DATA = ("data", "eval")
"""Folders with the data of the bundle's user."""


def is_exported(path: Path) -> bool:
    """Return whether a file is called as a bundle in one file is."""
    return path.suffix in FORMATS.values()


def program_of(root: Path) -> Path | None:
    """Return the network of a bundle's folder that is a program; None if it has none, or has other weights too."""
    there = sorted(path for path in (root / "models").glob("*") if not path.name.startswith("."))
    weights = [path for path in there if path != root / CALIBRATION]
    programs = [root / name for name in MODELS if (root / name) in weights]
    return programs[0] if programs and len(programs) == len(weights) else None


def texts_of(root: Path) -> dict[str, str]:
    """Return the texts of a bundle that travel with its network: configs, code, the card, licences, a calibration.

    Configs have the names that MONAI gives them, without their folder; others their path in the bundle. A calibration
    is in base64.

    Raises BundleError for a text that is not UTF-8, or too large.
    """
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or is_junk(name) or not _travels(name):
            continue
        if path.stat().st_size > MAX_TEXT:
            raise BundleError(f"{path}: has {path.stat().st_size >> 20} MiB; at most {MAX_TEXT >> 20} travel in a file")
        try:
            found[name.removeprefix("configs/")] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BundleError(f"{path}: expected a text in UTF-8") from None
    if (calibration := root / CALIBRATION).is_file():
        found[CALIBRATION + _BASE64] = base64.b64encode(calibration.read_bytes()).decode()
    return found


def _travels(name: str) -> bool:
    folder, _, rest = name.rpartition("/")
    if name.split("/")[0] in _DATA:
        return False
    if folder == "configs":
        return name.endswith(_CONFIGS)
    return rest.startswith(_LEGAL) or name.endswith((*_TEXTS, *(_CONFIGS if folder else ())))


def _place(name: str) -> str:
    """Return the path in a bundle of a text that a file carries under a name."""
    return f"configs/{name}" if "/" not in name and name.endswith(_CONFIGS) else name


def unpack_exported(source: Path, folder: Path, *, link: bool = True) -> Path:
    """Make the folder of a bundle of a bundle in one file, below `folder`, and return its root.

    The network is `models/model` with its suffix: a link to `source`, or a copy. Raises InputError for a file that
    cannot be read, BundleError if it carries no bundle, and UsageError if a package for ONNX is missing.
    """
    entries = [_entry(source, name, content) for name, content in _carried(source)]
    if METADATA not in (entry.name for entry in entries):
        raise BundleError(
            f"{source}: carries no metadata.json, which states what its network takes; medkit bundle export, and "
            f"MONAI's ckpt_export, put it in"
        )
    if found := list(problems(entries)):
        raise BundleError(f"{source}: {listed(found[:5])}")
    root = folder / source.stem
    with write_errors_named():
        for entry in entries:
            copy(entry, root / entry.name, source)
        network = root / "models" / f"model{source.suffix}"
        network.parent.mkdir(parents=True, exist_ok=True)
        if link:
            network.symlink_to(source.absolute())
        else:
            size = source.stat().st_size
            copy(Entry(network.name, "file", size, functools.partial(_content, source)), network, source)
    return root


def _content(path: Path) -> IO[bytes]:
    return open(path, "rb")


def _entry(source: Path, name: str, content: bytes) -> Entry:
    if name.endswith(_BASE64):
        try:
            name, content = name.removesuffix(_BASE64), base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise InputError(f"{source}: {name} cannot be read: {error}") from None
    return Entry(_place(name), "file", len(content), lambda: io.BytesIO(content))


def _carried(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the texts in a file. Raises InputError, BundleError and UsageError."""
    if source.suffix == FORMATS["onnx"]:
        yield from _properties(source)
        return
    with open_zip(source) as archive:
        for info in archive.infolist():
            _, there, name = info.orig_filename.partition("/extra/")
            if not there or not name or info.is_dir():
                continue
            if info.file_size > MAX_TEXT:
                raise BundleError(f"{source}: {name} has {info.file_size >> 20} MiB; expected a text")
            try:
                yield name, archive.read(info)
            except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
                raise InputError(f"{source}: {name} cannot be read: {error}") from None


def _properties(source: Path) -> Iterator[tuple[str, bytes]]:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise UsageError(f"{source}: onnx, which reads it, is not installed: pip install 'medkit[onnx]'") from None
    try:
        model = onnx.load(source, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise InputError(f"{source}: expected a network in ONNX: {error}") from None
    yield from ((prop.key, prop.value.encode()) for prop in model.metadata_props)
