"""What `audit` finds in bundles of strangers, and that it runs none of it."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strangers import Evil, write_hostile, write_json, write_sound, write_zip

from medkit.bundles.safety.audit import KINDS, Finding, audit_bundle, is_foreign
from medkit.bundles.safety.pickles import weight_risks
from medkit.errors import InputError


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that code of a hostile bundle would make."""
    return tmp_path / "canary"


def kinds(found: list[Finding]) -> set[str]:
    return {f.kind for f in found}


def test_a_hostile_bundle_is_seen_through_and_not_run(tmp_path: Path, canary: Path) -> None:
    root = write_hostile(tmp_path / "bad", canary)
    found = audit_bundle(root)
    assert not canary.exists()
    seen = {(f.file, f.kind) for f in found}
    assert {
        ("configs/inference.json", "import"), ("configs/train.json", "call"), ("configs/metadata.json", "call"),
        ("configs/more.yaml", "unreadable"), ("configs/logging.conf", "logging"), ("scripts/__init__.py", "python"),
        ("sitecustomize.py", "python"), ("models/model.pt", "weights"),
    } <= seen  # fmt: skip
    assert kinds(found) <= set(KINDS)
    assert next(f for f in found if f.text.startswith("$__import__")).id == "network_def::spatial_dims"
    zipped = audit_bundle(write_zip(tmp_path / "bad.zip", root))
    assert sorted(map(str, zipped)) == sorted(map(str, found))
    assert not canary.exists()


def test_a_sound_bundle(tmp_path: Path) -> None:
    found = audit_bundle(write_sound(tmp_path / "good"))
    assert "weights" not in kinds(found)
    assert {f.text for f in found if f.kind == "target"} == {
        "tiny.Trouble", "medkit.training.Samples", "medkit.training.SampleNumbers", "medkit.training.Cosine",
        "medkit.training.ClipGradients", "medkit.training.Progress",
    }  # fmt: skip
    expressions = [f.text for f in found if f.kind in ("expression", "call", "import")]
    texts = json.dumps([json.loads(p.read_text()) for p in (tmp_path / "good" / "configs").glob("*.json")])
    assert len(expressions) == texts.count('"$')


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("$import os", "import"),
        ("$from os import system", "import"),
        ("$@a + 1", "expression"),
        ("$@network.to(@device)", "expression"),
        ("$[x for x in range(len(@a::b))]", "expression"),
        ("$torch.device('cpu')", "expression"),
        ("$monai.handlers.from_engine(['pred'])", "expression"),
        ("$os.system('ls')", "call"),
        ("$__import__('os').system('ls')", "call"),
        ("$torch.hub.load('a', 'b')", "call"),
        ("$torch.os.system('ls')", "call"),
        ("$torch.load('x')", "call"),
        ("$@a.__class__.__base__", "call"),
        ("$().__class__", "call"),
        ("$exec('x')", "call"),
        ("$getattr(@a, 'b')", "call"),
        ("$(lambda: eval)()('x')", "call"),
        ("$a b c", "call"),
        ("$" + "(" * 500, "call"),
    ],
)
def test_expressions(tmp_path: Path, expression: str, kind: str) -> None:
    root = write_sound(tmp_path / "b", weights=False)
    write_json(root / "configs" / "x.json", {"a": [{"b": expression}]})
    (found,) = [f for f in audit_bundle(root) if f.file == "configs/x.json"]
    assert found == Finding("configs/x.json", "a::0::b", kind, expression)


@pytest.mark.parametrize("target", [
    "UNet", "Compose", "monai.networks.nets.UNet", "torch.optim.Adam", "torch.nn.parallel.DistributedDataParallel",
    "torch.utils.data.WeightedRandomSampler", "monai.apps.vista3d.transforms.Relabeld", "torch.device",
])  # fmt: skip
def test_targets_of_torch_and_monai(target: str) -> None:
    assert not is_foreign(target)


