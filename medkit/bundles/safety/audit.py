"""`medkit bundle audit`: what a bundle could do once it runs, found without running any of it.

Configs are read as data. An empty list does not prove that a bundle is harmless; the findings are places to look at.
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medkit.bundles.archive import Entry, bundle_root_in, folder_entries, open_zip, printable, problems, zip_entries
from medkit.bundles.config import read_data, walk
from medkit.bundles.exported import is_exported, unpack_exported
from medkit.bundles.safety.pickles import weight_risks
from medkit.errors import BundleError

KINDS = {
    "import": "`$import`: loads a module",
    "call": "an expression that calls something other than torch, monai, numpy or a plain function of Python",
    "expression": "any other `$` expression",
    "target": "a `_target_` that is not from torch or monai, or that loads or runs its arguments",
    "macro": "a `%` that includes another file",
    "python": "a file of code",
    "weights": "weights that torch.load(weights_only=True) refuses, or that are a program",
    "logging": "a logging configuration: Python evaluates its arguments",
    "file": "a link, a device, an unsafe or repeated name, an excessive size",
    "unreadable": "a config that cannot be read as data",
}
"""Kind of finding -> what it is."""

MAX_CONFIG = 16 << 20
"""Largest config that is read, in bytes."""

_CONFIGS = (".json", ".yaml", ".yml")
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".whl", ".egg", ".exe", ".ipynb")
_WEIGHTS = (".pt", ".pth", ".ts", ".ckpt", ".pkl", ".pickle", ".bin", ".npy", ".npz")


@dataclass(frozen=True)
class Finding:
    """A part of a bundle to look at."""

    file: str
    """Path below the bundle's root."""
    id: str
    """Id in a config, such as `train::trainer`; line of a logging configuration; else empty."""
    kind: str
    """One of `KINDS`."""
    text: str
    """The text found there, or a sentence about it."""


def audit_bundle(path: Path) -> list[Finding]:
    """Return everything in a bundle's folder or file that should be looked at before the bundle is trusted.

    Raises InputError if `path` is a file but not a zip, and as `unpack_exported` does.
    """
    if path.is_dir():
        return _audit(list(folder_entries(path)), None)
    if is_exported(path):
        with tempfile.TemporaryDirectory(prefix="medkit-bundle-") as folder:
            return _audit(list(folder_entries(unpack_exported(path, Path(folder), link=False))), None)
    with open_zip(path) as archive:
        return _audit(list(zip_entries(archive)), path.stat().st_size)


def _audit(entries: list[Entry], archive_bytes: int | None) -> list[Finding]:
    found = [Finding("", "", "file", p) for p in problems(entries, archive_bytes)]
    try:
        prefix = bundle_root_in(e.name for e in entries)
    except BundleError as error:
        found.append(Finding("", "", "file", str(error)))
        prefix = ""
    entries = [replace(e, name=e.name.removeprefix(prefix)) for e in entries]
    for entry in sorted(entries, key=lambda e: e.name):
        if entry.kind == "file":  # the target of a link is not part of the bundle, and a device may never end
            found += _findings(entry)
    return found


def _findings(entry: Entry) -> Iterable[Finding]:
    suffix = "." + entry.name.lower().rpartition(".")[2]
    try:
        if suffix in _CONFIGS:
            yield from _config_findings(entry, _content(entry))
        elif suffix in _CODE:
            yield Finding(entry.name, "", "python", f"{entry.size} bytes of code")
        elif suffix in _WEIGHTS or entry.name.startswith("models/"):
            with entry.open() as file:
                yield from (Finding(entry.name, "", "weights", risk) for risk in weight_risks(file, entry.name))
        elif suffix in (".conf", ".ini", ".cfg"):
            yield from _logging_findings(entry.name, _content(entry).decode(errors="replace"))
    except Exception as error:  # a file that no reader can read is a finding; the others are still looked at
        yield Finding(entry.name, "", "unreadable", printable(f"{type(error).__name__}: {error}")[:300])


def _content(entry: Entry) -> bytes:
    if entry.size > MAX_CONFIG:
        raise ValueError(f"{entry.size} bytes, expected at most {MAX_CONFIG} for a config")
    with entry.open() as file:
        return file.read(MAX_CONFIG + 1)


# ---- configs


