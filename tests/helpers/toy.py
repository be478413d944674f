"""A small plugin with tasks for the tests, and a `medkit` that has it: `python -m toy run double a.nii.gz`.

Its tasks need no torch and hardly any time; most copy bytes, so that a test of names and signals reads no image.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from medkit import hookimpl
from medkit.errors import WeightsMissingError
from medkit.options import RunOptions, group_by_option, settings, task_options
from medkit.pipe.records import Record
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Runtime, Stages, Table, Task, Text
from medkit.space import Grid
from medkit.specs import TaskSpec
from medkit.task import run_task

VERSION = "1.5"


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """Return the tasks of this module."""
    return [TaskSpec(name, f"Toy task {name}.", f"toy:{name}") for name in TASKS]


# ---- tasks that look at voxels


@click.command()
@click.option("--factor", type=int, default=2, help="What the voxels are multiplied with.")
@task_options
def double(options: RunOptions, factor: int) -> None:
    """Multiply an image's voxels."""
    task = Task(
        "double",
        [Output("image", "image", "double")],
        process=functools.partial(_double, factor=factor),
        arguments={"factor": factor},
        uses_torch=False,
        memory=_memory,
        accepts=("mask",),
    )
    run_task(task, options)


def _memory(grid: Grid) -> int:
    return 8 * 2**20


def _double(case: Case, factor: int) -> Result:
    image = case.image()
    case.warnings.append("toy")
    return Result({"image": image.with_data(image.data * factor)}, metrics={"factor": factor}, warnings=_doubts(case))


def _doubts(case: Case) -> list[str]:
    """Return what is doubtful about the result of a file whose name starts with doubt."""
    return ["look at this one: too bright", "too flat"] if case.path.name.startswith("doubt") else []


@click.command()
@task_options
def halves(options: RunOptions) -> None:
    """Label the left and the right half of an image, and list the labels."""
    outputs = [Output("labels", "labels", "dseg"), Output("volumes", "table", "volumes", ".tsv")]
    run_task(Task("halves", outputs, process=_halves, uses_torch=False), options)