@pytest.mark.parametrize("target", [
    "os.system", "builtins.eval", "scripts.Net", "subprocess.Popen", "torch.os.system", "torch.load", "torch.hub.load",
    "monai.utils.module.pydoc.locate", "torch.serialization.os.system", "torch._utils.x", "torch.jit.load", "eval",
    "torch.utils.cpp_extension.load_inline", "monai.data.utils.np.load", "torch.x()", "monai.bundle.run", "torchx.a",
    "monai.apps.download_url", "torch.multiprocessing.spawn", "torch.package.PackageImporter",
    "ignite.metrics.Accuracy",
])  # fmt: skip
def test_other_targets(target: str) -> None:
    assert is_foreign(target)


def test_macros_of_other_files(tmp_path: Path) -> None:
    root = write_sound(tmp_path / "b", weights=False)
    write_json(root / "configs" / "x.json", {"a": "%train::b", "c": "%../../x.json::d", "e": "%/etc/x.yaml"})
    found = [f for f in audit_bundle(root) if f.file == "configs/x.json"]
    assert [(f.id, f.kind) for f in found] == [("c", "macro"), ("e", "macro")]


def test_yaml_is_data(tmp_path: Path) -> None:
    root = write_sound(tmp_path / "b", weights=False)
    (root / "configs" / "x.yaml").write_text("a:\n- _target_: os.system\n  b: $1\n")
    (root / "configs" / "tags.yml").write_text("a: !!python/name:os.system\n")
    found = [(f.file, f.id, f.kind) for f in audit_bundle(root) if f.file.endswith(("yaml", "yml"))]
    assert found == [
        ("configs/tags.yml", "", "unreadable"),
        ("configs/x.yaml", "a::0::_target_", "target"),
        ("configs/x.yaml", "a::0::b", "expression"),
    ]


ENDLESS = {
    "deep.json": "[" * 100_000,
    "deep.yaml": "[" * 5_000,
    "laughs.yaml": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
    "circle.yaml": "a: &a [*a]\n",
    "latin.json": '{"a": "\xff"}',
    "half.json": '{"a": ',
}


@pytest.mark.parametrize("name", ENDLESS)
def test_configs_that_are_traps(tmp_path: Path, name: str) -> None:
    root = write_sound(tmp_path / "b", weights=False)
    (root / "configs" / name).write_bytes(ENDLESS[name].encode("latin-1"))
    (found,) = [f for f in audit_bundle(root) if f.file == f"configs/{name}"]
    assert found.kind == "unreadable"


def test_logging(tmp_path: Path) -> None:
    root = write_sound(tmp_path / "b", weights=False)
    calm = "[handler_a]\nclass=StreamHandler\nargs=(sys.stdout,)\n[handler_b]\nclass=FileHandler\nargs=('a.log',)\n"
    (root / "configs" / "logging.conf").write_text(calm)
    assert not [f for f in audit_bundle(root) if f.kind == "logging"]
    (root / "configs" / "logging.conf").write_text(calm + "class=os.system\nargs = ('touch /tmp/x',)\n")
    assert [f.id for f in audit_bundle(root) if f.kind == "logging"] == ["line 7", "line 8"]


def test_files_that_are_none(tmp_path: Path) -> None:
    root = write_sound(tmp_path / "b", weights=False)
    (root / "models" / "model.pt").symlink_to("/dev/zero")
    (root / "more").symlink_to("..", target_is_directory=True)
    os.mkfifo(root / "configs" / "pipe.json")
    found = [f.text for f in audit_bundle(root) if f.kind == "file"]
    assert found == ["configs/pipe.json: is a special file", "models/model.pt: is a link", "more: is a link"]


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"_target_": "os.system"}')
    assert {f.kind for f in audit_bundle(tmp_path)} == {"file", "target"}
    with pytest.raises(InputError, match="expected a zip"):
        audit_bundle(tmp_path / "a.json")


# ---- weights


