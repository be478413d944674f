"""`medkit bundle verify`: whether a bundle is complete and works as its metadata state.

Checks that only read files are made here. Those that run the bundle's code run in a process of their own
(`medkit.bundles.checks`), so that a crash of that process does not keep the other checks from being made.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from medkit.bundles.archive import is_junk
from medkit.bundles.bundle import CONFIG_SUFFIXES, missing_files, read_metadata
from medkit.bundles.checks.subject import Note
from medkit.bundles.config import read_data, walk
from medkit.bundles.store import bundle_files
from medkit.bundles.zoo_rules import zoo_notes
from medkit.errors import BundleError

_ABSOLUTE_PATH = re.compile(r"""(?:^|(?<!\+)(?<!\+\s)['"])(?:/\w[\w.-]*(?:/|$)|~/|[A-Za-z]:\\)""")
"""A path of one machine; `@bundle_root + '/models/model.pt'` is not one, since its quote follows a plus."""

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
SECONDS = 900
"""Longest time that a check that runs the bundle may take."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    """One of `READ` and `RUN`."""
    status: str
    """`ok`, `failed` or `skipped`."""
    messages: tuple[str, ...]
    """What was checked, everything that is wrong, what only MONAI's zoo asks for, or why nothing could be checked."""


def verify_bundle(
    root: Path, skip: Collection[str] = (), begins: Callable[[str], None] = lambda name: None
) -> Iterator[Check]:
    """Make all checks of a bundle but those in `skip`, and yield each as soon as it is done.

    `begins` is called with the name of a check that runs the bundle before it is made. The bundle's code has to be
    trusted (see `medkit.bundles.safety.trust`).
    """
    for name in READ:
        if name not in skip:
            yield check_files(name, root)
    yield from _run_apart(root, [name for name in RUN if name not in skip], begins)


def bundle_problems(root: Path) -> Iterator[str]:
    """Yield what is wrong with a bundle's files, metadata and configs, found without running it.

    Stricter than `verify_bundle`: a bundle that a plugin brings must not name paths of one machine as settings either.
    """
    for name in READ:
        check = check_files(name, root)
        if check.status == FAILED:
            yield from (f"{root}: {message}" for message in check.messages)
    for path, data in _readable_configs(root):
        settings = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
        yield from (f"{path}: absolute path in {text!r}" for text in _absolute_paths(settings))


# ---- checks that only read files


def check_files(name: str, root: Path) -> Check:
    """Make one of the checks `READ`."""
    problems, success = READ[name]
    try:
        found = tuple(problems(root))
    except Exception as error:  # one check must not stop the others
        found = (f"{type(error).__name__}: {error}",)
    wrong = any(not isinstance(message, Note) for message in found)
    return Check(name, FAILED if wrong else OK, tuple(map(str, found)) or (success,))


def _file_problems(root: Path) -> Iterator[str]:
    yield from (f"no {name}" for name in missing_files(root, weights=False))
    try:
        bundle_files(root)
    except BundleError as error:
        yield str(error)


def _metadata_problems(root: Path) -> Iterator[str]:
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
        yield f"changelog: has no entry for version {metadata.get('version')}"


def _config_problems(root: Path) -> Iterator[str]:
    for path, data in _readable_configs(root):
        if isinstance(data, Exception):
            yield f"{path.name}: cannot be read: {' '.join(str(data).split())[:200]}"
            continue
        # a string at the top is a setting such as dataset_dir, which the user of the bundle replaces
        nested = [value for value in data.values() if not isinstance(value, str)] if isinstance(data, dict) else data
        yield from (f"{path.name}: absolute path in {text!r}" for text in _absolute_paths(nested))


def _zoo_notes(root: Path) -> Iterator[Note]:
    return (Note(f"MONAI's model zoo would ask for more: {text}") for text in zoo_notes(root))


def _readable_configs(root: Path) -> Iterator[tuple[Path, Any]]:
    """Yield each config of a bundle with its content, or with the error of one that cannot be read."""
    for path in sorted((root / "configs").glob("*")):
        if path.suffix in CONFIG_SUFFIXES and not is_junk(path.name):
            try:
                yield path, read_data(path.read_bytes(), path.name)
            except Exception as error:  # yaml's errors share no base class with json's
                yield path, error


def _absolute_paths(config: Any) -> Iterator[str]:
    """Yield the texts of a config that name a path of one machine."""
    return (text for _, text in walk(config) if isinstance(text, str) and _ABSOLUTE_PATH.search(text))


READ: Mapping[str, tuple[Callable[[Path], Iterator[str]], str]] = {
    "files": (_file_problems, "all required files exist, under names that any system can hold"),
    "metadata": (
        _metadata_problems,
        "as the MONAI Bundle Specification requires; the changelog has an entry for the version",
    ),
    "configs": (_config_problems, "all can be read; paths of one machine are settings only"),
    "zoo": (_zoo_notes, "has what MONAI's model zoo asks for"),
}
"""Checks that only read files: name -> function, which yields what is wrong, and a sentence if nothing is."""
RUN = ("references", "properties", "in_out", "weights", "export", "case")
"""Checks that run the bundle's code (see `medkit.bundles.checks.outcomes`)."""


# ---- checks that run the bundle's code


def _run_apart(root: Path, names: Sequence[str], begins: Callable[[str], None]) -> Iterator[Check]:
    """Make checks in a child process; if it dies, the check it was at has failed, and another child goes on."""
    left = list(names)
    while left:
        at, last_words, began = None, "", 0.0
        with tempfile.TemporaryDirectory(prefix="medkit-verify-") as folder:
            for line in _child(root, left, Path(folder)):
                if "begin" in line:
                    at, began = line["begin"], time.monotonic()
                    begins(line["begin"])
                else:
                    yield Check(line["name"], line["status"], tuple(line["messages"]))
                    left.remove(line["name"])
                    at = None
            last_words = _last_line(Path(folder) / "log")
        if left:
            died = at or left[0]
            why = f"its process died{': ' + last_words if last_words else ''}"
            if at and time.monotonic() - began >= SECONDS:
                why = f"was stopped after {SECONDS} s; --skip {died} leaves it out"
            yield Check(died, FAILED, (why,))
            left.remove(died)


def _child(root: Path, names: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Start the child in a scratch folder and yield what it reports, line by line."""
    reader, writer = os.pipe()
    # relative paths of configs are those of the bundle; what its code writes to such a path stays out of it
    (folder / "work").mkdir()
    for entry in root.iterdir():
        (folder / "work" / entry.name).symlink_to(entry)
    paths = [p for p in (*sys.path, os.environ.get("PYTHONPATH", "")) if p]
    environment = os.environ | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)),
    }
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "medkit.bundles.checks", str(writer), str(root), *names],
            cwd=folder / "work",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
            start_new_session=True,
        )
        os.close(writer)
        watch = threading.Timer(SECONDS, _kill, [process])
        try:
            with open(reader, encoding="utf-8") as lines:
                for report in _reports(lines):
                    watch.cancel()
                    if "begin" in report:
                        watch = threading.Timer(SECONDS, _kill, [process])
                        watch.start()
                    yield report
        finally:
            watch.cancel()
            if process.poll() is None and sys.exc_info()[0] is not None:
                _kill(process)
            process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and those that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _reports(lines: IO[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # cut off when the process died
            return


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1][:300] if lines else ""
