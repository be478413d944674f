"""The options of tasks that run bundles, as one value: declared once, handed over as `BundleOptions`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from medkit import plugins
from medkit.bundles import bundle as bundles
from medkit.errors import UsageError
from medkit.options import bytes_of, option, settings

if TYPE_CHECKING:
    from medkit.inference.runner import RunSettings


@dataclass(frozen=True)
class BundleOptions:
    """What the user asked for with the options that all tasks that run bundles share."""

    name: str | None
    """A name, the path of a folder or zip, or `auto`; None where none was asked for and none need be."""
    trust: bool
    settings: RunSettings

    def of_task(self, task: str) -> tuple[bundles.Bundle, ...]:
        """The bundles that may run for a task: one, or those that `auto` chooses among. Raises UsageError."""
        return bundles.bundles_for_task(self.name or bundles.AUTO, task, plugins.registry(), trust=self.trust)

    def any(self) -> bundles.Bundle:
        """The bundle named, whatever it is for. Raises UsageError."""
        if self.name is None:
            raise UsageError("--bundle: expected the name or the path of a bundle")
        found = bundles.find(self.name, plugins.registry())
        if "context" in found.block:
            task = f"; medkit run {found.block['task']} takes both" if "task" in found.block else ""
            raise UsageError(
                f"bundle {found.name}: also reads facts beside images, and here there are images alone{task}"
            )
        bundles.require_trust(found, trust=self.trust)
        return found


_OPTIONS = (
    click.option("--trust", is_flag=True, help="Run the code of a bundle that no installed plugin brings."),
    click.option("--set", "overrides", multiple=True, callback=settings, metavar="ID=VALUE",
                 help="Change a value of the bundle's config; repeatable."),
    click.option("--precision", type=click.Choice(["auto", "bf16", "fp16", "float32"]), default="auto",
                 show_default=True, help="What to compute in; auto: what is fast on the device."),
    option("--memory", callback=bytes_of, metavar="SIZE",
           help="What this process may take, such as 6G: larger images are computed in parts.  "
           "[default: what is free]"),
)  # fmt: skip


def bundle_options(
    *, named: bool = False, optional: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the options; the function gets them as its argument `chosen`.

    With `named` a bundle has to be named, with `optional` it may be; else the default is `auto`.
    """
    form = "NAME|PATH" if named or optional else "NAME|PATH|auto"
    default = {"required": True} if named else {} if optional else {"default": bundles.AUTO, "show_default": True}
    what = "An installed bundle's name, or a bundle's folder or zip"
    which = f"{what}." if named or optional else f"{what}; auto: the one that fits the image."
    choose = click.option("--bundle", "name", metavar=form, allow_from_autoenv=False, help=which, **default)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_bundle(
            *args: Any,
            name: str | None,
            trust: bool,
            overrides: dict[str, Any],
            precision: str,
            memory: int | None,
            **own: Any,
        ) -> Any:
            from medkit.inference.runner import RunSettings

            chosen = BundleOptions(name, trust, RunSettings(overrides, precision, memory))
            return function(*args, chosen=chosen, **own)

        out: Callable[..., Any] = with_bundle
        for add in reversed((choose, *_OPTIONS)):
            out = add(out)
        return out

    return decorate
