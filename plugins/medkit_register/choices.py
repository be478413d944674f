"""What the options of `medkit run register` and `medkit run template` ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medkit.inference import Bundle

BENDING = ("deformable", "joint")
"""Types of registration with a warp after the affine map."""
ROLES = ("image", "transform", "inverse_transform")
"""The files of every registration."""
JOINT_ROLES = ("rigid_transform", "affine_transform")
"""Those of a joint registration."""
MIDPOINT_ROLES = ("fixed_image", "fixed_transform", "fixed_inverse_transform")
"""Those of the fixed image, with `--midpoint`."""


@dataclass(frozen=True)
class RegisterChoices:
    """The values of the options of `register`."""

    kind: str
    """rigid, affine, deformable or joint."""
    metric: str
    """auto, lncc, mi, mse or mind."""
    init: str
    """auto, moments, centre, header, or the name of a transform file."""
    quality: str = "default"
    """fast, default or best; for types with a warp."""
    midpoint: bool = False
    """Whether both images go half of the way (see `midpoint`)."""
    bundle: Bundle | None = None
    """The bundle whose network starts a warp, if any."""
    outputs: tuple[str, ...] = ()
    """The roles of the files to make, the main one first; empty: all."""
    field_spacing: str = "image"
    """Where displacement fields have values: image, at its voxels; warp, at the fewer points of the warp itself."""

    @property
    def coarse_fields(self) -> bool:
        """Whether displacement fields have the spacing of the warp."""
        return self.field_spacing == "warp"

    @property
    def bends(self) -> bool:
        """Whether a warp follows the affine map."""
        return self.kind in BENDING

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of all files that this kind of registration can make."""
        joint = JOINT_ROLES if self.kind == "joint" else ()
        return (*ROLES, *joint, *(MIDPOINT_ROLES if self.midpoint else ()))

    def wants(self, role: str) -> bool:
        """Return whether a file is to be made."""
        return role in (self.outputs or self.roles)


@dataclass(frozen=True)
class TemplateChoices:
    """The values of the options of `template`."""

    kind: str
    """rigid, affine or deformable."""
    iterations: int
    """Rounds of that kind."""
    quality: str
    """fast, default or best: of the last deformable round; the rounds before it are fast."""
    sharpen: bool
    """Whether the average is sharpened after every round."""

    def rounds(self) -> list[str]:
        """Return the kind of each round after the first, rigid one."""
        return ["affine"] * (self.kind == "deformable") + [self.kind] * self.iterations
