"""The parts of a training: samples, schedule, data, log, picture, weights, identity."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandGaussianNoised
from tiny import write_bundle, write_labels
from torch.utils.data import DataLoader

from medkit.bundles.bundle import Bundle
from medkit.errors import InputError, TrainingError, UsageError
from medkit.machine.precision import choose_precision, prepare
from medkit.training.data import find_items
from medkit.training.parts.handlers import ClipGradients, Cosine, Progress
from medkit.training.parts.samples import SampleNumbers, Samples, seed_of
from medkit.training.plan import TrainingPlan, differences, training_identity
from medkit.training.report.card import BEGIN, END, bumped, with_section
from medkit.training.report.curve import draw_curve
from medkit.training.report.history import History, HistoryRow
from medkit.training.weights import copied, count_parameters, freeze, initialise_from, read_weights

# ---- samples


def noisy(item: dict[str, Any]) -> dict[str, Any]:
    """A transform that uses all global generators."""
    return item | {"noise": (random.random(), float(np.random.rand()), float(torch.rand(())))}


ITEMS = [{"x": torch.full((1, 4), float(n)), "name": f"item {n}"} for n in range(5)]


def test_a_sample_depends_on_its_number_alone() -> None:
    transform = Compose([RandGaussianNoised(keys="x", prob=1.0), noisy])
    one, other = Samples(ITEMS, transform, seed=3), Samples(ITEMS, transform, seed=3)
    forwards = [one[n] for n in range(12)]
    backwards = [other[n] for n in reversed(range(12))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert (a["sample"], a["name"], a["noise"]) == (b["sample"], b["name"], b["noise"])
        assert torch.equal(a["x"], b["x"])
    assert len({s["noise"] for s in forwards}) == 12
    assert Samples(ITEMS, transform, seed=4)[0]["noise"] != forwards[0]["noise"]


def test_every_round_has_every_item_in_an_order_of_its_own() -> None:
    samples = Samples(ITEMS)
    rounds = [tuple(samples[n]["name"] for n in range(5 * r, 5 * r + 5)) for r in range(20)]
    assert {tuple(sorted(r)) for r in rounds} == {tuple(f"item {n}" for n in range(5))}
    assert len(set(rounds)) > 10


def test_samples_leave_items_and_generators_alone() -> None:
    def spoil(item: dict[str, Any]) -> dict[str, Any]:
        item["x"] += 100
        return noisy(item)

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    untouched = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    Samples(ITEMS, spoil)[0]
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == untouched
    assert max(float(item["x"].max()) for item in ITEMS) == 4
    assert "sample" not in ITEMS[0]


def test_samples_have_a_length_only_where_they_are_given_one() -> None:
    assert len(Samples(ITEMS, length=7)) == 7
    assert len(list(DataLoader(Samples(ITEMS, length=7), batch_size=2))) == 4
    with pytest.raises(IndexError):
        Samples(ITEMS, length=7)[7]
    with pytest.raises(TypeError, match="SampleNumbers"):
        len(Samples(ITEMS))
    with pytest.raises(ValueError, match="no items"):
        Samples([])


def test_numbers_count_from_their_start() -> None:
    loader = DataLoader(Samples(ITEMS), batch_size=2, sampler=SampleNumbers(7))
    batches = iter(loader)
    assert [next(batches)["sample"].tolist() for _ in range(2)] == [[7, 8], [9, 10]]


def test_seeds_of_neighbours_are_unrelated() -> None:
    seeds = [seed_of(0, n) for n in range(1000)] + [seed_of(n, 0) for n in range(1, 1000)] + [seed_of("step", 0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**32 for s in seeds)
    assert seed_of(1, 2) == 3183055431  # the same in every process and version


# ---- progress and learning rate


def test_progress_is_the_further_of_steps_and_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("medkit.training.parts.handlers.time.monotonic", lambda: clock.now)
    progress = Progress(steps=100, hours=1)
    assert (progress.fraction, progress.seconds) == (0, 0)
    progress.restore(10, 360.0)
    assert progress.fraction == 0.1
    progress._start(None)
    clock.now += 1440
    assert progress.seconds == 1800
    assert progress.fraction == 0.5
    progress.step = 100
    assert progress.done
    assert Progress().fraction == 0


class Engine:
    """Counts steps like a trainer."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(iteration=0)
        self.handlers: list[tuple[Any, Callable[..., None]]] = []

    def add_event_handler(self, event: Any, handler: Callable[..., None]) -> None:
        self.handlers.append((event, handler))

    def step(self) -> None:
        from ignite.engine import Events

        self.state.iteration += 1
        for event, handler in self.handlers:
            if event == Events.ITERATION_STARTED:
                handler(self)


