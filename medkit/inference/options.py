"""The options that all tasks that run bundles share: declared once, passed on as `BundleOptions`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from medkit import plugins
from medkit.bundles.bundle import AUTO, Bundle, candidate_bundles, find_bundle, require_trust
from medkit.errors import UsageError
from medkit.helppages import GroupedOption
from medkit.options import bytes_of, option, settings

if TYPE_CHECKING:
    from medkit.inference.loading import RunSettings


@dataclass(frozen=True)
class BundleOptions:
    """The user's values of the options that all tasks that run bundles share."""

    name: str | None
    """A name, the path of a folder or zip, or `auto`; None if the option is not required and was not given."""
    trust: bool
    """Whether the bundle's code may run though no plugin brings it."""
    settings: RunSettings
    """How the bundle is run."""

    def of_task(self, task: str) -> tuple[Bundle, ...]:
        """Return the bundles that may run for a task: one, or those among which `auto` chooses. Raises UsageError."""
        return candidate_bundles(self.name or AUTO, task, plugins.registry(), trust=self.trust)

    def any(self) -> Bundle:
        """Return the named bundle, whatever its task. Raises UsageError and BundleError."""
        if self.name is None:
            raise UsageError("--bundle: expected the name or the path of a bundle")
        found = find_bundle(self.name, plugins.registry())
        if "context" in found.block:
            task = f"; medkit run {found.block['task']} takes both" if "task" in found.block else ""
            raise UsageError(
                f"bundle {found.name}: also reads facts besides images, but here it reads only images{task}"
            )
        require_trust(found, trust=self.trust)
        return found


_GROUP = "Bundle"
"""Heading of these options on help pages."""
_option = functools.partial(click.option, cls=GroupedOption, group=_GROUP)

_OPTIONS = (
    _option("--trust", is_flag=True, help="Run the code of a bundle that no installed plugin brings."),
    _option("--set", "overrides", multiple=True, callback=settings, metavar="ID=VALUE",
            help="Change a value of the bundle's config; repeatable."),
    _option("--precision", type=click.Choice(["auto", "bf16", "fp16", "float32"]), default="auto",
            show_default=True, help="Type of number to compute with; auto: what is fast on the device."),
    _option("--backend", type=click.Choice(["torch", "onnxruntime", "openvino", "auto"]),
            help="What computes the network; auto: what is fastest here for the same result.  [default: torch]"),
    option("--memory", group=_GROUP, callback=bytes_of, metavar="SIZE",
           help="Memory that this process may take, such as 6G: larger images are computed in parts.  "
           "[default: what is free]"),
)  # fmt: skip


def bundle_options(
    *, named: bool = False, optional: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options; the function gets them as its argument `chosen`, a `BundleOptions`.

    With `named` a bundle has to be named, with `optional` it may be; otherwise the default is `auto`.
    """
    form = "NAME|PATH" if named or optional else "NAME|PATH|auto"
    default = {"required": True} if named else {} if optional else {"default": AUTO, "show_default": True}
    what = "An installed bundle's name, or a bundle's folder or zip"
    which = f"{what}." if named or optional else f"{what}; auto: the one that fits the image."
    choose = _option("--bundle", "name", metavar=form, allow_from_autoenv=False, help=which, **default)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_bundle(
            *args: Any,
            name: str | None,
            trust: bool,
            overrides: dict[str, Any],
            precision: str,
            memory: int | None,
            backend: str | None,
            **own: Any,
        ) -> Any:
            from medkit.inference.loading import RunSettings

            chosen = BundleOptions(name, trust, RunSettings(overrides, precision, memory, backend=backend))
            return function(*args, chosen=chosen, **own)

        out: Callable[..., Any] = with_bundle
        for add in reversed((choose, *_OPTIONS)):
            out = add(out)
        return out

    return decorate
