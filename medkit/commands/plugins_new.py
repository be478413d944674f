"""`medkit plugins new`: write a new plugin, which can be installed and passes its tests as it is."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import click

from medkit.errors import OutputError, UsageError
from medkit.pipe.records import absolute
from medkit.plugins import GROUP, Registry, discover

TEMPLATE = Path(__file__).parents[1] / "templates" / "plugin"
"""Folder of files named `*.tmpl`; `{{word}}` in them, and `__word__` in their names, is replaced."""
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def _name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return a name that can be a distribution, an entry point and a word of the shell; callback of options."""
    if value is None or _NAME.fullmatch(value):
        return value
    if better := _NAME.search(value.lower().replace("_", "-").replace(" ", "-")):
        raise click.BadParameter(f"{value!r}: expected lower-case letters, digits and dashes, such as {better[0]!r}")
    raise click.BadParameter(f"{value!r}: expected lower-case letters, digits and dashes, with a letter first")


@click.command(short_help="Start a plugin: a package medkit-NAME.")
@click.argument("name", callback=_name)
@click.option("-o", "--output", metavar="DIR", help="The new folder.  [default: medkit-NAME in the working directory]")
@click.option("--task", callback=_name, help="The name of its task, as in `medkit run TASK`.  [default: NAME]")
def new(name: str, output: str | None, task: str | None) -> None:
    """Start a plugin: write a package medkit-NAME, which can be installed and passes its tests as it is.

    \b
    medkit plugins new threshold && cd medkit-threshold
    pip install -e '.[test]' && pytest
    """
    words = words_for(name, task or name)
    refuse_taken(words, discover(entry_points(group=GROUP)))
    folder = absolute(output or words["distribution"])
    write_package(folder, words)
    click.echo(f"next: cd {os.path.relpath(folder)} && pip install -e '.[test]' && pytest", err=True)
    click.echo(folder)


def words_for(name: str, task: str) -> dict[str, str]:
    """Return word -> value for the template of a plugin with a task. Raises UsageError for a name medkit cannot use."""
    if name == "medkit" or name.startswith("medkit-"):
        raise UsageError(f"NAME {name}: leave out medkit-, which is added to the name of the distribution")
    return {
        "name": name,
        "task": task,
        "distribution": f"medkit-{name}",
        "package": f"medkit_{name.replace('-', '_')}",
        "bundle": f"smooth_{task.replace('-', '_')}",
    }


def refuse_taken(words: Mapping[str, str], found: Registry) -> None:
    """Raise UsageError for a name that an installed plugin has: of two with one name, neither would run."""
    for plugin in found.plugins:
        who = f"plugin {plugin.name} of {plugin.distribution}"
        if words["name"] == plugin.name or words["package"] == plugin.module.partition(":")[0]:
            raise UsageError(f"NAME {words['name']}: {who} has it already; choose another")
        if words["task"] in {spec.name for spec in plugin.tasks}:
            raise UsageError(f"task {words['task']}: {who} has it already; choose another NAME or --task")


def write_package(folder: Path, words: Mapping[str, str]) -> None:
    """Write the template's files with `words` in them; the folder appears complete or not at all.

    Raises OutputError if the folder exists or cannot be written.
    """
    if os.path.lexists(folder):
        raise OutputError(f"{folder}: exists already; name a new folder with -o")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        for source in sorted(TEMPLATE.rglob("*.tmpl")):
            target = part / filled(str(source.relative_to(TEMPLATE)).removesuffix(".tmpl"), words, "__{}__")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(filled(source.read_text(encoding="utf-8"), words, "{{{{{}}}}}"), encoding="utf-8")
        # a bundle is copied and shared on its own, so it has its own copy of the licence
        shutil.copy(part / "LICENSE", part / "src" / words["package"] / "bundles" / words["bundle"])
        part.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def filled(text: str, words: Mapping[str, str], mark: str) -> str:
    """Return `text` with every word replaced that is marked as `mark` shows, such as `__{}__`.

    >>> filled("a/__name__.py", {"name": "x"}, "__{}__")
    'a/x.py'
    """
    for word, value in words.items():
        text = text.replace(mark.format(word), value)
    return text
