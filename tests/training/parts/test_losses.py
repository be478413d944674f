"""The segmentation loss against MONAI's, and the losses of enhancement."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceLoss

from medkit.synthesis.degradation import CompareFieldd
from medkit.training.parts.losses import DiceCrossEntropyLoss, EnhancementLoss


@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_monais_where_every_label_is_present(batch: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(batch, 5, 8, 9, 10, requires_grad=True)
    target = torch.randint(5, (batch, 1, 8, 9, 10))
    ours = DiceCrossEntropyLoss(cross_entropy=0.5)(logits, target)
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(logits, target)
    theirs = dice + 0.5 * torch.nn.functional.cross_entropy(logits, target[:, 0])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (ours, theirs)), atol=1e-7, rtol=1e-3)


def test_absent_labels_count_neither_way() -> None:
    logits = torch.full((1, 3, 4, 4, 4), -20.0)
    target = torch.zeros(1, 1, 4, 4, 4, dtype=torch.int64)
    target[..., :2] = 1
    logits[0, :2] = torch.where(target[0] == torch.arange(2)[:, None, None, None], 20.0, -20.0)
    assert float(DiceCrossEntropyLoss()(logits, target)) == pytest.approx(0, abs=1e-5)
    assert float(DiceCrossEntropyLoss()(logits.flip(1), target)) > 1


def test_balance_raises_small_labels() -> None:
    target = torch.zeros(1, 1, 10, 10, 10, dtype=torch.int64)
    target[..., 0, 0, 0] = 1
    logits = torch.zeros(1, 2, 10, 10, 10, requires_grad=True)
    shares = []
    for balance in (0.0, 1.0):
        (slope,) = torch.autograd.grad(DiceCrossEntropyLoss(balance=balance)(logits, target), logits)
        shares.append(float(slope[0, 1, 0, 0, 0].abs() / slope[0, 1].abs().sum()))
    assert shares[1] > 0.4 > 0.1 > shares[0]


def test_the_loss_of_images_weighs_faint_noise_as_much() -> None:
    target = torch.rand(1, 2, 8, 8, 8)
    loss = EnhancementLoss(floor=1e-6)
    faint, twice, strong, none = (
        float(loss(target + torch.tensor([s, 5.0]).reshape(1, 2, 1, 1, 1), target)) for s in (0.01, 0.02, 0.1, 0.0)
    )
    assert twice - faint == pytest.approx(math.log(2), rel=1e-3)
    assert strong - faint == pytest.approx(math.log(10), rel=1e-3)
    assert none == pytest.approx(math.log(1e-6), rel=1e-3)


def test_the_loss_of_images_leaves_their_border_out() -> None:
    target = torch.rand(1, 2, 8, 8, 8)
    pred = target + 0.1
    pred[:, 0, 2:-2, 2:-2, 2:-2] = target[:, 0, 2:-2, 2:-2, 2:-2]
    assert float(EnhancementLoss(floor=1e-6, border=2)(pred, target)) == pytest.approx(math.log(1e-6), rel=1e-3)
    assert float(EnhancementLoss(floor=1e-6, border=1)(pred, target)) > math.log(0.05)


def test_the_loss_of_fields_knows_no_factor_and_no_background() -> None:
    target = torch.zeros(1, 2, 8, 8, 8)
    target[:, 0, 2:6] = 1
    pred = target + 3.0
    loss = EnhancementLoss(image=0.0, field=1.0)
    assert float(loss(pred, target)) == pytest.approx(0, abs=1e-6)
    pred[:, 1, :2] = 100
    assert float(loss(pred, target)) == pytest.approx(0, abs=1e-6)
    pred[:, 1, 2:4] += 0.2
    assert float(loss(pred, target)) == pytest.approx(0.1, rel=1e-3)
    assert float(loss(pred, torch.zeros_like(target))) == 0
    same = CompareFieldd(["pred", "label"])({"pred": target[0] + 3.0, "label": target[0]})
    torch.testing.assert_close(same["pred"], same["label"])
