"""The checks of `medkit bundle verify`: each sees what is wrong, says all of it, and stops no other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zoo
from strangers import INFERENCE, change_json, write_json, write_sound

from medkit import plugins
from medkit.bundles.bundle import WEIGHTS
from medkit.bundles.checks.case import _corners
from medkit.bundles.checks.outcomes import outcome
from medkit.bundles.checks.subject import CheckedBundle
from medkit.bundles.verify import FAILED, OK, READ, RUN, SKIPPED, Check, check_files, verify_bundle


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound bundle, worked on in a scratch folder."""
    root = write_sound(tmp_path / "halves")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return root


def change_inference(root: Path, **changes: Any) -> None:
    change_json(root / "configs" / "inference.json", **changes)


def change_tensor(root: Path, side: str, name: str, **changes: Any) -> None:
    path = root / "configs" / "metadata.json"
    formats = json.loads(path.read_text())["network_data_format"]
    formats[side][name] |= changes
    change_json(path, network_data_format=formats)


def change_weights(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    weights = torch.load(root / WEIGHTS, weights_only=True)
    torch.save(change(weights) or weights, root / WEIGHTS)


@pytest.mark.slow
def test_a_sound_bundle(root: Path) -> None:
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    found = list(verify_bundle(root))
    assert [c.name for c in found] == [*READ, *RUN]
    assert [c for c in found if c.status != OK] == []
    assert all(c.messages for c in found)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before, "verify changed the bundle"


@pytest.mark.slow
def test_a_check_that_kills_its_process_stops_no_other(root: Path) -> None:
    """Code of the bundle that ends the process at once, as a crash in C would."""
    (root / "killer.py").write_text("import os\nprint('last words')\nos.kill(os.getpid(), 9)\n")
    write_json(root / "configs" / "more.json", {"a": {"_target_": "killer.A"}})
    found = {c.name: c for c in verify_bundle(root)}
    assert found["references"].status == FAILED
    assert "its process died" in found["references"].messages[0]
    assert {n: c.status for n, c in found.items() if n != "references"} == dict.fromkeys((*READ, *RUN[1:]), OK)


@pytest.mark.slow
def test_the_bundles_of_this_distribution() -> None:
    """Those of the first-party plugins keep what they promise; one that is not trained yet, all but its weights."""
    bundles = [spec for p in plugins.registry().plugins if p.distribution == "medkit" for spec in p.bundles]
    assert bundles
    for spec in bundles:
        fine = {OK} if (spec.root / "models" / "model.pt").exists() else {OK, SKIPPED}
        assert [c for c in verify_bundle(spec.root) if c.status not in fine] == [], spec.name


# ---- what is seen


def test_missing_files(root: Path) -> None:
    for name in ("LICENSE", "docs/README.md", "models/model.pt"):
        (root / name).unlink()
    assert check_files("files", root) == Check("files", FAILED, ("no LICENSE", "no docs/README.md"))
    (root / "docs" / "link").symlink_to("/etc/passwd")
    assert "docs/link: is a link" in check_files("files", root).messages[-1]


def test_metadata_that_lack_much_are_told_all_of_it(root: Path) -> None:
    path = root / "configs" / "metadata.json"
    change_json(path, authors=None, monai_version=1.5, required_packages_version=None, version="9")
    change_tensor(root, "inputs", "image", num_channels=0, spatial_shape=["__import__('os')"], dtype="")
    found = check_files("metadata", root)
    assert found.status == FAILED
    text = "\n".join(found.messages)
    for words in (
        "'authors' is a required property", "monai_version: 1.5 is not of type 'string'", "num_channels: 0 is less",
        "spatial_shape", "dtype: '' should be non-empty", "has no entry for version 9",
        "is not valid under any of the given schemas",
    ):  # fmt: skip
        assert words in text
    assert len(found.messages) == 7
    path.write_text("{")
    assert "not valid JSON" in check_files("metadata", root).messages[0]


def test_configs_that_cannot_be_read(root: Path) -> None:
    (root / "configs" / "a.yaml").write_text("a: [1\n")
    (root / "configs" / "b.json").write_text("{")
    path = {"_target_": "CheckpointLoader", "load_path": "/home/somebody/model.pt"}
    change_inference(root, dataset_dir="/home/somebody/data", handlers=[path])
    found = check_files("configs", root)
    assert [m.split(":")[0] for m in found.messages] == ["a.yaml", "b.json", "inference.json"]
    assert found.messages[-1].endswith("absolute path in '/home/somebody/model.pt'")


# ---- what is run, in this process


def failed(root: Path, name: str) -> str:
    """What the check says, which must have failed."""
    status, messages = outcome(name, CheckedBundle(root))
    assert status == FAILED, messages
    assert all("\n" not in m for m in messages)
    return "\n".join(messages)


def test_references_into_nothing(root: Path) -> None:
    change_inference(root, network="$@network_deff.to(@device)", inferer={"_target_": "NoSuchInferer"})
    write_json(root / "configs" / "other.json", {"a": {"_target_": "no_such_module.A"}, "b": "%nothing::x"})
    text = failed(root, "references")
    assert "inference.json: network: refers to network_deff, which does not exist" in text
    assert "inference.json: inferer: there is no" in text
    assert "other.json: " in text
    write_json(root / "configs" / "other.json", {"a": {"_target_": "no_such_module.A"}})
    assert "other.json: a: there is no no_such_module.A" in failed(root, "references")


def test_configs_that_lie_over_others(root: Path) -> None:
    """`over.json` refers to ids of the train config, `far.json` to ids that none has."""
    write_json(root / "configs" / "over.json", {"a": "@train::trainer", "b": "@optimizer"})
    assert outcome("references", CheckedBundle(root))[0] == OK
    write_json(root / "configs" / "far.json", {"a": "@train::trainer", "b": "@nowhere", "c": "@nowhere::b"})
    assert failed(root, "references").splitlines() == [
        "far.json: b: refers to nowhere, which does not exist",
        "far.json: c: refers to nowhere::b, which does not exist",
    ]


def test_properties(root: Path) -> None:
    change_inference(root, inferer=None, dataset_dir=None)
    text = failed(root, "properties")
    assert "no id inferer" in text
    assert "no id dataset_dir" in text


def test_shapes_that_differ_from_the_metadata(root: Path) -> None:
    change_tensor(root, "outputs", "pred", num_channels=3)
    assert "output channel number" in failed(root, "in_out")
    change_tensor(root, "outputs", "pred", num_channels=2, dtype="float64")
    assert "dtype" in failed(root, "in_out")
    change_tensor(root, "inputs", "image", num_channels=2)
    assert failed(root, "in_out")


def test_sizes_of_inputs(root: Path) -> None:
    for shape, size in (
        (["4*n", "4*n"], (32, 32)), ([96, 80], (96, 80)), (["*", "*", "*"], (64, 64, 64)), (["2**p*n"] * 2, (32, 32)),
        ([8, 8], (8, 8)),
    ):  # fmt: skip
        change_tensor(root, "inputs", "image", spatial_shape=shape)
        assert CheckedBundle(root).size() == size


def test_weights_of_another_network(root: Path) -> None:
    def spoil(weights: dict[str, Any]) -> None:
        first, second, third, *_ = [n for n in weights if n.endswith("conv.weight")]
        weights["extra"] = weights.pop(first)
        weights[second] = weights[second][..., :1]
        weights[third] = weights[third] * float("nan")

    names = [n for n in torch.load(root / WEIGHTS, weights_only=True) if n.endswith("conv.weight")]
    change_weights(root, spoil)
    text = failed(root, "weights")
    assert f"has no {names[0]}" in text
    assert "extra is not in the network" in text
    assert f"{names[1]} is (" in text
    assert f"{names[2]} holds values that are not finite" in text


def test_weights_that_are_no_numbers(root: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), root / WEIGHTS)
    assert "weights_only" in failed(root, "weights").lower() or "Unpickling" in failed(root, "weights")
    torch.save([1], root / WEIGHTS)
    assert "expected a state dict, got list" in failed(root, "weights")


