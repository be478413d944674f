"""Installing and packing bundles: what is refused, what is left when it fails, and that bytes are the same."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from strangers import change_json, write_sound, write_zip

from medkit.bundles import archive, store
from medkit.bundles.archive import RECORD
from medkit.bundles.bundle import Bundle, bundle_for_task, find_bundle, installed, missing_files, user_folder
from medkit.bundles.safety.trust import is_trusted
from medkit.bundles.store import bundle_digest, install, pack
from medkit.errors import BundleError, InputError, OutputError, UsageError
from medkit.plugins import Plugin, Registry
from medkit.specs import BundleSpec

NOBODY = Registry(())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole bundle with a few things that do not belong into one."""
    root = write_sound(tmp_path / "from" / "halves", weights=False)
    (root / "models" / "model.pt").write_bytes(b"weights")
    for name in ("training/checkpoint.pt", ".git/config", "scripts/__pycache__/a.pyc", "scripts/a.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


CONTENT = {
    "LICENSE", "configs/inference.json", "configs/metadata.json", "configs/train.json", "docs/README.md",
    "docs/data_license.txt", "models/model.pt", "scripts/a.py",
}  # fmt: skip


@pytest.mark.parametrize("way", ["folder", "zip", "zip without a folder"])
def test_install(root: Path, tmp_path: Path, way: str) -> None:
    source = root
    if way != "folder":
        source = write_zip(tmp_path / "halves.zip", root, top="" if "without" in way else None)
    done = install(source)
    assert (done.root, done.version, done.task, done.already) == (user_folder() / "halves", "0.1.0", "halves", False)
    assert tree(done.root) == CONTENT | {RECORD}
    assert len(done.left_out) == 3
    assert done.sha256 == bundle_digest(root) == bundle_digest(done.root)
    assert json.loads((done.root / RECORD).read_text())["sha256"] == done.sha256
    assert not stat.S_IMODE((done.root / "scripts" / "a.py").stat().st_mode) & 0o111
    assert not is_trusted(done.root)
    assert [p.name for p in user_folder().iterdir() if p.name.endswith((".part", ".old"))] == []
    assert install(source).already


def test_an_installed_bundle_is_found_by_name(root: Path) -> None:
    done = install(root, trust=True)
    (found,) = installed(NOBODY)
    assert found == Bundle(done.root, "halves", "halves", by_user=True)
    for text in ("halves", "user:halves", str(done.root)):
        assert find_bundle(text, NOBODY) == found
    assert bundle_for_task("halves", "halves", NOBODY, trust=False) == found
    assert bundle_for_task(None, "halves", NOBODY, trust=False) == found
    (done.root / "scripts" / "a.py").write_text("other")
    with pytest.raises(UsageError, match=r"scripts/a\.py was changed"):
        bundle_for_task("halves", "halves", NOBODY, trust=False)


def test_without_trust_it_is_there_and_does_not_run(root: Path) -> None:
    install(root)
    assert find_bundle("halves", NOBODY).by_user
    with pytest.raises(UsageError, match="--trust"):
        bundle_for_task("halves", "halves", NOBODY, trust=False)
    install(root, trust=True)
    bundle_for_task("halves", "halves", NOBODY, trust=False)


def test_names_and_plugins(root: Path, tmp_path: Path) -> None:
    """What a plugin brings keeps its name, and stays what a task runs unnamed."""
    brought = write_sound(tmp_path / "brought", weights=False)
    plugin = Plugin("p", "p", "medkit-p", "1", bundles=(BundleSpec("halves", "halves", brought),))
    registry = Registry((plugin,))
    with pytest.raises(UsageError, match="choose another with --name"):
        install(root, taken=["halves"])
    install(root, name="mine", task="halves", trust=True)
    assert bundle_for_task(None, "halves", registry, trust=False).distribution == "medkit-p"
    assert bundle_for_task("mine", "halves", registry, trust=False).by_user
    install(root)
    with pytest.raises(UsageError, match="medkit-p:halves or user:halves"):
        find_bundle("halves", registry)
    assert find_bundle("user:halves", registry).by_user
    for name in ("../x", ".hidden", "a/b", "", "a b"):
        with pytest.raises(UsageError, match="expected a name of letters"):
            store._valid_name(name, ())


def test_the_task_may_be_said(root: Path) -> None:
    change_json(root / "configs" / "metadata.json", medkit=None)
    assert install(root).task is None
    assert install(root, task="cut").task == "cut"
    assert find_bundle("halves", NOBODY).task == "cut"


def test_another_version_is_not_replaced_unasked(root: Path) -> None:
    first = install(root)
    change_json(root / "configs" / "metadata.json", version="0.2.0")
    with pytest.raises(OutputError, match=r"holds version 0\.1\.0; --overwrite replaces it by version 0\.2\.0"):
        install(root)
    assert bundle_digest(first.root) == first.sha256
    assert install(root, overwrite=True).version == "0.2.0"
    assert find_bundle("halves", NOBODY).version == "0.2.0"


def test_something_else_in_its_place(root: Path) -> None:
    (user_folder() / "halves").mkdir(parents=True)
    with pytest.raises(OutputError, match="something that was not installed"):
        install(root)


def test_a_bundle_cannot_bring_its_own_record(root: Path) -> None:
    (root / RECORD).write_text('{"task": "other", "sha256": "0"}')
    assert install(root).task == "halves"
    assert find_bundle("halves", NOBODY).task == "halves"


# ---- zips of strangers


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil.py", "leads out"),
        ("halves/../../evil.py", "leads out"),
        ("halves/a/../../../evil.py", "leads out"),
        ("/tmp/evil.py", "absolute"),
        ("C:/evil.py", "absolute"),
        ("C:evil.py", "absolute"),
        ("halves\\..\\..\\evil.py", "backslash"),
        ("halves//evil.py", "not a plain path"),
        ("halves/./evil.py", "not a plain path"),
        ("halves/ev\x1bil.py", "control character"),
        ("halves/evil.py\x00.txt", "control character"),
        ("halves/license", "the same file as halves/LICENSE where case does not count"),
        ("halves/docs/readme.MD", "where case does not count"),
        ("halves/LICENSE/x", "is a file and the folder of"),
        ("halves/.hidden/../../../x", "leads out"),
    ],
)
def test_unsafe_names(root: Path, tmp_path: Path, name: str, words: str) -> None:
    path = write_zip(tmp_path / "bad.zip", root)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = info.orig_filename = name
        archive.writestr(info, "evil")
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=words) as error:
        install(path)
    assert str(error.value).isprintable()
    assert tree(tmp_path) == before
    assert not user_folder().exists()