def _config_findings(entry: Entry, content: bytes) -> Iterator[Finding]:
    for place, value in walk(read_data(content, entry.name)):
        if isinstance(value, str) and (kind := _kind_of(value, place[-1] if place else "")):
            yield Finding(entry.name, "::".join(place), kind, value)


def _kind_of(text: str, key: str) -> str | None:
    if key == "_target_":
        return "target" if text.startswith("$") or is_foreign(text) else None
    if text.startswith("$"):
        return _expression_kind(text[1:])
    # `%id` is another place in the same file; another file has a suffix or a folder
    path = re.split(r"::|#", text[1:])[0] if text.startswith("%") else ""
    return "macro" if re.search(r"[./\\]", path) and "@" not in path else None


_LOADERS = re.compile(
    r"load|loads|load_\w+|download\w*|run\w*|spawn|start_processes|compile|script|import\w*|optional_import|exec|eval"
    r"|fork\w*|system|popen|Popen|call|check_output|get_parsed_content|instantiate|create_workflow|extract\w*|save\w*"
)
_OTHERS = {"np", "numpy", "nib", "yaml", "PIL", "pd", "cuda_rt", "builtins", "hub", "cpp_extension", "package", "ops"}
_PYTHON = frozenset(sys.stdlib_module_names) - {
    "types", "random", "profiler", "signal", "json", "distributed", "optim", "test",
}  # fmt: skip


def is_foreign(target: str) -> bool:
    """Return whether a `_target_` is not a class of torch or monai, or is one of their functions that run arguments.

    >>> is_foreign("UNet"), is_foreign("torch.optim.Adam"), is_foreign("torch.os.system"), is_foreign("scripts.Net")
    (False, False, True, True)
    """
    first, *rest = target.split(".")
    if not rest:
        return bool(_LOADERS.fullmatch(first)) or not first.isidentifier()
    if first not in ("torch", "monai") or any(not part.isidentifier() or part.startswith("_") for part in rest):
        return True
    # modules keep what they import as attributes, so torch.os is Python's os
    return bool(set(rest) & (_PYTHON | _OTHERS) or _LOADERS.fullmatch(rest[-1]))


_PLAIN = {
    "abs", "all", "any", "bool", "dict", "enumerate", "filter", "float", "int", "isinstance", "len", "list", "map",
    "max", "min", "print", "range", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "zip",
}  # fmt: skip


def _expression_kind(expression: str) -> str:
    """Return `import`, `call` or `expression`, by the syntax tree; text that cannot be parsed counts as a call."""
    code = re.sub(r"@+#*[\w:#]*|%[\w:#.]+", "reference_", expression.strip())
    if re.match(r"(import|from)\s", code):
        return "import"
    try:
        tree = ast.parse(code, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "call"
    return "expression" if all(_is_plain(node) for node in ast.walk(tree)) else "call"


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
        return False
    if not isinstance(node, ast.Call):
        return True
    name = ast.unparse(node.func)
    if "reference_" in name.split(".")[0]:  # a method of an object that the config builds, which is listed or known
        return True
    if name.split(".")[0] in ("torch", "monai"):
        return not is_foreign(name)
    if isinstance(node.func, ast.Attribute) and not re.fullmatch(r"\w+(\.\w+)*", name):
        return not _LOADERS.fullmatch(node.func.attr)  # a method of a value, such as x[x > 0].flatten()
    return name in _PLAIN


# ---- logging


_HARMLESS_ARGUMENTS = re.compile(r"\(\s*(sys\.(stdout|stderr)\s*,?|(['\"])[\w. -]*\3\s*,?)?\s*\)")


def _logging_findings(name: str, text: str) -> Iterator[Finding]:
    """Yield handlers whose class or arguments are more than a stream or a plain file name."""
    for number, line in enumerate(text.splitlines(), start=1):
        key, _, value = (part.strip() for part in line.partition("="))
        is_harmless = {
            "args": _HARMLESS_ARGUMENTS.fullmatch,
            "kwargs": re.compile(r"\{\s*\}").fullmatch,
            "class": re.compile(r"(logging\.)?(StreamHandler|FileHandler|NullHandler|Formatter)").fullmatch,
        }.get(key)
        if is_harmless and not is_harmless(value):
            yield Finding(name, f"line {number}", "logging", line.strip())