def test_nested_weights(root: Path) -> None:
    change_weights(root, lambda weights: {"model": weights, "epoch": 3})
    assert outcome("weights", CheckedBundle(root))[0] == OK


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_of_other_weights(root: Path) -> None:
    network = CheckedBundle(root).network()  # its parameters are random, and not those of the file
    torch.jit.script(network).save(root / "models" / "model.ts")
    text = failed(root, "export")
    assert "models/model.ts returns something else than the network" in text
    assert "its TorchScript" not in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_that_cannot_be_scripted(root: Path) -> None:
    change_inference(root, network_def={"_target_": "networks.Unscriptable"})
    (root / WEIGHTS).unlink()
    assert failed(root, "export")
    assert outcome("in_out", CheckedBundle(root))[0] == OK


@pytest.mark.parametrize("name", ["weights", "case"])
def test_without_weights_some_cannot_be_checked(root: Path, name: str) -> None:
    (root / WEIGHTS).unlink()
    assert outcome(name, CheckedBundle(root)) == (SKIPPED, [f"no {WEIGHTS}"])
    assert outcome("in_out", CheckedBundle(root))[0] == OK


def test_what_cannot_apply(root: Path) -> None:
    change_json(root / "configs" / "metadata.json", network_data_format={"inputs": {"fixed": {}}, "outputs": {}})
    for name in ("in_out", "export"):
        status, messages = outcome(name, CheckedBundle(root))
        assert (status, messages) == (SKIPPED, ["network_data_format does not describe any input named image"])
    status, messages = outcome("case", CheckedBundle(root))
    assert (status, "medkit run bundle refuses it: " in messages[0]) == (SKIPPED, True)


