"""The user of this process, who may be unknown: a container may run as a number without a name or a home."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Variables in which `getpass.getuser` looks for the user's name."""
NO_HOME = "/nonexistent"
"""The home of a user who has none, as in Debian; libraries find nothing there, and write nothing on most machines."""


def name_unknown_user() -> None:
    """Give the user a name and a home by way of the environment, if the system knows none.

    Libraries ask for them when they are imported (torch for the name of a folder for its cache), and fail otherwise.
    """
    named, at_home = any(map(os.environ.get, _NAMES)), "HOME" in os.environ
    if named and at_home:
        return
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        if not named:
            os.environ["LOGNAME"] = f"uid{os.getuid()}"
        os.environ.setdefault("HOME", NO_HOME)


def give_matplotlib_a_folder() -> None:
    """Name a folder for matplotlib by way of the environment, if its own cannot be made; it would warn in four lines.

    MONAI and ignite import matplotlib. The folder is removed when this process ends.
    """
    if "MPLCONFIGDIR" in os.environ:
        return
    home = Path(os.environ.get("HOME", NO_HOME))
    places = (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
    if all(_can_be_made(Path(os.environ.get(name) or home / below) / "matplotlib") for name, below in places):
        return
    import atexit
    import shutil
    import tempfile

    try:
        folder = tempfile.mkdtemp(prefix="medkit-matplotlib-")
    except OSError:  # nothing can be written anywhere
        return
    os.environ["MPLCONFIGDIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _can_be_made(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