def test_the_rate_rises_and_falls_by_a_cosine() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 2.0}, {"params": [torch.zeros(1)], "lr": 4.0}])
    schedule = Cosine(optimizer, Progress(steps=100), end=0.1, warm_up=0.2)
    engine = Engine()
    schedule.attach(engine)
    rates = []
    for _ in range(100):
        engine.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == [0.002, 0.004]
    assert rates[10] == pytest.approx([1.0, 2.0])
    assert rates[20] == pytest.approx([2.0, 4.0])
    assert rates[60] == pytest.approx([2 * 0.55, 4 * 0.55])
    assert rates[-1] == pytest.approx([0.2, 0.4], rel=0.01)
    assert schedule.factor(1.0) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="warm_up"):
        Cosine(optimizer, Progress(), warm_up=1)


def test_gradients_are_clipped() -> None:
    network = torch.nn.Linear(3, 1)
    for factor, expected in ((1000.0, 2.0), (1e-3, None)):
        network.zero_grad()
        (network(torch.ones(1, 3)).sum() * factor).backward()
        before = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()  # type: ignore[union-attr]
        ClipGradients(2.0)(SimpleNamespace(amp=False, scaler=None, network=network))
        after = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()  # type: ignore[union-attr]
        assert float(after) == pytest.approx(expected or float(before))


# ---- data


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def found(data: Path, *keys: str) -> tuple[list[Any], list[Any]]:
    """Items of training and validation, their paths relative to the data's folder, one key's alone as strings."""
    items = find_items(data, keys)
    root = data if data.is_dir() else data.parent

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(v) for v in value]
        return str(Path(value).relative_to(root)) if str(value).startswith(str(root)) else value

    parts = [[tuple(short(item[k]) for k in keys) for item in part] for part in (items.training, items.validation)]
    return parts[0], parts[1]


BOTH = ("image", "label")


