"""Training over several ranks: the same weights as one, and all ranks end alike whatever happens to one of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from places import HELPERS
from processes import Ended, free_port, train_over
from tiny import write_bundle, write_labels
from train_command import arguments
from trained import is_like, table, weights

from medkit.errors import BundleError, Stopped, TrainingError, UsageError
from medkit.training import channel
from medkit.training.parts.samples import SampleNumbers, Samples
from medkit.training.ranks import Ranks
from medkit.training.sharing import EveryNth, share_training
from medkit.training.world import World, find_world

Train = Callable[..., list[Ended]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle `halves`, which validates on five images, and the maps `labels` to train it on."""
    folder = tmp_path_factory.mktemp("place")
    write_bundle(folder / "halves", validate__dataset__length=5)
    write_labels(folder / "labels")
    return folder


@pytest.fixture
def train(place: Path, tmp_path: Path, clean_environment: None) -> Train:
    """Runs `medkit train halves` over two ranks with troubles of each, with the result in `tmp_path / out`."""

    def run(*troubles: str, more: tuple[object, ...] = (), bundle: Path | None = None, **settings: Any) -> list[Ended]:
        changes = [{"TINY_TROUBLE": trouble} for trouble in troubles]
        return train_over(2, arguments(place, tmp_path / "out", *more, bundle=bundle), *changes, **settings)

    return run


def codes(ended: list[Ended]) -> list[int]:
    return [each.code for each in ended]


