"""Discovery of plugins: what works, what is broken, what collides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from toy import TASKS, VERSION, entry

from medkit import plugins
from medkit.errors import PluginError, UsageError
from medkit.plugins import choose_offer, discover

Run = Callable[..., "Outcome"]  # noqa: F821

HEAD = "from medkit import hookimpl\nfrom medkit.specs import BundleSpec, CommandSpec, TaskSpec\n"
TASK = HEAD + '@hookimpl\ndef medkit_tasks():\n    return [TaskSpec("{name}", "Says {name}.", "toy:pair")]\n'
COMMAND = HEAD + '@hookimpl\ndef medkit_commands():\n    return [CommandSpec("{name}", "Says {name}.", "toy:pair")]\n'

BROKEN = {
    "missing_import": ("import no_such_module_of_mine\n", "ModuleNotFoundError"),
    "syntax": ("def\n", "SyntaxError"),
    "exits": ("raise SystemExit(3)\n", "SystemExit"),
    "other_api": (TASK.format(name="t") + "HOOK_API = 2\n", "written for hook API 2, this medkit speaks 1"),
    "misspelt": (HEAD + "@hookimpl\ndef medkit_taks():\n    return []\n", "medkit_taks"),
    "no_hooks": ("x = 1\n", "implements no hook"),
    "forgot_hookimpl": ("def medkit_tasks():\n    return []\n", "implements no hook"),
    "wrong_values": (HEAD + "@hookimpl\ndef medkit_tasks():\n    return ['t']\n", "expected TaskSpec values"),
    "no_list": (HEAD + "@hookimpl\ndef medkit_tasks():\n    return 3\n", "expected a list of TaskSpec values"),
    "raises": (HEAD + "@hookimpl\ndef medkit_tasks():\n    raise OSError('no licence')\n", "no licence"),
    "bad_target": (TASK.format(name="t").replace("toy:pair", "toy"), "as its target"),
    "bad_name": (TASK.format(name="a b"), "as its name"),
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], EntryPoint]:
    """Writes a plugin module and gives its entry point: module("name", "source")."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> EntryPoint:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return entry(name, name, f"dist-{name}", "0.3")

    return write


Module = Callable[[str, str], EntryPoint]


def test_a_working_plugin() -> None:
    (plugin,) = discover([entry("toy", "toy")]).plugins
    assert plugin.error is None
    assert (plugin.name, plugin.distribution, plugin.version) == ("toy", "medkit-toy", VERSION)
    assert tuple(t.name for t in plugin.tasks) == TASKS
    assert plugin.import_ms >= 0


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_reported_and_the_rest_works(module: Module, name: str) -> None:
    source, reason = BROKEN[name]
    found = discover([module(name, source), entry("toy", "toy")])
    (broken,) = found.broken
    assert broken.name == name
    assert reason in str(broken.error)
    assert "\n" not in str(broken.error)
    assert "Traceback" in str(broken.traceback)
    assert set(found.tasks) == set(TASKS)


def test_a_broken_plugin_on_the_command_line(toy: Run, module: Module, tmp_path: Path) -> None:
    extra = [module("missing_import", BROKEN["missing_import"][0])]
    (tmp_path / "a.nii.gz").touch()
    for arguments in (["--help"], ["run", "--help"]):
        done = toy(*arguments, extra=extra)
        assert done.code == 0
        assert "missing_import" in done.out
    called = toy("run", "missing_import", extra=extra)
    assert called.code == 5
    assert "no_such_module_of_mine" in called.err
    assert toy("run", "pair", tmp_path / "a.nii.gz", extra=extra).code == 0
    listed = toy("plugins", extra=extra)
    assert listed.code == 0
    assert "BROKEN: ModuleNotFoundError" in listed.out
    assert "Traceback" not in listed.out
    assert "Traceback" in toy("plugins", "--verbose", extra=extra).out


