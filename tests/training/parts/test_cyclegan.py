"""Unpaired translation: the parts of CycleGAN, its data, and the bundle lowfield_to_highfield trained and run."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bundled
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from outcome import Outcome
from places import BUNDLES, HELPERS
from processes import train_over
from torch import nn

from medkit.errors import InputError
from medkit.training.data import find_unpaired
from medkit.training.parts.cyclegan import CycleInferer, CycleLoss, ImagePool, TrainDiscriminators, prepare_unpaired
from medkit.training.parts.samples import UnpairedSamples

ROOT = BUNDLES / "lowfield_to_highfield"
CONFIGS = ROOT / "configs"
SMALL = {"channels": [2, 2, 4], "judge_channels": 2, "patch": [16, 16, 16], "pool": 2, "epoch_length": 4}
STEPS = 8


# ---- parts


class Times(nn.Module):
    """Multiplies an image by a parameter."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * self.factor


class Says(nn.Module):
    """A discriminator that answers a factor times the mean, as its last layer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image, image.mean((1, 2, 3, 4), keepdim=True) * self.factor]


def pair() -> dict[str, torch.Tensor]:
    return {"source": torch.full((1, 1, 4, 4, 4), 2.0), "target": torch.full((1, 1, 4, 4, 4), 6.0)}


def test_images_go_there_and_back() -> None:
    real = pair()
    made = CycleInferer(Times(0.5))(real["source"], Times(3.0), real["target"])
    assert {name: float(image.detach().mean()) for name, image in made.items()} == {
        "fake_target": 6, "fake_source": 3, "same_target": 18, "same_source": 1, "cycle_target": 9, "cycle_source": 3,
    }  # fmt: skip


def test_the_loss_of_the_generators() -> None:
    """Verdicts 3 and 6 should be 1; what came back is off by 1 and 3, what should have stayed by 1 and 12."""
    real = pair()
    made = CycleInferer(Times(0.5))(real["source"], Times(3.0), real["target"])
    discriminators = nn.ModuleDict({"source": Says(1.0), "target": Says(1.0)})
    loss = CycleLoss(discriminators, cycle=10, identity=5)
    assert float(loss(made, real).detach()) == pytest.approx((2**2 + 5**2) + 10 * (1 + 3) + 5 * (1 + 12))
    assert list(loss.parameters()) == [], "the discriminators are not trained by this loss"


def test_a_batch_is_taken_apart() -> None:
    source, real, further, named = prepare_unpaired(pair(), torch.device("cpu"))
    assert (source is real["source"], further[0] is real["target"], named) == (True, True, {})


def test_a_pool_gives_some_of_what_it_was_given_before() -> None:
    torch.manual_seed(0)
    pool = ImagePool(3)
    given = [torch.full((1, 1, 2, 2, 2), float(n)) for n in range(40)]
    shown = [float(pool(image).mean()) for image in given]
    assert shown[:3] == [0, 1, 2]
    assert any(old < new for new, old in enumerate(shown))
    assert len(pool.images) == 3
    swapped = [*shown[3:], *(float(image.mean()) for image in pool.images)]
    assert sorted(swapped) == sorted([0, 1, 2, *range(3, 40)]), "none is lost and none comes twice"
    other = ImagePool(3)
    other.load_state_dict(pool.state_dict())
    torch.manual_seed(1)
    first = pool(given[7])
    torch.manual_seed(1)
    assert torch.equal(other(given[7]), first)


def discriminating(loss: float = 1.0) -> tuple[TrainDiscriminators, Any]:
    discriminators = nn.ModuleDict({"source": Says(0.0), "target": Says(0.0)})
    handler = TrainDiscriminators(
        discriminators,
        torch.optim.SGD(discriminators.parameters(), 0.01),
        {key: ImagePool(2) for key in ("source", "target")},
    )
    real = pair()
    made = {"fake_source": real["source"] * 0.1, "fake_target": real["target"] * 0.1}
    output = {"loss": torch.tensor(loss), "pred": made, "label": real}
    return handler, SimpleNamespace(state=SimpleNamespace(output=output))


def test_discriminators_learn_to_tell_real_from_generated() -> None:
    handler, engine = discriminating()
    state = engine.state.output
    before = float(handler.loss(state["pred"], state["label"]).detach())
    for _ in range(30):
        handler(engine)
    assert before == pytest.approx(1.0), "half of (0 - 1)^2 + 0^2 for each"
    assert float(handler.loss(state["pred"], state["label"]).detach()) < 0.1
    assert not any(p.requires_grad for p in handler.discriminators.parameters()), "not in the generators' steps"


def test_discriminators_do_not_learn_from_a_step_that_failed() -> None:
    handler, engine = discriminating(float("nan"))
    handler(engine)
    assert float(handler.discriminators["source"].factor.detach()) == 0
    assert handler.pools["source"].images == []


# ---- data


def test_unpaired_samples_depend_on_their_number_alone() -> None:
    kinds = {"source": [{"image": n} for n in range(3)], "target": [{"image": 10 + n} for n in range(5)]}
    samples = UnpairedSamples(kinds, lambda item: {"image": (item["image"], int(np.random.randint(1000)))}, seed=3)
    first = [samples[n] for n in range(15)]
    assert [samples[n] for n in reversed(range(15))] == first[::-1]
    assert sorted({s["source"][0] for s in first[:3]}) == [0, 1, 2]
    assert sorted({s["target"][0] for s in first[:5]}) == [10, 11, 12, 13, 14]
    assert len({(s["source"][0], s["target"][0]) for s in first}) > 5, "they do not go together"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def names(folder: Path, *data: str) -> list[tuple[str, str]]:
    found = find_unpaired([folder / d for d in data], ["source", "target"])
    assert found.validation == ()
    return [(key, str(Path(path).relative_to(folder))) for item in found.training for key, path in item.items()]


def test_folders_of_things_that_do_not_belong_together(tmp_path: Path) -> None:
    touch(tmp_path, "A/x.nii.gz", "A/y.nii.gz", "B/x.nii.gz", "all/sources/p.nii", "all/target/q.nii")
    expected = [("source", "A/x.nii.gz"), ("source", "A/y.nii.gz"), ("target", "B/x.nii.gz")]
    assert names(tmp_path, "A", "B") == expected
    assert names(tmp_path, "all") == [("source", "all/sources/p.nii"), ("target", "all/target/q.nii")]
    items = [{"source": "A/x.nii.gz"}, {"source": "A/y.nii.gz"}, {"target": "B/x.nii.gz"}]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    assert names(tmp_path, "list.json") == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["A"], "expected 2 folders, one of source images and one of target images"),
        (["A", "B", "A"], "expected 2 folders"),
        (["A", "nowhere"], "nowhere: expected 2 folders"),
        (["A", "empty"], "empty: expected image files"),
        (["pair.json"], "item 0 has source and target of source and target; expected one"),
        (["half.json"], "no images of target"),
    ],
)
def test_data_that_do_not_fit(tmp_path: Path, data: list[str], words: str) -> None:
    touch(tmp_path, "A/x.nii.gz", "B/x.nii.gz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pair.json").write_text(json.dumps([{"source": "A/x.nii.gz", "target": "B/x.nii.gz"}]))
    (tmp_path / "half.json").write_text(json.dumps([{"source": "A/x.nii.gz"}]))
    with pytest.raises(InputError, match=words):
        names(tmp_path, *data)


# ---- the bundle


built = functools.partial(bundled.built, ROOT)


def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree_and_the_weights_will_be_small() -> None:
    one, other = built("cyclegan"), built("inference")
    for name in ("network_def", "block", "level", "generator", "channels", "spacing", "scale"):
        assert one.get(name) == other.get(name), name
    network = other.get_parsed_content("network_def")
    assert 2 * sum(p.numel() for p in network.parameters()) < 4_900_000


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of small heads of other people: A noisy and dull, B clean."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, 36)] * 3, indexing="ij"))
    for kind, count in (("A", 3), ("B", 2)):
        (folder / kind).mkdir()
        for n in range(count):
            head = np.where((x**2).sum(0) < 0.8, 500 + 300 * (np.sin(7 * x[n % 3] + n) > 0), 0.0)
            if kind == "A":
                head = np.hypot(head**0.8 + rng.normal(0, 20, head.shape), rng.normal(0, 20, head.shape))
            nibabel.save(nibabel.Nifti1Image(head.astype(np.float32), np.eye(4)), folder / kind / f"{n}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with small networks, and with what tests do to trainings (see `tiny.Trouble`)."""
    root = tmp_path_factory.mktemp("bundles") / "small"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("models"))
    for name in ("inference", "cyclegan"):
        path = root / "configs" / f"{name}.json"
        config = json.loads(path.read_text())
        config |= {key: value for key, value in SMALL.items() if key in config}
        if name == "cyclegan":
            config["train"]["handlers"].append({"_target_": "tiny.Trouble"})
        path.write_text(json.dumps(config))
    return root


