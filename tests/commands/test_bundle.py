"""`medkit bundle` as it is called; and that a stranger's bundle runs nothing until the user says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zoo
from strangers import change_json, write_hostile, write_sound, write_zip
from tiny import write_labels

from medkit.bundles.zoo_rules import zoo_notes

Run = Callable[..., "Outcome"]  # noqa: F821


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound bundle without weights that can be loaded."""
    root = write_sound(tmp_path / "halves", weights=False)
    (root / "models" / "model.pt").write_bytes(b"x" * 1_500_000)
    return root


def test_list(toy: Run, root: Path) -> None:
    assert toy("bundle", "list").out == "no bundles\n"
    assert toy("bundle", "list", "--json").out == "[]\n"
    toy("bundle", "install", root)
    head, line = toy("bundle", "list").lines
    assert head.split() == ["name", "version", "task", "from", "takes", "modality", "weights"]
    assert line.split("  ")[0] == "halves"
    assert "installed by you" in line
    assert line.endswith("1.5 MB")
    (data,) = json.loads(toy("bundle", "list", "--json").out)
    assert {k: data[k] for k in ("name", "version", "task", "distribution", "kinds", "modality", "weights_bytes")} == {
        "name": "halves", "version": "0.1.0", "task": "halves", "distribution": "installed by you", "kinds": ["image"],
        "modality": None, "weights_bytes": 1_500_000,
    }  # fmt: skip


def test_list_shows_a_broken_bundle_and_the_rest(toy: Run, root: Path) -> None:
    place = Path(toy("bundle", "install", root).lines[0])
    toy("bundle", "install", root, "--name", "whole")
    (place / "configs" / "metadata.json").write_text("{")
    done = toy("bundle", "list")
    assert done.code == 0
    assert [line.split()[0] for line in done.lines[1:]] == [
        "halves",
        str(place / "configs/metadata.json") + ":",
        "whole",
    ]


def test_show(toy: Run, root: Path) -> None:
    path = root / "configs" / "metadata.json"
    block = {"task": "halves", "labels": {"1": "bright half"}, "training": {"best": 0.75}}
    change_json(path, medkit=block, eval_metrics={"dice": 0.5}, name="Two \x1b[31mhalves")
    done = toy("bundle", "show", root)
    assert done.code == 0
    for words in (
        "halves 0.1.0: Two \\x1b[31mhalves", "licence     Apache-2.0", "input image: 1 x 4*n x 4*n x 4*n, magnitude",
        "output pred: 2 x", "1  bright half", "dice  0.5", "best  0.75", "0.1.0  first", "1.5 MB, sha256",
        "Written by its authors.", "telling two halves apart",
    ):  # fmt: skip
        assert words in done.out, words
    assert "\x1b" not in done.out
    data = json.loads(toy("bundle", "show", root, "--json").out)
    assert data["weights"]["bytes"] == 1_500_000
    assert data["labels"] == {"1": "bright half"}
    assert data["card"] == ["Written by its authors."]


@pytest.mark.parametrize(
    "metadata", [{"network_data_format": 3, "medkit": []}, {"network_data_format": {"inputs": {"image": 1}}}, {}]
)
def test_show_and_list_take_metadata_as_they_come(toy: Run, root: Path, metadata: dict[str, object]) -> None:
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    assert toy("bundle", "show", root).code == 0
    toy("bundle", "install", root)
    assert toy("bundle", "list").code == 0


def test_nothing_of_that_name(toy: Run, tmp_path: Path) -> None:
    for command in (["show"], ["verify"], ["audit"], ["pack", "-o", tmp_path / "x.zip"]):
        done = toy("bundle", command[0], "nothing", *command[1:])
        assert done.code == 2
        assert "neither a folder, a zip nor the name of an installed bundle" in done.err
    assert toy("bundle", "install", tmp_path / "nothing.zip").code == 2


def test_audit(toy: Run, root: Path, tmp_path: Path) -> None:
    for what in (root, write_zip(tmp_path / "halves.zip", root)):
        done = toy("bundle", "audit", what)
        assert done.code == 0
        assert "import      configs/inference.json  imports::0  $import pathlib" in done.lines
        assert "import: `$import`: loads a module" in done.err
        found = json.loads(toy("bundle", "audit", what, "--json").out)
        assert len(found) == len(done.lines)
        assert set(found[0]) == {"file", "id", "kind", "text"}


