"""A config's weights are those that MONAI would load, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo

from medkit.bundles.bundle import Bundle
from medkit.errors import BundleError, WeightsMissingError
from medkit.inference.opened import InferenceConfig

pytestmark = [pytest.mark.usefixtures("clean_path"), pytest.mark.filterwarnings("ignore")]


def write(root: Path, **changes: Any) -> Path:
    """Write a bundle whose models/model.pt holds 1, other.pt 2 and more.pt 3 in every place."""
    plain = {"checkpointloader": None, "initialize": None, "imports": ["$import torch"]}
    zoo.write(root, "spleen_ct_segmentation", **{**plain, **changes})
    path = root / "configs" / "inference.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if value is not None}
    path.write_text(json.dumps(config))
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    for number, name in enumerate(("model.pt", "other.pt", "more.pt"), start=1):
        torch.save({key: torch.full_like(value, number) for key, value in state.items()}, root / "models" / name)
    return root


def loaded(root: Path, **overrides: Any) -> float:
    parts = InferenceConfig(Bundle(root, root.name), torch.device("cpu"), overrides).open()
    return float(next(parts.network.parameters()).flatten()[0])


def loader(name: str, **more: Any) -> dict[str, Any]:
    path = f"$@bundle_root + '/models/{name}'"
    return {"_target_": "CheckpointLoader", "load_path": path, "load_dict": {"model": "@network"}, **more}


FILL = "$@network.load_state_dict(torch.load(@bundle_root + '/models/other.pt', weights_only=True))"


@pytest.mark.parametrize(
    ("handlers", "number"),
    [
        ([loader("model.pt"), loader("other.pt")], 2),
        ([loader("other.pt"), loader("model.pt")], 1),
        ([loader("other.pt", _disabled_=True), loader("model.pt")], 1),
        ([loader("other.pt", _disabled_="true"), loader("more.pt")], 3),
        ([loader("other.pt", _disabled_="$not @resume"), loader("model.pt")], 1),
        ([loader("other.pt"), loader("more.pt", _disabled_="$not @resume")], 2),
        ([loader("nowhere.pt", _disabled_=True), loader("other.pt")], 2),
        ([loader("nowhere.pt", _disabled_="$not @resume"), loader("model.pt")], 1),
    ],
)
def test_all_enabled_loaders_in_order(tmp_path: Path, handlers: list[Any], number: float) -> None:
    assert loaded(write(tmp_path / "b", handlers=handlers, resume=False)) == number


def test_the_disabled_one_can_be_enabled(tmp_path: Path) -> None:
    root = write(tmp_path / "b", handlers=[loader("model.pt"), loader("other.pt", _disabled_="$not @resume")], resume=0)
    assert (loaded(root), loaded(root, resume=True)) == (1, 2)


def test_expressions_are_run(tmp_path: Path) -> None:
    assert loaded(write(tmp_path / "a", initialize=[FILL])) == 2
    assert loaded(write(tmp_path / "b", run=[FILL, "$@evaluator.run()"])) == 2
    assert loaded(write(tmp_path / "c", fill=FILL, initialize=["@fill"])) == 2
    root = write(tmp_path / "d")
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["evaluator"]["_requires_"] = [FILL]
    path.write_text(json.dumps(config))
    assert loaded(root) == 2


def test_expressions_and_loaders_in_the_order_of_monai(tmp_path: Path) -> None:
    """What `initialize` does comes before the handlers, which work when the evaluator starts."""
    assert loaded(write(tmp_path / "a", initialize=[FILL], handlers=[loader("more.pt")])) == 3
    called = {"first": loader("more.pt"), "initialize": ["$@first(@evaluator)", FILL]}
    assert loaded(write(tmp_path / "b", **called)) == 2
    both = called | {"initialize": [FILL, "$@first(@evaluator)"], "handlers": [loader("model.pt")]}
    assert loaded(write(tmp_path / "c", **both)) == 1


def test_parameters_that_a_file_lacks_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / "b", handlers=[loader("other.pt", strict=False)])
    state = torch.load(root / "models" / "other.pt", weights_only=True)
    (name, _), *_ = state.items()
    torch.save({key: value for key, value in state.items() if key != name}, root / "models" / "other.pt")
    loaded(root)
    assert f"other.pt: has no {name} (1 in all): chance decides on them" in caplog.text
    change = write(tmp_path / "c", handlers=[loader("other.pt")])
    torch.save({key: value for key, value in state.items() if key != name}, change / "models" / "other.pt")
    with pytest.raises(BundleError, match=r"other\.pt: does not fit the network: .*Missing key"):
        loaded(change)


def test_model_pt_replaces_nothing(tmp_path: Path) -> None:
    """Where the config's own way does not work, the bundle is not run, though a models/model.pt is there."""
    with pytest.raises(BundleError, match=r"initialize::0, which loads weights: .*nowhere\.pt"):
        loaded(write(tmp_path / "a", initialize=[FILL.replace("other.pt", "nowhere.pt")]))
    with pytest.raises(WeightsMissingError, match=r"nowhere\.pt$"):
        loaded(write(tmp_path / "b", handlers=[loader("model.pt"), loader("nowhere.pt")]))
    with pytest.raises(WeightsMissingError, match=r"nowhere\.pt, whose CheckpointLoader is disabled"):
        loaded(write(tmp_path / "c", handlers=[loader("nowhere.pt", _disabled_=True)]))
    with pytest.raises(BundleError, match=r"handlers::0: loads weights by scripts\.MyChe.* expected MONAI's"):
        loaded(write(tmp_path / "d", handlers=[loader("other.pt", _target_="scripts.MyCheckpointLoader")]))


