"""`medkit train` from end to end, on a network of some hundred parameters."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import HELPERS
from tiny import write_bundle, write_labels
from train_command import arguments, call, undone
from trained import equal, is_like, table, weights

from medkit.bundles.verify import bundle_problems
from medkit.terminal import progress

Train = Callable[..., int]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle `halves` and the maps `labels` to train it on."""
    folder = tmp_path_factory.mktemp("place")
    write_bundle(folder / "halves")
    write_labels(folder / "labels")
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


@pytest.fixture(scope="module")
def unbroken(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a training of 12 steps that nothing disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert call(*arguments(place, out)) == 0
    return out


# ---- the result


def test_the_result_is_a_whole_bundle(unbroken: Path) -> None:
    assert list(bundle_problems(unbroken)) == []
    assert {p.name for p in unbroken.iterdir()} == {"LICENSE", "configs", "docs", "models", "training"}
    assert not [p for p in unbroken.rglob(".*") if p.name != ".lock"]
    metadata = json.loads((unbroken / "configs" / "metadata.json").read_text())
    assert metadata["version"] == "0.1.1"
    assert list(metadata["changelog"]) == ["0.1.1"]
    assert metadata["medkit"]["task"] == "halves"
    assert metadata["medkit"]["training"] | {"hours": 0, "precision": ""} == {
        "base": {"name": "halves", "version": "0.1.0"},
        "medkit_version": "0.2.0", "config": "train", "steps": 12, "hours": 0, "items": 3, "validation_items": 1,
        "subjects": 3, "validation_subjects": 1,
        "parameters": 604, "trained_parameters": 604, "seed": 0, "device": "cpu", "precision": "", "metric": "Dice",
        "best": metadata["medkit"]["training"]["best"], "best_step": metadata["medkit"]["training"]["best_step"],
    }  # fmt: skip


def test_a_new_bundle_states_its_own_truth(unbroken: Path, place: Path) -> None:
    metadata = json.loads((unbroken / "configs" / "metadata.json").read_text())
    base = json.loads((place / "halves" / "configs" / "metadata.json").read_text())
    best = metadata["medkit"]["training"]["best"]
    assert metadata["eval_metrics"] == {"validation_dice": pytest.approx(best, abs=1e-6)}
    assert metadata["authors"] == "not stated"
    assert metadata["network_data_format"] == base["network_data_format"]
    stated = ("task", "description", "authors", "copyright", "changelog")
    assert metadata["medkit"]["base"] == {
        "name": "halves", "version": "0.1.0", "stated": {key: base[key] for key in stated}
    }  # fmt: skip
    own = {key: value for key, value in metadata.items() if key != "medkit"}
    assert "telling two halves apart" not in json.dumps(own)


def test_the_card_tells_what_was_done(unbroken: Path) -> None:
    card = (unbroken / "docs" / "README.md").read_text()
    assert card.startswith("# out\n\nA bundle for `halves`, which `medkit train` made from halves 0.1.0, the base.")
    assert "Written by its authors." not in card
    assert (unbroken / "docs" / "base_README.md").read_text() == "# Halves\n\nWritten by its authors.\n"
    for words in ("3 items for training, 1 for validation", "| steps | 12 in 0.", "seed 0", "| bright half | 0."):
        assert words in card
    assert "medkit train" in (unbroken / "docs" / "data_license.txt").read_text()
    assert (unbroken / "docs" / "base_data_license.txt").read_text().startswith("No data.\n")


def test_it_learns_and_the_log_says_so(unbroken: Path) -> None:
    from PIL import Image

    rows = table(unbroken)
    assert [int(r["step"]) for r in rows] == list(range(1, 13))
    assert [r["step"] for r in rows if r["Dice"]] == ["4", "8", "12"]
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    assert float(rows[-1]["Dice"]) > 0.9
    rates = [float(r["learning_rate"]) for r in rows]
    assert max(rates) > 0.019
    assert rates[-1] < 0.002
    with Image.open(unbroken / "docs" / "learning_curve.png") as picture:
        assert picture.size == (900, 480)


def test_twelve_samples_are_shown(unbroken: Path) -> None:
    import numpy as np
    from PIL import Image

    with Image.open(unbroken / "docs" / "samples.png") as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (3 * (2 * 16 + 3), 4 * (2 * 2 * 16 + 3), 3)
    assert all(sheet[35 * r : 35 * r + 32, 67 * c : 67 * c + 64].std() > 10 for r in range(3) for c in range(4))
    assert "](samples.png)" in (unbroken / "docs" / "README.md").read_text()


def test_the_weights_are_the_averaged_ones_that_validated_best(unbroken: Path) -> None:
    import torch

    state = torch.load(unbroken / "training" / "checkpoint.pt", weights_only=True)
    assert equal(weights(unbroken), state["best_weights"])
    assert state["best"]["step"] == 12
    assert equal(weights(unbroken), state["ema"])
    assert not equal(weights(unbroken), state["network"])
    assert {v.dtype for v in weights(unbroken).values()} == {torch.float32}


def test_the_weights_of_an_earlier_step_ship_where_they_were_better(train: Train, tmp_path: Path) -> None:
    import torch

    assert train(trouble="validation bad@3") == 0
    state = torch.load(tmp_path / "out" / "training" / "checkpoint.pt", weights_only=True)
    assert state["best"]["step"] == 8
    assert equal(weights(tmp_path / "out"), state["best_weights"])
    assert not equal(weights(tmp_path / "out"), state["ema"])
    assert "at step 8 |" in (tmp_path / "out" / "docs" / "README.md").read_text()


def test_the_weights_that_ship_give_the_figure_that_is_told(place: Path, train: Train, tmp_path: Path) -> None:
    """Measured by MONAI alone with the new bundle's config."""
    from monai.bundle import ConfigParser

    assert train("--precision", "float32") == 0
    parser = ConfigParser()
    parser.read_config(tmp_path / "out" / "configs" / "train.json")
    parser["val_datalist"] = [{"label": str(place / "labels" / "case_03.nii.gz")}]
    parser.get_parsed_content("network").load_state_dict(weights(tmp_path / "out"))
    evaluator = parser.get_parsed_content("validate::evaluator")
    evaluator.run()
    metadata = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text())
    assert evaluator.state.metrics["Dice"] == pytest.approx(metadata["medkit"]["training"]["best"], abs=1e-6)