def test_install_and_pack(toy: Run, root: Path, tmp_path: Path) -> None:
    packed = toy("bundle", "pack", root, "-o", tmp_path / "a.zip")
    assert packed.paths == [tmp_path / "a.zip"]
    assert "sha256" in packed.err
    done = toy("bundle", "install", tmp_path / "a.zip", "--name", "mine", "--task", "cut")
    assert done.code == 0
    assert "runs only with --trust" in done.err
    assert toy("bundle", "pack", "mine", "-o", tmp_path / "b.zip").code == 0
    assert "was there already" in toy("bundle", "install", tmp_path / "a.zip", "--name", "mine", "--task", "cut").err
    assert "runs with" not in toy("bundle", "install", root, "--trust").err
    assert json.loads(toy("bundle", "list", "--json").out)[1]["task"] == "cut"
    assert toy("bundle", "pack", root, "-o", tmp_path / "b.tar").code == 2
    (root / "LICENSE").unlink()
    refused = toy("bundle", "pack", root, "-o", tmp_path / "c.zip")
    assert (refused.code, "no LICENSE" in refused.err) == (1, True)


@pytest.mark.slow
def test_verify_lists_everything(toy: Run, root: Path) -> None:
    """What fails, what does not, and what cannot be checked; a line each."""
    (root / "models" / "model.pt").unlink()
    (root / "LICENSE").unlink()
    change_json(root / "configs" / "metadata.json", authors=None, copyright=None)
    change_json(root / "configs" / "inference.json", dataset_dir=None, datalist=[], evaluator=None, run=None)
    done = toy("bundle", "verify", root, "--trust")
    assert done.code == 1
    words = [line.split()[:2] for line in done.lines]
    assert words == [
        ["failed", "files"], ["failed", "metadata"], ["failed", "metadata"], ["ok", "configs"],
        *[["ok", "zoo"]] * len(list(zoo_notes(root))),
        ["ok", "references"],
        ["failed", "properties"], ["failed", "properties"], ["ok", "in_out"], ["skipped", "weights"], ["ok", "export"],
        ["skipped", "case"],
    ]  # fmt: skip


def test_show_states_what_run_bundle_does_with_it(toy: Run, tmp_path: Path) -> None:
    """Nothing of the bundle is run, so that no trust is needed."""
    sound = zoo.write(tmp_path / "kidneys", "renalStructures_CECT_segmentation")
    change_json(sound / "configs" / "metadata.json", monai_version="1.4.0", required_packages_version={"nowhere": "1"})
    (sound / "models" / "model.pt").rename(sound / "models" / "best.pt")
    lines = toy("bundle", "show", sound).lines
    assert "medkit run bundle makes label maps of: artery, vein, excret, label" in lines
    assert "  its metadata ask for nowhere, which is not installed" in lines
    assert any(line.startswith("  was made with monai 1.4.0 (here: ") for line in lines)
    assert not any("missing" in line for line in lines)
    boxes = zoo.write(tmp_path / "boxes", "lung_nodule_ct_detection", weights=False)
    assert "medkit run bundle makes tables of boxes of: image" in toy("bundle", "show", boxes).lines
    noise = zoo.write(tmp_path / "noise", "brats_mri_generative_diffusion", weights=False)
    reason = (
        "makes images from noise: it takes no image, and medkit would need a task without inputs; "
        "python -m monai.bundle run makes them"
    )
    assert f"medkit run bundle refuses it: {reason}" in toy("bundle", "show", noise).lines
    assert json.loads(toy("bundle", "show", noise, "--json").out)["runs"]["refused"] == reason


@pytest.mark.slow
def test_checks_can_be_left_out(toy: Run, root: Path) -> None:
    """A line tells which one runs, and for how long at most."""
    left_out = [word for name in ("in_out", "weights", "export", "case") for word in ("--skip", name)]
    done = toy("bundle", "verify", root, "--trust", *left_out)
    assert done.code == 0, done.out
    read = ["files", "metadata", "configs", *["zoo"] * len(list(zoo_notes(root)))]
    assert [line.split()[1] for line in done.lines] == [*read, "references", "properties"]
    assert done.err.splitlines() == [
        "medkit: verify [5/6] references, at most 900 s", "medkit: verify [6/6] properties, at most 900 s"
    ]  # fmt: skip
    assert toy("bundle", "verify", root, *left_out, env={"MEDKIT_NO_PROGRESS": "1"}).err == ""
    refused = toy("bundle", "verify", root, "--skip", "all")
    assert (refused.code, "--skip all: expected one of files, metadata, " in refused.err) == (2, True)


