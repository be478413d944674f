"""`medkit train` from the look at the data to the test of the bundle: folds, early stop, forecast, held-out items."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from tiny import write_bundle, write_labels
from train_command import arguments, call, undone
from trained import is_like, table

Train = Callable[..., int]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle `halves` and the maps `labels` to train it on."""
    folder = tmp_path_factory.mktemp("place")
    write_bundle(folder / "halves")
    write_bundle(folder / "unaveraged", ema=0)
    write_labels(folder / "labels", 6)
    return folder


@pytest.fixture(autouse=True)
def as_it_was(clean_environment: None) -> Iterator[None]:
    with undone():
        yield


@pytest.fixture
def train(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs `medkit train halves` in this process, with the result in `tmp_path / out`; gives the exit code."""

    def run(*more: object, out: str = "out", trouble: str = "", bundle: Path | None = None, data: object = "") -> int:
        monkeypatch.setenv("TINY_TROUBLE", trouble)
        return call(*arguments(place, tmp_path / out, *more, bundle=bundle, data=data))

    return run


def training(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "configs" / "metadata.json").read_text())["medkit"]["training"]
    return found


# ---- folds


def test_a_fold_is_stated_where_the_weights_are(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert train("--folds", 3, "--fold", 2, "--steps", 2) == 0
    found = training(tmp_path / "out")
    assert (found["folds"], found["fold"], found["items"], found["validation_items"]) == (3, 2, 4, 2)
    assert "4 items for training, 2 for validation, fold 2 of 3" in caplog.text
    card = (tmp_path / "out" / "docs" / "README.md").read_text()
    assert "| subjects | 4 for training, 2 for validation; fold 2 of 3 |" in card
    assert train("--folds", 3, "--fold", 1, "--steps", 2) == 1, "another fold is another training"
    assert train("--folds", 3, "--steps", 2, out="b") == 2


# ---- early stop


def test_it_stops_early_and_keeps_the_best(
    train: Train, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """From step 9 on the loss drives the network to the wrong half, so later validations are worse."""
    options = ("--steps", 400, "--patience", 2, "--set", "optimizer::lr=0.05")
    trouble = f"bad@{','.join(map(str, range(9, 400)))}"
    assert train(*options, bundle=place / "unaveraged", trouble=trouble) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    rows = [row for row in table(tmp_path / "out") if row["Dice"]]
    found = training(tmp_path / "out")
    values = [float(row["Dice"]) for row in rows]
    best = values.index(max(values))
    assert found["stopped_early"]
    assert found["patience"] == 2
    assert found["best_step"] == int(rows[best]["step"])
    assert best == len(values) - 3, "the two validations after the best one had no gain"
    assert found["steps"] == int(rows[-1]["step"]) < 400
    assert f"stopped early at step {found['steps']}: 2 of 2 validations in a row without gain" in caplog.text
    assert "stopped early: 2 of 2" in (tmp_path / "out" / "docs" / "README.md").read_text()
    caplog.clear()
    assert train(*options, bundle=place / "unaveraged") == 0
    assert "larger --patience continue" in caplog.text


def test_a_stop_does_not_change_the_count(train: Train, place: Path, tmp_path: Path) -> None:
    options = ("--steps", 400, "--patience", 3, "--set", "optimizer::lr=0.05")
    bad = ",".join(map(str, range(9, 400)))
    assert train(*options, bundle=place / "unaveraged", trouble=f"bad@{bad}", out="whole") == 0
    end = training(tmp_path / "whole")["steps"]
    assert (
        train("--steps", end - 5, "--patience", 3, *options[4:], bundle=place / "unaveraged", trouble=f"bad@{bad}") == 0
    )
    # the schedule follows the steps, so only the count is compared
    import torch

    state = torch.load(tmp_path / "out" / "training" / "checkpoint.pt", weights_only=True)
    assert state["without_gain"] > 0
    assert train(*options, bundle=place / "unaveraged", trouble=f"bad@{bad}") == 0
    state = torch.load(tmp_path / "out" / "training" / "checkpoint.pt", weights_only=True)
    assert state["without_gain"] == 3


def test_a_signal_and_patience(train: Train, tmp_path: Path) -> None:
    options = ("--steps", 12, "--patience", 2)
    assert train(*options, out="unbroken") == 0
    assert train(*options, trouble="SIGTERM@6") == 75
    assert train(*options) == 0
    assert is_like(tmp_path / "out", tmp_path / "unbroken")


def test_patience_needs_validation(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blind = write_bundle(tmp_path / "blind", validate=None, train__handlers=[])
    assert train("--patience", 2, bundle=blind) == 2
    assert "nothing validates" in capsys.readouterr().err
    assert train("--folds", 2, "--fold", 1, bundle=blind) == 2


# ---- the look at the data


def test_faults_stop_it_before_the_first_step(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_labels(tmp_path / "bad", 5)
    strange = np.zeros((16, 16, 16), np.uint8)
    strange[:8], strange[8:12] = 1, 5
    nibabel.save(nibabel.Nifti1Image(strange, np.eye(4)), data / "case_01.nii.gz")
    (data / "case_02.nii.gz").write_bytes((data / "case_02.nii.gz").read_bytes()[:60])
    assert train("--steps", 1, data=data) == 3
    error = capsys.readouterr().err
    assert f"--data {data}: 2 faults in the data" in error
    assert f"{data}/case_01.nii.gz: expected labels 0 to 1, got 5 as well" in error
    assert f"{data}/case_02.nii.gz" in error
    assert not (tmp_path / "out").exists()
    (data / "case_02.nii.gz").unlink()
    assert train("--steps", 1, "--no-check", data=data) != 3


# ---- a forecast


def test_a_dry_run_forecasts_time_and_memory(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dry-run", "--steps", 50, "--folds", 3, "--fold", 1, "--patience", 4) == 0
    text = capsys.readouterr().err
    assert "4 for training (4 subjects), 2 for validation (2 subjects); fold 1 of 3" in text
    assert "until 4 in a row have no gain" in text
    for words in ("time: about ", " for 50 steps, ", " s a step, ", " s a validation", "memory: about "):
        assert words in text
    assert not (tmp_path / "out").exists()
    assert train("--dry-run", "--hours", 1) == 0
    assert " (1 h) for " in capsys.readouterr().err
    assert train("--steps", 4) == 0
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*"))
    capsys.readouterr()
    assert train("--dry-run", "--steps", 9) == 0
    text = capsys.readouterr().err
    assert "continuing from step 4" in text
    assert " for 5 steps" in text
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*")) == before


# ---- the test


def test_held_out_items_are_evaluated_by_the_config(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The images of this bundle are drawn, so that the items have no image that `medkit run` could read."""
    assert train("--test-fraction", 0.34) == 0
    found = training(tmp_path / "out")
    assert (found["items"], found["validation_items"]) == (3, 1)
    test = found["test"]
    assert (test["items"], test["subjects"], test["by"]) == (2, 2, "the evaluator of the train config")
    assert 0.5 < test["summary"]["dice"]["value"] <= 1
    metadata = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"]["test_dice"] == test["summary"]["dice"]["value"]
    assert "## Test\n\n2 items of 2 subjects, held out" in (tmp_path / "out" / "docs" / "README.md").read_text()
    assert "test on 2 items held out: dice 0." in caplog.text
    caplog.clear()
    assert train("--test-fraction", 0.34) == 0
    assert "test on" not in caplog.text, "the weights are the same, so the figures stay"
