"""Running a bundle's network where memory is short, and what is foreseen of it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zoo

from medkit.bundles.bundle import Bundle
from medkit.bundles.parsed import _search_snapshot
from medkit.images.phantom import make_image
from medkit.inference.axis_resampling import along_axes
from medkit.inference.loading import RunSettings, load_stages
from medkit.inference.memory import footprint
from medkit.inference.network import ComputePlan
from medkit.inference.runner import BundleRunner
from medkit.inference.task import bundle_task
from medkit.inference.transforms import Prepared
from medkit.machine.memory import ran_out
from medkit.options import RunOptions
from medkit.pipe.records import record_of
from medkit.run.outputs import Targets
from medkit.run.task import Case, CasePlan, Runtime

pytestmark = pytest.mark.usefixtures("clean_path")

CPU = Runtime("cpu", 2, 0)


def load(root: Path, memory: int | None = None) -> BundleRunner:
    stages = load_stages(CPU, bundle=Bundle(root, root.name), settings=RunSettings({}, "float32", memory))
    runner: BundleRunner = stages.compute.__self__  # type: ignore[attr-defined]
    return runner


def prepared(runner: BundleRunner, folder: Path, shape: tuple[int, int, int]) -> Prepared:
    """An image of the bundle's own spacing, so that it keeps its shape."""
    path = make_image(folder / "image.nii.gz", shape, (4.0, 4.0, 5.0))
    task = bundle_task("t", [runner.bundle], RunSettings({}))
    return runner.prepare(Case(CasePlan(record_of(path), {"image": path}, Targets({})), task, RunOptions(), CPU))


def labels(runner: BundleRunner, case: Prepared) -> np.ndarray:
    value = runner.postprocessing(case)["pred"]
    return np.asarray(value)


@pytest.mark.parametrize("name", ["spleen_ct_segmentation", "ventricular_short_axis_3label"])
@pytest.mark.parametrize(("shape", "overlap"), [((24, 22, 72), 0.5), ((61, 20, 18), 0.25), ((20, 53, 12), 0.7)])
def test_tiles_give_the_labels_of_the_whole(
    tmp_path: Path, name: str, shape: tuple[int, int, int], overlap: float
) -> None:
    runner = load(zoo.write(tmp_path / "b", name))
    runner.network.inferer.overlap = overlap
    case = prepared(runner, tmp_path, shape)
    whole = labels(runner, runner.network(case))
    item = runner.network._tiled(ComputePlan(1, None, 4), case)
    tiled = labels(runner, Prepared(item, case.grid, labelled=True))
    assert len(np.unique(whole)) > 1
    np.testing.assert_array_equal(whole, tiled)


def test_the_way_is_chosen_by_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = load(zoo.write(tmp_path / "b", "spleen_ct_segmentation"))
    network, case = runner.network, prepared(runner, tmp_path, (24, 22, 72))
    ways = list(network._plans((1, 24, 22, 72)))
    needs = [network._need(way, (1, 24, 22, 72), case) for way in ways]
    assert ways[:3] == [ComputePlan(), ComputePlan(batch=1), ComputePlan(1, None, 1)]
    assert needs[0] >= needs[1] > needs[-1]
    for number in (0, 1, len(ways) - 1):
        monkeypatch.setattr("medkit.inference.network.available", lambda *_, n=number: needs[n])
        done = network(case)
        first = next(n for n, need in enumerate(needs) if need <= needs[number])
        assert done.labelled == (ways[first].tiles > 0)
        assert bool(done.warnings) == (ways[first].tiles > 0)
    monkeypatch.setattr("medkit.inference.network.available", lambda *_: min(needs) - 1)
    with pytest.raises(MemoryError, match="24 x 22 x 72 voxels"):
        network(case)


def test_running_out_is_tried_again_in_parts(tmp_path: Path) -> None:

    runner = load(zoo.write(tmp_path / "b", "spleen_ct_segmentation"))
    network, case = runner.network, prepared(runner, tmp_path, (24, 22, 72))
    sizes: list[int] = []

    def short(module: Any, inputs: Any) -> None:
        if inputs[0].is_meta:  # nothing is computed, only foreseen
            return
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    network.network.register_forward_pre_hook(short)
    expected = labels(load(tmp_path / "b"), network(case))
    assert sizes[0] == 2
    assert set(sizes[1:]) == {1}
    assert len(np.unique(expected)) > 1
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert not ran_out(RuntimeError("shapes do not match"))


def test_other_errors_are_not_tried_again(tmp_path: Path) -> None:
    runner = load(zoo.write(tmp_path / "b", "spleen_ct_segmentation"))
    calls: list[int] = []

    def broken(module: Any, inputs: Any) -> None:
        calls.append(inputs[0].is_meta)
        raise RuntimeError("shapes do not match")

    runner.network.network.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes"):
        runner.network(prepared(runner, tmp_path, (16, 16, 16)))
    assert calls == [True, False]


