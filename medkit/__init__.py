"""medkit: small commands for medical imaging that chain through shell pipes and are extended by plugins.

Importing this package imports nothing heavy: the functions that need numpy, torch, nibabel, itk and monai import them,
so that `medkit --help` is fast.
"""

from pluggy import HookimplMarker

__version__ = "0.2.0"

hookimpl = HookimplMarker("medkit")
"""Marks a plugin's implementation of one of the hooks in `medkit.hookspecs`."""
