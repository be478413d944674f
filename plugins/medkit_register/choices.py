"""The choices a user makes for a registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medkit.inference import Bundle

BENDING = ("deformable", "joint")
"""Types with a warp after the affine map."""


@dataclass(frozen=True)
class RegisterChoices:
    """What the command's options say."""

    kind: str
    """rigid, affine, deformable or joint."""
    metric: str
    """auto, lncc, mi, mse or mind."""
    init: str
    """auto, moments, centre, header, or the name of a transform file."""
    quality: str = "default"
    """fast, default or best; for deformable."""
    midpoint: bool = False
    """Both images go half of the way (see `midpoint`)."""
    bundle: Bundle | None = None
    """Whose network says where a warp begins, if any."""

    @property
    def bends(self) -> bool:
        """Whether a warp follows the affine map."""
        return self.kind in BENDING
