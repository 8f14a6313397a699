"""Models that are links: which names and places count, where a link may lead, and whose links are followed. No model is loaded."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vidflow.commands.run.request import build_request
from vidflow.domain.errors import ModelError
from vidflow.infra.models import registry
from vidflow.settings import RunOptions

WEIGHTS = b"weights of a net"
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
SPEC = """
kind = "onnx"
file = "net.onnx"
labels = "net.names"
[input]
size = [32, 64]
[output]
decoder = "yolox"
"""
EXPORTED = SPEC.replace('"onnx"', '"exported"').replace("[input]", f'sha256 = "{DIGEST}"\n[input]')
FILES = {"net.toml": SPEC.encode(), "net.onnx": WEIGHTS, "net.names": b"cat\ndog\n"}
OTHER_USER = 54321

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def write_hub(folder: Path) -> Path:
    """Write a model hub's cache, in which files without suffixes have links. Return the folder of the links."""
    snapshot = folder / "models--cat/snapshots/abc"
    snapshot.mkdir(parents=True)
    (folder / "models--cat/blobs").mkdir()
    for name, content in FILES.items():
        blob = folder / "models--cat/blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def write_config_map(folder: Path) -> Path:
    """Write a volume as Kubernetes mounts a ConfigMap: links through a link to the folder of the current version."""
    volume = folder / "volume"
    version = volume / "..2026_11_28_10_00_00.123456789"
    version.mkdir(parents=True)
    (volume / "..data").symlink_to(version.name)
    for name, content in FILES.items():
        (version / name).write_bytes(content)
        (volume / name).symlink_to(f"..data/{name}")
    return volume


def write_plain(folder: Path) -> Path:
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def refusal(model: str, models_dir: Path | None = None, *, any_onnx: bool = False) -> str:
    with pytest.raises(ModelError) as refused:
        registry.resolve(model, models_dir, any_onnx=any_onnx)
    return refused.value.message


