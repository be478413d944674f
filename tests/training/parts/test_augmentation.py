"""Batches of images changed at random."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medkit.training.parts.augmentation import (
    AugmentedBatch,
    Changes,
    PairLoss,
    TwoViews,
    augmented,
    mixed,
    pairs_found,
)

STILL: dict[str, Any] = dict.fromkeys(
    ("rotation", "scale", "shift", "gain", "offset", "gamma", "illumination", "noise", "salt_and_pepper"), 0.0
)


def images(dims: int, count: int = 6) -> torch.Tensor:
    """Smooth ones, brighter along the first axis."""
    ramp = torch.linspace(0.2, 0.8, 16).reshape(16, *[1] * (dims - 1)).expand(*[16] * dims)
    return ramp.expand(count, 1, *ramp.shape).clone()


@pytest.mark.parametrize("dims", [2, 3])
def test_nothing_is_changed_where_nothing_is_asked_for(dims: int) -> None:
    torch.testing.assert_close(augmented(images(dims), Changes(**STILL)), images(dims), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["rotation", "scale", "shift", "gain", "offset", "gamma", "illumination", "noise",
                                  "salt_and_pepper", "erased"])  # fmt: skip
def test_each_change_changes_every_image_in_its_own_way(name: str, dims: int) -> None:
    torch.manual_seed(0)
    most = 20.0 if name == "rotation" else 0.4
    out = augmented(images(dims), Changes(**{**STILL, "occurrence": 1.0, name: most}))
    assert out.shape == images(dims).shape
    assert 0 <= out.min() <= out.max() <= 1
    assert all((out[n] - out[0]).abs().max() > 1e-3 for n in range(1, 6))


@pytest.mark.parametrize("dims", [2, 3])
def test_rescaled_images_keep_their_range_whatever_the_light(dims: int) -> None:
    torch.manual_seed(0)
    changes = Changes(**{**STILL, "occurrence": 1.0, "illumination": 0.7}, rescaled=True)
    out = augmented(images(dims), changes).flatten(1)
    assert (out.min(1).values == 0).all()
    assert (out.max(1).values == 1).all()
    assert ((out == 1).float().mean(1) < 0.02).all(), "no more than the brightest percent is cut off"
    dark = augmented(0.1 * images(dims), Changes(**STILL, rescaled=True))
    torch.testing.assert_close(dark, augmented(images(dims), Changes(**STILL, rescaled=True)), atol=1e-4, rtol=0)
    assert augmented(torch.full((1, 1, 8, 8), 0.5), changes).isfinite().all()


@pytest.mark.parametrize("dims", [2, 3])
def test_axes_are_mirrored_in_half_of_the_images(dims: int) -> None:
    torch.manual_seed(0)
    given = images(dims, 40)
    out = augmented(given, Changes(**STILL, flips=[0]))
    turned = [torch.allclose(one, given[0].flip(1), atol=1e-4) for one in out]
    assert all(t or torch.allclose(one, given[0], atol=1e-4) for one, t in zip(out, turned, strict=True))
    assert 10 < sum(turned) < 30
    other = augmented(given, Changes(**STILL, flips=[1]))
    torch.testing.assert_close(other, given, atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_batch() -> None:
    batch = {"image": images(2), "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    prepare = AugmentedBatch(3, Changes(mixup=0.4, erased=0.3))
    first, second = (_seeded(prepare, batch) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(first[1].sum(1), torch.ones(6))


def _seeded(prepare: AugmentedBatch, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return prepare(batch, "cpu")


def test_images_and_targets_are_mixed_alike() -> None:
    torch.manual_seed(0)
    targets = torch.eye(4)
    given = targets.reshape(4, 1, 2, 2)
    out, shares = mixed(given, targets, 1.0)
    torch.testing.assert_close(out.reshape(4, 4), shares)
    assert (shares > 0).sum() > 4


def test_without_changes_the_images_stay() -> None:
    found, targets = AugmentedBatch(2)({"image": images(2), "label": torch.tensor([[0], [1]] * 3)}, "cpu")
    assert torch.equal(found, images(2))
    assert targets.argmax(1).tolist() == [0, 1] * 3


def test_a_validation_keeps_the_labels_of_changed_images() -> None:
    batch = {"image": images(2), "label": torch.tensor([[0], [1]] * 3)}
    found, labels = AugmentedBatch(None, Changes(**{**STILL, "occurrence": 1.0, "gain": 0.5}))(batch, "cpu")
    assert labels.equal(batch["label"])
    assert not torch.allclose(found, batch["image"], atol=1e-2)
    with pytest.raises(ValueError, match="mixup needs shares of classes"):
        AugmentedBatch(None, Changes(mixup=0.2))


def test_two_views_of_each_image_differ_and_stand_apart() -> None:
    torch.manual_seed(0)
    batch = {"image": images(2, 5) * torch.linspace(0.6, 1, 5).reshape(5, 1, 1, 1)}
    views, numbers = TwoViews(Changes())(batch, "cpu")
    assert views.shape == (10, 1, 16, 16)
    assert numbers.tolist() == [0, 1, 2, 3, 4] * 2
    assert all((views[n] - views[n + 5]).abs().max() > 1e-3 for n in range(5))
    still, _ = TwoViews(Changes(**STILL))(batch, "cpu")
    torch.testing.assert_close(still[:5], still[5:], atol=1e-5, rtol=0)


def test_pairs_that_find_each_other_cost_less() -> None:
    torch.manual_seed(0)
    first = torch.nn.functional.normalize(torch.randn(6, 32))
    numbers = torch.arange(6).repeat(2)
    alike, strange = torch.cat([first, first]), torch.cat([first, first.roll(1, 0)])
    loss = PairLoss(0.2)
    assert loss(alike, numbers) < loss(strange, numbers) - 1
    found, wanted = pairs_found(alike)
    assert found.tolist() == wanted.tolist() == [1] * 6
    assert pairs_found(strange)[0].tolist() == [0] * 6
    assert pairs_found(torch.cat([first, torch.cat([3 * first[:3], first[3:].roll(1, 0)])]))[0].sum() == 3