def test_composed_and_decomposed_names(root: Path, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.zip", root, **{"halves/\u00e9": "1", "halves/e\u0301": "2"})
    with pytest.raises(BundleError, match="case does not count"):
        install(path)


@pytest.mark.parametrize(
    ("mode", "words"),
    [(stat.S_IFLNK | 0o777, "is a link"), (stat.S_IFCHR | 0o666, "special file"), (stat.S_IFIFO | 0o666, "special")],
)
def test_links_and_devices_in_a_zip(root: Path, tmp_path: Path, mode: int, words: str) -> None:
    path = write_zip(tmp_path / "bad.zip", root)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("halves/models/more.pt")
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(BundleError, match=words):
        install(path)


def test_bombs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SMALL", 1 << 20)
    path = write_zip(tmp_path / "bad.zip", root, **{"halves/models/zeros": "0" * (4 << 20)})
    with pytest.raises(BundleError, match="more than 100 times as many"):
        install(path)
    monkeypatch.setattr(archive, "SMALL", 64 << 20)
    install(path)
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 20)
    with pytest.raises(BundleError, match="MB, expected at most 1"):
        install(path)
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    with pytest.raises(BundleError, match="files, expected at most 3"):
        install(path)


def test_a_zip_that_lies_about_sizes(root: Path, tmp_path: Path) -> None:
    """The directory says 10 bytes where there are many: no more than these 10 are read, and the checksum is wrong."""
    path = write_zip(tmp_path / "bad.zip", root, **{"halves/zzzz": "0" * 5000})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(b"halves/zzzz"))
    content[place + 24 : place + 28] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises((InputError, BundleError)):
        install(path)
    assert tree(user_folder()) == {".lock"}


def test_a_file_that_grows_while_it_is_copied(tmp_path: Path) -> None:
    entry = archive.Entry("a", "file", 2, lambda: io.BytesIO(b"abc"))
    with pytest.raises(BundleError, match="larger than the zip states"):
        archive.copy(entry, tmp_path / "b" / "a", tmp_path)


def test_a_damaged_zip(root: Path, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.zip", root)
    content = bytearray(path.read_bytes())
    place = content.index(b"halves/LICENSE") + len(b"halves/LICENSE") + 2
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="LICENSE cannot be read"):
        install(path)
    assert tree(user_folder()) == {".lock"}
    path.write_bytes(content[:100])
    with pytest.raises(InputError, match="expected a zip"):
        install(path)


