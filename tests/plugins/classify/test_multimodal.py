"""Facts beside images: made data in which image, numbers and text tell a class only together, from file to table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundled
import numpy as np
import pytest
import torch
from bundled import as_arguments
from medkit_classify import calibrate
from medkit_classify.calibration import Calibration
from medkit_classify.facts import Facts, Feature, facts_of, given_of, learnt
from medkit_classify.multimodal import AddContext, ContextBatch, Fused, packed
from outcome import Outcome
from PIL import Image as Picture
from scipy.stats import rankdata
from torch import nn
from torch.nn import functional

from medkit.bundles.bundle import Bundle
from medkit.pipe.records import read_sidecar
from medkit.training.parts.augmentation import AugmentedBatch, Changes

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]
OFTEN = 0.72
"""Share of the cases in which a cue is there: were it a half, nothing at all could be learnt from one cue alone."""
SMALL = ("--set", "channels=[8,8,16]")
"""For the bundle's network, in training and inference."""


@dataclass(frozen=True)
class Cues:
    """What is hidden in a case: its class is whether an odd number of them is there."""

    bright_top: bool
    old: bool
    effusion: bool

    @property
    def label(self) -> int:
        """The class."""
        return (self.bright_top + self.old + self.effusion) % 2


def drawn(rng: np.random.Generator) -> Cues:
    return Cues(*map(bool, rng.random(3) < OFTEN))