Train = Callable[..., int]


@pytest.fixture(scope="module")
def train(bundle: Path, scans: Path) -> Train:
    """Runs `medkit train enhance` in a process of its own; gives how it ended."""

    def run(out: Path, trouble: str = "", *more: str) -> int:
        command = ["train", "enhance", "--bundle", bundle, "--trust", "--config", "cyclegan", "-o", out]
        command += [
            "--data",
            scans / "A",
            scans / "B",
            "--steps",
            STEPS,
            "--threads",
            1,
            "--precision",
            "float32",
            *more,
        ]
        search = os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"TINY_TROUBLE": trouble, "PYTHONPATH": search}
        command = [sys.executable, "-m", "medkit", *map(str, command)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 75, -signal.SIGKILL), done.stderr
        return done.returncode

    return run


@pytest.fixture(scope="module")
def unbroken(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a training that nothing disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert train(out) == 0
    return out


def state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "training" / "checkpoint.pt", weights_only=True)
    return found


def test_all_four_networks_are_trained(unbroken: Path) -> None:
    further = state(unbroken)["further"]
    assert set(further) == {"back", "judges", "judge_optimizer", "source_pool", "target_pool"}
    assert len(further["source_pool"]["images"]) == SMALL["pool"]
    begun = built("cyclegan", **SMALL)
    for name in ("back", "judges"):
        own = begun.get_parsed_content(name).state_dict()
        assert own.keys() == further[name].keys()
    assert further["judge_optimizer"]["state"][0]["step"] == STEPS
    assert state(unbroken)["optimizer"]["state"][0]["step"] == STEPS
    shipped = torch.load(unbroken / "models" / "model.pt", weights_only=True)
    assert {v.dtype for v in shipped.values()} == {torch.float16}
    assert (unbroken / "docs" / "samples.png").is_file()


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested containers with their names."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(part, f"{name}/{key}")
    else:
        yield name, value