def test_without_any_it_is_model_pt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert loaded(write(tmp_path / "b")) == 1
    assert "bundle b: its config loads no weights; loading models/model.pt" in caplog.text
    assert loaded(write(tmp_path / "c", initialize=["$len(list(@network.parameters()))"])) == 1


OWN = """
import torch


def fill(network, path):
    network.load_state_dict(torch.load(path, weights_only=True))
    return network
"""


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        # a function of the bundle's own, whose name says nothing
        ({"initialize": ["$own.fill(@network, @bundle_root + '/models/other.pt')"]}, 2),
        ({"more": "$@bundle_root + '/models/more.pt'",
          "run": ["$own.fill(@network, @more)", "$@evaluator.run()", FILL]}, 3),
        ({"network": {"_target_": "scripts.own.fill", "network": "@network_def", "path": "@other"},
          "other": "$@bundle_root + '/models/other.pt'"}, 2),
        # weights that are changed after they are loaded
        ({"handlers": [], "checkpoint": loader("model.pt"),
          "initialize": ["$@checkpoint(@evaluator)", "$[p.data.mul_(5) for p in @network.parameters()]"]}, 5),
    ],
)  # fmt: skip
def test_what_code_of_the_bundle_does_with_the_network(tmp_path: Path, changes: Any, number: float) -> None:
    root = tmp_path / "b"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "__init__.py").touch()
    (root / "scripts" / "own.py").write_text(OWN)
    assert loaded(write(root, imports=["$import torch", "$import scripts.own as own"], **changes)) == number


@pytest.mark.parametrize(
    "change",
    [
        {"network": "$@network_def.to('cuda:0')"},
        {"network": "$@network_def.cuda()"},
        {"network": "$@network_def.cuda(device=0, non_blocking=True).eval()"},
        {"network": "$@network_def.to(0)"},
        {"gpu": 0, "network": "$@network_def.to(@gpu)"},
        {"gpu": "cuda:1", "network": "$@network_def.to(@gpu)"},
        {"gpu": '$torch.device("cuda")', "network": "$@network_def.to(@gpu)"},
        {"gpu": 1, "network": "$@network_def.to(torch.device('cuda', @gpu))"},
        {"gpu": 1, "network": "$@network_def.to(f'cuda:{@gpu}')"},
        {"gpu": 1, "network": "$@network_def.to('cuda:' + str(@gpu))"},
        {"gpu": {"_target_": "torch.device", "type": "cuda", "index": 0}, "network": "$@network_def.to(@gpu)"},
        {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16] * 3, "sw_device": "cuda:0"}},
        {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16] * 3, "sw_device": 0}},
    ],
)
def test_cuda_is_replaced_by_the_device_at_hand(tmp_path: Path, change: Any) -> None:
    root = write(tmp_path / "b", handlers=[loader("other.pt")], **change)
    parts = InferenceConfig(Bundle(root, root.name), torch.device("cpu")).open()
    assert next(parts.network.parameters()).device.type == "cpu"
    assert torch.device(getattr(parts.inferer, "sw_device", None) or "cpu").type == "cpu"


def test_weights_stored_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expression that does not say where to load them."""
    root = write(tmp_path / "b", initialize=[FILL])
    state = torch.load(root / "models" / "more.pt", weights_only=True)
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save(state, root / "models" / "other.pt")
    assert loaded(root) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_code_that_takes_cuda_for_granted(tmp_path: Path) -> None:
    (tmp_path / "b" / "scripts").mkdir(parents=True)
    (tmp_path / "b" / "scripts" / "__init__.py").touch()
    (tmp_path / "b" / "scripts" / "own.py").write_text("def fast(network):\n    return network.cuda()\n")
    root = write(tmp_path / "b", network={"_target_": "scripts.own.fast", "network": "@network_def"})
    with pytest.raises(BundleError, match="its code asks for a CUDA device, which is not here"):
        loaded(root)


def test_a_question_about_cuda_stays(tmp_path: Path) -> None:
    questions = {
        "a": "$@device.type == 'cuda'", "b": "$str(@device).startswith('cuda')", "c": "$'cuda' in [@device.type]",
    }  # fmt: skip
    config = InferenceConfig(Bundle(write(tmp_path / "b", **questions), "b"), torch.device("cpu"))
    assert [config.get(name) for name in questions] == [False] * 3