def test_it_prints_the_new_bundle(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--steps", 1) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"


# ---- stopped and resumed


@pytest.mark.parametrize(
    ("name", "code", "step"),
    [("SIGTERM", 75, 3), ("SIGTERM", 75, 4), ("SIGTERM", 75, 7), ("SIGUSR1", 75, 7), ("SIGINT", 130, 7)],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    train: Train, tmp_path: Path, unbroken: Path, caplog: pytest.LogCaptureFixture, name: str, code: int, step: int
) -> None:
    assert train(trouble=f"{name}@{step}") == code
    assert f"stopped at step {step};" in caplog.text  # it is the step at hand, and finished
    assert len(table(tmp_path / "out")) == step - (step % 4 == 0)
    assert train() == 0
    assert f"continuing from step {step} of" in caplog.text
    assert is_like(tmp_path / "out", unbroken)


def test_a_signal_during_validation(train: Train, tmp_path: Path, unbroken: Path) -> None:
    assert train(trouble="validation SIGTERM@1") == 75
    assert [r["step"] for r in table(tmp_path / "out")] == ["1", "2", "3"]
    assert train(trouble="validation SIGTERM@1") == 75
    assert train() == 0
    assert is_like(tmp_path / "out", unbroken)


def test_a_signal_during_the_last_validation(train: Train, tmp_path: Path) -> None:
    """Of a training that ends in the middle of an epoch, so that it validates once more."""
    assert train("--steps", 3, out="other") == 0
    assert train("--steps", 3, trouble="validation SIGTERM@1") == 75
    assert len(table(tmp_path / "out")) == 2
    assert train("--steps", 3) == 0
    assert [r["step"] for r in table(tmp_path / "out") if r["Dice"]] == ["3"]
    assert is_like(tmp_path / "out", tmp_path / "other")


def in_a_process(place: Path, out: Path, trouble: str, *more: object, bundle: Path | None = None) -> int:
    """Runs `medkit train` in a process group of its own; gives how it ended."""
    environment = os.environ | {"TINY_TROUBLE": trouble, "PYTHONPATH": str(HELPERS)}
    command = [sys.executable, "-m", "medkit", *arguments(place, out, *more, bundle=bundle)]
    done = subprocess.run(command, env=environment, capture_output=True, start_new_session=True, timeout=120)
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode


@pytest.mark.slow
def test_killed_it_goes_on_from_its_last_checkpoint(
    train: Train, place: Path, tmp_path: Path, unbroken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed two steps after a checkpoint: what the log held of those steps is written once more."""
    out = tmp_path / "out"
    assert train(trouble="SIGTERM@5") == 75
    assert in_a_process(place, out, "SIGKILL@8") == -signal.SIGKILL
    assert [r["step"] for r in table(out)] == ["1", "2", "3", "4", "5", "6", "7"]
    assert train() == 0
    assert "continuing from step 5 of" in caplog.text
    assert is_like(out, unbroken)


@pytest.mark.slow
def test_killed_before_there_is_a_checkpoint(train: Train, place: Path, tmp_path: Path, unbroken: Path) -> None:
    assert in_a_process(place, tmp_path / "out", "SIGKILL@2") == -signal.SIGKILL
    assert not (tmp_path / "out" / "training" / "checkpoint.pt").exists()
    assert train() == 0
    assert is_like(tmp_path / "out", unbroken)


@pytest.mark.slow
def test_checkpoints_come_in_time(train: Train, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert in_a_process(place, tmp_path / "out", "SIGKILL@7", "--checkpoint-minutes", 0) == -signal.SIGKILL
    assert train() == 0
    assert "continuing from step 6 of" in caplog.text


@pytest.mark.slow
def test_loader_workers_change_nothing_and_may_die_first(
    place: Path, train: Train, tmp_path: Path, unbroken: Path
) -> None:
    """A scheduler's signal reaches the workers too; the step between two batches is a good place to stop."""
    bundle = write_bundle(tmp_path / "workers", train__dataloader__num_workers=2)
    out = tmp_path / "out"
    assert in_a_process(place, out, "group@6", "--no-progress", bundle=bundle) == 75
    assert train(bundle=bundle) == 0
    assert is_like(out, unbroken)


# ---- the same run, or another


def test_finished_is_finished_and_more_steps_go_on(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medkit.training")
    assert train("--steps", 2) == 0
    before = (tmp_path / "out" / "training" / "checkpoint.pt").stat().st_mtime_ns
    assert train("--steps", 2, "--resume") == 0
    assert "already trained for 2 steps" in caplog.text
    assert (tmp_path / "out" / "training" / "checkpoint.pt").stat().st_mtime_ns == before
    assert train("--steps", 5) == 0
    assert [r["step"] for r in table(tmp_path / "out")] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["--seed", 1], "seed (0 there, 1 here)"),
        (["--set", "optimizer::lr=0.1"], "set ("),
        (["--freeze", "model.0"], "freeze ("),
        (["--data", "fewer"], "the data's list"),
        (["--init-from", "unbroken"], "init-from"),
        (["--bundle", "changed"], "the bundle's configs"),
    ],
)
def test_another_training_is_not_gone_on_with(
    train: Train, tmp_path: Path, unbroken: Path, capsys: pytest.CaptureFixture[str], change: list[object], word: str
) -> None:
    shutil.copytree(unbroken, tmp_path / "out")
    write_labels(tmp_path / "fewer", 3)
    write_bundle(tmp_path / "changed" / "halves", epoch_length=6)
    paths = {"fewer": tmp_path / "fewer", "unbroken": unbroken, "changed": tmp_path / "changed" / "halves"}
    assert train(*[paths.get(str(c), c) for c in change]) == 1
    error = capsys.readouterr().err
    assert f"holds another training, which differs in {word}" in error
    assert error.count("(") <= 1, f"more differs than was changed: {error}"
    assert is_like(tmp_path / "out", unbroken)