@pytest.mark.slow
def test_killed_it_goes_on_as_if_nothing_had_happened(train: Train, unbroken: Path, tmp_path: Path) -> None:
    """Stopped at step 3, killed at step 6: all networks, optimizers and kept images end the same to the bit."""
    out = tmp_path / "out"
    assert train(out, "SIGTERM@3") == 75
    assert train(out, "SIGKILL@6") == -signal.SIGKILL
    assert train(out) == 0
    parts = ("step", "network", "ema", "optimizer", "further", "best_weights")
    one, other = (dict(flat({k: state(folder)[k] for k in parts})) for folder in (out, unbroken))
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


@pytest.mark.slow
def test_two_ranks_go_on_as_if_nothing_had_happened(bundle: Path, scans: Path, tmp_path: Path) -> None:
    """Discriminators learn from the images of both ranks, and each rank keeps its own images."""
    found = []
    for name, troubles in (("out", ["SIGTERM@5", ""]), ("unbroken", [""])):
        for trouble in troubles:
            command = ["train", "enhance", "--bundle", bundle, "--trust", "--config", "cyclegan", "-o", tmp_path / name]
            command += ["--data", scans / "A", scans / "B", "--steps", STEPS, "--threads", 1, "--precision", "float32"]
            ended = train_over(2, command, {}, {"TINY_TROUBLE": trouble})
            assert [each.code for each in ended] == [75 if trouble else 0] * 2, ended
        found.append(state(tmp_path / name))
    parts = ("network", "ema", "optimizer", "further", "other_ranks", "best_weights")
    one, other = (dict(flat({k: each[k] for k in parts})) for each in found)
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key
    assert len(found[0]["other_ranks"]) == 1
    kept = [each["source_pool"]["images"] for each in (found[0]["further"], found[0]["other_ranks"][0])]
    assert not torch.equal(kept[0][0], kept[1][0])


@pytest.mark.slow
def test_it_learns(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "out", "", "--steps", "60", "--set", "learning_rate=0.002", "--set", "ema=0.0") == 0
    rows = [line.split(",") for line in (tmp_path / "out" / "training" / "log.csv").read_text().splitlines()[1:]]
    losses = [float(row[3]) for row in rows]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.slow
