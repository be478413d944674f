"""`medkit describe`: a task's command line as a Boutiques descriptor, for platforms that run tools from such files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import click

from medkit import __version__
from medkit.options import PLUGIN_KEY

SCHEMA = "0.5"
"""The version of Boutiques' schema (https://github.com/boutiques/boutiques)."""
EXIT_CODES = {
    1: "A case failed; the others are done, and the messages name it.",
    2: "The command is wrong.",
    3: "All inputs were refused.",
    4: "Weights of a bundle are missing.",
    5: "A plugin is broken.",
    75: "Stopped by a signal; run the same command with --skip-existing to continue.",
}
_PLACES = {"inputs", "output", "list"}
"""Parameters that say where inputs and results are: every descriptor has them in the same form."""


@click.command()
@click.argument("task", metavar="TASK")
@click.option("--boutiques", is_flag=True, required=True, help="Print a Boutiques descriptor (JSON).")
@click.option("--image", metavar="NAME", help="The container image that has medkit, such as medkit:0.2.0.")
def describe(task: str, boutiques: bool, image: str | None) -> None:
    """Print a description of a task's command line for other programs.

    \b
    medkit describe --boutiques segment > segment.json
    bosh exec launch segment.json invocation.json

    The descriptor has all options of the task as they are where it is made. Results go to the folder OUTPUT.
    """
    click.echo(json.dumps(descriptor(task, image), indent=1))


def descriptor(task: str, image: str | None = None) -> dict[str, Any]:
    """Return the Boutiques descriptor of a task; `image`: a Docker image. Raises click.UsageError for other names."""
    from medkit.cli import run

    ctx = click.Context(run, info_name="medkit run")
    _, command, _ = run.resolve_command(ctx, [task])
    assert command is not None
    plugin = ctx.meta[PLUGIN_KEY]
    options = [_option(ctx, o) for o in command.params if isinstance(o, click.Option) and _is_offered(o)]
    keys = [option["value-key"] for option in options]
    container = {"container-image": {"type": "docker", "image": image}} if image else {}
    return {
        "name": f"medkit run {task}",
        "description": _prose(command.help or task),
        "tool-version": plugin.version if plugin.distribution != "medkit" else __version__,
        "schema-version": SCHEMA,
        "command-line": " ".join(["medkit", "run", task, "--output", "[OUTPUT]", *keys, "--", "[INPUTS]"]),
        **container,
        "inputs": [
            {
                **{"id": "inputs", "name": "Inputs", "type": "File", "list": True, "value-key": "[INPUTS]"},
                "description": "Files, one for each case, or folders that hold them.",
            },
            {
                **{"id": "output", "name": "Output", "type": "String", "value-key": "[OUTPUT]"},
                "description": "Folder for the results.",
            },
            *options,
        ],
        "output-files": [
            {
                **{"id": "results", "name": "Results", "path-template": "[OUTPUT]"},
                "description": "The folder of the results and their sidecars.",
            }
        ],
        "error-codes": [{"code": code, "description": text} for code, text in EXIT_CODES.items()],
    }


def _is_offered(option: click.Option) -> bool:
    return option.name not in _PLACES and not option.hidden and not option.is_eager


def _option(ctx: click.Context, option: click.Option) -> dict[str, Any]:
    """Return an option as Boutiques' input. Defaults stay out: a platform would write them into each command."""
    name = str(option.name)
    found: dict[str, Any] = {
        **{"id": name, "name": name.replace("_", " ").capitalize(), "value-key": f"[{name.upper()}]"},
        "optional": not option.required,
    }
    if option.help:
        found["description"] = _prose(option.help)
    flag = max(option.opts, key=len)
    if option.secondary_opts:  # the word itself is the value
        return found | {"type": "String", "value-choices": [flag, max(option.secondary_opts, key=len)]}
    found["command-line-flag"] = flag
    if option.is_flag or option.count:
        return found | {"type": "Flag"}
    found |= dict(_type(option.type))
    if option.multiple:  # `--x a --x b`
        found |= {"list": True, "list-separator": f" {flag} "}
    elif option.nargs != 1:
        found |= {"list": True, "min-list-entries": option.nargs, "max-list-entries": option.nargs}
    return found


def _type(kind: click.ParamType) -> Iterator[tuple[str, Any]]:
    """Yield the keys that tell what values an option takes."""
    if isinstance(kind, click.Choice):
        yield from {"type": "String", "value-choices": [str(choice) for choice in kind.choices]}.items()
    elif isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        yield "type", "Number"
        if isinstance(kind, click.types.IntParamType):
            yield "integer", True
        if isinstance(kind, click.IntRange | click.FloatRange):
            yield from _limits(kind)
    else:
        yield "type", "File" if isinstance(kind, click.File) or getattr(kind, "exists", False) else "String"


def _limits(kind: click.IntRange | click.FloatRange) -> Iterator[tuple[str, Any]]:
    for name, limit, is_open in (("minimum", kind.min, kind.min_open), ("maximum", kind.max, kind.max_open)):
        if limit is not None:
            yield name, limit
            if is_open:
                yield f"exclusive-{name}", True


def _prose(text: str) -> str:
    """Return a help text on one line, without its examples (paragraphs after `\\b`)."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip()) if not part.lstrip().startswith("\b")]
    return " ".join(" ".join(paragraphs).split())