def test_a_footprint_is_that_of_the_tensors() -> None:

    convolutions = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 1), torch.nn.Conv3d(8, 2, 1))
    found = footprint(convolutions, (1, 1, 10, 10, 10), channels=9)
    assert found.channels == 2
    assert found.peak == 4 * 1000 * (1 + 8 + 2)
    assert all(not p.is_meta for p in convolutions.parameters())


def test_a_footprint_of_a_network_that_looks_at_values_is_a_guess() -> None:

    class Looks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    assert footprint(Looks(), (1, 1, 10, 10, 10), channels=9).channels == 9


def test_memory_that_is_too_little_fails_the_case(toy: Callable[..., Any], tmp_path: Path) -> None:
    source = make_image(tmp_path / "a.nii.gz", (20, 18, 14), (3, 3, 5))
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    done = toy("run", "bundle", "--bundle", root, "--trust", "--memory", "10M", source)
    assert done.code == 1
    assert "not enough memory for" in done.err
    assert toy("run", "bundle", "--bundle", root, "--trust", "--memory", "ten", source).code == 2


def test_a_dry_run_says_the_memory(toy: Callable[..., Any], tmp_path: Path) -> None:
    source = make_image(tmp_path / "a.nii.gz", (20, 18, 14), (3, 3, 5))
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation", weights=False)
    done = toy("run", "bundle", "--bundle", root, "--trust", "--dry-run", source)
    assert done.code == 0
    assert "MiB)" in done.err


def test_a_plugin_runs_a_bundle_with_one_call(tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    task = bundle_task("spleens", [Bundle(root, "b")], RunSettings({}))
    assert task.name == "spleens"
    assert [(o.role, o.kind, o.suffix) for o in task.outputs] == [("labels", "labels", "dseg")]
    assert task.bundle is not None
    assert task.bundle["name"] == "b"


def test_configs_open_while_another_thread_imports() -> None:
    from monai.bundle.config_item import ComponentLocator

    locator = ComponentLocator(excludes=["metatensor"])
    known = sorted(locator._find_module_names())
    _search_snapshot(locator)
    over = threading.Event()

    made_up = [f"made_up_{number}" for number in range(20_000)]

    def import_much() -> None:
        while not over.is_set():
            for name in made_up:
                sys.modules[name] = sys
            for name in made_up:
                del sys.modules[name]

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=import_much)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        assert all(sorted(locator._find_module_names()) == known for _ in range(200))
    finally:
        sys.setswitchinterval(interval)
        over.set()
        thread.join()


def test_two_bundles_with_code_of_the_same_name(tmp_path: Path, toy: Callable[..., Any]) -> None:
    paths = [make_image(tmp_path / f"{n}.nii.gz", (16, 16, 16), (3, 3, 5)) for n in "ave"]
    for name in ("one", "two"):
        root = zoo.write(tmp_path / name, "renalStructures_CECT_segmentation")
        code = root / "scripts" / "join.py"
        factor = 1 if name == "one" else 0
        code.write_text(code.read_text().replace("torch.cat(", f"{factor} * torch.cat("))
    inputs = {"vein": str(paths[1]), "excret": str(paths[2])}
    found = []
    for name in ("one", "two"):
        line = json.dumps({"path": str(paths[0]), "inputs": inputs}) + "\n"
        done = toy("run", "bundle", "--bundle", tmp_path / name, "--trust", "-o", tmp_path / f"o{name}", input=line)
        assert done.code == 0, done.err
        found.append(np.asanyarray(nibabel.load(done.paths[0]).dataobj))
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 2.0), (0.6, 2.5, 4.0), (3.0, 0.7, 1.0)])
def test_resampling_along_axes_is_monais(
    monkeypatch: pytest.MonkeyPatch, spacing: tuple[float, ...], padding: str, align_corners: bool
) -> None:
    from monai.data import MetaTensor
    from monai.networks.layers import AffineTransform
    from monai.transforms import Spacing
    from monai.transforms.spatial import functional

    image = MetaTensor(torch.randn(2, 21, 18, 9), affine=torch.diag(torch.tensor([-1.1, 0.8, 3.0, 1.0])))
    step = Spacing(spacing, padding_mode=padding, align_corners=align_corners)
    found = []
    for way in (AffineTransform, along_axes()):
        monkeypatch.setattr(functional, "AffineTransform", way)
        found.append(step(image))
        found.append(step.inverse(found[-1].clone()))
    for plain, quick in ((found[0], found[2]), (found[1], found[3])):
        torch.testing.assert_close(quick.as_tensor(), plain.as_tensor(), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(quick.affine, plain.affine)


def test_what_turns_is_left_to_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.networks.layers import AffineTransform

    image = torch.randn(1, 1, 12, 11, 10, dtype=torch.float64)
    theta = torch.eye(4, dtype=torch.float64)
    theta[:2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    ways = [
        way(normalized=False, align_corners=True)(image, theta, (12, 11, 10)) for way in (AffineTransform, along_axes())
    ]
    assert torch.equal(*ways)