def test_the_config_runs_under_monai_alone(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, folder in (("source", "A"), ("target", "B")):
        shutil.copytree(scans / folder, tmp_path / "data" / kind)
    given = {"dataset_dir": tmp_path / "data", "device": "cpu", "steps": 2, "epoch_length": 2}
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")]))
    bundled.monai_bundle(bundle, "run", "--config_file", "configs/cyclegan.json", *bundled.as_arguments(given))


@pytest.fixture
def medkit_with_plugin(toy: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> Outcome:
        return toy(*arguments, env={"TOY_PLUGINS": "medkit_enhance"})

    return run


def test_the_config_says_which_bundle_is_trained(
    medkit_with_plugin: Callable[..., Outcome], scans: Path, tmp_path: Path
) -> None:
    small = [word for key, value in SMALL.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    command = ["train", "enhance", "--config", "cyclegan", "-o", tmp_path / "out", "--dry-run", *small]
    done = medkit_with_plugin(*command, "--data", scans / "A", scans / "B")
    assert done.code == 0, done.err
    assert "bundle: lowfield_to_highfield" in done.err
    assert "items: 5 for training" in done.err
    assert ", 0 for validation" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "train", "--data", "A", "B"], "train.json learns from one"),
        (["B"], "B: unexpected; data are given by --data"),
        (["--config", "nothing", "--data", "A"], "several bundles; choose one with --bundle"),
    ],
)
def test_wrong_wishes(
    medkit_with_plugin: Callable[..., Outcome], scans: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    given = [scans / a if a in ("A", "B") else a for a in arguments]
    done = medkit_with_plugin("train", "enhance", "-o", tmp_path / "out", *given)
    assert (done.code, words in done.err) == (2, True), done.err


# ---- inference


def brighter(bundle: Path, root: Path) -> Path:
    """The bundle with a network that adds half of the 99th percentile to every voxel."""
    shutil.copytree(bundle, root)
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    for parameter in network.parameters():
        parameter.data.zero_()
    network.submodule[-1].bias.data.fill_(0.5)
    (root / "models").mkdir()
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


def oblique(path: Path) -> tuple[np.ndarray, float]:
    """Writes a scan of odd sizes in LPI with voxels of 1 mm; its voxels and their 99th percentile."""
    affine = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 22], [0, 0, -1, 25], [0, 0, 0, 1]])
    values = np.random.default_rng(0).uniform(100, 900, (37, 42, 45)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return values, float(np.quantile(values.ravel()[::7], 0.99))


def test_the_plugin_runs_it_as_a_whole(
    medkit_with_plugin: Callable[..., Outcome], bundle: Path, tmp_path: Path
) -> None:
    root = brighter(bundle, tmp_path / "brighter")
    values, bright = oblique(tmp_path / "a.nii.gz")
    done = medkit_with_plugin("run", "enhance", tmp_path / "a.nii.gz", "--bundle", root, "--trust", "--json")
    assert done.code == 0, done.err
    (record,) = done.records
    assert record["medkit"]["enhancement"]["steps"] == [{"what": "image", "method": "network", "done": True}]
    made = np.asarray(nibabel.load(record["path"]).dataobj)
    np.testing.assert_allclose(made, values + 0.5 * bright, rtol=0.02)
    done = medkit_with_plugin("run", "enhance", tmp_path / "a.nii.gz", "--bundle", root, "--what", "denoise")
    assert (done.code, "returns an enhanced image and no parts of it" in done.err) == (2, True)


@pytest.mark.slow
def test_inference_under_monai(bundle: Path, tmp_path: Path) -> None:
    root = brighter(bundle, tmp_path / "brighter")
    (tmp_path / "in").mkdir()
    values, bright = oblique(tmp_path / "in" / "a.nii.gz")
    given = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "device": "cpu"}
    bundled.monai_bundle(root, "run", "--config_file", "configs/inference.json", *bundled.as_arguments(given))
    made = nibabel.load(tmp_path / "out" / "a_highfield.nii.gz")
    np.testing.assert_allclose(made.affine, nibabel.load(tmp_path / "in" / "a.nii.gz").affine, atol=1e-4)
    np.testing.assert_allclose(np.asarray(made.dataobj), values + 0.5 * bright, rtol=1e-3)
