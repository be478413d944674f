"""Finding plugins: which are installed, what they offer, which are broken, and which names collide.

pluggy's own `load_setuptools_entrypoints` neither survives an import error nor reports two plugins that offer the same
name, so plugins are found here; pluggy calls and validates the hooks.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from medkit import hookspecs
from medkit.errors import PluginError, UsageError, listed
from medkit.pipe.lines import guarded_stdout
from medkit.specs import KINDS, BundleSpec, CommandSpec, TaskSpec

GROUP = "medkit"
"""The entry-point group in which distributions name their plugin packages."""


@dataclass(frozen=True)
class Plugin:
    """One installed plugin and what it offers."""

    name: str
    """Its entry point's name."""
    module: str
    """The package that the entry point names."""
    distribution: str
    """The installed distribution that brings it, such as `medkit-threshold`."""
    version: str
    """The distribution's version."""
    import_ms: float = 0.0
    """Milliseconds that importing the package took."""
    tasks: tuple[TaskSpec, ...] = ()
    bundles: tuple[BundleSpec, ...] = ()
    commands: tuple[CommandSpec, ...] = ()
    error: str | None = None
    """Why it cannot be used, in one line; None if it can."""
    traceback: str | None = None
    """The traceback of the error, for `medkit plugins --verbose`."""


@dataclass(frozen=True)
class Offer:
    """A task or command and the plugin that brings it."""

    spec: TaskSpec | CommandSpec
    plugin: Plugin

    def load(self) -> Any:
        """Import and return the click command that the spec's target names. Raises PluginError."""
        return self._load(self.spec.target, "make_context", "a click command")

    def load_trained(self) -> Callable[..., None] | None:
        """Import and return the function of a task's `trained`; None if it states none. Raises PluginError."""
        target = getattr(self.spec, "trained", "")
        function: Callable[..., None] | None = self._load(target, "__call__", "a function") if target else None
        return function

    def _load(self, target: str, having: str, what: str) -> Any:
        module, _, attribute = target.partition(":")
        try:
            loaded = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
            if not hasattr(loaded, having):
                raise TypeError(f"expected {what}, got {loaded!r}")
            return loaded
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.spec.name}: plugin {self.plugin.name} ({self.plugin.distribution} {self.plugin.version}) "
                f"could not load {target}: {_one_line(error)}"
            ) from error


@dataclass(frozen=True)
class Registry:
    """All plugins, and the tasks and commands that they offer."""

    plugins: tuple[Plugin, ...]
    tasks: Mapping[str, tuple[Offer, ...]] = field(default_factory=dict)
    """Task name -> its offers; more than one is a conflict and none of them runs."""
    commands: Mapping[str, tuple[Offer, ...]] = field(default_factory=dict)

    @property
    def broken(self) -> tuple[Plugin, ...]:
        """The plugins that could not be used."""
        return tuple(p for p in self.plugins if p.error)

    def conflicts(self) -> list[str]:
        """Return one sentence for each name that several plugins offer."""
        groups = (("task", self.tasks), ("command", self.commands))
        return [conflict(what, offers) for what, names in groups for offers in names.values() if len(offers) > 1]


def conflict(what: str, offers: Iterable[Offer]) -> str:
    """Return the sentence about a name that several plugins offer."""
    offers = tuple(offers)
    sources = listed([f"{o.plugin.distribution} (plugin {o.plugin.name})" for o in offers])
    return (
        f"{what} {offers[0].spec.name} is offered by {sources}: none of them runs; uninstall one, "
        f"or choose with MEDKIT_PLUGINS"
    )


def choose_offer(what: str, name: str, offers: tuple[Offer, ...]) -> Offer:
    """Return the only offer of a name. Raises PluginError if several plugins offer it."""
    if len(offers) > 1:
        raise PluginError(conflict(what, offers))
    return offers[0]


@functools.lru_cache(maxsize=1)
def registry() -> Registry:
    """Return what is installed here, restricted by MEDKIT_PLUGINS; found once per process."""
    return discover(entry_points(group=GROUP), os.environ.get("MEDKIT_PLUGINS"))


