"""Bundles whose own evaluator calls the network: medkit lets it run one case, with the labels of MONAI's own run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from monai_run import monai_run, voxels
from outcome import Outcome

from medkit.images.phantom import make_image

pytestmark = [pytest.mark.usefixtures("clean_path"), pytest.mark.filterwarnings("ignore")]

Run = Callable[..., Outcome]

EVALUATORS = '''
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents


class Weaker(SupervisedEvaluator):
    """Weakens the image."""

    def __init__(self, *args, factor=1.0, **settings):
        super().__init__(*args, **settings)
        self.factor = factor

    def _iteration(self, engine, batchdata):
        image = batchdata["image"].to(engine.state.device)
        engine.state.output = {"image": image, "label": None}
        with engine.mode(engine.network):
            engine.state.output["pred"] = engine.inferer(image * self.factor, engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class Nothing(Weaker):
    def _iteration(self, engine, batchdata):
        raise ValueError("no such luck")


class Upside:
    """A handler that turns the answer upside down."""

    def attach(self, engine):
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine):
        engine.state.output["pred"] = -engine.state.output["pred"]


def with_age(batch, device, non_blocking=False, **settings):
    return batch["image"].to(device), None, (), {"age": float(batch.get("age", 0))}


def flipped(items):
    from monai.data import list_data_collate

    batch = list_data_collate(items)
    batch["image"] = batch["image"].flip(3)
    return batch
'''

NETWORKS = '''
import torch


class Aged(torch.nn.Module):
    """The second class where the image is above an age."""

    def __init__(self):
        super().__init__()
        self.years = torch.nn.Parameter(torch.tensor(100.0))

    def forward(self, x, age=0.0):
        return torch.cat([torch.full_like(x, age) / self.years, x], 1)


class Prompted(torch.nn.Module):
    """A channel for each class that is asked for, above 0 in its range of intensities; near points only, if given."""

    def __init__(self):
        super().__init__()
        self.levels = torch.nn.Parameter(torch.tensor([0.0, 0.2, 0.4, 0.6]))

    def forward(self, x, class_vector, points=None):
        level = self.levels[class_vector[:, 0].long()].view(1, -1, 1, 1, 1)
        found = 0.1 - (x - level).abs()
        if points is not None:
            places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in x.shape[2:]), indexing="ij"), -1)
            near = torch.stack([(places - point).norm(dim=-1) < 2 for point in points]).any(0)
            found = torch.where(near, found, torch.full_like(found, -1))
        return found
'''

PROMPTS = '''
import numpy as np
import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.transforms import MapTransform


class PromptEvaluator(SupervisedEvaluator):
    def __init__(self, *args, hyper_kwargs=None, **settings):
        super().__init__(*args, **settings)
        self.hyper_kwargs = hyper_kwargs

    def _iteration(self, engine, batchdata):
        image = batchdata["image"].to(engine.state.device)
        asked, points = batchdata.get("label_prompt"), batchdata.get("points")
        if asked is None:
            asked = [torch.tensor([n]) for n in self.hyper_kwargs["everything_labels"]]
        classes = torch.stack([torch.as_tensor(a) for a in asked]).reshape(-1, 1)
        if points is not None:
            back = np.linalg.inv(image.affine[0].numpy()) @ image.meta["original_affine"][0].numpy()
            points = [back @ np.array([*(float(n) for n in point), 1.0]) for point in points]
            points = [torch.from_numpy(point[:3]) for point in points]
        engine.state.output = {"image": image, "label": None}
        with engine.mode(engine.network):
            engine.state.output["pred"] = engine.network(image, class_vector=classes, points=points)
        engine.state.output["label_prompt"] = classes.unsqueeze(0)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class Chosen(MapTransform):
    """Channels to the numbers of the classes that were asked for."""

    def __call__(self, data):
        pred = data["pred"]
        numbers = data["label_prompt"].reshape(-1)[pred.argmax(0)]
        return {**data, "pred": torch.where(pred.max(0, keepdim=True).values > 0, numbers[None].to(pred), pred[:1] * 0)}
'''


@pytest.fixture
def run(toy: Run) -> Run:
    def run(bundle: Path, *arguments: object, **settings: Any) -> Outcome:
        words = ("run", "bundle", "--bundle", bundle, "--trust", "--precision", "float32", "--json")
        return toy(*words, *arguments, **settings)

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_image(tmp_path / "a.nii.gz", (20, 16, 14), (3.0, 3.5, 5.0), oblique_degrees=10.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").touch()
    for name, code in (("evaluators", EVALUATORS), ("networks", NETWORKS), ("prompts", PROMPTS)):
        (root / "scripts" / f"{name}.py").write_text(code)
    return root


def change(root: Path, evaluator: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    path = root / "configs" / "inference.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["imports"].append("$import scripts.evaluators as own")
    config["evaluator"] = {k: v for k, v in (config["evaluator"] | (evaluator or {})).items() if v is not None}
    path.write_text(json.dumps(config | changes))
    return config | changes


def labels(done: Outcome) -> list[np.ndarray]:
    assert done.code == 0, done.err
    return [voxels(Path(record["path"])) for record in done.records]


WAYS: dict[str, dict[str, Any]] = {
    "subclass": {"evaluator": {"_target_": "scripts.evaluators.Weaker", "factor": 0.3}},
    "prepare_batch": {"evaluator": {"prepare_batch": "$lambda batch, *_, **__: (batch['image'].flip(2), None)"}},
    "train": {"evaluator": {"mode": "train"}},
    "handler": {"handlers": [{"_target_": "scripts.evaluators.Upside"}, {"_target_": "StatsHandler"}]},
    "collate": {
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "collate_fn": "$own.flipped", "num_workers": 0}
    },
    "type": {
        "evaluator": {"to_kwargs": {"dtype": "$__import__('torch').float64"}},
        "network": "$@network_def.to(@device).double()",
    },
    "changed": {"initialize": ["$@checkpointloader(@evaluator)", "$setattr(@evaluator, 'inferer', @other)"],
                "other": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "overlap": 0.0}},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_its_evaluator_does_is_done(run: Run, root: Path, source: Path, tmp_path: Path, way: str) -> None:
    plain = labels(run(root, source, "-o", tmp_path / "plain"))
    change(root, **WAYS[way])
    second = make_image(tmp_path / "second.nii.gz", (18, 20, 12), (3.0, 3.5, 5.0), seed=5)
    made = labels(run(root, source, second, "-o", tmp_path / "o"))
    for path, found in zip((source, second), made, strict=True):
        expected = monai_run(root, {"image": str(path)}, tmp_path / f"monai {path.name}")["trans"]
        np.testing.assert_array_equal(found, expected)
    assert (made[0] != plain[0]).any() or way in ("train", "type")


def test_several_networks(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    """MONAI's EnsembleEvaluator, with a file of weights for each network."""
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    torch.manual_seed(3)
    torch.save({key: torch.randn_like(value) for key, value in state.items()}, root / "models" / "fold_1.pt")
    config = change(root)
    loader = config["checkpointloader"]
    second = {"load_path": "$@bundle_root + '/models/fold_1.pt'", "load_dict": {"model": "@network_1"}}
    steps = [{"_target_": "MeanEnsembled", "keys": ["p0", "p1"], "output_key": "pred"}]
    change(
        root,
        {"_target_": "EnsembleEvaluator", "network": None, "networks": ["@network", "@network_1"],
         "pred_keys": ["p0", "p1"], "val_handlers": [loader, loader | second]},
        initialize=[],
        network_1={**config["network_def"]},
        postprocessing={"_target_": "Compose", "transforms": steps + config["postprocessing"]["transforms"]},
    )  # fmt: skip
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai")["trans"]
    np.testing.assert_array_equal(labels(run(root, source))[0], expected)
    (root / "models" / "fold_1.pt").unlink()
    done = run(root, source, "--overwrite")
    assert (done.code, "no weights at" in done.err) == (4, True)