def test_verify_as_json(toy: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medkit.bundles import verify

    monkeypatch.setattr(verify, "RUN", ())
    done = toy("bundle", "verify", root, "--trust", "--json")
    assert done.code == 0
    data = json.loads(done.out)
    assert [(c["name"], c["status"]) for c in data["checks"]] == [
        (n, "ok") for n in ("files", "metadata", "configs", "zoo")
    ]
    (root / "LICENSE").unlink()
    done = toy("bundle", "verify", root, "--json")
    assert (done.code, json.loads(done.out)["checks"][0]["messages"]) == (1, ["no LICENSE"])


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["bundle", "list"], ()),
        (["bundle", "show", "brain_mri_segmentation"], ()),
        (["--help"], ("medkit.commands.bundle", "medkit.bundles.safety.trust", "medkit.bundles.bundle")),
    ],
)
def test_nothing_heavy_is_imported(arguments: list[str], more: tuple[str, ...]) -> None:
    """`list` and `show` answer without torch; `--help` without the command's own modules."""
    heavy = ("torch", "monai", "numpy", "nibabel", "itk", "jsonschema", "yaml", *more)
    script = (
        f"import sys; from medkit.cli import _exit_code; code = _exit_code({arguments!r}); "
        f"print(code, [m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == "0 []", done.stderr


# ---- strangers


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that the code of a hostile bundle would make."""
    return tmp_path / "canary"


@pytest.fixture
def bad(tmp_path: Path, canary: Path) -> Path:
    """A bundle that leaves the canary as soon as any of its code runs."""
    return write_hostile(tmp_path / "bad", canary)


def test_looking_runs_nothing(toy: Run, bad: Path, tmp_path: Path, canary: Path) -> None:
    zipped = write_zip(tmp_path / "bad.zip", bad)
    for arguments, code in (
        (["show", bad], 0),
        (["show", bad, "--json"], 0),
        (["audit", bad], 0),
        (["audit", zipped], 0),
        (["pack", bad, "-o", tmp_path / "packed.zip"], 0),
        (["install", zipped], 0),
        (["install", bad, "--name", "again"], 0),
        (["list"], 0),
        (["show", "again"], 0),
        (["audit", "again"], 0),
        (["verify", bad], 2),
        (["verify", "again"], 2),
    ):
        done = toy("bundle", *arguments)
        assert done.code == code, done.err
        assert not canary.exists(), arguments
        assert "\x1b" not in done.out + done.err


def test_training_runs_nothing(toy: Run, bad: Path, tmp_path: Path, canary: Path) -> None:
    toy("bundle", "install", bad, "--name", "again")
    maps = write_labels(tmp_path / "maps")
    for name in (bad, "again"):
        for more in ([], ["--dry-run"]):
            done = toy("train", "halves", "--bundle", name, "--data", maps, "-o", tmp_path / "out", *more)
            assert (done.code, "--trust" in done.err) == (2, True)
            assert not canary.exists()
    toy("train", "halves", "--bundle", bad, "--data", maps, "-o", tmp_path / "out", "--trust")
    assert canary.exists(), "the canary sings when the code runs, so its silence means something"


@pytest.mark.slow
def test_verifying_with_trust_runs_it(toy: Run, bad: Path, canary: Path) -> None:
    done = toy("bundle", "verify", bad, "--trust")
    assert done.code == 1
    assert "failed  weights" in done.out
    assert canary.exists()


def test_trust_is_remembered_between_commands(toy: Run, root: Path, tmp_path: Path) -> None:
    maps = write_labels(tmp_path / "maps")
    train = ["train", "halves", "--bundle", root, "--data", maps, "-o", tmp_path / "out", "--dry-run"]
    assert toy(*train).code == 2
    toy("bundle", "install", root, "--trust")
    assert toy(*train).code == 0  # the folder holds what was installed
    with open(root / "configs" / "train.json", "a") as file:
        file.write(" ")
    changed = toy(*train)
    assert changed.code == 2
    assert "no installed plugin brings it" in changed.err
    assert toy(*train, "--trust").code == 0
    (root / "extra.py").write_text("")
    assert "extra.py was added since you trusted it" in toy(*train).err


def test_trust_comes_from_no_variable(toy: Run, root: Path) -> None:
    for name in ("MEDKIT_TRUST", "MEDKIT_BUNDLE_VERIFY_TRUST", "MEDKIT_VERIFY_TRUST"):
        value = str(root / "none.json") if name == "MEDKIT_TRUST" else "1"
        assert toy("bundle", "verify", root, env={name: value}).code == 2
    train = ("train", "halves", "--bundle", root, "-o", root.parent / "out", "--dry-run")
    assert "--trust" in toy(*train, env={"MEDKIT_TRAIN_TRUST": "1"}).err
