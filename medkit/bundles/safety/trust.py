"""Whose code may run: the bundles that the user said `--trust` about, known by what is in them.

What is remembered is the content of everything in a bundle that can run code or that code is made from: configs,
Python files, weights. A copy of such a bundle is trusted as well; a changed one is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.bundles.archive import RECORD, folder_entries, printable
from medkit.errors import BundleError, UsageError, listed
from medkit.pipe.atomic import write_atomically

log = logging.getLogger(__name__)

_FOLDERS = ("configs", "models")
_DATA = ("training", "data", "eval", "docs")
"""Folders whose settings and tables come and go with the data; what is a config elsewhere may be one."""
_CONFIGS = (".json", ".yaml", ".yml", ".toml", ".conf", ".ini", ".cfg")
_CODE = (
    ".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".pth", ".pt", ".ts", ".ckpt", ".pkl", ".pickle", ".npy", ".npz",
    ".onnx", ".safetensors", ".bin", ".zip", ".whl", ".egg",
)  # fmt: skip


@dataclass(frozen=True)
class BundleContent:
    """The code-bearing content of a bundle."""

    files: Mapping[str, str]
    """Path below the bundle's root -> sha256, sorted."""

    @property
    def sha256(self) -> str:
        """The digest of all of them together, with their names."""
        return digest_of(self.files)


def digest_of(files: Mapping[str, str]) -> str:
    """One sha256 for a set of files, given as path -> sha256."""
    lines = "".join(f"{sha}  {name}\n" for name, sha in sorted(files.items()))
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def fingerprint(root: Path) -> BundleContent:
    """What a bundle could run. Raises BundleError for a linked folder or a device, which could change unseen."""
    files = {}
    for entry in folder_entries(root):
        whole = entry.kind == "file" or (entry.kind == "link" and (root / entry.name).is_file())
        if not whole and not entry.name.startswith("training/"):
            raise BundleError(
                f"{root / entry.name}: is a {entry.kind}; a bundle is trusted by its content, so it must hold its own"
            )
        if whole and _bears_code(entry.name):
            with entry.open() as file:
                files[entry.name] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return BundleContent(dict(sorted(files.items())))


def _bears_code(name: str) -> bool:
    top, below, _ = name.partition("/")
    if top == "training":  # the state of a training; what runs there is Python alone
        return name.endswith((".py", ".pyc"))
    if (below and top in _FOLDERS) or name.lower().endswith(_CODE):
        return True
    return name != RECORD and not (below and top in _DATA) and name.lower().endswith(_CONFIGS)


# ---- what is remembered


def trust_file() -> Path:
    """Where trust is remembered: MEDKIT_TRUST, else `medkit/trust.json` in the user's state folder."""
    if given := os.environ.get("MEDKIT_TRUST"):
        return Path(given).absolute()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state).absolute() / "medkit" / "trust.json"


def remembered() -> list[dict[str, Any]]:
    """What the user trusted, the latest last. Raises UsageError for a file that cannot be read."""
    path = trust_file()
    try:
        bundles = json.loads(path.read_bytes())["bundles"]
        if not all(isinstance(b["sha256"], str) and isinstance(b["files"], dict) for b in bundles):
            raise TypeError
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; trust is remembered there") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path}: cannot be read as what was trusted; remove it, and --trust again") from None
    return list(bundles)


def is_trusted(root: Path) -> bool:
    """Whether the content of a bundle was trusted before."""
    found = remembered()
    return bool(found) and fingerprint(root).sha256 in {b["sha256"] for b in found}


def remember(root: Path, now: BundleContent | None = None) -> str:
    """Trusts what a bundle holds now; gives the sha256 that is remembered. Raises OSError where it cannot be written.

    `now` is the fingerprint, where it was just taken.
    """
    now = now or fingerprint(root)
    path = trust_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(path.with_name(f".{path.name}.lock")):
        kept = [b for b in remembered() if b["sha256"] != now.sha256]
        kept.append({"sha256": now.sha256, "root": str(root), "files": dict(now.files)})
        write_atomically(path, json.dumps({"bundles": kept}, indent=1) + "\n")
    return now.sha256


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# ---- the gate


def admit(root: Path, *, trust: bool, shown: Path | None = None) -> None:
    """Lets the code of a bundle that no plugin brings run, or not.

    `trust` is the user's word, and is remembered; `shown` is what the user calls it, where that is not its folder.
    Raises UsageError without it for a bundle that was not trusted before or has changed since.
    """
    now = fingerprint(root)
    if not trust and now.sha256 not in {b["sha256"] for b in remembered()}:
        raise UsageError(_refusal(shown or root, now))
    if trust:
        try:
            remember(root, now)
        except OSError as error:
            log.warning("%s: %s; --trust holds for this run alone", trust_file(), error.strerror)
    # bytecode that Python writes beside a bundle's modules would make it a changed one
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def _refusal(root: Path, now: BundleContent) -> str:
    before = [b for b in remembered() if b.get("root") == str(root)]
    look = f"look at it with medkit bundle audit {root}"
    if not before:
        return f"{root}: its configs run code, and no installed plugin brings it; {look}, and --trust it"
    return f"{root}: {changes(before[-1]['files'], now.files)} since you trusted it; {look}, and --trust it"


def changes(before: Mapping[str, str], now: Mapping[str, str], most: int = 5) -> str:
    """What differs between two sets of files, in words.

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