@pytest.mark.parametrize(
    ("files", "keys", "items"),
    [
        (["b.nii.gz", "a.mha", "labels.tsv", ".hidden.nii"], ["label"], [("a.mha",), ("b.nii.gz",)]),
        (["labels/a.nii.gz", "images/b.nii.gz"], ["label"], [("labels/a.nii.gz",)]),
        (["a_image.nii", "a_label.nii.gz", "c.nii"], BOTH, [("a_image.nii", "a_label.nii.gz")]),
        (["a_image.nii", "a_label.nii.gz"], ["label"], [("a_label.nii.gz",)]),
        (["images/a.nii", "labels/a.mha"], BOTH, [("images/a.nii", "labels/a.mha")]),
        (["image/a.png", "label/a.npy"], BOTH, [("image/a.png", "label/a.npy")]),
        (
            ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz", "imagesTs/c.nii.gz"],
            BOTH,
            [("imagesTr/a.nii.gz", "labelsTr/a.nii.gz")],
        ),
        (
            ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"],
            BOTH,
            [(["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "labelsTr/a.nii.gz")],
        ),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], BOTH, [("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")]),
        (
            ["sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz", "sub-2/anat/sub-2_T2w.nii.gz",
             "derivatives/x/sub-1/anat/sub-1_desc-manual_dseg.nii.gz", "sub-2/anat/sub-2_label-lesion_mask.nii.gz",
             "derivatives/x/sub-1/anat/sub-1_desc-better_T1w.nii.gz"],
            BOTH,
            [("sub-1/anat/sub-1_T1w.nii.gz", "derivatives/x/sub-1/anat/sub-1_desc-manual_dseg.nii.gz"),
             ("sub-2/anat/sub-2_T2w.nii.gz", "sub-2/anat/sub-2_label-lesion_mask.nii.gz")],
        ),
        (["sub-1/sub-1_T1w.nii.gz", "sub-1/sub-1_dseg.nii.gz"], ["image"], [("sub-1/sub-1_T1w.nii.gz",)]),
    ],
)  # fmt: skip
def test_folders(tmp_path: Path, files: list[str], keys: list[str], items: list[Any]) -> None:
    training, validation = found(touch(tmp_path, *files), *keys)
    assert training + validation == items


@pytest.mark.parametrize(
    ("files", "keys", "words"),
    [
        ([], BOTH, "got an empty folder"),
        (["readme.txt", "a.docx"], ["label"], r"expected image files for label.*got a\.docx, readme\.txt"),
        (["a.nii", "b.nii"], BOTH, r"x_image\.nii\.gz and x_label\.nii\.gz, folders images and labels"),
        (["a_image.nii", "b_image.nii", "a_label.nii"], BOTH, "no label for b"),
        (["a.nii", "a.mha"], ["label"], "both files of a"),
        (["sub-1/sub-1_dseg.nii", "sub-2/sub-2_T1w.nii"], BOTH, "expected one image for these labels, got none"),
        (["sub-1/sub-1_dseg.nii", "sub-1/sub-1_T2w.nii", "sub-1/sub-1_PDw.nii"], BOTH, "got sub-1_PDw.nii and"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, files: list[str], keys: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        find_items(touch(tmp_path, *files), keys)
    assert str(tmp_path) in str(error.value)


def test_the_last_tenth_validates_at_least_one_and_never_all(tmp_path: Path) -> None:
    for many, validating in ((1, 0), (2, 1), (9, 1), (20, 2), (35, 3)):
        folder = touch(tmp_path / str(many), *(f"{n:02}.nii" for n in range(many)))
        training, validation = found(folder, "label")
        assert len(validation) == validating
        assert training + validation == [(f"{n:02}.nii",) for n in range(many)]


def test_datalists(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.nii.gz", "x/b.nii.gz", "x/c_0000.nii.gz")
    content: dict[str, Any] = {
        "name": "mine",
        "training": [{"label": "./x/a.nii.gz", "age": 7, "fold": 0, "centre": "north"}],
        "validation": [{"label": ["x/b.nii.gz", "x/c.nii.gz"]}],
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    for data in (path, tmp_path):
        items = find_items(data, ["label"])
        assert items.training == ({"label": f"{tmp_path}/x/a.nii.gz", "age": 7, "fold": 0, "centre": "north"},)
        assert items.validation == ({"label": [f"{tmp_path}/x/b.nii.gz", f"{tmp_path}/x/c_0000.nii.gz"]},)
    path.write_text(json.dumps(["x/a.nii.gz", "x/b.nii.gz"]))
    assert found(path, "label") == ([("x/a.nii.gz",)], [("x/b.nii.gz",)])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "expected a list `training` with items, got an object with no keys"),
        ('{"training": {"a": 1}}', "expected a list as training, got an object with a"),
        ('{"training": [7]}', "training 0: expected an object, got 7"),
        ('{"training": [{"image": "a.nii"}]}', "item 0 has no label; the config reads label"),
        ('{"training": [{"label": "gone.nii"}]}', r"item 0 names the label .*gone\.nii, which does not exist"),
    ],
)
def test_datalists_that_do_not_fit(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        find_items(path, ["label"])


# ---- identity


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    """A plan for the tiny bundle."""
    bundle = Bundle(write_bundle(tmp_path / "halves"), "halves", "halves")
    return TrainingPlan("halves", bundle, tmp_path / "out", data=write_labels(tmp_path / "labels"))


def test_identity(plan: TrainingPlan, tmp_path: Path) -> None:
    items = [{"label": str(p)} for p in sorted((tmp_path / "labels").iterdir())]
    first = training_identity(plan, items, [])
    assert json.loads(json.dumps(first)) == first
    other = dataclasses.replace(plan, steps=5, hours=2.0, device="cuda", threads=7, precision="bf16", overwrite=True)
    assert differences(first, training_identity(other, items, [])) == []
    assert differences(first, training_identity(plan, items[:-1], items[-1:])) == [
        "the data's list of files or their sizes"
    ]
    seeded = dataclasses.replace(plan, seed=2, freeze=("a",))
    assert differences(first, training_identity(seeded, items, [])) == [
        "freeze ([] there, ['a'] here)", "seed (0 there, 2 here)",
    ]  # fmt: skip
    Path(items[0]["label"]).write_bytes(b"another")
    assert len(differences(first, training_identity(plan, items, []))) == 1


# ---- log and picture


def test_the_log_goes_back_to_the_checkpoint(tmp_path: Path) -> None:
    history = History(tmp_path / "log.csv", "Dice")
    history.restore([])
    history.add(HistoryRow(1, 0.5, 1e-3, 0.25, None))
    kept = history.plain()
    history.add(HistoryRow(2, 1.5, 1e-3, math.nan, 0.75))
    text = history.path.read_text()
    assert text == "step,seconds,learning_rate,loss,Dice\n1,0.5,0.001,0.25,\n2,1.5,0.001,nan,0.75\n"
    history.restore(kept)
    assert history.path.read_text() == "step,seconds,learning_rate,loss,Dice\n1,0.5,0.001,0.25,\n"
    history.add(HistoryRow(2, 1.5, 1e-3, math.nan, 0.75))
    assert history.path.read_text() == text


def pixels(png: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels inside the axes that have a colour, (N, 2)."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        data = np.asarray(picture.convert("RGB")).astype(int)
    inside = data[58:422, 80:820]
    return np.argwhere(np.abs(inside - colour).sum(-1) < 60)


def test_the_picture_shows_both_curves() -> None:
    from medkit.training.report.curve import LOSS, METRIC

    rows = [HistoryRow(n, n, 1e-3, 2 - n / 100, n / 200 if n % 50 == 0 else None) for n in range(1, 101)]
    png = draw_curve(rows, "Dice", "title")
    loss, metric = pixels(png, LOSS), pixels(png, METRIC)
    left, right = loss[loss[:, 1] < 200], loss[loss[:, 1] > 540]
    assert left[:, 0].mean() < right[:, 0].mean() - 100, "a falling loss goes down"
    assert len(metric) > 100
    assert metric[metric[:, 1] > 700][:, 0].mean() < metric[metric[:, 1] < 450][:, 0].mean()


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [HistoryRow(1, 0.1, 1e-3, 0.5, None)],
        [HistoryRow(1, 0.1, 1e-3, math.nan, 0.0)],
        [HistoryRow(n, n, 1e-3, 1e-9 * n, 3e6) for n in range(1, 4)],
        [HistoryRow(n * 10**6, n, 1e-3, -n, n * 1e-12) for n in range(1, 2000)],
    ],
    ids=["none", "one", "nan", "small and large", "many"],
)
def test_the_picture_is_drawn_whatever_the_numbers(rows: list[HistoryRow]) -> None:
    assert draw_curve(rows, "Dice").startswith(b"\x89PNG")


def test_the_authors_text_stays_in_the_card() -> None:
    once = with_section("# A\n\nText.\n", "first \\1")
    assert once == f"# A\n\nText.\n\n{BEGIN}\nfirst \\1\n{END}\n"
    assert with_section(once + "\nMore.\n", "second") == f"# A\n\nText.\n\n{BEGIN}\nsecond\n{END}\n\nMore.\n"
    assert [bumped(v) for v in ("0.1.9", "2", "1.0rc1")] == ["0.1.10", "2.1", "1.0rc1.1"]


# ---- weights and precision


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.BatchNorm3d(2), torch.nn.Conv3d(2, 3, 1))


@pytest.mark.parametrize("wrapped", ["", "state_dict", "model"])
def test_weights_are_read_from_what_programs_write(tmp_path: Path, wrapped: str) -> None:
    state = {f"module.{k}" if wrapped == "model" else k: v for k, v in small().state_dict().items()}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, tmp_path / "a.pt")
    assert list(read_weights(tmp_path / "a.pt")) == list(small().state_dict())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3}, "expected a state dict"),
        ({"x": Path("p")}, "cannot be read as weights"),
        (b"x", "cannot be read"),
    ],
)
def test_what_is_no_weights_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=words):
        read_weights(path)


