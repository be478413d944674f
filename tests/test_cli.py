"""The command line as a whole: start-up without heavy imports, help everywhere, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import click
import pytest

from medkit.cli import cli

Run = Callable[..., "Outcome"]  # noqa: F821
HEAVY = ("torch", "monai", "numpy", "nibabel", "itk", "SimpleITK", "scipy", "matplotlib", "PIL", "dask")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["plugins"],
        ["plugins", "--json"],
        ["show", "--help"],
        ["transform", "--help"],
        ["transform", "apply", "--help"],
        ["run", "no-such-task"],
    ],
    ids=" ".join,
)
def test_what_medkit_can_do_is_answered_without_heavy_imports(arguments: list[str]) -> None:
    """With the plugins that are installed here."""
    script = (
        "import sys, medkit.cli\n"
        "try: medkit.cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "HEAVY []"
    assert done.stdout or "no-such-task" in done.stderr


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """All commands below a group, with the words that call them."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_every_command_and_option_says_what_it_is_for() -> None:
    seen = dict(commands(cli))
    assert {"run", "show", "plugins", "transform", "transform apply", "run register"} <= set(seen)
    for words, command in seen.items():
        assert command.get_short_help_str(), words
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{words} {parameter.name}"
                assert parameter.help[0].isupper() or parameter.help.split(":")[0].isidentifier(), parameter.help


def test_the_listed_help_is_the_commands_own() -> None:
    """What `medkit --help` says of a command without importing it is its docstring's first sentence."""
    from medkit.cli import _CORE_COMMANDS
    from medkit.plugins import registry

    seen = dict(commands(cli))
    listed = {spec.name: spec.help for spec in _CORE_COMMANDS}
    listed |= {f"run {name}": offers[0].spec.help for name, offers in registry().tasks.items()}
    for words, text in listed.items():
        assert text.endswith("."), words
        assert words in seen


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["-h"], 0),
        (["-V"], 0),
        (["nonsense"], 2),
        (["run", "nonsense"], 2),
        (["run", "pair", "--nonsense"], 2),
        (["run", "pair", "x", "--workers", "-1"], 2),
        (["run", "pair", "x", "--threads", "0"], 2),
        (["run", "pair", "x", "--timeout-per-case", "0"], 2),
        (["run", "pair", "x", "--device", "tpu"], 2),
        (["run", "pair", "x", "--device", "cpu:1"], 2),
        (["run", "pair", "x", "--shard", "3/2"], 2),
        (["run", "pair", "--list", "no such list"], 2),
        (["run", "pair", "no such file"], 3),
        (["show", "no such file"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_exit_codes(toy: Run, arguments: list[str], code: int) -> None:
    done = toy(*arguments)
    assert done.code == code
    assert bool(done.err) is (code > 0)
    assert "Traceback" not in done.err


@pytest.mark.parametrize("variable", ["MEDKIT_VERSION", "MEDKIT_HELP", "MEDKIT_RUN_HELP", "MEDKIT_RUN_PAIR_HELP"])
@pytest.mark.parametrize("value", ["1", "0.3.1"])
def test_variables_that_images_and_ci_set_do_no_harm(
    toy: Run, blob: Callable[..., object], variable: str, value: str
) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), env={variable: value})
    assert done.code == 0, done.err
    assert done.out.endswith("a_copy.nii.gz\n")


def test_the_common_options_are_those_of_the_contract() -> None:
    (register,) = [c for words, c in commands(cli) if words == "run register"]
    names = {name for p in register.params for name in (*p.opts, *p.secondary_opts)}
    contract = (
        "-o --output --device --threads --json -0 --list --overwrite --skip-existing --keep-tree --fail-fast --failed "
        "--shard --workers --timeout-per-case --qc --seed --dry-run -q -v --no-progress --series --frame"
    )
    assert set(contract.split()) <= names


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["rnu"], "'medkit run'"),
        (["double"], "'medkit run double'"),
        (["run", "doubel"], "'medkit run double'"),
        (["run", "evaluate"], "'medkit evaluate'"),
        (["apply"], "'medkit transform apply'"),
        (["transfrom"], "'medkit transform'"),
    ],
)
def test_mistyped_commands_are_answered_with_what_may_be_meant(toy: Run, words: list[str], meant: str) -> None:
    done = toy(*words, "x.nii.gz")
    assert done.code == 2
    assert f"Did you mean {meant}?" in done.err


def test_a_mistyped_bundle(medkit: Run) -> None:
    done = medkit("run", "segment", "--bundle", "brain_mri_segmentatoin", "x.nii.gz")
    assert done.code == 2
    assert "did you mean brain_mri_segmentation?" in done.err


def test_help_lists_options_in_groups(toy: Run) -> None:
    page = toy("run", "double", "--help").out
    heads = ["This task", "Inputs and outputs", "Running", "Quality control and messages"]
    assert [line[:-1] for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")] == heads
    own = page[page.index("This task:") : page.index("Inputs and outputs:")]
    assert "--factor" in own
    assert "--output" not in own


def test_help_begins_with_examples(toy: Run, medkit: Run) -> None:
    page = medkit("run", "segment", "--help").out
    heads = [line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads[:3] == ["Examples:", "Description:", "This task:"]
    assert page.index("Label structures in images.") < page.index("Examples:") < page.index("Writes a label map")
    assert "Options:" in medkit("evaluate", "--help").out  # which is no task
    assert "Examples:" not in toy("run", "double", "--help").out.split("This task:")[1]


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["register", "--type", "afine"], "'joint'; did you mean affine?"),
        (["register", "--overwite"], "Did you mean '--overwrite'?"),
        (["register", "--typ", "rigid"], "Did you mean '--type'?"),
        (["segment", "--labels", "lung_lfet"], "bones; did you mean lung_left?"),
        (["segment", "--outputs", "labels,barin"], "regions; did you mean brain?"),
    ],
)
def test_mistyped_options_and_values(medkit: Run, words: list[str], advice: str) -> None:
    done = medkit("run", *words, "x.nii.gz")
    assert done.code == 2
    assert advice in done.err


def test_help_of_tasks_with_bundles_and_of_commands_below_commands(medkit: Run) -> None:
    assert "\nBundle:\n" in medkit("run", "enhance", "--help").out
    assert "\nRunning:\n" in medkit("transform", "apply", "--help").out


@pytest.mark.parametrize("columns", [60, 80])
def test_help_cuts_no_description_and_breaks_no_example(columns: int) -> None:
    for words, command in commands(cli):
        context = click.Context(command, info_name=words, terminal_width=columns)
        page = command.get_help(context)
        if isinstance(command, click.Group):
            assert columns < 80 or "..." not in re.split(r"\n(?:Commands|Tasks):\n", page)[-1], words
        for line in (command.help or "").split("\b\n")[1:]:
            for example in line.split("\n\n")[0].splitlines():
                assert example.strip() in page, words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(toy: Run, shell: str) -> None:
    script = toy("completion", shell).out
    assert "_MEDKIT_COMPLETE" in script
    words = {"COMP_WORDS": "medkit run doub", "COMP_CWORD": "doub" if shell == "fish" else "2"}
    done = toy(env=words | {"_MEDKIT_COMPLETE": f"{shell}_complete"})
    assert "double" in done.out