def test_a_case_that_lands_elsewhere(root: Path) -> None:
    """Without the inversion the result has the network's grid."""
    transforms = INFERENCE["postprocessing"]["transforms"][1:]
    change_inference(root, postprocessing={"_target_": "Compose", "transforms": transforms})
    text = failed(root, "case")
    assert "has the shape" in text
    assert len(text.splitlines()) == 1


def test_a_case_that_lies_aslant(root: Path) -> None:
    def shifted(transforms: list[Any]) -> list[Any]:
        return [*transforms[:2], {"_target_": "Flipd", "keys": "pred", "spatial_axis": 0}, *transforms[2:]]

    change_inference(
        root,
        postprocessing={"_target_": "Compose", "transforms": shifted(INFERENCE["postprocessing"]["transforms"])},
    )
    assert "lies elsewhere than the scan" in failed(root, "case")


@pytest.mark.slow
def test_a_case_under_another_key(root: Path) -> None:
    """Zoo bundles name the key of the image elsewhere in the config."""
    text = json.dumps(INFERENCE).replace('"keys": "image"', '"keys": "@image_key"')
    text = text.replace('"orig_keys": "image"', '"orig_keys": "scan"')
    evaluator = INFERENCE["evaluator"] | {"prepare_batch": "$lambda batch, *_, **__: (batch['scan'], None)"}
    write_json(root / "configs" / "inference.json", json.loads(text) | {"image_key": "scan", "evaluator": evaluator})
    assert "orig_keys" in (root / "configs" / "inference.json").read_text()
    assert outcome("case", CheckedBundle(root))[1][0].startswith("a synthetic scan"), outcome(
        "case", CheckedBundle(root)
    )


@pytest.mark.slow
def test_a_network_of_planes_over_a_volume(root: Path) -> None:
    network = {**INFERENCE["network_def"], "spatial_dims": 2}
    inferer = {"_target_": "SliceInferer", "roi_size": [4, 4], "spatial_dim": 2}
    change_inference(root, network_def=network, inferer=inferer)
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        change_tensor(root, side, name, spatial_shape=["4*n", "4*n"])
    torch.save(CheckedBundle(root).network().state_dict(), root / WEIGHTS)
    for name in ("in_out", "weights", "case"):
        assert outcome(name, CheckedBundle(root))[0] == OK, outcome(name, CheckedBundle(root))


def test_a_case_without_a_result(root: Path) -> None:
    transforms = INFERENCE["postprocessing"]["transforms"][:-1]
    change_inference(root, postprocessing={"_target_": "Compose", "transforms": transforms})
    assert "wrote no image" in failed(root, "case")