def test_steps_device_and_threads_do_not_make_it_another(
    place: Path, train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a folder of data that was moved."""
    data = shutil.copytree(place / "labels", tmp_path / "here")
    assert train("--steps", 3, data=data) == 0
    data = data.rename(tmp_path / "there")
    assert train("--set", "steps=5", "--threads", 2, "--device", "cpu", "--precision", "float32", data=data) == 0
    assert "continuing from step 3" in caplog.text
    assert table(tmp_path / "out")[-1]["step"] == "5"


def test_overwrite_resume_and_no_resume(
    train: Train, tmp_path: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--resume") == 1
    assert "there is no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert train("--seed", 1) == 0
    assert train("--seed", 1, "--no-resume") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert not is_like(tmp_path / "out", unbroken)
    assert train("--overwrite", "--no-resume") == 0
    assert is_like(tmp_path / "out", unbroken)


@pytest.mark.parametrize(
    ("where", "words"),
    [("files", "is not the result of a training"), ("halves", "is the bundle"), ("halves/new", "inside the bundle")],
)
def test_folders_of_others_are_left_alone(
    place: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, words: str
) -> None:
    own = shutil.copytree(place / "halves", tmp_path / "halves")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.txt").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    assert train("--overwrite", out=where, bundle=own) == 1
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_two_trainings_do_not_write_one_folder(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from medkit.training.checkpoint import RunFolder

    with RunFolder(tmp_path / "out").locked():
        assert train() == 1
    assert "another training is writing to it" in capsys.readouterr().err


# ---- troubles


def test_steps_without_a_number_are_skipped(train: Train, tmp_path: Path) -> None:
    import torch

    assert train(trouble="nan@3,6") == 0
    rows = table(tmp_path / "out")
    assert [r["step"] for r in rows if r["loss"] == "nan"] == ["3", "6"]
    assert float(rows[-1]["Dice"]) > 0.9
    assert all(bool(torch.isfinite(v).all()) for v in weights(tmp_path / "out").values())
    assert "2 without an update" in (tmp_path / "out" / "docs" / "README.md").read_text()


def test_a_training_that_is_spoilt_ends_and_keeps_its_checkpoint(
    train: Train, tmp_path: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--steps", 20, trouble="SIGTERM@5") == 75
    steps = ",".join(str(n) for n in range(6, 21))
    assert train("--steps", 20, "--checkpoint-minutes", 0, trouble=f"nan@{steps}") == 1
    assert "the last good checkpoint stays" in capsys.readouterr().err
    assert train() == 0
    assert [r["step"] for r in table(tmp_path / "out")] == [r["step"] for r in table(unbroken)]


def test_an_error_in_a_step_is_told_in_a_sentence(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(trouble="error@2") == 1
    error = capsys.readouterr().err
    assert "step 2: " in error
    assert "no such luck" in error
    assert "Traceback" not in error


def test_errors_of_a_config_name_it(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--set", "optimizer::lr=-1") == 1
    error = capsys.readouterr().err
    assert "train.json" in error
    assert "Invalid learning rate" in error
    assert train("--set", "optimiser::lr=1", out="b") == 2
    assert "has no such id" in capsys.readouterr().err
    broken = write_bundle(tmp_path / "broken", train__trainer__accumulation_steps=2)
    assert train(bundle=broken, out="c") == 1
    assert "accumulation_steps" in capsys.readouterr().err
    assert train("--config", "tune", out="d") == 1
    assert "there is inference and train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--device", "cuda"], 2, "CUDA devices here"),
        (["--device", "mps"], 2, "cpu or cuda"),
        (["--precision", "fp16", "--device", "cpu"], 2, "needs a CUDA device"),
        (["--set", "steps"], 2, "expected ID=VALUE"),
        (["--data", "nowhere"], 3, "expected a folder"),
        (["--init-from", "nowhere.pt"], 2, "no such file"),
        (["--freeze", "nothing"], 2, "there is model"),
        (["--freeze", "model.9"], 2, "model.0"),
        (["--freeze", "model"], 2, "leaves nothing to train"),
    ],
)
def test_wrong_wishes(train: Train, capsys: pytest.CaptureFixture[str], more: list[str], code: int, words: str) -> None:
    if more[-1] == "cuda":
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
    assert train(*more) == code
    assert words in capsys.readouterr().err


def test_a_config_without_data_of_its_own_needs_some(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(place, tmp_path / "out")
    del command[command.index("--data") : command.index("--data") + 2]
    assert call(*command) == 2
    assert "--data is needed" in capsys.readouterr().err


def test_data_that_a_config_names_itself(place: Path, tmp_path: Path) -> None:
    items = [{"label": str(p)} for p in sorted((place / "labels").iterdir())]
    bundle = write_bundle(tmp_path / "own", train_datalist=items[:-1], val_datalist=items[-1:])
    command = arguments(place, tmp_path / "out", "--steps", 1, bundle=bundle)
    del command[command.index("--data") : command.index("--data") + 2]
    assert call(*command) == 0
    assert "3 items for training, 1 for" in (tmp_path / "out" / "docs" / "README.md").read_text()
    assert (tmp_path / "out" / "docs" / "data_license.txt").read_text() == "No data.\n"


def test_code_of_the_bundle_is_found_and_copied(train: Train, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "coded", train__inferer={"_target_": "halves_code.Inferer"})
    (bundle / "halves_code.py").write_text("from monai.inferers import SimpleInferer as Inferer\n")
    assert train("--steps", 1, bundle=bundle) == 0
    assert (tmp_path / "out" / "halves_code.py").is_file()


@pytest.mark.parametrize(
    ("option", "told"), [("--progress", ["items", "loss"]), ("--no-progress", ["items"]), ("-q", [])]
)
def test_how_much_is_told(train: Train, caplog: pytest.LogCaptureFixture, option: str, told: list[str]) -> None:
    assert train("--steps", 4, option) == 0
    assert [word for word in ("items", "loss") if word in caplog.text] == told


def test_a_bar_counts_the_steps(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = progress.Bar("train", lambda: None, follows=False)
    monkeypatch.setattr(progress, "_bar", bar)
    assert train("--steps", 3) == 0
    state = bar.state()
    assert (state.done, state.total, state.whole, state.left) == (3, 3, 1.0, None)
    assert state.case.startswith("loss 0.")
    assert state.earlier[1] == 1, "the rate leaves out what an earlier part of the training has done"


def test_one_item_is_not_enough_to_validate(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(data=write_labels(tmp_path / "one", 1)) == 3
    assert "has one item only" in capsys.readouterr().err


def test_a_bundle_by_path_needs_trust(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(place, tmp_path / "out")
    command.remove("--trust")
    assert call(*command) == 2
    assert "--trust" in capsys.readouterr().err
    assert call(*[a if a != "halves" else "thirds" for a in arguments(place, tmp_path / "out")]) == 2
    assert "no bundle is for it" in capsys.readouterr().err


def test_strings_of_a_datalist_are_not_executed(place: Path, train: Train, tmp_path: Path) -> None:
    """MONAI executes what begins with `$`; a datalist comes from anywhere."""
    item = {"label": str(place / "labels" / "case_00.nii.gz"), "note": f"$open({str(tmp_path / 'made')!r}, 'w')"}
    item |= {"_target_": "os.abort", "more": {"_target_": "os.abort"}, "ref": "@nothing"}
    other = item | {"label": str(place / "labels" / "case_01.nii.gz")}
    (tmp_path / "list.json").write_text(json.dumps({"training": [item], "validation": [other]}))
    assert train("--steps", 2, data=tmp_path / "list.json") == 0
    assert not (tmp_path / "made").exists()


# ---- other wishes


def test_a_dry_run_writes_nothing(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dry-run", "--freeze", "model.0", "--hours", 2) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    sides = "3 for training (3 subjects), 1 for validation (1 subject)"
    for words in (sides, "604 parameters,", "2 hours", "every 4 steps", "s a step", "memory: about "):
        assert words in printed.err
    assert not (tmp_path / "out").exists()


def test_frozen_parameters_stay_and_others_begin_as_given(
    train: Train, tmp_path: Path, unbroken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train("--init-from", unbroken, "--freeze", "model.0", "--steps", 3) == 0
    assert "start as in" in caplog.text
    first, now = weights(unbroken), weights(tmp_path / "out")
    same = {k for k in now if (now[k] == first[k]).all()}
    assert {k for k in now if k.startswith("model.0.")} <= same
    assert not {k for k in now if k.startswith("model.1.")} & same
    assert "parameters of `model.pt`" in (tmp_path / "out" / "docs" / "README.md").read_text()


def test_hours_limit_it(train: Train, tmp_path: Path) -> None:
    """Whatever steps the config asks for."""
    assert train("--hours", 0.00015) == 0  # half a second
    rows = table(tmp_path / "out")
    assert rows[-1]["Dice"]
    told = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text())["medkit"]["training"]
    assert told["hours"] >= 0.0001, "rounded to four places"
    assert told["steps"] == int(rows[-1]["step"])


def test_a_config_over_another(train: Train, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "layered")
    (bundle / "configs" / "short.json").write_text('{"steps": 3, "optimizer::lr": 0.5}')
    assert train("--config", "train,short", bundle=bundle) == 0
    rows = table(tmp_path / "out")
    assert [r["step"] for r in rows] == ["1", "2", "3"]
    assert max(float(r["learning_rate"]) for r in rows) > 0.1


def test_the_seed_matters(train: Train, tmp_path: Path, unbroken: Path) -> None:
    assert train("--seed", 1, "--steps", 2) == 0
    assert table(tmp_path / "out")[0] != table(unbroken)[0]


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_precision_keeps_names_and_types(train: Train, tmp_path: Path, unbroken: Path, precision: str) -> None:
    assert train("--precision", precision) == 0
    assert list(weights(tmp_path / "out")) == list(weights(unbroken))
    assert f"cpu, {precision}, seed 0" in (tmp_path / "out" / "docs" / "README.md").read_text()


def test_without_an_average_the_parameters_themselves_ship(train: Train, tmp_path: Path) -> None:
    import torch

    bundle = write_bundle(tmp_path / "plain", ema=0)
    assert train("--steps", 4, bundle=bundle) == 0
    state = torch.load(tmp_path / "out" / "training" / "checkpoint.pt", weights_only=True)
    assert equal(weights(tmp_path / "out"), state["network"])


def test_half_precision_weights_where_the_config_wants_them(train: Train, tmp_path: Path) -> None:
    import torch

    bundle = write_bundle(tmp_path / "half", weights_dtype="float16")
    assert train("--steps", 1, bundle=bundle) == 0
    assert {v.dtype for v in weights(tmp_path / "out").values()} == {torch.float16}


def test_without_validation_the_last_weights_are_kept(
    place: Path, train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    bundle = write_bundle(tmp_path / "blind", validate=None, train__handlers=[])
    assert train("--steps", 2, bundle=bundle) == 0
    assert "nothing validates" in caplog.text
    state = torch.load(tmp_path / "out" / "training" / "checkpoint.pt", weights_only=True)
    assert equal(weights(tmp_path / "out"), state["ema"])
    assert "4 items for training, 0 for" in (tmp_path / "out" / "docs" / "README.md").read_text()


def test_configs_of_the_zoo(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A dataset of MONAI's own, shuffled; no steps, no progress, no schedule, no handler that validates."""
    dataset = {"_target_": "monai.data.Dataset", "data": [], "transform": "@load"}
    loader = {"_target_": "monai.data.DataLoader", "dataset": "@train::dataset", "batch_size": 1, "shuffle": True}
    bundle = write_bundle(
        tmp_path / "zoo", steps=None, progress=None, train_datalist=None, epoch_length=None, datalist_keys=None,
        train__dataset=dataset, train__dataloader=loader, train__handlers=[{"_target_": "tiny.Trouble"}],
        train__trainer__epoch_length=None, train__trainer__max_epochs=2, run=None, load__transforms=[
            {"_target_": "monai.transforms.LoadImaged", "keys": ["image", "label"], "ensure_channel_first": True},
        ],
    )  # fmt: skip
    (tmp_path / "both").mkdir()
    for key in ("image", "label"):
        write_labels(tmp_path / "both" / f"{key}s")
    assert train(bundle=bundle, data=tmp_path / "both", trouble="SIGTERM@2") == 75
    assert train(bundle=bundle, data=tmp_path / "both") == 0
    assert "does not count its samples" in caplog.text
    assert [r["step"] for r in table(tmp_path / "out") if r["Dice"]] == ["3", "6"]


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning", "ignore:NvImgCodecPydicomReader:UserWarning")
def test_the_config_runs_under_monai_alone(place: Path, tmp_path: Path) -> None:
    import monai.bundle

    items = [{"label": str(p)} for p in sorted((place / "labels").iterdir())]
    config = place / "halves" / "configs" / "train.json"
    monai.bundle.run(config_file=str(config), logging_file=False, steps=2, train_datalist=items, val_datalist=items)