def discover(found: Iterable[EntryPoint], wanted: str | None = None) -> Registry:
    """Load the plugins of `found` whose names `wanted` lists: all if it is None, none if it is empty.

    `wanted` holds names of entry points or distributions, separated by commas. Raises UsageError for a name that is
    not installed.
    """
    found = sorted(found, key=lambda e: (e.name, _distribution(e)[0]))
    if wanted is not None:
        names = {n.strip() for n in wanted.split(",") if n.strip()}
        _refuse_unknown(names, found)
        found = [e for e in found if e.name in names or _distribution(e)[0] in names]
    with guarded_stdout():  # what a plugin prints while it is imported must not go down the pipe
        plugins = tuple(_load(entry) for entry in found)
    return Registry(
        plugins,
        _collect(Offer(spec, p) for p in plugins for spec in p.tasks),
        _collect(Offer(spec, p) for p in plugins for spec in p.commands),
    )


def _refuse_unknown(names: set[str], found: Iterable[EntryPoint]) -> None:
    installed = {e.name for e in found} | {_distribution(e)[0] for e in found}
    if unknown := sorted(names - installed):
        raise UsageError(
            f"MEDKIT_PLUGINS names {listed(unknown)}, which is not installed; installed: "
            f"{', '.join(sorted({e.name for e in found})) or 'no plugin'}"
        )


def _collect(offers: Iterable[Offer]) -> dict[str, tuple[Offer, ...]]:
    names: dict[str, tuple[Offer, ...]] = {}
    for offer in offers:
        names[offer.spec.name] = (*names.get(offer.spec.name, ()), offer)
    return dict(sorted(names.items()))


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "?")


def _load(entry: EntryPoint) -> Plugin:
    """Import a plugin and ask its hooks; an error is kept in the returned value, never raised."""
    plugin = Plugin(entry.name, entry.value, *_distribution(entry))
    start = time.perf_counter()
    try:
        module = entry.load()
        plugin = replace(plugin, import_ms=(time.perf_counter() - start) * 1000)
        return _ask(plugin, module)
    except (Exception, SystemExit) as error:
        return replace(plugin, error=_one_line(error), traceback=traceback.format_exc())


def _ask(plugin: Plugin, module: Any) -> Plugin:
    """Return the plugin with the answers of its hooks. Raises PluginError and whatever the plugin raises."""
    version = getattr(module, "HOOK_API", hookspecs.HOOK_API)
    if version != hookspecs.HOOK_API:
        raise PluginError(f"written for hook API {version}, this medkit speaks {hookspecs.HOOK_API}")
    manager = pluggy.PluginManager("medkit")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=plugin.name)
    manager.check_pending()  # a misspelt hook would be ignored without a word
    if not any(manager.get_hookcallers(module) or ()):
        raise PluginError("implements no hook of medkit (is @medkit.hookimpl missing?)")
    return replace(
        plugin,
        tasks=_answers(manager.hook.medkit_tasks, TaskSpec),
        bundles=_answers(manager.hook.medkit_bundles, BundleSpec),
        commands=_answers(manager.hook.medkit_commands, CommandSpec),
    )


_Spec = TypeVar("_Spec")


def _answers(hook: pluggy.HookCaller, kind: type[_Spec]) -> tuple[_Spec, ...]:
    """Return what a hook of the plugin returned, checked. Raises PluginError."""
    answers: list[Any] = []
    for returned in hook():
        if not isinstance(returned, Iterable):
            raise PluginError(f"{hook.name} returned {returned!r}, expected a list of {kind.__name__} values")
        answers.extend(returned)
    for spec in answers:
        if not isinstance(spec, kind):
            raise PluginError(f"{hook.name} returned {spec!r}, expected {kind.__name__} values")
        _check(spec)
    if twice := sorted(name for name, times in Counter(spec.name for spec in answers).items() if times > 1):
        raise PluginError(f"{hook.name} returned several {kind.__name__} values named {listed(twice)}")
    return tuple(answers)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _check(spec: Any) -> None:
    """Raise PluginError for a spec with a field that would break the command line later."""
    expected = {
        "name": ("a word of letters, digits, '-', '_' and '.'", lambda v: isinstance(v, str) and _NAME.fullmatch(v)),
        "help": ("one line of text", lambda v: isinstance(v, str)),
        "target": ('"package.module:attribute"', lambda v: isinstance(v, str) and all(v.partition(":"))),
        "trained": (
            '"package.module:attribute", or nothing',
            lambda v: isinstance(v, str) and (not v or all(v.partition(":"))),
        ),
        "root": ("a Path", lambda v: isinstance(v, Path)),
        "kinds": (f"some of {listed(KINDS)}", lambda v: isinstance(v, tuple) and set(v) <= set(KINDS)),
    }
    for key, (what, holds) in expected.items():
        if hasattr(spec, key) and not holds(getattr(spec, key)):
            raise PluginError(f"{spec!r}: expected {what} as its {key}")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
