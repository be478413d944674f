"""The packages and versions that a bundle's metadata ask for, and errors that come from other ones, in words."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import Bundle
from medkit.bundles.config import one_line
from medkit.errors import BundleError, listed

_CORE = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
"""Key of the metadata -> the package whose version it holds."""
_VERSION = re.compile(r"\d[\w.+]*")
"""A version, not a condition."""
_NO_CUDA = re.compile(
    r"not compiled with CUDA|NVIDIA driver|No CUDA GPUs|invalid device ordinal|no CUDA-capable device"
)
"""In errors of code that takes a CUDA device for granted."""
_OF_OTHER_VERSIONS = re.compile(
    r"unexpected keyword|positional argument|has no attribute|cannot import name|Cannot locate|not found in module"
)
"""In errors that usually mean that a package has another version than the author's."""


def asked_for(metadata: Mapping[str, Any], *, optional: bool = True) -> dict[str, str]:
    """Return package -> version as a bundle's metadata state them; with `optional` those too that it may do without."""
    found = {name: metadata[key] for key, name in _CORE.items() if isinstance(metadata.get(key), str)}
    for key in ("required_packages_version", *(["optional_packages_version"] if optional else [])):
        if isinstance(stated := metadata.get(key), Mapping):
            found |= stated
    return {str(name): str(text or "").strip() for name, text in found.items()}


def with_versions_here(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata in which the stated versions are the installed ones; conditions such as `>=1.3` stay."""
    packages = metadata.get("required_packages_version")
    needed = packages if isinstance(packages, Mapping) else {}
    core = {key: _plain(there) for key, name in _CORE.items() if key in metadata and (there := _installed(name))}
    here = {name: _plain(there) for name, text in needed.items()
            if _VERSION.fullmatch(str(text)) and (there := _installed(str(name)))}  # fmt: skip
    return {**metadata, **core, **({"required_packages_version": {**needed, **here}} if needed else {})}


def _plain(there: str) -> str:
    """Return a version without the build that follows its `+`."""
    return there.partition("+")[0]


def missing_packages(metadata: Mapping[str, Any], *, optional: bool = True) -> list[str]:
    """Return the packages of the metadata that are not installed."""
    return [name for name in asked_for(metadata, optional=optional) if _installed(name) is None]


def other_versions(metadata: Mapping[str, Any]) -> list[str]:
    """Return the packages whose installed version does not fit the one that the metadata state, in words.

    A version stands for all that share its first two numbers; a condition, such as `>=1.3`, for itself.
    """
    stated = asked_for(metadata, optional=False).items()
    found = [(name, text, there) for name, text in stated if (there := _installed(name)) is not None]
    return [f"{name} {text} (here: {there})" for name, text, there in found if not _fits(there, text)]


def version_notes(bundle: Bundle) -> list[str]:
    """Return a sentence about packages that a bundle needs and that are missing, and one about other versions."""
    try:
        metadata = bundle.metadata
    except BundleError:
        return []
    notes = []
    if missing := missing_packages(metadata, optional=False):
        notes.append(f"its metadata ask for {listed(missing)}, which {_are(missing)} not installed")
    if others := other_versions(metadata):
        notes.append(f"was made with {listed(others)}")
    return notes


def explained(error: BaseException, bundle: Bundle) -> str:
    """Return an error of a bundle's code in one line, with the packages or versions that it may come from."""
    text = one_line(error)
    try:
        metadata = bundle.metadata
    except BundleError:
        return text
    if missing := re.match(r"needs the Python package (\w+)", text):
        return _missing_module(missing[1], bundle.root, metadata)
    if _NO_CUDA.search(text):
        return f"{text}; its code asks for a CUDA device, which is not here"
    if _OF_OTHER_VERSIONS.search(text) and (others := other_versions(metadata)):
        return f"{text}; it was made with {listed(others)}"
    return text


def _missing_module(module: str, root: Path, metadata: Mapping[str, Any]) -> str:
    own = next((path.relative_to(root) for path in sorted(root.rglob(f"{module}.py"))), None)
    if own is not None:
        return (
            f"its code imports {module}, which is {own.as_posix()} of the bundle: expected the import of "
            f"{'.'.join(own.with_suffix('').parts)}; PYTHONPATH={own.parent} would let MONAI find it"
        )
    more = [name for name in missing_packages(metadata) if name.replace("-", "_").lower() != module.lower()]
    names = [module, *more]
    if not more:
        return f"needs the Python package {module}, which is not installed"
    return f"needs the Python package {module}, which is not installed; its metadata ask for all of {listed(names)}"


def _are(names: list[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _installed(name: str) -> str | None:
    """Return the version of an installed package; metadata name packages by distributions or by modules."""
    if name.lower() == "python":
        return platform.python_version()
    with contextlib.suppress(PackageNotFoundError, ValueError):
        return version(name)
    brought = _distributions().get(name, [])
    return version(brought[0]) if brought else None


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Return module -> distributions that bring it."""
    return packages_distributions()


def _fits(there: str, stated: str) -> bool:
    """Return whether an installed version is one that metadata state, as a version or a condition."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    with contextlib.suppress(InvalidSpecifier, InvalidVersion):
        return SpecifierSet(stated).contains(there, prereleases=True)
    length = min(len(_release(stated)), len(_release(there)))
    return _release(stated)[:length] == _release(there)[:length]


def _release(text: str) -> tuple[str, ...]:
    """Return the first two numbers of a version; of a version without numbers, nothing."""
    return tuple(re.findall(r"\d+", text.partition("+")[0])[:2])
