"""Which bundles may run code: those that the user trusted with `--trust`, recognised by their content.

The digest of everything that can run code is remembered: configs, the files that they take in (`%file::id`), Python
files, weights. A copy of a trusted bundle is trusted as well; a changed one is not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.bundles.archive import RECORD, folder_entries, printable
from medkit.bundles.safety.macros import taken_in
from medkit.errors import BundleError, UsageError, listed
from medkit.pipe.atomic import locked, write_atomically
from medkit.pipe.records import sha256_of

log = logging.getLogger(__name__)

_FOLDERS = ("configs", "models")
"""Folders where every file counts."""
_DATA = ("training", "data", "eval", "docs")
"""Folders whose settings and tables change with the data; a file there with a config's suffix is not a config."""
_CONFIGS = (".json", ".yaml", ".yml", ".toml", ".conf", ".ini", ".cfg")
_CODE = (
    ".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".pth", ".pt", ".ts", ".ckpt", ".pkl", ".pickle", ".npy", ".npz",
    ".onnx", ".safetensors", ".bin", ".zip", ".whl", ".egg",
)  # fmt: skip


@dataclass(frozen=True)
class BundleContent:
    """The files of a bundle that can run code."""

    files: Mapping[str, str]
    """Path below the bundle's root -> sha256, sorted."""

    @property
    def sha256(self) -> str:
        """Digest of all files together, with their names."""
        return digest_of(self.files)


def digest_of(files: Mapping[str, str]) -> str:
    """Return one sha256 for a set of files, given as path -> sha256."""
    lines = "".join(f"{sha}  {name}\n" for name, sha in sorted(files.items()))
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def fingerprint(root: Path) -> BundleContent:
    """Return the files of a bundle that can run code.

    Raises BundleError for a link to a folder, for a device, and for a config that takes in a file of another place,
    whose content could change unnoticed.
    """
    files = {}
    for entry in folder_entries(root):
        is_file = entry.kind == "file" or (entry.kind == "link" and (root / entry.name).is_file())
        if not is_file and not entry.name.startswith("training/"):
            raise BundleError(
                f"{root / entry.name}: is a {entry.kind}; a bundle is trusted by its content, so it must contain it"
            )
        if is_file and _bears_code(entry.name):
            with entry.open() as file:
                files[entry.name] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    for name in taken_in(root, files):
        files[name] = sha256_of(root / name)
    return BundleContent(dict(sorted(files.items())))


def _bears_code(name: str) -> bool:
    top, below, _ = name.partition("/")
    if top == "training":  # the state of a training; only Python files run there
        return name.endswith((".py", ".pyc"))
    if (below and top in _FOLDERS) or name.lower().endswith(_CODE):
        return True
    return name != RECORD and not (below and top in _DATA) and name.lower().endswith(_CONFIGS)


# ---- what is remembered


def trust_file() -> Path:
    """Return the file where trust is remembered: MEDKIT_TRUST, else `medkit/trust.json` in the user's state folder."""
    if given := os.environ.get("MEDKIT_TRUST"):
        return Path(given).absolute()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state).absolute() / "medkit" / "trust.json"


def remembered() -> list[dict[str, Any]]:
    """Return what the user trusted, the latest last. Raises UsageError if the file cannot be read."""
    path = trust_file()
    try:
        bundles = json.loads(path.read_bytes())["bundles"]
        if not all(isinstance(b["sha256"], str) and isinstance(b["files"], dict) for b in bundles):
            raise TypeError
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; this file remembers which bundles are trusted") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path}: cannot be read as a list of trusted bundles; remove it, and --trust again") from None
    return list(bundles)


def is_trusted(root: Path) -> bool:
    """Return whether the content of a bundle was trusted before; a bundle that cannot be trusted never was."""
    found = remembered()
    try:
        return bool(found) and fingerprint(root).sha256 in {b["sha256"] for b in found}
    except BundleError:
        return False


def remember(root: Path, now: BundleContent | None = None) -> str:
    """Trust what a bundle holds now, and return the sha256 that is remembered. Raises OSError if writing fails.

    `now` is the bundle's fingerprint, if it is already known.
    """
    now = now or fingerprint(root)
    path = trust_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(path.with_name(f".{path.name}.lock")):
        kept = [b for b in remembered() if b["sha256"] != now.sha256]
        kept.append({"sha256": now.sha256, "root": str(root), "files": dict(now.files)})
        write_atomically(path, json.dumps({"bundles": kept}, indent=1) + "\n")
    return now.sha256


# ---- the gate


def admit(root: Path, *, trust: bool, shown: Path | None = None) -> None:
    """Allow the code of a bundle that no plugin brings to run, or raise UsageError.

    `trust`: the user allows it, which is remembered; without it the bundle has to be trusted already, and unchanged.
    `shown` is the path that the user gave, if that is not the bundle's folder.
    """
    now = fingerprint(root)
    if not trust and now.sha256 not in {b["sha256"] for b in remembered()}:
        raise UsageError(_refusal(shown or root, now))
    if trust:
        try:
            remember(root, now)
        except OSError as error:
            log.warning("%s: %s; --trust holds for this run only", trust_file(), error.strerror)
    # bytecode that Python writes next to a bundle's modules would change the bundle
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def _refusal(root: Path, now: BundleContent) -> str:
    before = [b for b in remembered() if b.get("root") == str(root)]
    advice = f"look at it with medkit bundle audit {root}, and --trust it"
    if not before:
        return f"{root}: its configs run code, and no installed plugin brings it; {advice}"
    return f"{root}: {changes(before[-1]['files'], now.files)} since you trusted it; {advice}"


def changes(before: Mapping[str, str], now: Mapping[str, str], most: int = 5) -> str:
    """Return what differs between two sets of files (path -> sha256), in words; at most `most` files are named.

    >>> changes({"a": "1", "b": "2"}, {"a": "3", "c": "4"})
    'a was changed, b was removed and c was added'
    """
    found = [
        f"{printable(name)} was {'removed' if name not in now else 'added' if name not in before else 'changed'}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    more = [f"{len(found) - most} more"] if len(found) > most else []
    return listed([*found[:most], *more])