def plane(cues: Cues, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) from 0 to 1: a bar that lies at the top, or stands at the left."""
    out = rng.uniform(0.3, 0.5, (size, size))
    bar = out if cues.bright_top else out.T
    bar[size // 8 : size // 3] = 0.9
    return out


def item(cues: Cues, rng: np.random.Generator) -> dict[str, Any]:
    """Facts as a datalist has them; both texts hold the same words, in another order."""
    there, absent = ("effusion", "consolidation") if cues.effusion else ("consolidation", "effusion")
    begin = rng.choice(["The film", "Today the film"])
    age = rng.normal(70 if cues.old else 40, 6)
    crp = None if rng.random() < 0.2 else rng.normal(5, 2)
    return {"features": {"age": age, "crp": crp}, "text": f"{begin} shows {there} but no {absent}.",
            "label": cues.label}  # fmt: skip


def area_under_curve(scores: Sequence[float], labels: Sequence[int]) -> float:
    ranks, positive = rankdata(scores), np.array(labels) == 1
    count = int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(ranks) - count)))


# ---- the network


def encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())


def fused(facts: Facts, **more: Any) -> Fused:
    return Fused(encoder(), nn.AdaptiveAvgPool2d(1), 8, 2, facts, dropout=0.0, **more)


def batch_of(count: int, seed: int) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """(count, 1, 12, 12) images and their items."""
    rng = np.random.default_rng(seed)
    cases = [drawn(rng) for _ in range(count)]
    images = np.stack([plane(cues, 12, rng) for cues in cases])[:, None]
    return torch.from_numpy(images.astype(np.float32)), [item(cues, rng) for cues in cases]


def kept(branch: str, images: torch.Tensor, rows: torch.Tensor, facts: Facts) -> torch.Tensor:
    """What a network is given that has one branch alone, or `all`."""
    if branch not in ("all", "image"):
        images = torch.zeros_like(images)
    if branch not in ("all", "table"):
        rows = functional.pad(rows[:, facts.numbers :], (facts.numbers, 0))
    if branch not in ("all", "text"):
        rows = functional.pad(rows[:, : facts.numbers], (0, facts.size - facts.numbers))
    return packed(images, rows)


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["all", "image", "table", "text"])
def test_only_image_table_and_text_together_tell_the_class(branch: str) -> None:
    torch.manual_seed(0)
    images, items = batch_of(800, 0)
    facts = learnt(items)
    assert facts.words[:3] == ("but", "consolidation", "effusion")
    unseen, others = batch_of(400, 1)
    network = fused(facts)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    given, wanted = (
        kept(branch, part, torch.from_numpy(np.stack([facts.row(given_of(one)) for one in known])), facts)
        for part, known in ((images, items), (unseen, others))
    )
    labels = torch.tensor([one["label"] for one in items])
    for _ in range(250):
        chosen = torch.randint(len(given), (64,))
        optimizer.zero_grad()
        functional.cross_entropy(network(given[chosen]), labels[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        scores = network.eval()(wanted).softmax(1)[:, 1].tolist()
    found = area_under_curve(scores, [one["label"] for one in others])
    assert found > 0.95 if branch == "all" else found < 0.7


def test_a_network_of_facts_takes_apart_what_was_packed() -> None:
    facts = Facts((Feature("age", 50.0, 10.0),), ("effusion", "no"), 3)
    row = facts.row(given_of({"features": {"age": 65}, "text": "No effusion, twice; cut off"}))
    assert row.tolist() == [1.5, 0, 3, 2, 1]
    x = packed(torch.rand(1, 1, 12, 12), torch.from_numpy(row)[None])
    assert x.shape == (1, 2, 12, 12)
    network = fused(facts).eval()
    seen: list[torch.Tensor] = []
    network.values.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.reader.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(x)
    assert [part.tolist() for part in seen] == [[[1.5, 0.0]], [[3, 2, 1]]]
    with pytest.raises(ValueError, match="do not fit into a channel of 4 voxels"):
        packed(torch.rand(1, 1, 2, 2), torch.from_numpy(row)[None])


def test_the_order_of_words_counts_and_words_after_the_last_do_not() -> None:
    torch.manual_seed(0)
    reader = fused(Facts((), ("effusion", "no", "but"), 4)).reader
    rows = torch.tensor([[2, 3, 4, 0], [3, 2, 4, 0], [0, 0, 0, 0], [2, 3, 4, 3]])
    out = reader(rows)
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out[0], out[3])
    assert torch.equal(out[2], torch.zeros(32))
    torch.testing.assert_close(reader(rows[:1, :3])[0], out[0])


def test_a_batch_keeps_the_facts_and_takes_some_away_to_learn_without() -> None:
    facts = Facts((Feature("age", 50.0, 10.0),), ("effusion",), 2)
    rows = torch.tensor([[1.5, 0.0, 2.0, 1.0]]).repeat(400, 1)
    batch = {"image": torch.full((400, 1, 4, 4), 0.5), "label": torch.ones(400), "context": rows}
    torch.manual_seed(0)
    given, targets = ContextBatch(facts)(batch, "cpu")
    assert torch.equal(given[:, 1].flatten(1)[:, :4], rows)
    assert torch.equal(targets, batch["label"])
    given, shares = ContextBatch(facts, AugmentedBatch(2, Changes()), absent=0.25)(batch, "cpu")
    assert shares.shape == (400, 2)
    assert not torch.equal(given[:, :1], batch["image"]), "images are changed"
    found = given[:, 1].flatten(1)[:, :4]
    missing, silent = found[:, 1] == 1, (found[:, 2:] == 0).all(1)
    assert (found[missing, 0] == 0).all()
    assert (found[~missing, 0] == 1.5).all()
    assert 70 < missing.sum() < 130
    assert 70 < silent.sum() < 130
    assert (missing & silent).sum() < 60, "each by itself"
    with pytest.raises(ValueError, match="mixup 0"):
        ContextBatch(facts, AugmentedBatch(2, Changes(mixup=0.2)))


def test_the_last_step_of_a_preprocessing_takes_what_is_said_and_marks_the_rest() -> None:
    facts = Facts((Feature("age", 50.0, 10.0), Feature("crp", 5.0, 2.0)), ("no",), 1)
    image = torch.rand(1, 4, 4)
    done = AddContext(facts)({"image": image, "features": {"age": 40.0}, "text": "no"})
    assert set(done) == {"image"}
    assert done["image"][1].flatten()[:6].tolist() == [-1, 0, 0, 1, 2, 0]
    assert torch.equal(done["image"][:1], image)
    assert AddContext(facts)({"image": image})["image"][1].flatten()[:5].tolist() == [0, 0, 1, 1, 0]


# ---- from file to table


def write_set(folder: Path, count: int, *, seed: int = 0, inline: bool = False) -> list[dict[str, Any]]:
    """Pictures, `facts.csv` and `<stem>.txt`, or all facts in the datalist; its items. A fifth validates."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    items, lines = [], ["file,age,crp,ward"]
    for number in range(count):
        cues = drawn(rng)
        Picture.fromarray((255 * plane(cues, 28, rng)).astype(np.uint8)).save(folder / f"{number}.png")
        known = item(cues, rng)
        crp = known["features"]["crp"]
        lines.append(f"{number}.png,{known['features']['age']:.1f},{'' if crp is None else f'{crp:.2f}'},B")
        (folder / f"{number}.txt").write_text(known["text"])
        items.append({"image": f"{number}.png"} | (known if inline else {"label": known["label"]}))
    (folder / "facts.csv").write_text("\n".join(lines) + "\n")
    cut = count // 5
    (folder / "dataset.json").write_text(json.dumps({"training": items[cut:], "validation": items[:cut]}))
    return items


