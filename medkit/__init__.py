"""medkit: small commands for medical imaging that chain through shell pipes and are extended by plugins.

Importing this package imports nothing: the functions that need numpy, torch, nibabel, itk and monai import them, so
that `medkit --help` is fast, and the handlers of signals come before anything else (`medkit.__main__`).
"""

TYPE_CHECKING = False  # type checkers take it for true, as they do that of `typing`, whose import takes milliseconds
if TYPE_CHECKING:
    from pluggy import HookimplMarker

    hookimpl: HookimplMarker
    """Marks a plugin's implementation of one of the hooks in `medkit.hookspecs`."""

__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Return `hookimpl`, made when it is first used."""
    if name != "hookimpl":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pluggy import HookimplMarker

    globals()[name] = marker = HookimplMarker("medkit")
    return marker