def test_what_is_no_bundle(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "configs")
    with pytest.raises(BundleError, match=r"not a bundle: no configs/metadata\.json"):
        install(root)
    (tmp_path / "two.zip").touch()
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a/configs/metadata.json", "{}")
        archive.writestr("b/configs/metadata.json", "{}")
    with pytest.raises(BundleError, match="not a bundle"):
        install(tmp_path / "two.zip")


def test_links_in_a_folder(root: Path, tmp_path: Path) -> None:
    """One to a file of the bundle is a file; one that leads out, or to a folder, is refused."""
    (root / "models" / "same.pt").symlink_to("model.pt")
    assert (install(root).root / "models" / "same.pt").read_bytes() == b"weights"
    assert not (user_folder() / "halves" / "models" / "same.pt").is_symlink()
    (tmp_path / "secret").write_text("secret")
    (root / "docs" / "stolen.txt").symlink_to(tmp_path / "secret")
    for call in (lambda: install(root, overwrite=True), lambda: pack(root, "halves", tmp_path / "x.zip")):
        with pytest.raises(BundleError, match=r"stolen\.txt: is a link"):
            call()
    (root / "docs" / "stolen.txt").unlink()
    (root / "docs" / "more").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BundleError, match="docs/more: is a link"):
        install(root, overwrite=True)


def test_an_install_that_was_killed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames of a replacement: the next install finds the old version again, or puts the new one."""
    first = install(root)
    change_json(root / "configs" / "metadata.json", version="0.2.0")
    replace, calls = os.replace, []

    def die_at_second(*names: object) -> None:
        calls.append(names)
        if str(names[1]).endswith("halves"):
            raise KeyboardInterrupt
        replace(*names)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", die_at_second)
    with pytest.raises(KeyboardInterrupt):
        install(root, overwrite=True)
    monkeypatch.setattr(os, "replace", replace)
    assert not first.root.exists()
    with pytest.raises(OutputError, match=r"holds version 0\.1\.0"):
        install(root)
    assert bundle_digest(first.root) == first.sha256
    assert install(root, overwrite=True).version == "0.2.0"
    assert {p.name for p in user_folder().iterdir()} == {"halves", ".lock"}


def test_where_the_users_bundles_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_folder() == home / "data" / "medkit" / "bundles"
    monkeypatch.setenv("MEDKIT_BUNDLES", "/somewhere")
    assert user_folder() == Path("/somewhere")
    monkeypatch.delenv("MEDKIT_BUNDLES")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert user_folder() == Path("/home/somebody/.local/share/medkit/bundles")


# ---- pack


def test_pack_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    first = pack(root, "halves", tmp_path / "a.zip")
    copy = shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    for path in copy.rglob("*"):
        os.utime(path, (0, 0))
    (copy / "LICENSE").chmod(0o600)
    shutil.rmtree(copy / "training")
    assert pack(copy, "halves", tmp_path / "new" / "b.zip") == first
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(f"halves/{name}" for name in CONTENT)
        assert {(i.create_system, i.external_attr >> 16) for i in archive.infolist()} == {(3, 0o100644)}
    (root / "LICENSE").write_text("another")
    assert pack(root, "halves", tmp_path / "a.zip", overwrite=True) != first


def test_what_is_packed_can_be_installed(root: Path, tmp_path: Path) -> None:
    pack(root, "halves", tmp_path / "a.zip")
    assert install(tmp_path / "a.zip").sha256 == install(root).sha256


@pytest.mark.parametrize(
    "name", ["LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt"]
)
def test_pack_refuses_half_a_bundle(root: Path, tmp_path: Path, name: str) -> None:
    (root / name).unlink()
    assert missing_files(root) == [name]
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        pack(root, "halves", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
    other = {"configs/inference.json": "configs/inference.yaml", "models/model.pt": "large_files.yml"}.get(name)
    if other:
        (root / other).write_text("a: 1\n")
        assert missing_files(root) == []


def test_pack_replaces_nothing_unasked(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        pack(root, "halves", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_text() == "mine"
    with pytest.raises(OutputError, match="lies in the bundle itself"):
        pack(root, "halves", root / "a.zip")


def test_places_that_cannot_be_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: "):
        pack(root, "halves", tmp_path / "file" / "a.zip")
    monkeypatch.setenv("MEDKIT_TRUST", str(tmp_path / "file" / "trust.json"))
    with pytest.raises((OutputError, UsageError), match="file"):
        install(root, trust=True)
    monkeypatch.setenv("MEDKIT_BUNDLES", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="file: "):
        install(root)
