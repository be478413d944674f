"""A bundle's configs: reading them as data, walking over them, and what MONAI says of them in one line."""

from __future__ import annotations

import json
import logging
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medkit.errors import BundleError, InputError, MedkitError


def silence_monai() -> None:
    """Silences what monai says about choices that are not the user's."""
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # that logging_file is False
    # that NVIDIA's DICOM decoder, which nobody asked for, is not installed
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
    warnings.filterwarnings("ignore", "monai.networks.blocks.Warp")  # that it samples by torch


def own_error(error: BaseException) -> MedkitError | None:
    """What an object of a config says itself is wrong, below MONAI's errors about it; None where it says nothing."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MedkitError):
        cause = cause.__cause__
    return cause


def one_line(error: BaseException) -> str:
    """An error and what caused it, in a line; for a package that is not installed, its name alone."""
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


def read_config(path: Path) -> Any:
    """A config's content as text says it. Raises BundleError."""
    try:
        if path.suffix == ".json":
            return json.loads(path.read_bytes())
        import yaml

        return yaml.safe_load(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    except Exception as error:  # yaml's errors share no base with Python's
        raise BundleError(f"{path}: no YAML: {error}") from None


def walk(content: Any) -> Iterator[Any]:
    """A config's nodes, from the top."""
    yield content
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from walk(part)


def read_data(content: bytes, name: str) -> Any:
    """A JSON or YAML file as plain data. Raises ValueError, RecursionError and yaml.YAMLError.

    YAML's tags for Python objects are an error.
    """
    if name.lower().endswith(".json"):
        return json.loads(content)
    import yaml

    return yaml.safe_load(content)