def risks(content: bytes, name: str = "model.pt") -> list[str]:
    return list(weight_risks(io.BytesIO(content), name))


def saved(value: Any, **settings: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **settings)
    return out.getvalue()


STATE = {
    "a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16), "c": torch.nn.Parameter(torch.ones(1)),
    "d": torch.arange(3), "e": torch.Size([1]), "f": collections.OrderedDict(x=1.5), "g": torch.float16,
    "h": [None, True, (1, -5), "text", 10**30], "i": torch.zeros(2, dtype=torch.bool), "j": {1, 2},
}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"_use_new_zipfile_serialization": False}])
def test_plain_weights_are_no_risk(settings: dict[str, Any]) -> None:
    content = saved(STATE, **settings)
    assert risks(content) == []
    assert torch.load(io.BytesIO(content), weights_only=True).keys() == STATE.keys()


@pytest.mark.parametrize("settings", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_hostile_weights(canary: Path, settings: dict[str, Any]) -> None:
    content = saved({"a": Evil(canary)}, **settings)
    assert risks(content)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_bare_pickles(canary: Path, protocol: int) -> None:
    assert risks(pickle.dumps(Evil(canary), protocol))
    assert not canary.exists()


def test_text_pickles_and_the_like() -> None:
    assert "neither a zip nor a pickle" in risks(b"cos\nsystem\n(S'ls'\ntR.")[0]
    assert risks(b"\x80\x02cos\nsystem\n.") == ["pickle names os.system, which weights_only=True does not load"]
    assert risks(b"\x80\x02(icollections\nOrderedDict\n."), "an instruction that weights_only=True does not run"
    assert "cannot be followed" in risks(b"\x80\x02X")[0]
    assert "cannot be read" in risks(b"PK\x03\x04 nothing")[0]


def test_a_module_is_refused_as_torch_refuses_it() -> None:
    content = saved(torch.nn.Linear(1, 1))
    assert "torch.nn.modules.linear.Linear" in " ".join(risks(content))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(content), weights_only=True)


def test_a_zip_behind_a_pickle(canary: Path) -> None:
    """zipfile would find the calm zip at the end; PyTorch reads the pickle at the beginning."""
    assert risks(pickle.dumps(Evil(canary), 2) + saved({"a": torch.zeros(1)}))


def test_two_members_of_one_name() -> None:
    out = io.BytesIO(saved({"a": 1}))
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"\x80\x02.")
    assert "two files of one name" in " ".join(risks(out.getvalue()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_a_program() -> None:
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), out)
    assert risks(out.getvalue(), "model.ts") == ["TorchScript: a program, which torch.jit.load runs"]


def test_arrays() -> None:
    for save in (np.save, np.savez):
        for value, count in ((np.zeros(2), 0), (np.array([None]), 1)):
            out = io.BytesIO()
            save(out, value)
            assert len(risks(out.getvalue(), "a.npy" if save is np.save else "a.npz")) == count


def naming(name: str) -> bytes:
    """A pickle that names one thing."""
    module, _, attribute = name.rpartition(".")
    return f"\x80\x02c{module}\n{attribute}\n.".encode("latin-1")


def test_the_names_that_are_let_pass_are_torchs_own() -> None:
    """Every name that torch's weights_only lets pass is let pass, and no other."""
    from torch._weights_only_unpickler import _get_allowed_globals

    allowed = set(_get_allowed_globals())
    assert {"torch.FloatStorage", "torch.float16", "torch._utils._rebuild_tensor_v2"} <= allowed
    assert {n for n in allowed if risks(naming(n))} == set()
    for name in (
        "torch.float_power",
        "torch.load",
        "torch._utils.os",
        "torch.os.system",
        "builtins.eval",
        "torch.utils.x",
        "_codecs.decode",
    ):
        assert risks(naming(name)) == [f"pickle names {name}, which weights_only=True does not load"]
    assert risks(b"\x80\x02ctorch nn.parameter\nParameter\n."), "a module with a space is not torch.nn"
