"""Which method does what, and which steps a command line asks for; imports nothing heavy."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace

from medkit.errors import UsageError, listed

PURPOSES: Mapping[str, tuple[str, ...]] = {
    "network": ("denoise", "bias"),
    "nlm": ("denoise",),
    "bm4d": ("denoise",),
    "n4": ("bias",),
    "clahe": ("contrast",),
    "gamma": ("contrast",),
    "homomorphic": ("contrast", "bias"),
    "butterworth": ("contrast",),
}
"""Method -> its purposes, the one for `--what auto` first; the network does both at once."""
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "denoise": ("network", "nlm"),
    "bias": ("network", "n4"),
    "contrast": ("clahe",),
}
"""Purpose -> methods where the user names none: the first that can run on an image is used."""
WHATS = ("auto", *DEFAULTS)
"""Values of `--what`."""


@dataclass(frozen=True)
class EnhanceSteps:
    """What is done to an image: the method of each step; None if the step is left out."""

    denoise: str | None = None
    bias: str | None = None
    contrast: str | None = None
    image: str | None = None
    """Noise and bias field at once, by a network that returns only an image and not its parts."""
    insist: bool = True
    """Whether the user asked for these steps: an image that does not suit them is an error; else they are left out."""
    named: bool = True
    """Whether the user named the method; else another one may replace it."""

    @property
    def network(self) -> bool:
        """Whether a network does any step."""
        return "network" in (self.denoise, self.bias, self.image)

    @property
    def only_network(self) -> bool:
        """Whether the network does both noise and bias field."""
        return (self.denoise, self.bias) == ("network", "network")

    def without_network(self) -> EnhanceSteps:
        """Return the same steps with methods that need no weights."""
        denoise, bias = (
            DEFAULTS[what][-1] if "network" in (method, self.image) else method
            for what, method in (("denoise", self.denoise), ("bias", self.bias))
        )
        return replace(self, denoise=denoise, bias=bias, image=None)

    def without_bias(self) -> EnhanceSteps:
        """Return the other steps."""
        return replace(self, bias=None)


def steps_of(what: str, method: str | None, *, network: bool) -> EnhanceSteps:
    """Return the steps that `--what` and `--method` ask for; `network`: whether its weights exist.

    Raises UsageError for a method that does not have that purpose, and for one whose package is not installed.
    """
    if method is None:
        wanted = ("denoise", "bias") if what == "auto" else (what,)
        chosen = {w: next(m for m in DEFAULTS[w] if network or m != "network") for w in wanted}
        return _steps(chosen, insist=what != "auto", named=False)
    if what != "auto" and what not in PURPOSES[method]:
        able = [m for m, purposes in PURPOSES.items() if what in purposes]
        raise UsageError(f"--method {method}: does {listed(PURPOSES[method])}, not {what}; {listed(able)} do")
    if method == "bm4d" and importlib.util.find_spec("bm4d") is None:
        raise UsageError("--method bm4d: needs a package that is free for non-commercial use: pip install bm4d")
    purposes = (what,) if what != "auto" else PURPOSES[method] if method == "network" else PURPOSES[method][:1]
    return _steps(dict.fromkeys(purposes, method))


def _steps(methods: Mapping[str, str], *, insist: bool = True, named: bool = True) -> EnhanceSteps:
    denoise, bias, contrast = (methods.get(what) for what in DEFAULTS)
    return EnhanceSteps(denoise, bias, contrast, insist=insist, named=named)
