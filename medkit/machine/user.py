"""The user of this process, who may be unknown: a container may run as a number without a name or a home."""

from __future__ import annotations

import os
import pwd

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