@pytest.mark.slow
def test_a_case_of_several_channels(root: Path) -> None:
    """Four contrasts in a file, as tumour bundles have them; one contrast alone would not fit the network."""
    network = {**INFERENCE["network_def"], "in_channels": 3}
    change_inference(root, network_def=network, run=None, evaluating=["$@evaluator.run()"])
    change_tensor(root, "inputs", "image", num_channels=3)
    torch.save(CheckedBundle(root).network().state_dict(), root / WEIGHTS)
    assert outcome("case", CheckedBundle(root)) == (OK, outcome("case", CheckedBundle(root))[1])


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "raise ValueError('a\\nb')", "x ="])
def test_code_that_ends_or_fails_is_a_failed_check(root: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "own_net.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(root)
    change_inference(root, network_def={"_target_": "own_net.A"})
    for name in ("in_out", "weights", "export"):
        failed(root, name)


@pytest.mark.parametrize(("shift", "covered"), [(0.0, True), (1.0, False)])
def test_a_finer_grid_covers_what_the_scan_covers(shift: float, covered: bool) -> None:
    coarse = nibabel.Nifti1Image(np.zeros((8, 9, 5)), np.diag([-3.0, 3, 6, 1]))
    affine = np.diag([-1.5, 1.5, 1.5, 1])
    affine[:3, 3] = [0.75, -0.75, -2.25 + shift * 6]
    fine = nibabel.Nifti1Image(np.zeros((16, 18, 20)), affine)
    corners = [_corners(image, 3) for image in (fine, coarse)]
    assert np.allclose(*corners, atol=1e-6) == covered


@pytest.mark.slow
def test_medkit_and_monai_return_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case is also run by `medkit run bundle`, whose weights are other ones here."""
    from medkit.bundles.checks import comparison

    assert outcome("case", CheckedBundle(root))[1][1:] == ["medkit run bundle returns the same as MONAI's own run"]
    weights = root / "models" / "other.pt"
    run = comparison.subprocess.run

    def run_with_others(command: list[str], **settings: Any) -> Any:
        torch.save({k: -v for k, v in torch.load(root / WEIGHTS, weights_only=True).items()}, weights)
        return run([*command, "--set", f"handlers::0::load_path={weights}"], **settings)

    monkeypatch.setattr(comparison.subprocess, "run", run_with_others)
    assert re.search(r"returns another image than MONAI: they differ by [.\d]+", failed(root, "case"))


@pytest.mark.slow
def test_what_medkit_does_not_run_fails_unless_a_task_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "own.py").write_text("class Fails:\n    def __call__(self, data):\n        raise ValueError('in medkit')\n")
    path = root / "configs" / "inference.json"
    steps = json.loads(path.read_text())["preprocessing"]["transforms"]
    fails = {"_target_": "own.Fails", "_disabled_": "$'medkit' not in __import__('sys').argv[0]"}
    change_inference(root, preprocessing={"_target_": "Compose", "transforms": [*steps, fails]})
    change_json(root / "configs" / "metadata.json", medkit=None)
    monkeypatch.setattr("sys.argv", ["verify"])
    assert "medkit run bundle: " in failed(root, "case")
    assert "ValueError: in medkit" in failed(root, "case")
    change_json(root / "configs" / "metadata.json", medkit={"task": "halves"})
    status, messages = outcome("case", CheckedBundle(root))
    assert (status, "ValueError: in medkit" in messages[1]) == (OK, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pancreas_ct_dints_segmentation", "returns the same"), ("brats_mri_segmentation", "returns the same"),
        ("breast_density_classification", "runs it as well"), ("classification_template", "own run needs a label"),
        ("renalStructures_CECT_segmentation", "returns the same"), ("wholeBody_ct_segmentation", "returns the same"),
        ("prostate_mri_anatomy", "returns the same"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # theirs
def test_bundles_like_those_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    """Arrays among weights, lists of files, downloads, measures, other names of weights: as `run bundle` takes them."""
    root = zoo.write(tmp_path / name, name)
    if name.startswith("pancreas"):
        torch.save({"window": np.array([16, 16, 16])}, root / "models" / "search.pt")
    if name.startswith("classification"):
        import yaml

        path = root / "configs" / "inference.yaml"
        config = yaml.safe_load(path.read_text())
        accuracy = {"_target_": "ignite.metrics.Accuracy", "output_transform": "$lambda x: (x['pred'], x['label'])"}
        config["evaluator"]["key_val_metric"] = {"accuracy": accuracy}
        path.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(root)
    zoo.forget_scripts()
    for check in ("in_out", "weights", "case"):
        status, messages = outcome(check, CheckedBundle(root))
        assert status == (SKIPPED if "needs a label" in messages[0] else OK), (check, messages)
    assert words in messages[-1]
    zoo.forget_scripts()


@pytest.mark.slow
def test_a_check_that_does_not_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medkit.bundles import verify

    (root / "endless.py").write_text("import time\n\ntime.sleep(900)\n")
    write_json(root / "configs" / "more.json", {"a": {"_target_": "endless.A"}})
    monkeypatch.setattr(verify, "SECONDS", 20)
    begun: list[str] = []
    found = {c.name: c for c in verify_bundle(root, skip=("case", "export"), begins=begun.append)}
    assert found["references"].messages == ("was stopped after 20 s; --skip references leaves it out",)
    assert found["weights"].status == OK
    assert begun == ["references", "properties", "in_out", "weights"]