def test_parameters_that_fit_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "medkit.training")
    state = small().state_dict()
    state["2.weight"] = torch.zeros(7, 2, 1, 1, 1)
    del state["0.bias"]
    torch.save(state, tmp_path / "a.pt")
    network = small()
    initialise_from(network, tmp_path / "a.pt")
    assert torch.equal(network.state_dict()["0.weight"], state["0.weight"])
    for words in (
        "7 of the network's 9",
        "2.weight (7, 2, 1, 1, 1) there, (3, 2, 1, 1, 1) here",
        "not in that file: 0.b",
    ):
        assert words in caplog.text
    torch.save({"other": torch.zeros(1)}, tmp_path / "b.pt")
    with pytest.raises(TrainingError, match=r"it has other, the network has 0\.weight"):
        initialise_from(network, tmp_path / "b.pt")


def test_a_copy_keeps_what_has_two_names_one(tmp_path: Path) -> None:
    layer = torch.nn.Linear(100, 100)
    network = torch.nn.Sequential(layer, torch.nn.Linear(100, 100), layer)
    state = network.state_dict()
    for dtype, size in ((None, 4), (torch.float16, 2)):
        copy = copied(copied(state, dtype))
        assert list(copy) == list(state)
        assert all(torch.equal(copy[k], state[k].to(copy[k].dtype)) for k in state)
        assert not {v.data_ptr() for v in copy.values()} & {v.data_ptr() for v in state.values()}
        torch.save(copy, tmp_path / "a.pt")
        assert (tmp_path / "a.pt").stat().st_size < 2 * 101 * 100 * size * 1.2


