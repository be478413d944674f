"""Bundles in the many forms that MONAI runs: the labels are those of MONAI's own run, or the reason is told."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zoo
from monai_run import monai_run, voxels
from outcome import Outcome

from medkit.images.phantom import make_image

pytestmark = [pytest.mark.usefixtures("clean_path"), pytest.mark.filterwarnings("ignore")]

Run = Callable[..., Outcome]
SPLEEN = "spleen_ct_segmentation"


@pytest.fixture
def run(toy: Run) -> Run:
    def run(bundle: Path, *arguments: object, **settings: Any) -> Outcome:
        return toy(
            "run", "bundle", "--bundle", bundle, "--trust", "--precision", "float32", "--json", *arguments, **settings
        )

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_image(tmp_path / "a.nii.gz", (20, 16, 14), (3.0, 3.5, 5.0), oblique_degrees=10.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return zoo.write(tmp_path / "b", SPLEEN)


def config_of(root: Path, name: str = "inference") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "configs" / f"{name}.json").read_text())
    return found


def write_config(root: Path, config: dict[str, Any], name: str = "inference") -> None:
    kept = {key: value for key, value in config.items() if value is not None}
    (root / "configs" / f"{name}.json").write_text(json.dumps(kept))


def change_metadata(root: Path, side: str, name: str, **changes: Any) -> None:
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["network_data_format"][side].setdefault(name, {}).update(changes)
    path.write_text(json.dumps(metadata))


def output(done: Outcome, role: str) -> np.ndarray:
    """The voxels of one of the files of the only case."""
    assert done.code == 0, done.err
    (record,) = done.records
    return voxels(Path(record["medkit"]["outputs"][role]["path"]))


# ---- results


def with_a_copy(root: Path, **saver: Any) -> None:
    """Let a bundle save the probabilities besides the labels, under the key `prob`."""
    config = config_of(root)
    activate, invert, discrete, save = config["postprocessing"]["transforms"]
    copied = {"_target_": "CopyItemsd", "keys": "pred", "names": "prob"}
    config["postprocessing"]["transforms"] = [
        activate, invert, copied, discrete, save, {**save, "keys": "prob", "output_postfix": "prob", **saver},
    ]  # fmt: skip
    write_config(root, config)


def test_a_second_saved_result_is_written(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    with_a_copy(root)
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai")
    done = run(root, source)
    np.testing.assert_array_equal(output(done, "labels"), expected["trans"])
    np.testing.assert_allclose(output(done, "prob"), expected["prob"], atol=1e-6)
    (record,) = done.records
    names = {role: Path(entry["path"]).name for role, entry in record["medkit"]["outputs"].items()}
    assert names == {"labels": "a_dseg.nii.gz", "prob": "a_prob.nii.gz"}
    assert Path(record["path"]).name == "a_dseg.nii.gz"


@pytest.mark.parametrize(
    ("keys", "ending", "names"),
    [
        (["prob", "pred"], "seg", ["a_dseg.nii.gz", "a_prob.nii.gz"]),
        ("$['pred', 'prob']", "@ending", ["a_dseg.nii.gz", "a_prob.nii.gz"]),
        ("prob", "soft_map", ["a_dseg.nii.gz", "a_softmap.nii.gz"]),
        ("prob", "dseg", ["a_dseg.nii.gz", "a_prob.nii.gz"]),
    ],
)
def test_names_of_second_results(run: Run, root: Path, source: Path, keys: Any, ending: str, names: list[str]) -> None:
    with_a_copy(root, keys=keys, output_postfix=ending)
    write_config(root, config_of(root) | {"ending": "seg"})
    (record,) = run(root, source).records
    assert [Path(entry["path"]).name for entry in record["medkit"]["outputs"].values()] == names


def test_saved_results_that_cannot_be_foreseen_are_named(
    run: Run, root: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_a_copy(root, keys="$'pr' + 'ob'")
    with caplog.at_level(logging.WARNING, "medkit"):
        assert run(root, source).code == 0
    assert "also saves prob, which medkit does not write" in caplog.text


@pytest.mark.parametrize("form", ["inverted later", "inverted", "without activation", "not inverted"])
def test_probabilities(run: Run, root: Path, source: Path, tmp_path: Path, form: str) -> None:
    config = config_of(root)
    activate, invert, discrete, save = config["postprocessing"]["transforms"]
    soft = [invert, activate, save] if form == "without activation" else [activate, invert, save]
    steps = {
        "inverted": [activate, invert, discrete, save], "inverted later": [activate, discrete, invert, save],
        "without activation": [invert, discrete, save], "not inverted": [activate, discrete, save],
    }[form]  # fmt: skip
    config["postprocessing"]["transforms"] = soft
    write_config(root, config)
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai")["trans"]
    config["postprocessing"]["transforms"] = steps
    write_config(root, config)
    done = run(root, source, "--probabilities")
    found = output(done, "probabilities")
    assert found.shape == (*voxels(source).shape, 2)
    assert found.dtype == np.float32
    atol = 2e-3 if form == "not inverted" else 1e-6
    np.testing.assert_allclose(found, expected, atol=atol)
    labels = output(run(root, source, "-o", tmp_path / "o"), "labels")
    np.testing.assert_array_equal(labels, output(done, "labels"))
    assert "probabilities" not in run(root, source, "-o", tmp_path / "p").records[0]["medkit"]["outputs"]


def test_probabilities_where_there_are_none(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    config = config_of(root)
    config["postprocessing"]["transforms"][2] = {
        "_target_": "Lambdad", "keys": "pred", "func": "$lambda x: 5 * x.argmax(0, keepdim=True)",
    }  # fmt: skip
    write_config(root, config)
    done = run(root, source, "--probabilities")
    assert done.code == 1
    assert "makes labels without AsDiscreted: there are no probabilities" in done.err
    done = run(zoo.write(tmp_path / "e", "enhancer"), source, "--probabilities")
    assert done.code == 2
    assert "--probabilities: bundle e returns no labels that are made of probabilities" in done.err


def test_several_labels_are_never_blended(run: Run, root: Path, source: Path) -> None:
    """Labels that a lambda makes, 0 and 3, on coarser voxels: no other number is between them."""
    config = config_of(root)
    activate, invert, _, save = config["postprocessing"]["transforms"]
    made = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: 3.0 * x.argmax(0, keepdim=True)"}
    config["postprocessing"]["transforms"] = [activate, made, invert, save]
    write_config(root, config)
    assert np.unique(output(run(root, source), "labels")).tolist() == [0, 3]


def test_one_label_is_rounded_as_monai_interpolates_it(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    config = config_of(root)
    activate, invert, discrete, save = config["postprocessing"]["transforms"]
    config["postprocessing"]["transforms"] = [activate, discrete, invert, save]
    write_config(root, config)
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai")["trans"]
    np.testing.assert_array_equal(output(run(root, source), "labels"), np.rint(expected))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"format": "mask"}, "labels"), ({"format": "Label Map"}, "labels"), ({"format": "multi-label"}, "labels"),
        ({"format": "organ"}, "labels"), ({"format": "magnitude"}, "image"),
    ],
)  # fmt: skip
def test_formats_by_meaning(run: Run, root: Path, source: Path, change: Any, kind: str) -> None:
    change_metadata(root, "outputs", "pred", **change)
    assert run(root, source).records[0]["kind"] == kind


def test_names_of_one_channel(run: Run, root: Path, source: Path) -> None:
    """Where the output has one channel, the names are those of its numbers."""
    change_metadata(root, "outputs", "pred", num_channels=1, channel_def={"0": "background", "1": "liver"})
    config = config_of(root)
    config["postprocessing"]["transforms"][2] = {
        "_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.argmax(0, keepdim=True)",
    }  # fmt: skip
    write_config(root, config)
    assert run(root, source).records[0]["medkit"]["labels"] == {"1": "liver"}


def test_transforms_after_the_network_that_handlers_run(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    config = config_of(root)
    activate, invert, discrete, save = config["postprocessing"]["transforms"]
    mapped = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [1], "target_labels": [7]}
    config["after"] = {"_target_": "Compose", "transforms": [mapped, save]}
    config["postprocessing"]["transforms"] = [activate, invert, discrete]
    config["handlers"].append({"_target_": "PostProcessing", "transform": "@after"})
    write_config(root, config)
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai")["trans"]
    assert np.unique(expected).tolist() == [0, 7]
    np.testing.assert_array_equal(output(run(root, source), "labels"), expected)
    # and nothing else: an id that no evaluator names is not run
    config["evaluator"].pop("postprocessing")
    config["after"] = {"_target_": "Compose", "transforms": [invert, activate, discrete, mapped, save]}
    write_config(root, config)
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai_2")["trans"]
    np.testing.assert_array_equal(output(run(root, source, "--overwrite"), "labels"), expected)


def test_random_transforms_that_are_inverted(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    """They are not done, whatever their probability, and their inverse finds that."""
    config = config_of(root)
    flip = {"_target_": "RandFlipd", "keys": "image", "prob": 0.0, "spatial_axis": 0}
    config["preprocessing"]["transforms"].insert(4, flip)
    write_config(root, config)
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai")["trans"]
    flip["prob"] = 1.0
    write_config(root, config)
    np.testing.assert_array_equal(output(run(root, source), "labels"), expected)


def test_transforms_in_a_random_order_are_the_same_in_every_run(
    run: Run, root: Path, source: Path, tmp_path: Path
) -> None:
    config = config_of(root)
    flips = [{"_target_": "Flipd", "keys": "image", "spatial_axis": axis} for axis in (0, 1)]
    config["preprocessing"]["transforms"].insert(4, {"_target_": "OneOf", "transforms": flips})
    config["preprocessing"]["transforms"].insert(5, {"_target_": "RandomOrder", "transforms": flips})
    write_config(root, config)
    made = [output(run(root, source, "-o", tmp_path / f"o{n}"), "labels") for n in range(6)]
    assert all((labels == made[0]).all() for labels in made)
    crop = {"_target_": "RandSpatialCropd", "keys": "image", "roi_size": [8, 8, 8], "random_size": False}
    config["preprocessing"]["transforms"].insert(4, crop)
    write_config(root, config)
    assert "inverts RandSpatialCropd, by which results would depend on chance" in run(root, source, "--overwrite").err


def test_networks_that_draw_random_numbers_give_each_case_its_own_result(
    run: Run, root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monai.inferers import SlidingWindowInferer

    answer = SlidingWindowInferer.__call__
    monkeypatch.setattr(
        SlidingWindowInferer,
        "__call__",
        lambda *given, **named: answer(*given, **named) + 20 * torch.rand(1, 2, 1, 1, 14),
    )
    other = make_image(tmp_path / "other.nii.gz", (20, 16, 14), (3.0, 3.5, 5.0))
    run(root, other, source, "-o", tmp_path / "both")
    alone = output(run(root, source, "-o", tmp_path / "one"), "labels")
    reseeded = output(run(root, source, "-o", tmp_path / "seed", "--seed", "1"), "labels")
    (both,) = (tmp_path / "both").glob("a_*.nii.gz")
    np.testing.assert_array_equal(voxels(both), alone)
    assert (reseeded != alone).any()


def test_a_plane_that_the_bundle_makes_of_a_volume(run: Run, root: Path, tmp_path: Path) -> None:
    """A network of planes whose preprocessing removes the third axis itself; other bundles take the plane as it is."""
    source = make_image(tmp_path / "plane.nii.gz", (20, 16, 1), (3.0, 3.5, 5.0))
    config = config_of(root)
    config["network_def"]["spatial_dims"] = 2
    config["inferer"] = {"_target_": "SimpleInferer"}
    load, first, *_ = config["preprocessing"]["transforms"]
    squeeze = {"_target_": "SqueezeDimd", "keys": "image", "dim": -1}
    config["preprocessing"]["transforms"] = [load, first, squeeze, {"_target_": "ScaleIntensityd", "keys": "image"}]
    activate, _, discrete, save = config["postprocessing"]["transforms"]
    config["postprocessing"]["transforms"] = [activate, discrete, save]
    write_config(root, config)
    zoo.write_weights(root, config)
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        change_metadata(root, side, name, spatial_shape=[16, 16])
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai")["trans"]
    np.testing.assert_array_equal(np.squeeze(output(run(root, source), "labels")), np.squeeze(expected))


# ---- configs


def without_preprocessing_id(config: dict[str, Any]) -> dict[str, Any]:
    """The transforms stand in the data set, and nowhere else."""
    steps = json.loads(json.dumps(config).replace('"@preprocessing"', '"@dataset::transform"'))
    steps["dataset"]["transform"] = steps.pop("preprocessing")
    return dict(steps)


def all_below_validate(config: dict[str, Any]) -> dict[str, Any]:
    moved = ("preprocessing", "dataset", "dataloader", "inferer", "postprocessing", "handlers", "evaluator")
    text = json.dumps(config)
    for name in moved:
        text = text.replace(f'"@{name}"', f'"@validate::{name}"')
    text = text.replace("@evaluator", "@validate::evaluator")
    changed = json.loads(text)
    return {k: v for k, v in changed.items() if k not in moved} | {"validate": {k: changed[k] for k in moved}}


def two_preprocessings(config: dict[str, Any]) -> dict[str, Any]:
    """The id `preprocessing` is not what the data set uses."""
    changed = without_preprocessing_id(config)
    return changed | {"preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "LoadImaged", "keys": "x"}]}}


@pytest.mark.parametrize(
    ("change", "data"),
    [
        (without_preprocessing_id, "dataset::data"), (all_below_validate, "validate::dataset::data"),
        (two_preprocessings, "dataset::data"),
    ],
)  # fmt: skip
def test_where_a_config_keeps_its_parts(
    run: Run, root: Path, source: Path, tmp_path: Path, change: Any, data: str
) -> None:
    write_config(root, change(config_of(root)))
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai", data=data)["trans"]
    np.testing.assert_array_equal(output(run(root, source), "labels"), expected)


def test_several_configs(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    """The second one replaces ids, puts values into others, and adds to a list."""
    write_config(
        root,
        {"inferer#overlap": 0.0, "+initialize": ["$print('more')"], "preprocessing::transforms::4::a_max": 50},
        "over",
    )
    names = ("inference.json", "over.json")
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai", configs=names)["trans"]
    done = run(root, source, "--config", "inference,over")
    np.testing.assert_array_equal(output(done, "labels"), expected)
    assert (expected != output(run(root, source, "-o", tmp_path / "plain"), "labels")).any()
    assert done.records[0]["medkit"]["arguments"]["config"] == ["inference", "over"]
    assert run(root, source, "--config", "inference,over", "--skip-existing").records[0]["medkit"]["skipped"]
    assert not run(root, source, "--config", "inference", "--skip-existing").records[0]["medkit"]["skipped"]
    done = run(root, source, "--config", "inference,nothing", "-o", tmp_path / "n")
    assert "no config nothing in" in done.err
    assert "expected the name of a config" in run(root, source, "--config", "../../x", "-o", tmp_path / "n").err


@pytest.mark.parametrize("macro", ["%configs/net.json::net", "%net.json::net", "%{root}/configs/net.json#net"])
def test_parts_of_other_files(
    run: Run, root: Path, source: Path, tmp_path: Path, macro: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found from the bundle's folder or next to the config, never from the working directory."""
    expected = output(run(root, source), "labels")
    config = config_of(root)
    write_config(root, {"net": config["network_def"]}, "net")
    write_config(root, config | {"network_def": macro.format(root=root)})
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "configs").mkdir(parents=True)
    for folder in (elsewhere, elsewhere / "configs"):
        (folder / "net.json").write_text('{"net": {"_target_": "nothing.Net"}}')
    monkeypatch.chdir(elsewhere)
    np.testing.assert_array_equal(output(run(root, source, "-o", tmp_path / "o"), "labels"), expected)


