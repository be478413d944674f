"""Fixtures shared by the tests."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from outcome import Outcome, in_this_process
from places import HELPERS, PLUGINS, REPOSITORY, SHARED


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of pytest-xdist's processes, which share the cores; torch reads this when it is imported."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Re-encode what a test printed as UTF-8: pytest-xdist cannot pass on file names in another encoding."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans next to the checkout; tests that need it are skipped if it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real scans are not at {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def home_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new home for the session, also for subprocesses: nothing reaches the home of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        yield _new_home(tmp_path_factory, patch)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new home for each test, where no bundle is installed or trusted."""
    return _new_home(tmp_path_factory, monkeypatch)


def _new_home(folders: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    folder = folders.mktemp("home")
    for name in ("MEDKIT_TRUST", "MEDKIT_BUNDLES"):
        patch.delenv(name, raising=False)
    for name in ("DATA", "STATE"):
        patch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
    # a bundle that is admitted turns these off for the rest of the process
    patch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    patch.setenv("PYTHONDONTWRITEBYTECODE", os.environ.get("PYTHONDONTWRITEBYTECODE", ""))
    return folder


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of medkit and of schedulers."""
    for name in list(os.environ):
        if name.startswith(("MEDKIT_", "SLURM_", "SGE_", "LSB_", "PBS_", "OMP_NUM", "TOY_")):
            monkeypatch.delenv(name)


@pytest.fixture
def clean_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that run bundles, which put their roots on sys.path."""
    import zoo

    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    zoo.forget_scripts()


@pytest.fixture
def toy(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run `medkit` with the plugin of `toy.py` in this process: toy("run", "double", path, input="...", env={})."""
    import toy as plugin

    from medkit import plugins
    from medkit.commands import plugins as listing

    for module in (plugins, listing):  # toy.main replaces them
        monkeypatch.setattr(module, "registry", plugins.registry)

    return in_this_process(plugin.main)


@pytest.fixture
def medkit(clean_environment: None) -> Callable[..., Outcome]:
    """Run `medkit` in this process, with the installed plugins: medkit("run", "segment", path)."""
    from medkit import cli

    return in_this_process(cli.main)


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `medkit` script that has the toy plugin."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "medkit"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m toy "$@"\n')
    script.chmod(0o755)
    return folder


@pytest.fixture
def shell_environment(clean_environment: None, toy_path: Path) -> dict[str, str]:
    """The environment of real shells: `medkit` has the toy plugin."""
    folders = [str(HELPERS), str(REPOSITORY), str(PLUGINS)]
    return {
        **os.environ,
        "PATH": f"{toy_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(folders),
        "PYTHONWARNINGS": "error",
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture
def shell(shell_environment: dict[str, str], tmp_path: Path) -> Callable[..., Outcome]:
    """Run a line of bash with pipefail in `tmp_path`: shell("ls *.nii.gz | medkit run double")."""

    def run(line: str, *, env: dict[str, str] | None = None, **settings: Any) -> Outcome:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=tmp_path,
            env=shell_environment | (env or {}),
            capture_output=True,
            timeout=120,
            stdin=settings.pop("stdin", subprocess.DEVNULL),
            **settings,
        )
        return Outcome(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    return run


@pytest.fixture
def start(shell_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `medkit ARGUMENTS` in `tmp_path` and leave it running, its three streams piped."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "toy", *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=shell_environment,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            bufsize=1,
            start_new_session=True,  # so that a signal can go to it and all its children, as from a terminal
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., Path]:
    """Write a small image: scan("a/T1.nii.gz", seed=1)."""
    from medkit.images.phantom import make_image

    def write(name: str, *, seed: int = 0, **settings: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return make_image(path, (18, 16, 12), (4.0, 4.5, 6.0), seed=seed, **settings)

    return write


@pytest.fixture
def blob(tmp_path: Path) -> Callable[..., Path]:
    """Write a file for tasks that only copy bytes: blob("a.nii.gz"); its content depends on its name."""

    def write(name: str, content: str | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name if content is None else content))
        return path

    return write
