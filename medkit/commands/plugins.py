"""`medkit plugins`: list the installed plugins, and which are broken; start a new one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from medkit.commands.plugins_new import new
from medkit.plugins import Plugin, Registry, registry
from medkit.specs import CommandSpec, TaskSpec
from medkit.terminal.tables import Node, columns_of, tree_lines


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Also print import times, targets and tracebacks.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool, verbose: bool) -> None:
    """List the plugins and what they offer; `medkit plugins new NAME` starts a new one."""
    if ctx.invoked_subcommand:
        return
    found = registry()
    if as_json:
        click.echo(json.dumps(as_data(found), indent=1))
        return
    if columns_of(sys.stdout) is None:
        lines = _lines(found, verbose)
    else:
        lines = (line for node in _nodes(found, verbose) for line in tree_lines(node, sys.stdout))
    for line in lines:
        click.echo(line)


plugins.add_command(new)


def as_data(found: Registry) -> dict[str, Any]:
    """Return the registry as JSON data."""
    return {
        "plugins": [
            asdict(p) | {"bundles": [asdict(b) | {"root": str(b.root)} for b in p.bundles]} for p in found.plugins
        ],
        "conflicts": conflicts(found),
    }


def conflicts(found: Registry) -> list[str]:
    """Return one sentence for each name that several plugins, or a plugin and medkit, offer."""
    from medkit.cli import core_command_names

    taken = [
        f"command {name} of {offers[0].plugin.distribution} (plugin {offers[0].plugin.name}) is not used: "
        f"medkit has a command of that name"
        for name, offers in found.commands.items()
        if name in core_command_names()
    ]
    return found.conflicts() + taken


def _lines(found: Registry, verbose: bool) -> Iterator[str]:
    if not found.plugins:
        yield "no plugins (MEDKIT_PLUGINS restricts them, if it is set)"
    for plugin in found.plugins:
        yield f"{plugin.name}  {plugin.distribution} {plugin.version}  {_offers(plugin)}"
        if verbose:
            yield from _details(plugin)
    for sentence in conflicts(found):
        yield f"conflict: {sentence}"


def _nodes(found: Registry, verbose: bool) -> Iterator[Node]:
    """Yield the same as trees, for a terminal."""
    for plugin in found.plugins:
        names = {
            "tasks": [task.name for task in plugin.tasks],
            "commands": [command.name for command in plugin.commands],
            "bundles": [bundle.name for bundle in plugin.bundles],
        }
        offers = [Node(kind, ", ".join(every)) for kind, every in names.items() if every]
        more = [Node(line.strip()) for line in _details(plugin)] if verbose else []
        trouble = [f"BROKEN: {plugin.error}"] if plugin.error else []
        yield Node(plugin.name, f"{plugin.distribution} {plugin.version}", trouble, [*offers, *more])
    if not found.plugins:
        yield Node("no plugins", "MEDKIT_PLUGINS restricts them, if it is set")
    for sentence in conflicts(found):
        yield Node("conflict", "", [f"conflict: {sentence}"])


def _offers(plugin: Plugin) -> str:
    if plugin.error:
        return f"BROKEN: {plugin.error}"
    offers = [f"task {t.name}" for t in plugin.tasks]
    offers += [f"command {c.name}" for c in plugin.commands]
    offers += [f"bundle {b.name}" for b in plugin.bundles]
    return ", ".join(offers) or "nothing"


def _details(plugin: Plugin) -> Iterator[str]:
    yield f"    {plugin.module}, imported in {plugin.import_ms:.1f} ms"
    specs: list[TaskSpec | CommandSpec] = [*plugin.tasks, *plugin.commands]
    yield from (f"    {spec.name}: {spec.target}  {spec.help}" for spec in specs)
    for bundle in plugin.bundles:
        yield f"    {bundle.name}: {bundle.root}"
    for line in (plugin.traceback or "").splitlines():
        yield f"    {line}"
