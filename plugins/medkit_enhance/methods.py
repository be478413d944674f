"""Which method does what, and what a command line asks for; imports nothing heavy."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace

from medkit.errors import UsageError, listed

DOES: Mapping[str, tuple[str, ...]] = {
    "network": ("denoise", "bias"),
    "nlm": ("denoise",),
    "bm4d": ("denoise",),
    "n4": ("bias",),
    "clahe": ("contrast",),
    "gamma": ("contrast",),
    "homomorphic": ("contrast", "bias"),
    "butterworth": ("contrast",),
}
"""Method -> what it does, first what it does for `--what auto`; the network does both at once."""
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "denoise": ("network", "nlm"),
    "bias": ("network", "n4"),
    "contrast": ("clahe",),
}
"""What -> the method that does it where none is named: the first that can run on an image."""
WHATS = ("auto", *DEFAULTS)


@dataclass(frozen=True)
class Steps:
    """What is done to an image, and by which method; None: left out."""

    denoise: str | None = None
    bias: str | None = None
    contrast: str | None = None
    image: str | None = None
    """All at once, where a network gives an image that tells no parts of it apart."""
    insist: bool = True
    """Whether the user named them, so that an image they cannot be done to is an error; else they are left out."""
    named: bool = True
    """Whether the user named the method; else another may take its place."""

    @property
    def network(self) -> bool:
        """Whether a network does any of it."""
        return "network" in (self.denoise, self.bias, self.image)

    @property
    def network_alone(self) -> bool:
        """Whether noise and bias field are both left to the network."""
        return (self.denoise, self.bias) == ("network", "network")

    def without_network(self) -> Steps:
        """The same by the methods that need no weights."""
        denoise, bias = (
            DEFAULTS[what][-1] if "network" in (method, self.image) else method
            for what, method in (("denoise", self.denoise), ("bias", self.bias))
        )
        return replace(self, denoise=denoise, bias=bias, image=None)

    def without_bias(self) -> Steps:
        """The other steps."""
        return replace(self, bias=None)


def steps_of(what: str, method: str | None, *, network: bool) -> Steps:
    """The steps that `--what` and `--method` ask for; `network`: whether its weights are there.

    Raises UsageError for a method that does not do that, and for one whose package is not installed.
    """
    if method is None:
        wanted = ("denoise", "bias") if what == "auto" else (what,)
        chosen = {w: next(m for m in DEFAULTS[w] if network or m != "network") for w in wanted}
        return _by(chosen, insist=what != "auto", named=False)
    if what != "auto" and what not in DOES[method]:
        able = [m for m, does in DOES.items() if what in does]
        raise UsageError(f"--method {method}: does {listed(DOES[method])}, not {what}; {listed(able)} do")
    if method == "bm4d" and importlib.util.find_spec("bm4d") is None:
        raise UsageError("--method bm4d: needs a package that is free for non-commercial use: pip install bm4d")
    does = (what,) if what != "auto" else DOES[method] if method == "network" else DOES[method][:1]
    return _by(dict.fromkeys(does, method))


def _by(methods: Mapping[str, str], *, insist: bool = True, named: bool = True) -> Steps:
    denoise, bias, contrast = (methods.get(what) for what in DEFAULTS)
    return Steps(denoise, bias, contrast, insist=insist, named=named)