@pytest.mark.parametrize("target", ["toy:no_such_attribute", "no_such_module_of_mine:x", "toy:VERSION"])
def test_a_target_that_cannot_be_loaded(toy: Run, module: Module, target: str) -> None:
    extra = [module("wrong", TASK.format(name="far").replace("toy:pair", target))]
    assert "far" in toy("run", "--help", extra=extra).out
    done = toy("run", "far", "x.nii.gz", extra=extra)
    assert done.code == 5
    assert "plugin wrong (dist-wrong 0.3) could not load" in done.err


def test_two_plugins_with_one_task(toy: Run, module: Module) -> None:
    extra = [module("other", TASK.format(name="pair"))]
    done = toy("run", "pair", "x.nii.gz", extra=extra)
    assert done.code == 5
    assert "medkit-toy (plugin toy)" in done.err
    assert "dist-other (plugin other)" in done.err
    assert "none of them runs" in done.err
    assert "none of them runs" in toy("plugins", extra=extra).out
    assert "offered by several plugins" in toy("run", "--help", extra=extra).out
    assert toy("run", "fragile", "--help", extra=extra).code == 0
    assert toy("run", "pair", "--help", extra=extra, env={"MEDKIT_PLUGINS": "toy"}).code == 0


def test_choose_takes_the_only_offer(module: Module) -> None:
    found = discover([entry("toy", "toy"), module("other", TASK.format(name="pair"))])
    assert choose_offer("task", "wait", found.tasks["wait"]).plugin.name == "toy"
    with pytest.raises(PluginError):
        choose_offer("task", "pair", found.tasks["pair"])


def test_commands_of_plugins_and_of_the_core(toy: Run, module: Module) -> None:
    extra = [module("brings", COMMAND.format(name="extra")), module("steals", COMMAND.format(name="show"))]
    assert toy("extra", "--help", extra=extra).code == 0
    assert "Says extra." in toy("--help", extra=extra).out
    assert "Says show." not in toy("--help", extra=extra).out
    assert "command show of dist-steals" in toy("plugins", extra=extra).out


def test_medkit_plugins_restricts(toy: Run, module: Module) -> None:
    extra = [module("one", TASK.format(name="one")), module("two", BROKEN["syntax"][0])]
    for wanted, names in (("one", ["one"]), ("medkit-toy, one", ["one", "toy"]), ("", []), ("toy,", ["toy"])):
        done = toy("plugins", extra=extra, env={"MEDKIT_PLUGINS": wanted})
        assert [line.split()[0] for line in done.lines if "no plugins" not in line] == names
    done = toy("plugins", extra=extra, env={"MEDKIT_PLUGINS": "one,three"})
    assert done.code == 2
    assert "MEDKIT_PLUGINS names three, which is not installed" in done.err
    with pytest.raises(UsageError):
        discover(extra, "four")


def test_what_a_plugin_prints_on_import_goes_to_stderr(module: Module, capfd: pytest.CaptureFixture[str]) -> None:
    found = discover([module("loud", "print('loud')\n" + TASK.format(name="loud"))])
    assert set(found.tasks) == {"loud"}
    assert "loud" not in capfd.readouterr().out


def test_a_plugin_without_a_distribution(module: Module) -> None:
    module("bare", TASK.format(name="bare"))
    (plugin,) = discover([EntryPoint("bare", "bare", "medkit")]).plugins
    assert (plugin.distribution, plugin.version) == ("unknown", "?")


def test_the_plugins_installed_here_work() -> None:
    found = plugins.registry()
    assert found.broken == ()
    assert found.conflicts() == []


def test_plugins_as_json(toy: Run, module: Module) -> None:
    import json

    data = json.loads(toy("plugins", "--json", extra=[module("syntax", "def\n")]).out)
    assert [p["name"] for p in data["plugins"]] == ["syntax", "toy"]
    assert "SyntaxError" in data["plugins"][0]["error"]
    assert data["conflicts"] == []
