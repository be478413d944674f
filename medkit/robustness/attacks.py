"""Adversarial attacks: changes of a classifier's input too small to see, which mislead it, found by its own gradients.

FGSM (Goodfellow 2015) takes one step against the true class, PGD (Madry 2018) several smaller ones from a random start.
Both know the network and change the output of the bundle's preprocessing, so sizes are in units of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medkit.inference.transforms import Prepared

if TYPE_CHECKING:
    import torch

    from medkit.inference.network import Network

PGD_STEPS = 10
"""Number of PGD's steps."""
PGD_REACH = 2.5
"""Length of all steps of PGD together, as a multiple of the largest change that is allowed (Madry 2018)."""


def attacked(
    network: Network,
    prepared: Prepared,
    truth: int,
    method: str,
    size: float,
    seed: int,
    classes: Sequence[int] = (),
) -> Prepared:
    """Return a prepared case with its image changed by up to `size` at every voxel, within the image's own range.

    `truth` is the number of the case's class among `classes`, which are channels of the network's answer (empty: all);
    for a network with one output it is 1 if the case is positive, else 0. `method` is `fgsm` or `pgd`.
    """
    import torch

    image = prepared.item["image"]
    clean = torch.as_tensor(image.as_tensor() if hasattr(image, "as_tensor") else image, dtype=torch.float32)
    clean = clean.to(network.device)[None]
    low, high = (clean - size).clamp_min(clean.min()), (clean + size).clamp_max(clean.max())
    changed, steps, step = clean, 1, size
    if method == "pgd":
        steps, step = PGD_STEPS, PGD_REACH * size / PGD_STEPS
        draw = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean.device)
        changed = torch.clamp(clean + size * (2 * draw - 1), low, high)
    for _ in range(steps):
        uphill = _gradient(network, changed, truth, classes).sign()
        changed = torch.clamp(changed + step * uphill, low, high)
    return replace(prepared, item={**prepared.item, "image": image + (changed - clean)[0].to(image.device)})


def _gradient(network: Network, image: torch.Tensor, truth: int, classes: Sequence[int]) -> torch.Tensor:
    """Return the gradient of the loss with respect to the image, both (1, C, I, J, K)."""
    import torch
    from torch.nn import functional

    with torch.enable_grad():
        given = image.detach().requires_grad_(True)
        answer: Any = network.inferer(given, network.network)
        answer = (answer[0] if isinstance(answer, list | tuple) else answer).float().flatten(1)
        answer = answer[:, list(classes)] if classes else answer
        if answer.shape[1] == 1:
            loss = functional.binary_cross_entropy_with_logits(answer, torch.full_like(answer, float(truth)))
        else:
            loss = functional.cross_entropy(answer, torch.tensor([truth], device=answer.device))
        (gradient,) = torch.autograd.grad(loss, given)
    return gradient
