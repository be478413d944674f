"""A bundle's configs as plain data, its own code on `sys.path`, and errors of both in one line.

Reading executes nothing.
"""

from __future__ import annotations

import importlib
import json
import logging
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import BundleError, InputError, MedkitError

if TYPE_CHECKING:
    from medkit.bundles.bundle import Bundle

MAX_VALUES = 200_000
"""Largest number of values that `walk` visits: aliases in YAML can stand for more than there is time for."""
MAX_DEPTH = 200
"""Deepest nesting that `walk` follows: an alias in YAML can contain itself."""


# ---- as data


def read_config(path: Path) -> Any:
    """Return a config as plain data; expressions and references stay text. Raises BundleError."""
    try:
        return read_data(path.read_bytes(), path.name)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    except Exception as error:  # yaml's errors share no base class with json's
        form = "JSON" if path.suffix == ".json" else "YAML"
        raise BundleError(f"{path}: cannot be read: not valid {form}: {error}") from None


def read_data(content: bytes, name: str) -> Any:
    """Return a JSON or YAML file called `name` as plain data. Raises ValueError, RecursionError and yaml.YAMLError.

    YAML's tags for Python objects are an error.
    """
    if name.lower().endswith(".json"):
        return json.loads(content)
    import yaml

    return yaml.safe_load(content)


def walk(content: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value of a config with its place, from the top down in the order of the file.

    A place is the keys and list indices that lead to the value; `"::".join(place)` is MONAI's id of it.
    Raises BundleError for a config with more than `MAX_VALUES` values or `MAX_DEPTH` levels.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for count in range(MAX_VALUES + 1):
        if not waiting:
            return
        place, value = waiting.pop()
        yield place, value
        items: Sequence[tuple[Any, Any]] = ()
        if isinstance(value, dict):
            items = [*value.items()]
        elif isinstance(value, list):
            items = [*enumerate(value)]
        if len(place) > MAX_DEPTH or count + len(waiting) + len(items) > MAX_VALUES:
            break
        waiting += [((*place, str(key)), part) for key, part in reversed(items)]
    raise BundleError("a config that is nested too deeply, or that has too many values to look at")


def class_name(node: Any) -> str:
    """Return the name of the class that a value of a config describes an object of, without its module; else ''."""
    return str(node.get("_target_", "")).rpartition(".")[2] if isinstance(node, dict) else ""


# ---- the bundle's own code


def build_without_monai(bundle: Bundle, config: Mapping[str, Any], name: str) -> Any | None:
    """Build the object that a config, read as data, describes under the id `name`, without MONAI's slow import.

    Returns None if only MONAI can build it: its class is not part of the bundle's own code, or one of its arguments is
    neither a plain value nor a reference to one.
    """
    node = config.get(name)
    package, _, kind = str(node.get("_target_", "") if isinstance(node, dict) else "").rpartition(".")
    if not isinstance(node, dict) or not package or not (bundle.root / package).is_dir():
        return None
    given = {key: value for key, value in node.items() if key != "_target_"}
    plain = {k: config.get(v[1:]) if isinstance(v, str) and v.startswith("@") else v for k, v in given.items()}
    if any(isinstance(value, str | dict | None) for value in plain.values()):
        return None
    put_code_first(bundle.root)
    return getattr(importlib.import_module(package), kind)(**plain)


def put_code_first(root: Path) -> None:
    """Put a bundle's root first on `sys.path`, and forget modules of another bundle, which often have the same name."""
    here = str(root)
    sys.path[:] = [here, *(p for p in sys.path if p != here)]
    own = {p.stem for p in root.iterdir() if (p / "__init__.py").is_file() or p.suffix == ".py"}
    for name in [m for m in sys.modules if m.partition(".")[0] in own]:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if not file.startswith(here):
            del sys.modules[name]
    importlib.invalidate_caches()


# ---- what MONAI reports


def silence_monai() -> None:
    """Silence MONAI's messages about choices that are not the user's."""
    # that logging_file is False
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    # that NVIDIA's DICOM decoder, which medkit does not use, is not installed
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
    # that it samples with torch's own function
    warnings.filterwarnings("ignore", "monai.networks.blocks.Warp")


def own_error(error: BaseException) -> MedkitError | None:
    """Return the MedkitError that an object of a config raised, from below MONAI's errors about it, if there is one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MedkitError):
        cause = cause.__cause__
    return cause


def one_line(error: BaseException) -> str:
    """Return an error and its first cause in one line; for a missing package, only a sentence about that package."""
    parts, cause = [], error
    while True:
        if missing := re.search(r"No module named '(\w+)'", str(cause)):
            return f"needs the Python package {missing[1]}, which is not installed"
        if isinstance(cause, pickle.UnpicklingError):
            return "a file to load holds more than weights (weights_only=True refuses it)"
        text = " ".join(f"{type(cause).__name__}: {cause}".split())
        parts.append(text if len(text) < 300 else text[:300] + " ...")
        if cause.__cause__ is None or isinstance(cause.__cause__, InputError):
            return ", because of ".join(dict.fromkeys(parts[:1] + parts[-1:]))
        cause = cause.__cause__