@pytest.fixture(scope="module")
def unbroken(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a training over two ranks that nothing disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert codes(train_over(2, arguments(place, out))) == [0, 0]
    return out


# ---- as one


def test_two_ranks_train_as_one_with_batches_of_twice_the_size(place: Path, train: Train, tmp_path: Path) -> None:
    """With SGD: Adam turns gradients that are 0 but for rounding into whole steps. Dropout draws at each rank."""
    optimizer = {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.5}
    settings = {"network__dropout": 0.0, "optimizer": optimizer, "validate__dataset__length": 5}
    bundle = write_bundle(tmp_path / "two", **settings)
    double = write_bundle(tmp_path / "one", train__dataloader__batch_size=4, **settings)
    assert codes(train(more=("--precision", "float32"), bundle=bundle)) == [0, 0]
    more = ("--precision", "float32")
    assert codes(train_over(1, arguments(place, tmp_path / "alone", *more, bundle=double))) == [0]
    two, one = weights(tmp_path / "out"), weights(tmp_path / "alone")
    begun = max(float((one[k] - v).abs().max()) for k, v in _first_weights(double).items())
    assert begun > 0.01, "it has learnt nothing, so the comparison shows nothing"
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5
    for ours, theirs in zip(table(tmp_path / "out"), table(tmp_path / "alone"), strict=True):
        assert ours.keys() == theirs.keys()
        assert [float(v or 0) for v in ours.values()] == pytest.approx([float(v or 0) for v in theirs.values()], 1e-4)


def _first_weights(bundle: Path) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    torch.manual_seed(0)
    return dict(parser.get_parsed_content("network").state_dict())


def test_rank_0_writes_and_the_others_are_silent(place: Path, train: Train, tmp_path: Path) -> None:
    first, other = train(more=("--steps", 3))
    assert (first.code, first.out) == (0, f"{tmp_path / 'out'}\n")
    assert "2 ranks" in first.err
    assert other == Ended(0, "", "")
    assert not [p for p in (tmp_path / "out").rglob(".*") if p.name != ".lock"]
    assert json.loads((tmp_path / "out/configs/metadata.json").read_text())["medkit"]["training"]["ranks"] == 2
    assert "2 ranks" in (tmp_path / "out/docs/README.md").read_text()


def test_a_dry_run_tells_the_number_of_ranks(train: Train, tmp_path: Path) -> None:
    first, other = train(more=("--dry-run",))
    assert first.code == 0
    assert "2 ranks" in first.err
    assert other == Ended(0, "", "")
    assert not (tmp_path / "out").exists()


def test_all_ranks_skip_a_step_whose_loss_is_no_number_at_one(train: Train, tmp_path: Path) -> None:
    assert codes(train("", "nan@3")) == [0, 0]
    rows = table(tmp_path / "out")
    assert [r["step"] for r in rows if r["loss"] == "nan"] == ["3"]
    assert all(bool(torch.isfinite(v).all()) for v in weights(tmp_path / "out").values())
    assert "1 without an update" in (tmp_path / "out/docs/README.md").read_text()


def test_hours_are_those_of_rank_0(train: Train, tmp_path: Path) -> None:
    assert codes(train(more=("--hours", 0.0002))) == [0, 0]
    assert table(tmp_path / "out")[-1]["Dice"]


# ---- stopped and resumed


@pytest.mark.parametrize(
    "troubles", [("", "SIGTERM@3"), ("SIGUSR1@4", ""), ("", "validation SIGTERM@1"), ("SIGTERM@7", "SIGTERM@7")]
)
def test_a_signal_at_one_rank_stops_all_and_the_same_command_goes_on(
    train: Train, tmp_path: Path, unbroken: Path, troubles: tuple[str, str]
) -> None:
    stopped = train(*troubles)
    assert codes(stopped) == [75, 75]
    step = max(int(t.rpartition("@")[2] or 0) * (4 if "validation" in t else 1) for t in troubles)
    assert f"stopped at step {step};" in stopped[0].err
    assert stopped[1].err == ""
    assert codes(train()) == [0, 0]
    assert is_like(tmp_path / "out", unbroken)


@pytest.mark.slow
def test_loader_workers_may_die_first_at_one_rank(train: Train, tmp_path: Path, unbroken: Path) -> None:
    """The rank cannot do the step that the other one has begun."""
    bundle = write_bundle(tmp_path / "halves", validate__dataset__length=5, train__dataloader__num_workers=2)
    assert codes(train("", "group@6", more=("--no-progress",), bundle=bundle)) == [75, 75]
    assert codes(train(bundle=bundle)) == [0, 0]
    assert is_like(tmp_path / "out", unbroken)


def test_a_training_goes_on_with_as_many_ranks_only(place: Path, train: Train, tmp_path: Path) -> None:
    assert codes(train(more=("--steps", 2))) == [0, 0]
    (alone,) = train_over(1, arguments(place, tmp_path / "out"))
    assert (alone.code, "over 2 ranks, and this one has 1" in alone.err) == (1, True)
    first, other = train(more=("--steps", 2, "--no-resume"))
    assert (first.code, other.code, other.err) == (1, 1, "")
    assert "--no-resume needs --overwrite" in first.err


@pytest.mark.slow
def test_torchrun(place: Path, tmp_path: Path, unbroken: Path, clean_environment: None) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port()]
    command += ["-m", "medkit", *arguments(place, tmp_path / "out")]
    environ = os.environ | {"PYTHONPATH": str(HELPERS)}
    done = subprocess.run([str(c) for c in command], env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert is_like(tmp_path / "out", unbroken)


# ---- ranks that fail


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(train: Train, tmp_path: Path, unbroken: Path, rank: int) -> None:
    troubles = ["", ""]
    troubles[rank] = "SIGKILL@6"
    ended = train(*troubles, more=("--checkpoint-minutes", 0))
    assert codes(ended) == [-signal.SIGKILL if n == rank else 1 for n in (0, 1)]
    assert f"rank {rank} (process " in ended[1 - rank].err
    assert "was killed, or no longer answers" in ended[1 - rank].err
    assert codes(train()) == [0, 0]
    assert is_like(tmp_path / "out", unbroken)


def test_rank_0_tells_the_error_of_another_rank(train: Train) -> None:
    first, other = train("", "error@2")
    assert (first.code, other.code) == (1, 1)
    assert "medkit: rank 1: step 2: " in first.err
    assert "no such luck" in first.err
    assert other.err == ""


def test_an_error_of_all_ranks_is_told_once(train: Train) -> None:
    first, other = train(more=("--set", "optimizer::lr=-1"))
    assert (first.code, other.code) == (1, 1)
    assert "Invalid learning rate" in first.err
    assert other.err == ""


def test_a_network_that_ranks_do_not_train_alike(train: Train) -> None:
    first, other = train("", "drift@2")
    assert (first.code, other.code, other.err) == (1, 1, "")
    assert "the weights of networks differ between rank 0 and rank 1" in first.err


def test_ranks_of_different_trainings(place: Path, tmp_path: Path) -> None:
    ended = train_over(2, arguments(place, tmp_path / "out"), different={1: ("--seed", 1)})
    assert codes(ended) == [2, 2]
    assert "ranks 0 and 1 were given different commands" in ended[0].err
    assert "RANK=0 WORLD_SIZE=1" in ended[0].err
    assert not (tmp_path / "out").exists()


# ---- finding each other


def test_ranks_that_disagree_about_their_number() -> None:
    port = free_port()
    errors: list[Exception] = []

    def other() -> None:
        with pytest.raises(UsageError) as error:
            channel.connect(World(1, 3, 1, "127.0.0.1", port))
        errors.append(error.value)

    thread = threading.Thread(target=other)
    thread.start()
    world = World(0, 2, 0, "127.0.0.1", port)
    with (
        channel.listen("127.0.0.1", port) as server,
        pytest.raises(UsageError, match=r"3 ranks .WORLD_SIZE., rank 0 2"),
    ):
        channel.accept_all(server, world)
    thread.join()
    assert "rank 1 was told that there are 3 ranks" in str(errors[0])


def test_a_signal_while_ranks_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """At rank 0, which tells the rank that has come; other programs that try the port are ignored."""
    port = free_port()
    ends: list[BaseException] = []

    def other() -> None:
        with pytest.raises(Stopped) as stopped:
            channel.connect(World(1, 3, 1, "127.0.0.1", port))
        ends.append(stopped.value)

    def stop(connection: Any, world: World, found: dict[int, Any]) -> None:
        welcome(connection, world, found)
        if found:
            raise Stopped("SIGTERM")

    welcome = channel._welcome
    monkeypatch.setattr(channel, "_welcome", stop)
    with channel.listen("127.0.0.1", port) as server:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1")
        thread = threading.Thread(target=other)
        thread.start()
        with pytest.raises(Stopped):
            channel.accept_all(server, World(0, 3, 0, "127.0.0.1", port))
    thread.join()
    assert str(ends[0]) == "a signal at rank 0"


def test_ranks_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MEETING_SECONDS", 0.3)
    port = free_port()
    with pytest.raises(TrainingError, match=rf"rank 2 cannot reach rank 0 at 127.0.0.1:{port} .* Connection refused"):
        channel.connect(World(2, 3, 2, "127.0.0.1", port))
    with channel.listen("127.0.0.1", port) as server:
        with pytest.raises(TrainingError, match=r"did not come within 0.3 s: 1 and 2 of 3"):
            channel.accept_all(server, World(0, 3, 0, "127.0.0.1", port))
        with pytest.raises(TrainingError, match=f"rank 0 cannot open port {port}: .*MASTER_PORT"):
            channel.listen("127.0.0.1", port)
    with pytest.raises(TrainingError, match=r"cannot find rank 0's machine no.such.host"):
        channel.connect(World(1, 2, 1, "no.such.host.invalid", port))


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, World()),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, World()),  # a batch script
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, World()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, World()),
        (
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2",
             "SLURM_STEP_NODELIST": "gpu[07-09,12],cpu1", "SLURM_JOB_ID": "100", "SLURM_STEP_ID": "2"},
            World(3, 4, 1, "gpu07", 16000 + 6402),
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "1", "MASTER_PORT": "5"},
            World(1, 2, 0, "127.0.0.1", 5),
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "6", "SLURM_STEP_NUM_TASKS": "9",
             "SLURM_PROCID": "8"},
            World(1, 2, 1, "here", 6),
        ),
        # several trainings in one step
        ({"RANK": "0", "WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "9", "SLURM_PROCID": "8"}, World()),
    ],
)  # fmt: skip
def test_what_the_environment_says(environ: dict[str, str], world: World) -> None:
    assert find_world(environ) == world


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "expected a rank from 0 to 1"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x: expected a number"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "6"}, "MASTER_ADDR is not set"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}, "MASTER_PORT is not set"),
    ],
)
def test_an_environment_that_says_too_little(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_world(environ)


# ---- sharing out samples


def two_ranks(rank: int) -> Ranks:
    return Ranks(World(rank, 2))


def test_ranks_share_out_what_one_would_take() -> None:
    def batches(size: int, ranks: list[Ranks]) -> list[list[list[int]]]:
        found = []
        for each in ranks:
            loader = torch.utils.data.DataLoader(Samples([{}] * 5), batch_size=size, sampler=SampleNumbers(4))
            share_training(loader, each, 0)
            iterator = iter(loader)
            found.append([next(iterator)["sample"].tolist() for _ in range(3)])
        return found

    (alone,) = batches(4, [Ranks(World())])
    first, other = batches(2, [two_ranks(0), two_ranks(1)])
    assert [sorted(a + b) for a, b in zip(first, other, strict=True)] == alone == [[4, 5, 6, 7], [8, 9, 10, 11],
                                                                                   [12, 13, 14, 15]]  # fmt: skip


def test_samples_in_a_random_order_are_shared_out_too() -> None:
    seen = []
    for rank in (0, 1):
        loader = torch.utils.data.DataLoader(list(range(7)), batch_size=1, shuffle=True)
        share_training(loader, two_ranks(rank), 0)
        torch.manual_seed(rank)
        seen.append([int(n) for n in loader])
        assert len(loader) == 3
    assert len({*seen[0], *seen[1]}) == 6


@pytest.mark.parametrize("loader", [iter([1]), torch.utils.data.DataLoader([1, 2], batch_size=None)])
def test_samples_that_cannot_be_shared_out(loader: Any) -> None:
    with pytest.raises(BundleError, match="DataLoader over a dataset with numbered samples"):
        share_training(loader, two_ranks(0), 0)


def test_every_nth() -> None:
    numbers = range(7)
    assert [list(EveryNth(numbers, r, 3, even=False)) for r in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [list(EveryNth(numbers, r, 3, even=True)) for r in range(3)] == [[0, 3], [1, 4], [2, 5]]
    assert [len(EveryNth(numbers, r, 3, even=False)) for r in range(3)] == [3, 2, 2]


def test_a_metric_that_does_not_gather_is_refused() -> None:
    from medkit.training.validation import Validation

    evaluator = SimpleNamespace(state=SimpleNamespace(key_metric_name="Dice"))
    ranks = SimpleNamespace(world=World(1, 2), exchange=lambda point, value: [{"value": 0.5}, {"value": value}])
    validation = Validation(evaluator, SimpleNamespace(), ranks, SimpleNamespace())  # type: ignore[arg-type]
    validation._check(0.5)
    with pytest.raises(TrainingError, match="does not gather the values of all ranks"):
        validation._check(0.75)