def test_a_number_of_the_record(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    torch.save({"years": torch.tensor(100.0)}, root / "models" / "model.pt")
    change(
        root, {"prepare_batch": "$own.with_age"}, network_def={"_target_": "scripts.networks.Aged"},
        inferer={"_target_": "SimpleInferer"},
    )  # fmt: skip
    expected = {
        age: monai_run(root, {"image": str(source), "age": age}, tmp_path / f"monai {age}")["trans"] for age in (20, 70)
    }
    assert (expected[20] != expected[70]).any()
    record = {"path": str(source), "age": 70, "name": "anna"}
    done = run(root, "--set", "age=20", input=json.dumps(record))
    np.testing.assert_array_equal(labels(done)[0], expected[70])
    assert done.records[0]["medkit"]["arguments"]["record"] == {"age": 70}
    done = run(root, source, "--set", "age=20", "--overwrite")
    np.testing.assert_array_equal(labels(done)[0], expected[20])
    assert "bundle b: age is no id of its config: its code gets it with each image" in done.err
    assert "record" not in done.records[0]["medkit"]["arguments"]
    assert "--set ages: " in run(root, source, "--set", "ages=20", "--overwrite").err


@pytest.fixture
def prompted(root: Path) -> Path:
    """A bundle like VISTA3D: all classes, those that are asked for, or one near points."""
    torch.save({"levels": torch.tensor([0.0, 0.2, 0.4, 0.6])}, root / "models" / "model.pt")
    config = change(root)
    _, invert, _, save = config["postprocessing"]["transforms"]
    chosen = {"_target_": "scripts.prompts.Chosen", "keys": "pred"}
    change(
        root,
        {"_target_": "scripts.prompts.PromptEvaluator", "hyper_kwargs": {"everything_labels": [1, 2, 3]}},
        network_def={"_target_": "scripts.networks.Prompted"},
        dataset={
            "_target_": "Dataset",
            "data": "$[{'image': 'x', 'label_prompt': [3]}]",
            "transform": "@preprocessing",
        },
        postprocessing={"_target_": "Compose", "transforms": [chosen, invert | {"nearest_interp": True}, save]},
    )
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    names = {"0": "background", "1": "liver", "2": "kidney", "3": "spleen"}
    metadata["network_data_format"]["outputs"]["pred"] |= {"num_channels": 1, "channel_def": names}
    path.write_text(json.dumps(metadata))
    return root


@pytest.mark.parametrize(
    ("asked", "record"),
    [
        ({}, {}), ({"label_prompt": [1, 3]}, {"label_prompt": [1, 3]}),
        ({"label_prompt": [1, 3]}, {"label_prompt": ["liver", "spleen"]}),
    ],
)  # fmt: skip
def test_classes_and_points(
    run: Run, prompted: Path, source: Path, tmp_path: Path, asked: dict[str, Any], record: dict[str, Any]
) -> None:
    expected = monai_run(prompted, {"image": str(source), **asked}, tmp_path / "monai")["trans"]
    assert set(np.unique(expected)) - {0} == set(asked.get("label_prompt", [1, 2, 3]))
    done = run(prompted, input=json.dumps({"path": str(source), **record}))
    np.testing.assert_array_equal(labels(done)[0], expected)
    assert done.records[0]["medkit"]["labels"] == {"1": "liver", "2": "kidney", "3": "spleen"}
    given = [word for key, value in record.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    np.testing.assert_array_equal(labels(run(prompted, source, *given, "-o", tmp_path / "o"))[0], expected)


def test_points_of_a_record(run: Run, prompted: Path, source: Path, tmp_path: Path) -> None:
    """In voxels of the scan, which the bundle takes to its own grid."""
    whole = monai_run(prompted, {"image": str(source), "label_prompt": [1]}, tmp_path / "whole")["trans"]
    asked = {"label_prompt": [1], "points": np.argwhere(whole == 1)[[0, -1]].tolist()}
    expected = monai_run(prompted, {"image": str(source), **asked}, tmp_path / "monai")["trans"]
    assert 0 < np.count_nonzero(expected) < np.count_nonzero(whole)
    done = run(prompted, input=json.dumps({"path": str(source), **asked}))
    np.testing.assert_array_equal(labels(done)[0], expected)


def test_a_result_for_other_classes_is_outdated(run: Run, toy: Run, prompted: Path, source: Path) -> None:
    for asked, kept in (([1], False), ([1], True), ([3], False)):
        line = json.dumps({"path": str(source), "label_prompt": asked})
        done = run(prompted, "--skip-existing", input=line)
        assert done.code == 0, done.err
        assert done.records[0]["medkit"]["skipped"] == kept
    shown = toy("show", done.records[0]["path"])
    assert json.dumps({"path": str(source), "label_prompt": [3]}) in shown.out


def test_probabilities_of_its_own_evaluator(run: Run, root: Path, source: Path) -> None:
    change(root, **WAYS["subclass"])
    (record,) = run(root, source, "--probabilities").records
    assert voxels(Path(record["medkit"]["outputs"]["probabilities"]["path"])).shape == (20, 16, 14, 2)


def test_errors_of_its_own_evaluator(run: Run, root: Path, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(root, {"_target_": "scripts.evaluators.Nothing"})
    with caplog.at_level(logging.WARNING):
        done = run(root, source)
    assert done.code == 1
    assert "bundle b: network: ValueError: no such luck" in done.err
    assert [record.name for record in caplog.records if record.name != "medkit"] == []
    change(root, {"val_data_loader": None})
    assert "its evaluator has no val_data_loader" in run(root, source).err


def test_tasks_of_plugins_do_not_take_such_bundles(medkit: Run, root: Path, source: Path) -> None:
    change(root, **WAYS["subclass"])
    done = medkit("run", "segment", "--bundle", root, "--trust", source)
    assert "scripts.evaluators.Weaker, which decides how the network is called; only medkit run bundle" in done.err