def _halves(case: Case) -> Result:
    image = case.image()
    data = image.data.astype("uint8")
    data[:] = 1
    data[:, : data.shape[1] // 2] = 2
    return Result({"labels": image.with_data(data), "volumes": Text("label\n1\n2\n")})


@click.command()
@task_options
def measure(options: RunOptions) -> None:
    """Measure an image; handed labels, the image they were made from."""
    run_task(
        Task(
            "measure", [Output("table", "table", "class", ".tsv")], process=_measure, uses_torch=False, takes=["image"]
        ),
        options,
    )


def _measure(case: Case) -> Result:
    lines = [f"{role}\t{path.name}" for role, path in case.inputs.items()]
    return Result({"table": Text("\n".join([*lines, f"mean\t{case.image().data.mean():.3f}", ""]))})


@click.command()
@group_by_option
@task_options
def merge(options: RunOptions) -> None:
    """Average all images of a group."""
    task = Task("merge", [Output("image", "image", "merged")], process=_merge, uses_torch=False, arity="all")
    run_task(task, options)


def _merge(case: Case) -> Result:
    first = case.image()
    total = sum(case.image(role).data.astype("float32") for role in case.inputs)
    return Result(
        {"image": first.with_data(total / len(case.inputs))},
        metrics={"members": len(case.members)},
        warnings=_doubts(case),
    )


@click.command()
@click.option("--clean/--no-clean", default=True, help="A flag with an opposite.")
@click.option("--one", "choice", flag_value="one", help="A flag that stands for a value.")
@click.option("--two", "choice", flag_value="two", help="Another one.")
@click.option("-k", "--count", count=True, help="A flag that is counted.")
@click.option("--pair", nargs=2, help="Two words.")
@click.option("--level", type=float, help="A number.")
@click.option("--word", multiple=True, help="Several words.")
@click.option("--set", "overrides", multiple=True, callback=settings, help="Several settings.")
@click.option("--roles", default="labels", callback=lambda _, __, value: value.split(","), help="A list.")
@click.option("--file", type=click.Path(exists=True, path_type=Path), help="A file.")
@click.option("--either", default="auto", help="A file or a word.")
@task_options
def spoken(options: RunOptions, **given: Any) -> None:
    """Write down the values of options of every type."""
    file, either = given.pop("file"), given.pop("either")
    given |= {"file": file and str(file.absolute()), "either": either and Path(either).name, "seed": options.seed}
    task = Task(
        "spoken",
        [Output("table", "table", "spoken", ".tsv")],
        process=functools.partial(_spoken, text=json.dumps(given, sort_keys=True)),
        uses_torch=False,
    )
    run_task(task, options)


def _spoken(case: Case, text: str) -> Result:
    return Result({"table": Text(f"options\n{text}\n")})


# ---- tasks that copy bytes


@dataclass(frozen=True)
class Copy:
    """An output with the bytes of a file (of a folder's first file)."""

    path: Path

    def write(self, path: Path) -> None:
        """Copy the bytes."""
        shutil.copyfile(min(self.path.iterdir()) if self.path.is_dir() else self.path, path)


@click.command()
@click.option("--marks", type=click.Path(path_type=Path), required=True, help="Folder for files `started` and `go`.")
@click.option("--called", default="wait", help="The task's name, for pipes of several.")
@task_options
def wait(options: RunOptions, marks: Path, called: str) -> None:
    """Copy a file once `<stem>.go` (or `go`) lies in a folder; write there that the work has started."""
    process = functools.partial(_wait, marks=marks.absolute())
    run_task(Task(called, [Output("image", "image", "waited")], process=process, uses_torch=False), options)


def _wait(case: Case, marks: Path) -> Result:
    name = case.path.name.split(".")[0]
    (marks / f"{name}.started").write_text(str(os.getpid()))
    deadline = time.monotonic() + 60
    while not ((marks / "go").exists() or (marks / f"{name}.go").exists()):
        if time.monotonic() > deadline:
            raise TimeoutError("the test did not write go")
        time.sleep(0.01)
    return Result({"image": Copy(case.path)})


@click.command()
@click.option("--noise", is_flag=True, help="Write to stdout in every way there is.")
@task_options
def fragile(options: RunOptions, noise: bool) -> None:
    """Copy a file; for names that start with fail, exit, odd, temporary, die, hang, full, hungry or nothing do it.

    Results of names that start with doubt need a look, those that start with slow take a second, and those that start
    with native 5 seconds in which this process runs no other Python.
    """
    process = functools.partial(_fragile, noise=noise)
    run_task(Task("fragile", [Output("image", "image", "copy")], process=process, uses_torch=False), options)


class Odd(BaseException):
    """Not an Exception, as some libraries raise."""


def _fragile(case: Case, noise: bool) -> Result:
    name = case.path.name
    if noise:
        print("noise by print")
        os.write(1, b"noise by write\n")
        os.system("echo noise by a child process")
        atexit.register(print, "noise at exit")
    if name.startswith("fail"):
        raise ValueError("told to fail")
    if name.startswith("exit"):
        sys.exit(7)
    if name.startswith("temporary"):
        tempfile.mkdtemp()
    if name.startswith("odd"):
        raise Odd("told to be odd")
    if name.startswith("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("hang"):
        time.sleep(60)
    if name.startswith("slow"):
        time.sleep(1)
    if name.startswith("native"):
        ctypes.PyDLL(None).sleep(5)
    if name.startswith("hungry"):
        held = bytearray(2**30)
        time.sleep(60)
        del held
    if name.startswith("full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if name.startswith("nothing"):
        return Result({})
    return Result({"image": Copy(case.path)}, metrics={"pid": os.getpid()}, warnings=_doubts(case))


@click.command()
@click.option("--kill-at", type=int, help="SIGKILL this process at the N-th os.replace of the run, before it happens.")
@click.option("--interrupt-at", type=int, help="The same with SIGINT.")
@click.option("--value", default="", help="Text of the table.")
@task_options
def pair(options: RunOptions, kill_at: int | None, interrupt_at: int | None, value: str) -> None:
    """Copy a file and write a table: two outputs."""
    for at, number in ((kill_at, signal.SIGKILL), (interrupt_at, signal.SIGINT)):
        if at is not None:
            os.replace = _fatal(os.replace, at, number)
    outputs = [Output("image", "image", "copy"), Output("table", "table", "facts", ".tsv")]
    process = functools.partial(_pair, value=value)
    run_task(Task("pair", outputs, process=process, arguments={"value": value}, uses_torch=False), options)


def _fatal(replace: Callable[..., None], at: int, number: int) -> Callable[..., None]:
    calls = iter(range(1, 10**6))

    def fatal(source: Any, target: Any) -> None:
        if next(calls) == at:
            os.kill(os.getpid(), number)
        replace(source, target)

    return fatal


def _pair(case: Case, value: str) -> Result:
    return Result({"image": Copy(case.path), "table": Text(f"name\tvalue\n{case.path.name}\t{value}\n")})


@click.command()
@click.option("--reference", type=click.Path(path_type=Path), required=True, help="The image to pretend to align with.")
@task_options
def align(options: RunOptions, reference: Path) -> None:
    """Copy a file under the names that a registration uses."""
    output = functools.partial(Output, reference=reference.absolute())
    outputs = [
        output("image", "image", "registered", entities={"space": "{space}", "desc": "registered"}),
        output("transform", "transform", "transform", ".nii.gz", _way("{suffix}", "{space}")),
        output("inverse_transform", "transform", "inverse_transform", ".nii.gz", _way("{space}", "{suffix}")),
    ]
    shared = {"fixed": reference.absolute()}
    task = Task(
        "align", outputs, process=_align, uses_torch=False, shared=shared, role="moving", accepts=("moving_labels",)
    )
    run_task(task, options)


def _way(start: str, end: str) -> dict[str, str]:
    return {"from": start, "to": end, "mode": "image"}


def _align(case: Case) -> Result:
    roles = ("image", "transform", "inverse_transform")
    return Result(dict.fromkeys(roles, Copy(case.path)), spatial_reference=case.inputs["fixed"])


@click.command()
@click.option("--table", type=click.Path(path_type=Path), required=True, help="The table of all cases.")
@task_options
def tabled(options: RunOptions, table: Path) -> None:
    """Write a row with the size of each file into one table; fail for names that start with fail."""
    rows = Table(table.absolute(), ["size"], _rows)
    run_task(Task("tabled", [], process=_tabled, uses_torch=False, table=rows), options)


def _tabled(case: Case) -> Result:
    if case.path.name.startswith("fail"):
        raise ValueError("told to fail")
    return Result({}, metrics={"size": case.path.stat().st_size}, warnings=_doubts(case))


def _rows(record: Record) -> list[dict[str, str]]:
    return [{"size": str(record.medkit["metrics"]["size"])}]


@click.command()
@task_options
def unready(options: RunOptions) -> None:
    """A task whose weights are missing."""
    run_task(Task("unready", [Output("image", "image", "x")], setup=_unready, uses_torch=False), options)


def _unready(runtime: Runtime) -> Callable[[Case], Result]:
    raise WeightsMissingError("toy weights: no such file")


@click.command()
@click.option("--marks", type=click.Path(path_type=Path), required=True, help="Folder for files such as `a.compute`.")
@click.option("--hold", default="", metavar="STEM.STAGE", help="Wait there for a file `go`.")
@click.option("--fail", default="", metavar="STEM.STAGE", help="Fail there.")
@click.option("--no-set-up", is_flag=True, help="Have no weights.")
@task_options
def staged(options: RunOptions, marks: Path, hold: str, fail: str, no_set_up: bool) -> None:
    """Copy a file in three stages."""
    setup = _unready if no_set_up else functools.partial(_stages, marks=marks.absolute(), hold=hold, fail=fail)
    outputs = [Output("image", "image", "copy")]
    run_task(Task("staged", outputs, setup=setup, uses_torch=False, staged=True), options)


def _stages(runtime: Runtime, marks: Path, hold: str, fail: str) -> Stages:
    def stage(name: str, case: Case, value: list[str]) -> list[str]:
        what = f"{case.path.name.split('.')[0]}.{name}"
        with open(marks / "order", "a") as file:
            file.write(f"{what}\n")
        (marks / what).touch()
        deadline = time.monotonic() + 60
        while what == hold and not (marks / "go").exists():
            if time.monotonic() > deadline:
                raise TimeoutError("the test did not write go")
            time.sleep(0.01)
        if what == fail:
            raise ValueError(f"told to fail in {name}")
        return [*value, name]

    def finish(case: Case, value: list[str]) -> Result:
        metrics = {"stages": stage("finish", case, value)}
        return Result({"image": Copy(case.path)}, metrics=metrics, warnings=_doubts(case))

    return Stages(lambda case: stage("prepare", case, []), lambda case, value: stage("compute", case, value), finish)


TASKS = (
    *("staged", "double", "spoken", "halves", "measure", "merge", "wait", "fragile", "pair", "align", "tabled"),
    "unready",
)


# ---- a medkit that has this plugin


def entry(name: str, module: str, distribution: str = "medkit-toy", version: str = VERSION) -> EntryPoint:
    """Return an entry point as an installed distribution would bring it."""
    point = EntryPoint(name, module, "medkit")
    vars(point)["dist"] = SimpleNamespace(name=distribution, version=version)
    return point


def main(arguments: Sequence[str] | None = None, extra: Sequence[EntryPoint] = ()) -> None:
    """Run `medkit` with no plugins but this one and those of TOY_PLUGINS (module names)."""
    from medkit import cli, plugins
    from medkit.__main__ import main as medkit_main

    named = [entry(m, m, f"dist-{m}") for m in os.environ.get("TOY_PLUGINS", "").split(",") if m]
    found = [entry("toy", "toy"), *named, *extra]
    wanted = os.environ.get("MEDKIT_PLUGINS")
    plugins.registry = functools.lru_cache(lambda: plugins.discover(found, wanted))  # type: ignore[assignment]
    if listing := sys.modules.get("medkit.commands.plugins"):  # imported by an earlier run in this process
        vars(listing)["registry"] = plugins.registry
    if __name__ == "__main__":
        # a shell starts what it puts in the background with Ctrl-C ignored, and so everything that the tests start
        signal.signal(signal.SIGINT, signal.default_int_handler)
        medkit_main()
    else:
        cli.main(arguments)


if __name__ == "__main__":
    main()