@pytest.mark.parametrize("write", [write_hub, write_config_map])
def test_a_folder_of_links_is_a_models_folder(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    folder = write(tmp_path)
    plain = write_plain(tmp_path / "plain")
    expected = registry.resolve("net", plain)
    for name in ("net", "net.toml", str(folder / "net.toml")):
        bundle = registry.resolve(name, folder, keep_weights=True)
        assert (bundle.labels, bundle.sha256) == (("cat", "dog"), expected.sha256)
        assert bundle.require_weights() == WEIGHTS
    assert [listed.error for listed in registry.list_models(folder) if listed.name == "net"] == [None]


@pytest.mark.parametrize("write", [write_hub, write_config_map])
def test_a_model_that_is_a_link_may_be_named_by_path(
    tmp_path: Path, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path)
    monkeypatch.chdir(folder)
    request = build_request(RunOptions(video="http://camera.example/a.mp4", model="./net.toml"))
    assert request.model == str(folder / "net.toml"), "the link, not the file without a suffix"
    assert registry.resolve(request.model, any_onnx=True).labels == ("cat", "dog")


def test_a_new_version_of_a_config_map_is_a_new_model(tmp_path: Path) -> None:
    volume = write_config_map(tmp_path)
    before = registry.resolve("net", volume)
    (volume / "..next").mkdir()
    for name, content in FILES.items():
        (volume / "..next" / name).write_bytes(content.replace(b"dog", b"fox"))
    (volume / "..data_tmp").symlink_to("..next")
    (volume / "..data_tmp").rename(volume / "..data")
    after = registry.resolve("net", volume)
    assert (after.labels, after.sha256 == before.sha256) == (("cat", "fox"), False)


def test_the_files_of_a_linked_spec_are_beside_the_link_or_else_beside_its_target(tmp_path: Path) -> None:
    plain, models = write_plain(tmp_path / "plain"), tmp_path / "models"
    models.mkdir()
    (models / "mine.toml").symlink_to(plain / "net.toml")
    assert registry.resolve("mine", models).labels == ("cat", "dog")
    (models / "net.names").write_text("own\n")
    assert registry.resolve("mine", models).labels == ("own",)


def test_a_linked_folder_does_not_extend_the_models_folder(tmp_path: Path) -> None:
    plain, models = write_plain(tmp_path / "plain"), tmp_path / "models"
    models.mkdir()
    (models / "sub").symlink_to(plain)
    for name in ("sub/net.toml", "sub/none.toml", str(models / "sub/net.toml")):
        assert "The models folder has no file" in refusal(name, models)
    (models / "own.toml").write_text(SPEC.replace('"net.', '"sub/net.'))
    assert "leads out of" in refusal("own", models)


def test_what_a_link_leads_to_outside_the_models_folder_runs_no_code(tmp_path: Path) -> None:
    plain, models = write_plain(tmp_path / "plain"), write_plain(tmp_path / "models")
    (plain / "net.toml").write_text(EXPORTED)
    (models / "linked.toml").symlink_to(plain / "net.toml")
    for name in ("linked", "linked.toml"):
        assert "runs only from the models folder" in refusal(name, models)
    (models / "net.toml").write_text(EXPORTED)
    assert registry.resolve("net", models).from_models_dir
    (models / "net.onnx").unlink()
    (models / "net.onnx").symlink_to(plain / "net.onnx")
    assert "leads out of" in refusal("net", models)


def test_an_exported_program_in_a_config_map_is_accepted_by_its_name_only(tmp_path: Path) -> None:
    volume = write_config_map(tmp_path)
    (volume / "..data/net.toml").write_text(EXPORTED)
    assert registry.resolve("net", volume).from_models_dir
    assert "Name the spec's stem" in refusal("net.toml", volume)
    assert "runs only from the models folder" in refusal(str(volume / "net.toml"), any_onnx=True)


@pytest.mark.parametrize("name", ["net.toml", "net.onnx", "net.names"])
def test_a_link_to_a_file_that_does_not_exist_or_to_itself_is_missing(tmp_path: Path, name: str) -> None:
    plain = write_plain(tmp_path / "plain")
    for target in (tmp_path / "none", name):
        (plain / name).unlink()
        (plain / name).symlink_to(target)
        assert "Cannot read" in refusal("net", plain)
        assert "Cannot read" in refusal(str(plain / "net.toml"), any_onnx=True)


@pytest.mark.parametrize("target", ["/dev/zero", "/proc/self/environ", "/proc/self/mem", "."])
@pytest.mark.parametrize("name", ["net.toml", "net.onnx", "net.names"])
def test_a_link_to_what_is_no_file_is_refused(tmp_path: Path, name: str, target: str) -> None:
    plain = write_plain(tmp_path / "plain")
    (plain / name).unlink()
    (plain / name).symlink_to(target)
    for message in (refusal("net", plain), refusal(str(plain / "net.toml"), any_onnx=True)):
        assert re.search("system folder|not a regular file|is empty", message), message


@as_root
@pytest.mark.parametrize("name", ["net.toml", "net.onnx", "net.names"])
def test_links_of_another_user_do_not_lead_to_files_of_this_one(tmp_path: Path, name: str) -> None:
    """The other user could read the labels of a model in the error for an unknown label."""
    plain, secrets = write_plain(tmp_path / "plain"), tmp_path / "secrets"
    secrets.mkdir()
    (plain / name).rename(secrets / "secret")
    (plain / name).symlink_to("hop")
    (plain / "hop").symlink_to(secrets / "secret")
    for link in ("hop", name):
        assert registry.resolve(str(plain / "net.toml"), any_onnx=True).labels == ("cat", "dog")
        assert registry.resolve("net", plain).labels == ("cat", "dog")
        os.chown(plain / link, OTHER_USER, OTHER_USER, follow_symlinks=False)
        for message in (refusal("net", plain), refusal(str(plain / "net.toml"), any_onnx=True)):
            assert "by a link" in message
        os.chown(plain / link, 0, 0, follow_symlinks=False)
    os.chown(plain / name, OTHER_USER, OTHER_USER, follow_symlinks=False)
    os.chown(plain, OTHER_USER, OTHER_USER)
    assert registry.resolve("net", plain).labels == ("cat", "dog"), "the operator's own links, in the operator's folder"
    assert "by a link" in refusal(str(plain / "net.toml"), any_onnx=True)
    os.chown(secrets / "secret", OTHER_USER, OTHER_USER)
    assert registry.resolve(str(plain / "net.toml"), any_onnx=True).labels == ("cat", "dog"), "to a file of their own"


@as_root
def test_links_of_another_user_within_a_folder_are_followed(tmp_path: Path) -> None:
    plain = write_plain(tmp_path / "plain")
    (plain / "link.toml").symlink_to("net.toml")
    os.chown(plain / "link.toml", OTHER_USER, OTHER_USER, follow_symlinks=False)
    assert registry.resolve("link", plain).labels == ("cat", "dog")
    assert registry.resolve(str(plain / "link.toml"), any_onnx=True).labels == ("cat", "dog")