def test_a_part_that_can_be_two_files_is_refused(run: Run, root: Path, source: Path) -> None:
    config = config_of(root)
    write_config(root, {"net": config["network_def"]}, "net")
    (root / "net.json").write_text("{}")
    write_config(root, config | {"network_def": "%net.json::net"})
    assert "which can be net.json and configs/net.json: they differ" in run(root, source).err
    (root / "net.json").unlink()
    write_config(root, config | {"network_def": "%net.json::nett"})
    assert "net.json has no such id" in run(root, source).err


# ---- paths


def loading(root: Path, path: str, **changes: Any) -> None:
    config = config_of(root)
    config["checkpointloader"]["load_path"] = path
    write_config(root, config | changes)


@pytest.mark.parametrize(
    ("path", "changes", "told"),
    [
        ("models/model.pt", {}, False),
        ("./models/model.pt", {"bundle_root": "./"}, False),
        ("$@bundle_root + @ckpt", {"bundle_root": "./", "ckpt": "models/model.pt"}, False),
        ("$@bundle_root + @ckpt", {"bundle_root": ".", "ckpt": "models/model.pt"}, True),
        ("/home/author/bundle/models/model.pt", {}, True),
    ],
)
def test_paths_of_weights(
    run: Run, root: Path, source: Path, tmp_path: Path, path: str, changes: Any, told: bool,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    expected = output(run(root, source), "labels")
    loading(root, path, **changes)
    here = tmp_path / "here" / "models"
    here.mkdir(parents=True)
    (here / "model.pt").write_bytes(b"not this one")
    monkeypatch.chdir(here.parent)
    with caplog.at_level(logging.WARNING, "medkit"):
        np.testing.assert_array_equal(output(run(root, source, "-o", tmp_path / "o"), "labels"), expected)
    assert ("which its config names; loading" in caplog.text) == told


def test_another_file_is_never_taken(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    loading(root, "fold_2/model.pt")
    done = run(root, source)
    assert done.code == 4
    assert f"no weights at {root}/fold_2/model.pt" in done.err
    loading(root, "/home/author/other.pt")
    assert "no weights at /home/author/other.pt" in run(root, source).err


def test_files_of_the_command_line_are_found_from_the_working_directory(
    run: Run, root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    (tmp_path / "mine").mkdir()
    torch.save({key: -value for key, value in state.items()}, tmp_path / "mine" / "w.pt")
    monkeypatch.chdir(tmp_path)
    plain = output(run(root, source), "labels")
    mine = output(run(root, source, "--set", "checkpointloader::load_path=mine/w.pt", "-o", tmp_path / "o"), "labels")
    assert (plain != mine).any()


def test_files_that_a_config_reads_lie_in_the_bundle(run: Run, root: Path, source: Path) -> None:
    shutil.copy(root / "models" / "model.pt", root / "models" / "other.pt")
    (root / "window.json").write_text("[16, 16, 16]")
    config = config_of(root)
    config["imports"].append("$import json")
    config["inferer"]["roi_size"] = "$json.load(open('window.json'))"
    write_config(root, config)
    assert run(root, source).code == 0


def test_where_large_weights_are_fetched_is_told(run: Run, root: Path, source: Path) -> None:
    (root / "models" / "model.pt").unlink()
    (root / "large_files.yml").write_text(
        "large_files:\n- path: models/model.pt\n  url: https://example.org/m.pt\n  hash_val: 1\n"
    )
    done = run(root, source)
    assert done.code == 4
    assert "large_files.yml lists what is to be fetched, which medkit does not do: https://example.org/m.pt" in done.err


# ---- inputs


def test_channels_without_names(run: Run, tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "b", "brats_mri_segmentation")
    change_metadata(root, "inputs", "image", channel_def={"0": "image"})
    paths = [make_image(tmp_path / f"{n}.nii.gz", (16, 16, 16), (2, 2, 2), seed=n) for n in range(4)]
    expected = monai_run(root, {"image": [str(path) for path in paths]}, tmp_path / "monai")["trans"]
    record = {"path": str(paths[0]), "inputs": {f"channel_{n}": str(paths[n]) for n in (1, 2, 3)}}
    done = run(root, input=json.dumps(record) + "\n")
    np.testing.assert_array_equal(output(done, "labels"), expected)
    frames = tmp_path / "frames.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack([voxels(p) for p in paths], -1), nibabel.load(paths[0]).affine), frames)
    np.testing.assert_array_equal(output(run(root, frames), "labels"), expected)
    done = run(root, paths[1], "-o", tmp_path / "o")
    assert 'takes 4 channels: a record names their files ({"path": ..., "inputs": {"channel_1": ...' in done.err
    record["inputs"] = {"flair": str(paths[1])}
    assert "bundle knows image, channel_0, channel_1, channel_2, channel_3" in run(root, input=json.dumps(record)).err


@pytest.mark.parametrize("big_endian", [False, True])
def test_facts_of_the_header_are_those_of_monais_reader(run: Run, tmp_path: Path, big_endian: bool) -> None:
    from monai.transforms import LoadImage

    from medkit.images.image import read_image
    from medkit.inference.inputs import ScanReader

    path = make_image(tmp_path / "a.nii.gz", (12, 10, 8), (2.0, 2.5, 3.0))
    if big_endian:
        image = nibabel.Nifti1Image(voxels(path), nibabel.load(path).affine, nibabel.Nifti1Header(endianness=">"))
        nibabel.save(image, path)
    theirs, loader = LoadImage(image_only=True)(str(path)), LoadImage(image_only=True)
    reader = ScanReader(planar=False)
    reader.images = {str(path): read_image(path)}
    loader.readers.append(reader)
    ours = loader(str(path))
    assert ours.meta.keys() == theirs.meta.keys()
    for key, value in theirs.meta.items():
        np.testing.assert_array_equal(ours.meta[key], value, err_msg=key)


def test_a_transform_that_reads_the_header(run: Run, root: Path, source: Path, tmp_path: Path) -> None:
    config = config_of(root)
    scaled = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x * float(x.meta['pixdim'][3])"}
    config["preprocessing"]["transforms"].insert(2, scaled)
    write_config(root, config)
    expected = monai_run(root, {"image": str(source)}, tmp_path / "monai")["trans"]
    np.testing.assert_array_equal(output(run(root, source), "labels"), expected)


# ---- code of the bundle's own


def test_an_evaluator_that_changes_nothing(run: Run, root: Path, source: Path) -> None:
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").touch()
    (root / "scripts" / "evaluator.py").write_text(
        'from monai.engines import SupervisedEvaluator\n\n\nclass Mine(SupervisedEvaluator):\n    """The same."""\n'
    )
    expected = output(run(root, source), "labels")
    config = config_of(root)
    config["evaluator"]["_target_"] = "scripts.evaluator.Mine"
    write_config(root, config)
    np.testing.assert_array_equal(output(run(root, source, "--overwrite"), "labels"), expected)


def test_a_workflow_in_python_is_named(run: Run, root: Path, source: Path) -> None:
    (root / "configs" / "inference.json").unlink()
    (root / "scripts").mkdir()
    (root / "scripts" / "inference.py").write_text("class Mine(PythonicWorkflow):\n    pass\n")
    done = run(root, source)
    assert done.code == 1
    assert "Its workflow is written in Python (scripts/inference.py, PythonicWorkflow)" in done.err