def trained(medkit: Run, folder: Path, out: Path, *more: object, steps: int = 2) -> Path:
    """A multimodal bundle made of `chest_xray_classification`."""
    done = medkit("train", "classify", "--bundle", "chest_xray_classification", "--config", "train,multimodal",
                  "--data", folder / "dataset.json", "-o", out, *SMALL, "--set", f"epoch_length={min(steps, 50)}",
                  "--steps", steps, "--precision", "float32", "--threads", 1, "-q", *more)  # fmt: skip
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, `data`, and a bundle that was trained for two steps on it, `bundle`."""
    from outcome import in_this_process

    from medkit import cli

    root = tmp_path_factory.mktemp("multimodal")
    write_set(root / "data", 20)
    more = ("--set", f"features={root / 'data' / 'facts.csv'}", "--set", f"text={root / 'data'}")
    trained(in_this_process(cli.main), root / "data", root / "bundle", *more)
    return root


@pytest.fixture
def classify(medkit: Run, made: Path) -> Run:
    def run(*arguments: object, root: Path = made / "bundle") -> Outcome:
        return medkit("run", "classify", "--bundle", root, "--trust", "--precision", "float32", *SMALL, *arguments)

    return run


def test_a_bundle_keeps_what_it_reads(made: Path) -> None:
    bundle = Bundle(made / "bundle", "b", "classify")
    facts = facts_of(bundle)
    assert facts is not None
    assert [feature.name for feature in facts.features] == ["age", "crp"], "and no words of a ward"
    assert facts.features[0].mean == pytest.approx(60, abs=12)
    assert 5 < facts.features[0].spread < 20
    assert {"effusion", "no", "shows"} <= set(facts.words)
    assert facts.length == 8
    given = bundle.metadata["network_data_format"]["inputs"]["image"]
    assert (given["num_channels"], given["channel_def"]) == (2, {"0": "image", "1": "context"})
    assert sorted(p.stem for p in (made / "bundle" / "configs").iterdir()) == [
        "inference", "metadata", "pretrain", "train",
    ]  # fmt: skip


def test_features_and_texts_come_from_a_table_and_a_folder(classify: Run, made: Path, tmp_path: Path) -> None:
    data = made / "data"
    done = classify(data / "0.png", "--features", data / "facts.csv", "--text", data, "--report", "-o", tmp_path)
    assert done.code == 0, done.err
    record = read_sidecar(tmp_path / "0_class.json")
    assert record is not None
    told = record.medkit["read"]
    with open(data / "facts.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert told["features"]["age"] == float(row["age"])
    assert ("crp" in told["missing"]) == (row["crp"] == "")
    assert told["words"] == len((data / "0.txt").read_text().split())
    assert f"age {float(row['age']):g}" in (tmp_path / "0_report.txt").read_text()
    assert {"features", "text"} <= set(record.medkit["inputs"])


def test_the_answer_depends_on_each_of_them(classify: Run, made: Path, tmp_path: Path) -> None:
    data = made / "data"
    (tmp_path / "f.csv").write_text("case,age,crp,note\n0.png,70,5,no effusion but consolidation\n")
    (tmp_path / "g.csv").write_text("case,age,crp,note\n0.png,30,,no effusion but consolidation\n")
    found = []
    for number, (table, text) in enumerate([("f", "note"), ("g", "note"), ("f", data)]):
        done = classify(
            data / "0.png", "--features", tmp_path / f"{table}.csv", "--text", text, "-o", tmp_path / f"{number}"
        )
        assert done.code == 0, done.err
        with open(done.paths[0], newline="") as file:
            row = next(csv.DictReader(file, delimiter="\t"))
            found.append(float(next(row[name] for name in row if name.startswith("probability_"))))
    assert len(set(found)) == 3


def test_other_facts_are_other_results(classify: Run, made: Path, tmp_path: Path) -> None:
    table = tmp_path / "f.csv"
    table.write_text("case,age,crp\n0.png,70,5\n1.png,70,5\n")
    given = (made / "data" / "0.png", made / "data" / "1.png", "--features", table, "--text", made / "data")
    again = (*given, "-o", tmp_path / "o", "--skip-existing", "--json")
    assert all(not record["medkit"].get("skipped") for record in classify(*again).records)
    assert all(record["medkit"].get("skipped") for record in classify(*again).records)
    table.write_text("case,age,crp\n0.png,71,5\n1.png,70,5\n")
    assert all(not record["medkit"].get("skipped") for record in classify(*again).records)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "also reads age and crp: --features TABLE"),
        (["--features", "facts.csv"], "also reads a text: --text FILE"),
        (["--features", "part.csv", "--text", "."], "also reads crp: --features"),
        (["--features", "other.csv", "--text", "."], "no row for 0.png"),
        (["--features", "facts.csv", "--text", "none"], "no column none"),
        (["--features", "facts.csv", "--text", "empty"], "0.txt: the text of 0.png cannot be read"),
    ],
)
def test_a_bundle_that_reads_facts_wants_them(
    classify: Run, made: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "part.csv").write_text("case,age\n0.png,3\n")
    (tmp_path / "other.csv").write_text("case,age\n9.png,3\n")
    (tmp_path / "empty").mkdir()
    here = {"facts.csv": made / "data" / "facts.csv", ".": made / "data", "empty": tmp_path / "empty"}
    given = [here.get(o, tmp_path / o if o.endswith(".csv") else o) for o in options]
    done = classify(made / "data" / "0.png", *given, "-o", tmp_path / "o")
    assert done.code == 3
    assert message in done.err
    assert not list((tmp_path / "o").glob("*.tsv"))


def test_a_bundle_that_reads_images_alone_takes_no_facts(medkit: Run, made: Path) -> None:
    given = ("--features", made / "data" / "facts.csv", "--bundle", "chest_xray_classification")
    done = medkit("run", "classify", made / "data" / "0.png", *given)
    assert done.code == 2
    assert "reads only images" in done.err
    done = medkit("run", "classify", made / "data" / "0.png", "--text", "nowhere")
    assert done.code == 2
    assert "no such file or folder" in done.err


@pytest.mark.parametrize("command", [("run", "bundle"), ("evaluate", "--robustness")])
def test_commands_without_facts_run_no_bundle_that_reads_them(
    medkit: Run, made: Path, command: tuple[str, ...]
) -> None:
    reference = ("--reference", made / "data" / "facts.csv") if "evaluate" in command else ()
    done = medkit(*command, "--bundle", made / "bundle", "--trust", made / "data" / "0.png", *reference)
    assert done.code == 2
    assert "also reads facts besides images" in done.err
    assert "medkit run classify takes both" in done.err


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_facts_stay_as_they_are_while_an_image_is_explained(
    classify: Run, made: Path, tmp_path: Path, method: str
) -> None:
    data = made / "data"
    done = classify(data / "0.png", "--features", data / "facts.csv", "--text", data, "--explain", method,
                    "--save-features", "-o", tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    assert min(np.asarray(Picture.open(tmp_path / f"0_{method}.png")).shape[:2]) > 28
    with np.load(tmp_path / "0_features.npz") as found:
        assert found["features"].shape == (1, 32), "those of everything joined"


def test_facts_of_a_datalist_and_of_sidecars(medkit: Run, tmp_path: Path) -> None:
    items = write_set(tmp_path / "data", 20, inline=True)
    items[1]["text"] += " Otherwise unremarkable." * 40  # longer than any file's name
    for number, one in enumerate(items):
        path = tmp_path / "data" / f"{number}_dseg.nii.gz"
        path.write_bytes(b"")
        block = {"task": "segment", "metrics": {"volumes_mm3": {"lung": 1000.0 + number}}, "warnings": ["small"]}
        sidecar = {"medkit": block, "Sources": [f"{number}.png"], "path": path.name, "kind": "labels"}
        (tmp_path / "data" / f"{number}_dseg.json").write_text(json.dumps(sidecar))
        one["labels"] = path.name
    listed = {"training": items[4:], "validation": items[:4]}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(listed))
    facts = facts_of(Bundle(trained(medkit, tmp_path / "data", tmp_path / "b"), "b", "classify"))
    assert facts is not None
    assert [feature.name for feature in facts.features] == ["volume_lung", "warnings", "age", "crp"]
    assert facts.features[0].mean == pytest.approx(1000 + np.mean(range(4, 20)))
    assert facts.features[1].spread == 1.0, "no spread at all"
    given = ("--features", tmp_path / "data" / "facts.csv", "--text", tmp_path / "data", "--trust", *SMALL)
    done = medkit("run", "classify", "--bundle", tmp_path / "b", *given, "--json",
                  input=f"{tmp_path / 'data' / '5_dseg.nii.gz'}\n")  # fmt: skip
    assert done.code == 0, done.err
    told = done.records[0]["medkit"]["read"]["features"]
    assert (told["volume_lung"], told["warnings"]) == (1005.0, 1.0), "what came down the pipe"
    done = medkit("run", "classify", "--bundle", tmp_path / "b", *given, tmp_path / "data" / "5.png", "--overwrite")
    assert done.code == 3
    assert "also reads volume_lung and warnings" in done.err


def test_a_training_without_facts_says_so(medkit: Run, tmp_path: Path) -> None:
    write_set(tmp_path / "data", 10)
    done = medkit("train", "classify", "--bundle", "chest_xray_classification", "--config", "train,multimodal",
                  "--data", tmp_path / "data" / "dataset.json", "-o", tmp_path / "b", "--steps", 1)  # fmt: skip
    assert done.code != 0
    assert "hold nothing besides their images" in done.err


def test_a_bundle_that_reads_facts_is_calibrated_with_them(
    medkit: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made / "data"
    wide = ("--set", f"features={data / 'facts.csv'}", "--set", f"text={data}", "--set", "channels=[32,64,128]")
    root = trained(medkit, data, tmp_path / "b", *wide)
    given = ["calibrate", str(root), str(data / "dataset.json"), "--write"]
    monkeypatch.setattr("sys.argv", [*given, "--features", str(data / "facts.csv")])
    with pytest.raises(SystemExit, match="also reads a text"):
        calibrate.main()
    monkeypatch.setattr("sys.argv", [*given, "--features", str(data / "facts.csv"), "--text", str(data)])
    calibrate.main()
    calibration = Calibration.of(Bundle(root, "b", "classify"))
    assert not calibration.note
    assert calibration.layers == ("encoder.0", "encoder.2", "encoder.4", "encoder.6")


@pytest.mark.slow
def test_a_bundle_that_reads_facts_keeps_what_bundles_promise(medkit: Run, made: Path, tmp_path: Path) -> None:
    """Under MONAI's own tools, which hand its network one tensor."""
    data = made / "data"
    wide = ("--set", f"features={data / 'facts.csv'}", "--set", f"text={data}", "--set", "channels=[32,64,128]")
    root = trained(medkit, data, tmp_path / "b", *wide)
    verified = medkit("bundle", "verify", root, "--trust")
    assert verified.code == 0, verified.out
    assert "failed" not in verified.out
    bundled.verify_network(root)
    known = {"image": str(data / "0.png"), "features": {"age": 61.5, "crp": None}, "text": "no effusion"}
    given = {"datalist": json.dumps([known]), "output_dir": tmp_path / "monai", "device": "cpu"}
    bundled.monai_bundle(root, "run", "--config_file", "configs/inference.json", *as_arguments(given))
    with open(tmp_path / "monai" / "predictions.csv", newline="") as file:
        (row,) = csv.reader(file)
    (tmp_path / "f.csv").write_text("case,age,crp,text\n0.png,61.5,,no effusion\n")
    done = medkit("run", "classify", "--bundle", root, "--trust", "--precision", "float32", data / "0.png",
                  "--features", tmp_path / "f.csv", "--text", "text", "-o", tmp_path / "o", "--json")  # fmt: skip
    assert done.code == 0, done.err
    found = list(done.records[0]["medkit"]["metrics"]["findings"][0]["probabilities"].values())
    np.testing.assert_allclose(found, [float(p) for p in row[1:]], atol=1e-4)


@pytest.mark.slow
def test_a_training_from_files_learns_what_only_all_three_tell(medkit: Run, tmp_path: Path) -> None:
    items = write_set(tmp_path / "data", 800)
    unseen = write_set(tmp_path / "unseen", 200, seed=1)
    assert items != unseen
    data = tmp_path / "data"
    more = ("--set", f"features={data / 'facts.csv'}", "--set", f"text={data}", "--set", "dropout=0.0")
    root = trained(medkit, data, tmp_path / "b", *more, "--set", "absent=0.0", steps=300)
    given = ("--features", tmp_path / "unseen" / "facts.csv", "--text", tmp_path / "unseen")
    done = medkit("run", "classify", "--bundle", root, "--trust", *SMALL, *given, "--table", tmp_path / "t.tsv",
                  *(tmp_path / "unseen" / one["image"] for one in unseen))  # fmt: skip
    assert done.code == 0, done.err
    with open(tmp_path / "t.tsv", newline="") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file, delimiter="\t")}
    scores = [float(rows[one["image"]]["probability_pneumonia"]) for one in unseen]
    assert area_under_curve(scores, [one["label"] for one in unseen]) > 0.95
