"""What holds while a bundle's config is opened: no network, only numbers in weights, the device and folder at hand."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medkit.bundles.config import walk


def without_downloads(config: Any) -> Iterator[tuple[str, bool]]:
    """Yield id -> new value for each value that lets a library download weights, which the bundle's own replace."""
    for place, value in walk(config):
        if place and place[-1] == "pretrained" and value is True:
            yield "::".join(place), False


def root_in(config: Any, root: Path) -> str:
    """Return a bundle's folder as text for its `bundle_root`, with a slash at its end if the config's own has one."""
    stated = config.get("bundle_root") if isinstance(config, dict) else None
    return f"{root}{os.sep}" if isinstance(stated, str) and len(stated) > 1 and stated.endswith("/") else str(root)


@contextlib.contextmanager
def at_home(root: Path) -> Iterator[None]:
    """Make a bundle's folder the working directory inside the block: relative paths of its configs are meant so."""
    try:
        before = os.open(".", os.O_RDONLY)
    except OSError:  # the working directory was removed
        before = None
    os.chdir(root)
    try:
        yield
    finally:
        if before is not None:
            os.fchdir(before)
            os.close(before)


def arrays_allowed() -> Any:
    """Let torch.load read NumPy arrays of numbers among weights, such as the code of a searched architecture.

    Nothing else in a pickle is executed for them.
    """
    import numpy as np
    import torch

    make: Any = np.empty(0).__reduce__()[0]
    # the name of the module depends on the NumPy version that wrote the file
    makers = [(make, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    kinds = {type(np.dtype(letter)) for letter in "?bBhHiIlLqQefd"}
    allowed: list[Any] = [*makers, np.ndarray, np.dtype, *kinds]
    return torch.serialization.safe_globals(allowed)


@contextlib.contextmanager
def loading_onto(device: Any) -> Iterator[None]:
    """Load tensors onto a torch.device inside the block where a bundle does not say onto which, instead of theirs."""
    import torch

    load = torch.load

    def load_onto(*files: Any, **settings: Any) -> Any:
        if len(files) < 2 and settings.get("map_location") is None:
            settings["map_location"] = device
        return load(*files, **settings)

    torch.load = load_onto
    try:
        yield
    finally:
        torch.load = load


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Refuse network connections inside the block: a bundle's weights come with it or not at all."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise OSError(f"medkit downloads nothing while it runs: connection to {address} refused")

    before = socket.socket.connect
    socket.socket.connect = refuse  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        socket.socket.connect = before  # type: ignore[method-assign]
