"""Bundles that say several things of an image, each with classes of its own: how bright it is, and on which side."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medkit_classify import calibrate
from outcome import Outcome
from PIL import Image as Picture

from medkit.bundles.bundle import Bundle
from medkit.bundles.contract import contract_of
from medkit.errors import BundleError
from medkit.pipe.records import read_sidecar, sha256_of

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]
SIZE = 8
CLASSES = ("dark", "bright", "left", "right")
ASPECTS = {"brightness": ["dark", "bright"], "side": ["left", "right"]}
STEEP = 20.0


def write_bundle(root: Path, **block: Any) -> Path:
    """A bundle of one linear layer: the mean says how bright a picture is, its halves which side is brighter."""
    for folder in ("configs", "models"):
        (root / folder).mkdir(parents=True)
    apart = "$lambda x: torch.cat([x[:2].softmax(0), x[2:].softmax(0)])"
    config = {
        "imports": ["$import collections", "$import torch"],
        "bundle_root": ".",
        "network_def": "$torch.nn.Sequential(collections.OrderedDict(encoder=torch.nn.Conv2d(1, 1, 1), "
        f"flatten=torch.nn.Flatten(), head=torch.nn.Linear({SIZE**2}, 4)))",
        "network": "$@network_def",
        "preprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x[:1] / 255"},
        ]},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "Lambdad", "keys": "pred", "func": apart}
        ]},
    }  # fmt: skip
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    even = torch.ones(SIZE, SIZE) / SIZE**2  # columns first, as pictures are read
    halves = even * torch.where(torch.arange(SIZE) < SIZE // 2, 1.0, -1.0)[:, None]
    weights = {
        "encoder.weight": torch.ones(1, 1, 1, 1),
        "encoder.bias": torch.zeros(1),
        "head.weight": STEEP * torch.stack([-even, even, halves, -halves]).flatten(1),
        "head.bias": STEEP * torch.tensor([0.5, -0.5, 0.0, 0.0]),
    }
    torch.save(weights, root / "models" / "model.pt")
    tensor = {"type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": [SIZE] * 2}
    made = {"type": "probabilities", "format": "classes", "num_channels": 4, "spatial_shape": [1, 4],
            "channel_def": dict(enumerate(CLASSES))}  # fmt: skip
    metadata = {
        "version": "0.3.0", "network_data_format": {"inputs": {"image": tensor}, "outputs": {"pred": made}},
        "medkit": {"task": "classify", "aspects": ASPECTS, "flagged": ["dark"], "next_step": {"left": "Turn it."},
                   **block},
    }  # fmt: skip
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return root


def picture(path: Path, level: float, left: float) -> Path:
    """A picture of a brightness, 0 to 1, whose left half is brighter by that much."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((SIZE, SIZE), level)
    values[:, : SIZE // 2] += left / 2
    values[:, SIZE // 2 :] -= left / 2
    Picture.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "both")


@pytest.fixture
def classify(medkit: Run, root: Path) -> Run:
    how = ("run", "classify", "--bundle", root, "--trust", "--precision", "float32")
    return lambda *arguments, **settings: medkit(*how, *arguments, **settings)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_each_aspect_has_a_row(classify: Run, tmp_path: Path) -> None:
    done = classify(picture(tmp_path / "a.png", 0.45, 0.2), "--report", "--save-features", "--explain", "occlusion")
    assert done.code == 0, done.err
    one, other = rows(tmp_path / "a_class.tsv")
    assert (one["candidate"], one["class"]) == ("brightness", "dark")
    assert (other["candidate"], other["class"]) == ("side", "left")
    for row, names in ((one, CLASSES[:2]), (other, CLASSES[2:])):
        said = {name: row[f"probability_{name}"] for name in CLASSES}
        assert sum(float(said[name]) for name in names) == pytest.approx(1, abs=1e-5)
        assert all(said[name] == "n/a" for name in set(CLASSES) - set(names))
    record = read_sidecar(tmp_path / "a_class.json")
    assert record is not None
    assert record.medkit["metrics"]["classes"] == {"brightness": "dark", "side": "left"}
    assert "look at this one: dark" in record.medkit["warnings"]
    text = (tmp_path / "a_report.txt").read_text()
    assert "Brightness: dark." in text
    assert "Side: left." in text
    assert "Next step: Turn it." in text
    kept = np.load(tmp_path / "a_features.npz")
    assert tuple(kept["classes"]) == CLASSES
    assert kept["features"].shape == (1, SIZE**2)


def test_one_table_can_be_judged_by_aspect(classify: Run, medkit: Run, tmp_path: Path) -> None:
    lines = ["image,brightness,side"]
    for n in range(12):
        level, left = 0.3 + 0.4 * (n % 2), 0.3 - 0.6 * (n % 3 == 0)
        picture(tmp_path / f"p/{n:02}.png", level, left)
        lines.append(f"{n:02}.png,{CLASSES[n % 2]},{'left' if n != 1 and left > 0 else 'right'}")
    (tmp_path / "p/truth.csv").write_text("\n".join(lines) + "\n")
    table = tmp_path / "results.tsv"
    assert classify(*sorted((tmp_path / "p").glob("*.png")), "--table", table).code == 0
    assert len(rows(table)) == 24
    accuracy = {}
    for aspect in ASPECTS:
        done = medkit("evaluate", table, tmp_path / "p/truth.csv", "--aspect", aspect, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["classes"] == ASPECTS[aspect]
        accuracy[aspect] = found["summary"]["all"]["accuracy"]["value"]
    assert accuracy == {"brightness": 1.0, "side": pytest.approx(11 / 12)}
    mixed = medkit("evaluate", table, tmp_path / "p/truth.csv")
    assert mixed.code != 0
    wrong = medkit("evaluate", table, tmp_path / "p/truth.csv", "--aspect", "colour")
    assert "brightness, side" in wrong.err


def test_its_robustness_is_that_of_an_aspect(root: Path, medkit: Run, tmp_path: Path) -> None:
    lines = ["image,brightness,side"]
    for n in range(8):
        picture(tmp_path / f"p/{n}.png", 0.47 + 0.06 * (n % 2), 0.02 - 0.04 * (n // 2 % 2))
        lines.append(f"{n}.png,{CLASSES[n % 2]},{CLASSES[2 + n // 2 % 2]}")
    (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")
    how = ["evaluate", "--robustness", "--bundle", root, "--trust", "--shifts", "fgsm", "--json"]
    found = {}
    for aspect in ASPECTS:
        done = medkit(*how, tmp_path / "p", tmp_path / "truth.csv", "--aspect", aspect)
        assert done.code == 0, done.err
        found[aspect] = [row["values"]["accuracy"]["value"] for row in json.loads(done.out)["rows"]]
    # 0.03 of brightness is more than the 0.02 that the sides differ by and as much as what brightness differs by
    assert found["brightness"][0] == found["side"][0] == 1
    assert found["side"][-1] == 0
    assert found["brightness"][1] == 1
    missing = medkit(*how, tmp_path / "p", tmp_path / "truth.csv")
    assert missing.code == 2
    assert "brightness, side" in missing.err


def test_run_bundle_gives_all_probabilities(root: Path, medkit: Run, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png", 0.55, 0.2)
    assert medkit("run", "bundle", "--bundle", root, "--trust", source).code == 0
    said = {row["class"]: float(row["probability"]) for row in rows(tmp_path / "a_class.tsv")}
    assert said["dark"] + said["bright"] == pytest.approx(1, abs=1e-5)
    assert said["left"] + said["right"] == pytest.approx(1, abs=1e-5)
    record = read_sidecar(tmp_path / "a_class.json")
    assert record is not None
    assert record.medkit["metrics"]["classes"] == {"brightness": "bright", "side": "left"}


def test_each_aspect_is_calibrated(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    items: dict[str, Any] = {"training": [], "validation": []}
    for number in range(90):
        level, left = rng.uniform(0.4, 0.6), rng.uniform(-0.2, 0.2)
        path = picture(tmp_path / f"data/{number}.png", level, left)
        truth = [int(level + rng.normal() * 0.03 > 0.5), int(left + rng.normal() * 0.3 < 0)]
        items["training" if number < 30 else "validation"].append({"image": path.name, "label": truth})
    (tmp_path / "data/dataset.json").write_text(json.dumps(items))
    monkeypatch.setattr("sys.argv", ["calibrate", str(root), str(tmp_path / "data/dataset.json"), "--write"])
    calibrate.main()
    block = json.loads((root / "configs" / "metadata.json").read_text())["medkit"]["calibration"]
    assert block["weights_sha256"] == sha256_of(root / "models" / "model.pt")
    sure, unsure = (block["aspects"][name]["temperature"] for name in ("brightness", "side"))
    assert unsure > 2 * sure, "the sides are told with far less certainty"
    error = block["aspects"]["side"]["calibration_error"]
    assert error["after"] < 0.1 < error["before"]


def test_aspects_that_are_not_its_classes(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "odd", aspects={"brightness": ["dark", "bright"], "side": ["left", "top"]})
    with pytest.raises(BundleError, match="top"):
        contract_of(Bundle(root, "odd", "classify"))
