"""medkit: small commands for medical imaging that chain through shell pipes and are extended by plugins.

Importing this package imports nothing heavy: numpy, torch, nibabel, itk and monai are loaded by the functions that
need them, so that `medkit --help` answers at once.
"""

from pluggy import HookimplMarker

__version__ = "0.2.0"

hookimpl = HookimplMarker("medkit")
"""Marks a plugin's implementation of one of the hooks in `medkit.hookspecs`."""