def test_freezing() -> None:
    network = small()
    freeze(network, ["0", "1."])
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {"2.weight", "2.bias"}
    assert count_parameters(network) == (17, 9)
    network.train()(torch.randn(2, 1, 4, 4, 4))
    assert torch.equal(network.state_dict()["1.running_mean"], torch.zeros(2))
    twice = torch.nn.Sequential(torch.nn.Linear(1, 1), network[2])  # type: ignore[index]
    twice.add_module("alias", twice[0])
    freeze(twice, ["alias"])
    assert not twice[0].weight.requires_grad
    many = torch.nn.Sequential(*[torch.nn.Linear(1, 1) for _ in range(11)])
    freeze(many, ["1"])
    assert {n for n, p in many.named_parameters() if not p.requires_grad} == {"1.weight", "1.bias"}
    with pytest.raises(UsageError, match=r"there is 1\.bias and 1\.weight"):
        freeze(many, ["1.wait"])


def test_bfloat16_inside_float32_outside() -> None:
    network, seen = small(), []
    network[2].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[operator, index]
    names = list(network.state_dict())
    prepare(network, "bf16")
    out = network(torch.randn(1, 1, 4, 4, 4))
    assert (seen, out.dtype) == ([torch.bfloat16], torch.float32)
    assert list(network.state_dict()) == names
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    out.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_precision_of_a_device() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) in ("bf16", "float32")
    assert choose_precision("bf16", cpu) == "bf16"
    with pytest.raises(UsageError, match="CUDA"):
        choose_precision("fp16", cpu)
