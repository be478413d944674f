"""Whether a bundle keeps what it promises: `medkit bundle verify`.

What can be seen is looked at here; what has to run runs in a process of its own (`medkit.verify_checks`), so that a
crash of one check, even of the process, does not keep the others from being made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from medkit.bundle import CONFIG_SUFFIXES, absolute_paths, read_metadata
from medkit.bundle_files import is_junk
from medkit.bundle_store import bundle_files, missing_files
from medkit.errors import BundleError

SEEN = ("files", "metadata", "configs")
"""The checks that run nothing of the bundle."""
RUN = ("references", "properties", "in_out", "weights", "export", "case")
"""The checks that run it."""

OK, FAILED, SKIPPED = "ok", "failed", "skipped"


@dataclass(frozen=True)
class Check:
    """What came of one check."""

    name: str
    """One of `SEEN` and `RUN`."""
    status: str
    """`ok`, `failed` or `skipped`."""
    messages: tuple[str, ...]
    """What was checked, everything that is wrong, or why nothing could be checked."""


def verify(root: Path) -> Iterator[Check]:
    """All checks of a bundle, each as soon as it is made. Runs the bundle's code: ask `medkit.trust` first."""
    for name in SEEN:
        yield _seen(name, root)
    yield from _run_apart(root, RUN)


# ---- what is seen


def _seen(name: str, root: Path) -> Check:
    look: dict[str, Callable[[Path], Iterator[str]]] = {"files": _files, "metadata": _metadata, "configs": _configs}
    done = {
        "files": "all required files are there, under names that any system can hold",
        "metadata": "as the MONAI Bundle Specification asks; the version is in the changelog",
        "configs": "all can be read, and name no path of one machine but as settings",
    }
    try:
        found = tuple(look[name](root))
    except Exception as error:  # one check must not stop the others
        found = (f"{type(error).__name__}: {error}",)
    return Check(name, FAILED if found else OK, found or (done[name],))


def _files(root: Path) -> Iterator[str]:
    yield from (f"no {name}" for name in missing_files(root) if not name.startswith("models/"))
    try:
        bundle_files(root)
    except BundleError as error:
        yield str(error)


def _metadata(root: Path) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    try:
        metadata = read_metadata(root)
    except BundleError as error:
        yield str(error)
        return
    schema = json.loads((files("medkit") / "schemas" / "metadata.json").read_bytes())
    for problem in sorted(Draft202012Validator(schema).iter_errors(metadata), key=lambda e: e.json_path):
        yield f"{problem.json_path.removeprefix('$.')}: {problem.message}"[:300]
    changelog = metadata.get("changelog")
    if isinstance(changelog, dict) and metadata.get("version") not in changelog:
        yield f"changelog: says nothing about version {metadata.get('version')}"


def _configs(root: Path) -> Iterator[str]:
    from medkit.audit import read_data

    for path in sorted((root / "configs").glob("*")):
        if path.suffix in CONFIG_SUFFIXES and not is_junk(path.name):
            try:
                data = read_data(path.read_bytes(), path.name)
            except Exception as error:  # whatever the two parsers raise
                yield f"{path.name}: cannot be read: {' '.join(str(error).split())[:200]}"
                continue
            # one at the top is a setting such as dataset_dir, which whoever runs the bundle gives anew
            nested = [v for v in data.values() if not isinstance(v, str)] if isinstance(data, dict) else data
            yield from (f"{path.name}: absolute path in {text!r}" for text in absolute_paths(nested))


# ---- what is run


def _run_apart(root: Path, names: Sequence[str]) -> Iterator[Check]:
    """The checks in a child process; where it dies, the check it was at has failed, and another child goes on."""
    left = list(names)
    while left:
        at, last_words = None, ""
        with tempfile.TemporaryDirectory(prefix="medkit-verify-") as folder:
            for line in _child(root, left, Path(folder)):
                if "begin" in line:
                    at = line["begin"]
                else:
                    yield Check(line["name"], line["status"], tuple(line["messages"]))
                    left.remove(line["name"])
                    at = None
            last_words = _last_line(Path(folder) / "log")
        if left:
            died = at or left[0]
            yield Check(died, FAILED, (f"its process died{': ' + last_words if last_words else ''}",))
            left.remove(died)


def _child(root: Path, names: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Starts the child in a scratch folder and gives what it reports, line by line."""
    reader, writer = os.pipe()
    (folder / "work").mkdir()
    paths = [p for p in (*sys.path, os.environ.get("PYTHONPATH", "")) if p]
    environment = os.environ | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)),
    }
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "medkit.verify_checks", str(writer), str(root), *names],
            cwd=folder / "work",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
        )
        os.close(writer)
        try:
            with open(reader, encoding="utf-8") as lines:
                yield from _reports(lines)
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.kill()
            process.wait()


def _reports(lines: IO[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # cut off by the death of the process
            return


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1][:300] if lines else ""
