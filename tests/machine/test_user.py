"""A user without a name or a home."""

from __future__ import annotations

import getpass
import os
import pwd
from pathlib import Path

import pytest

from medkit.machine.user import NO_HOME, give_matplotlib_a_folder, name_unknown_user

VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable names the user, and the system knows none."""

    def unknown(number: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set below is undone as well
        monkeypatch.delenv(name)
    return monkeypatch


def test_an_unknown_user_gets_a_name_and_a_home(nobody: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        getpass.getuser()
    name_unknown_user()
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert Path.home() == Path(NO_HOME)


def test_what_is_given_stays(nobody: pytest.MonkeyPatch) -> None:
    nobody.setenv("USER", "ada")
    nobody.setenv("HOME", "/home/ada")
    name_unknown_user()
    assert getpass.getuser() == "ada"
    assert Path.home() == Path("/home/ada")
    nobody.delenv("USER")
    name_unknown_user()
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert Path.home() == Path("/home/ada")


def test_a_known_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    name_unknown_user()
    assert not set(VARIABLES) & set(os.environ)


def test_matplotlib_has_a_folder_where_home_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    give_matplotlib_a_folder()
    assert "MPLCONFIGDIR" not in os.environ
    (tmp_path / "home").touch()  # a home that is a file cannot be written, also by root
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    give_matplotlib_a_folder()
    assert os.access(os.environ["MPLCONFIGDIR"], os.W_OK)
