"""`medkit doctor`: what it finds, also where torch or a plugin is broken, and what it must not say."""

from __future__ import annotations

import getpass
import json
import platform
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from strangers import change_json, write_sound

from medkit.diagnosis import children, findings
from medkit.diagnosis.children import Child
from medkit.diagnosis.wording import Wording
from medkit.plugins import Plugin, Registry

Run = Callable[..., "Outcome"]  # noqa: F821
TORCH = {
    "version": "2.9.0", "import_seconds": 1.0, "cuda": None, "threads": 2, "cpu_capability": "AVX2", "onednn": True,
    "gpus": [], "device": "cpu", "precision": "float32",
}  # fmt: skip


def answers(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let this Python program answer instead of the one that imports torch."""
    monkeypatch.setattr(findings, "torch_facts", lambda: [sys.executable, "-c", program])
    monkeypatch.setattr(findings, "gpus_of_driver", list)


@pytest.fixture
def torch_works(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, f"print('a line of a library'); print({json.dumps(json.dumps(TORCH))})")


@pytest.mark.usefixtures("torch_works")
def test_what_it_shows(medkit: Run) -> None:
    done = medkit("doctor")
    assert done.code == 0, done.out
    assert done.lines[0] == "no problems"
    heads = [line.split()[0] for line in done.lines[1:] if line[0] != " "]
    assert heads == [
        "medkit", "packages", "processor", "memory", "threads", "torch", "auto", "plugins", "bundles", "folders",
        "settings",
    ]  # fmt: skip
    assert "segment: brain_mri_segmentation" in done.out
    assert "--device cpu, --precision float32" in done.out


@pytest.mark.usefixtures("torch_works")
def test_json(medkit: Run) -> None:
    found = json.loads(medkit("doctor", "--json", env={"OMP_NUM_THREADS": "1"}).out)
    assert found["problems"] == []
    assert found["threads"]["granted"] == 1
    assert found["threads"]["grants"]["OMP_NUM_THREADS"] == 1
    assert found["torch"]["version"] == "2.9.0"
    assert {"numpy", "torch", "monai"} <= found["packages"]["required"].keys()
    brain = next(bundle for bundle in found["bundles"] if bundle["name"] == "brain_mri_segmentation")
    assert len(brain["sha256"]["weights"]) == 64
    assert brain["trust"] == "by its plugin"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise ImportError('libtorch.so is missing')", "torch cannot be used: ImportError: libtorch.so is missing"),
        ("import os; os.kill(os.getpid(), 11)", "torch cannot be used: (killed by SIGSEGV)"),
    ],
)
def test_broken_torch(program: str, words: str, medkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, program)
    done = medkit("doctor")
    assert done.code == 1
    assert done.lines[0] == "1 problem"
    assert words in done.lines[1]
    assert "segment: brain_mri_segmentation" in done.out


def test_a_torch_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child([sys.executable, "-c", "import time; time.sleep(100)"])
    assert child.answer(0.2) == {"error": "no answer within 0.2 s"}
    assert child.process is not None
    assert child.process.returncode < 0


def test_gpus_that_torch_does_not_use(medkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, f"print({json.dumps(json.dumps(TORCH))})")
    monkeypatch.setattr(findings, "gpus_of_driver", lambda: [sys.executable, "-c", "print('NVIDIA H200, 1 MiB, 560')"])
    done = medkit("doctor")
    assert "the driver shows 1 GPUs, torch 2.9.0 uses none" in done.out
    assert "driver: NVIDIA H200, 1 MiB, 560" in done.out


def test_no_driver_means_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children.shutil, "which", lambda name: None)
    assert Child(children.gpus_of_driver()).answer() == {}


@pytest.mark.usefixtures("torch_works")
def test_a_broken_plugin(medkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    error = f"OSError: {Path.home()}/secret/study.nii: no such file"
    broken = Plugin("sharpen", "sharpen", "medkit-sharpen", "1.0", error=error)
    monkeypatch.setattr("medkit.plugins.registry", lambda: Registry((broken,)))
    done = medkit("doctor")
    assert done.code == 1
    assert "plugin sharpen (medkit-sharpen 1.0) is broken: OSError: <path>: no such file" in done.out
    assert "secret" not in done.out


@pytest.mark.usefixtures("torch_works")
def test_bundles_of_the_user(medkit: Run, tmp_path: Path) -> None:
    for name, trust in (("known", ["--trust"]), ("unknown", [])):
        root = write_sound(tmp_path / name, weights=False)
        change_json(root / "configs" / "metadata.json", description=name)  # trust is by content
        medkit("bundle", "install", root, *trust)
    done = medkit("doctor")
    assert "known 0.1.0 from you: NO WEIGHTS, sha256 - " in done.out
    assert ", trusted by you" in done.out
    assert ", not trusted" in done.out
    assert "  - bundle known has no " in done.out
    assert str(tmp_path) not in done.out


@pytest.mark.usefixtures("torch_works")
def test_a_part_that_fails_hides_no_other(medkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ImportError("no module")

    monkeypatch.setattr(findings, "_processor", fails)
    done = medkit("doctor")
    assert done.code == 1
    assert "processor: ImportError: no module" in done.lines[1]
    assert "threads    " in done.out


@pytest.mark.usefixtures("torch_works")
def test_an_old_package(medkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = findings.version
    monkeypatch.setattr(findings, "version", lambda name: "1.0" if name == "torch" else real(name))
    done = medkit("doctor")
    assert "torch 1.0 is installed: expected >=2.6" in done.out


@pytest.mark.parametrize("installed", [False, True])
def test_what_is_not_said(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    """Whether medkit is in a checkout or among the libraries, its own files are named alike."""
    if installed:
        beside = str(Path(findings.__file__).parents[2])
        monkeypatch.setattr(sysconfig, "get_path", {"purelib": beside, "stdlib": "/usr/lib/python3"}.__getitem__)
    wording = Wording()
    wording.names = ["jane.doe", "scanner-3"]
    assert wording.public("no file /data/jane.doe/ct.nii.gz\nfor jane.doe on scanner-3") == (
        "no file <path> for <name> on <name>"
    )
    assert wording.public(f"in {findings.__file__}: fails") == "in medkit/diagnosis/findings.py: fails"
    assert wording.public("~/scans/a.nii, C:\\scans\\a.nii, 3/4 and 2.6") == "<path>, <path>, 3/4 and 2.6"


def test_the_names_of_this_machine_are_known() -> None:
    known = Wording().names
    assert platform.node() in known or len(platform.node()) < 3
    assert getpass.getuser() in (*known, "root") or len(getpass.getuser()) < 3
