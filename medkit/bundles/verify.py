"""Whether a bundle keeps what it promises: `medkit bundle verify`.

What can be seen is looked at here; what has to run runs in a process of its own (`medkit.bundles.checks`), so that a
crash of one check, even of the process, does not keep the others from being made.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from medkit.bundles.archive import is_junk
from medkit.bundles.bundle import CONFIG_SUFFIXES, read_metadata
from medkit.bundles.store import bundle_files, missing_files
from medkit.errors import BundleError

METADATA_KEYS = (
    "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors", "copyright",
    "network_data_format",
)  # fmt: skip
"""Keys of a bundle's `configs/metadata.json` (MONAI Bundle Specification)."""
TENSOR_KEYS = (
    "type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def",
)  # fmt: skip
"""Keys of every tensor in `network_data_format`."""
_ABSOLUTE_PATH = re.compile(r"""(?:^|(?<!\+)(?<!\+\s)['"])(?:/\w[\w.-]*(?:/|$)|~/|[A-Za-z]:\\)""")
"""A path of one machine; `@bundle_root + '/models/model.pt'` is none, since its quote follows a plus."""

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
    """All checks of a bundle, each as soon as it is made. Runs the bundle's code: ask `medkit.bundles.safety.trust` first."""
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
    from medkit.bundles.config import read_data

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
            [sys.executable, "-m", "medkit.bundles.checks", str(writer), str(root), *names],
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


def bundle_problems(root: Path) -> Iterator[str]:
    """What a MONAI bundle lacks: files, metadata keys, configs that parse, paths that work on another machine."""
    for name in ("LICENSE", "docs/README.md", "configs/metadata.json"):
        if not (root / name).is_file():
            yield f"{root}: no {name}"
    if not [p for p in root.glob("configs/inference.*") if p.suffix in (".json", ".yaml", ".yml")]:
        yield f"{root}: no configs/inference.json (or .yaml)"
    for path in sorted(root.glob("configs/*.json")):
        try:
            config = json.loads(path.read_bytes())
        except ValueError as error:
            yield f"{path}: no JSON: {error}"
            continue
        yield from (f"{path}: absolute path in {text!r}" for text in absolute_paths(config))
        if path.name == "metadata.json":
            yield from (f"{path}: {problem}" for problem in _metadata_problems(config))


def absolute_paths(config: Any) -> Iterator[str]:
    """The texts of a config that name a path of one machine."""
    return (text for text in _texts(config) if _ABSOLUTE_PATH.search(text))


def _metadata_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"no key {key}" for key in METADATA_KEYS if key not in metadata)
    if not {"required_packages_version", "optional_packages_version"} & set(metadata):
        yield "no key required_packages_version"
    tensors = metadata.get("network_data_format", {})
    for side in ("inputs", "outputs"):
        if not tensors.get(side):
            yield f"network_data_format has no {side}"
        for name, tensor in tensors.get(side, {}).items():
            yield from (f"network_data_format: {side} {name} has no {key}" for key in TENSOR_KEYS if key not in tensor)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
