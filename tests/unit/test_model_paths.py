"""Which files a request may name as a model, and how hostile paths are refused. No model is loaded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from vidflow.commands.run.source import local_path
from vidflow.domain.errors import MissingExtra, ModelError, SetupError
from vidflow.infra.models import registry
from vidflow.roles.api.models import require_loopback
from vidflow.settings import ApiOptions

WEIGHTS = b"weights of a net"
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


def spec(kind: str = "onnx", file: str = "net.onnx", extra: str = "") -> str:
    labels, tensor = 'labels = ["thing"]', '[input]\nsize = [32, 64]\n[output]\ndecoder = "yolox"\n'
    text = {
        "onnx": f'file = "{file}"\n{labels}\n{extra}\n{tensor}',
        "exported": f'file = "{file}"\nsha256 = "{DIGEST}"\n{labels}\n{extra}\n{tensor}',
        "torchvision": f'file = "{file}"\n{labels}\narchitecture = "ssdlite320_mobilenet_v3_large"\n{extra}\n',
    }
    return f'kind = "{kind}"\n' + text.get(kind, extra)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The operator's models folder with an ONNX model `net` and an exported program `program`."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "net.onnx").write_bytes(WEIGHTS)
    (folder / "net.toml").write_text(spec())
    (folder / "program.pt2").write_bytes(WEIGHTS)
    (folder / "program.toml").write_text(spec("exported", "program.pt2"))
    return folder


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """A folder that anyone may write to, with files of an attacker."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("net.onnx", "evil.pt2", "evil.pth", "evil.onnx"):
        (folder / name).write_bytes(WEIGHTS)
    (folder / "net.toml").write_text(spec())
    (folder / "evil.toml").write_text(spec("exported", "evil.pt2"))
    return folder


def refusal(model: str, models_dir: Path | None = None, *, any_onnx: bool = False) -> str:
    with pytest.raises(ModelError) as refused:
        registry.resolve(model, models_dir, any_onnx=any_onnx)
    assert refused.value.code.startswith("model_")
    return refused.value.message


def test_an_onnx_model_may_be_named_by_path_only_with_any_onnx(foreign_folder: Path) -> None:
    ref = registry.resolve(str(foreign_folder / "net.toml"), any_onnx=True)
    assert (ref.kind, ref.from_models_dir) == ("onnx", False)
    assert "--models-dir" in refusal(str(foreign_folder / "net.toml"))


def test_with_a_models_folder_no_file_outside_it_may_be_named(models: Path, foreign_folder: Path) -> None:
    for name in ("net.toml", "evil.toml", "net.onnx", "none.toml"):
        assert "The models folder has no file" in refusal(str(foreign_folder / name), models, any_onnx=True)


@pytest.mark.parametrize(
    "text",
    [
        spec("exported", "evil.pt2"), spec("exported", "evil.onnx"), spec("torchvision", "evil.pth"), 'kind = "motion"\n',
        'kind = "torchvision"\narchitecture = "ssd300_vgg16"\nweights = "COCO_V1"\n', 'kind = "other"\noptions = {a = 1}\n',
        'kind = "Exported"\n', 'kind = "EXPORTED"\n', 'kind = "ONNX"\n',
    ],
)  # fmt: skip
def test_only_onnx_models_may_be_named_outside_the_models_folder(foreign_folder: Path, text: str) -> None:
    (foreign_folder / "evil.toml").write_text(text)
    assert "runs only from the models folder" in refusal(str(foreign_folder / "evil.toml"), any_onnx=True)


def test_the_files_of_a_refused_kind_are_not_opened(foreign_folder: Path) -> None:
    (foreign_folder / "evil.toml").write_text(spec("exported", "none.pt2"))
    assert "runs only from the models folder" in refusal(str(foreign_folder / "evil.toml"), any_onnx=True)


def test_an_exported_program_in_the_models_folder_is_accepted(models: Path) -> None:
    ref = registry.resolve("program", models)
    assert (ref.kind, ref.from_models_dir) == ("exported", True)


def test_an_exported_program_is_not_named_by_a_path(models: Path) -> None:
    for name in ("program.toml", str(models / "program.toml")):
        assert "Name the spec's stem: program." in refusal(name, models)


def test_an_exported_program_from_elsewhere_is_not_loaded(models: Path) -> None:
    ref = msgspec.structs.replace(registry.resolve("program", models), from_models_dir=False)
    with pytest.raises((ModelError, MissingExtra), match=r"runs only from the models folder|torch"):
        registry.load(ref)


@pytest.mark.parametrize(
    "name", ["link.toml", "sub/link.toml", "sub/../../elsewhere/evil.toml", "../elsewhere/evil.toml"]
)
def test_links_and_dots_do_not_lead_out_of_the_models_folder(models: Path, foreign_folder: Path, name: str) -> None:
    (models / "sub").mkdir()
    for place in (models, models / "sub"):
        (place / "link.toml").symlink_to(foreign_folder / "evil.toml")
    message = refusal(name, models)
    if name.endswith("link.toml"):
        assert "runs only from the models folder" in message
        assert "runs only from the models folder" in refusal("link", models), "also by its stem"
    else:
        assert "The models folder has no file" in message


def test_a_link_from_outside_into_the_models_folder_is_refused(models: Path, foreign_folder: Path) -> None:
    (foreign_folder / "in.toml").symlink_to(models / "program.toml")
    (foreign_folder / "folder").symlink_to(models)
    for path in ("in.toml", "folder/program.toml"):
        assert "The models folder has no file" in refusal(str(foreign_folder / path), models)
        assert "runs only from the models folder" in refusal(str(foreign_folder / path), any_onnx=True)


def test_a_linked_folder_that_leads_out_of_the_models_folder_is_refused(models: Path, foreign_folder: Path) -> None:
    (models / "sub").symlink_to(foreign_folder)
    assert "The models folder has no file" in refusal("sub/evil.toml", models)
    assert "The models folder has no file" in refusal(str(models / "sub/evil.toml"), models)


@pytest.mark.parametrize("file", ["../elsewhere/evil.pt2", "link.pt2", "sub/evil.pt2", "/etc/hostname"])
def test_a_spec_in_the_models_folder_cannot_name_a_file_outside_it(
    models: Path, foreign_folder: Path, file: str
) -> None:
    (models / "link.pt2").symlink_to(foreign_folder / "evil.pt2")
    (models / "sub").symlink_to(foreign_folder)
    (models / "program.toml").write_text(spec("exported", file))
    with pytest.raises(ModelError):
        registry.resolve("program", models)


@pytest.mark.parametrize("extra", ['labels = "../secret.names"', 'labels = "up/secret.names"'])
def test_a_spec_named_by_path_cannot_read_labels_outside_its_folder(foreign_folder: Path, extra: str) -> None:
    (foreign_folder.parent / "secret.names").write_text("secret")
    (foreign_folder / "up").symlink_to(foreign_folder.parent)
    (foreign_folder / "net.toml").write_text(spec().replace('labels = ["thing"]', extra))
    assert "secret\n" not in refusal(str(foreign_folder / "net.toml"), any_onnx=True)


def test_the_models_folder_may_be_a_link_or_a_relative_path(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(models)
    monkeypatch.chdir(tmp_path / "elsewhere" if (tmp_path / "elsewhere").exists() else models)
    assert registry.resolve("net.toml", Path("../models")).from_models_dir
    assert registry.resolve(str(models / "net.toml"), tmp_path / "link").from_models_dir
    assert registry.resolve(str(tmp_path / "link/net.toml"), tmp_path / "link").from_models_dir
    assert registry.resolve("program", tmp_path / "link").from_models_dir


@pytest.mark.parametrize("suffix", [".toml", ".onnx"])
@pytest.mark.parametrize("make", ["directory", "pipe", "sparse", "empty", "device"])
def test_a_file_that_is_not_regular_or_of_an_impossible_size_is_refused_at_once(
    foreign_folder: Path, suffix: str, make: str
) -> None:
    path = foreign_folder / f"odd{suffix}"
    if make == "directory":
        path.mkdir()
    elif make == "pipe":
        os.mkfifo(path)
    elif make == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 10 * 1024**3 if make == "sparse" else 0)
    refusal(str(path), any_onnx=True)
    (foreign_folder / "net.toml").write_text(spec(file=f"odd{suffix}"))
    refusal(str(foreign_folder / "net.toml"), any_onnx=True)


def test_an_onnx_file_with_countless_tiny_fields_is_refused_at_once(foreign_folder: Path) -> None:
    path = foreign_folder / "odd.onnx"
    path.write_bytes(b"\x08\x07" * 1_000_000)
    assert "not an ONNX model" in refusal(str(path), any_onnx=True)
    os.truncate(path, 2 * 1024**3 - 1)
    path.write_bytes(b"")
    os.truncate(path, 2 * 1024**3 - 1)  # zeros as far as one may look
    assert "not an ONNX model" in refusal(str(path), any_onnx=True)


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/root{0}/evil.toml", "/proc/self/cwd/evil.toml", "/proc/self/fd/3", "/proc/self/environ", "/dev/stdin",
        "/sys/kernel/net.onnx", "{0}/../../../../../../../proc/self/root{0}/net.toml", "~/net.toml", "~root/net.onnx", "net.toml",
        "./net.toml", "{0}/net.toml\0", "{0}/net\n.toml", "{0}/\x1b[2J.toml", "{0}/\u2028.toml", "{0}/net.TOML", "{0}/NET.toml",
        "{0}/evil.PT2", "{0}/evil.pt2", "{0}/net.json", "{0}", "/", "", "//", "file://{0}/net.toml", "{0}/" + "x" * 300,
        "{0}/" + "x/" * 3000 + "net.toml",
    ],
)  # fmt: skip
def test_an_odd_path_is_refused(foreign_folder: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(foreign_folder)
    monkeypatch.setenv("HOME", str(foreign_folder))
    message = refusal(path.replace("{0}", str(foreign_folder)), any_onnx=True)
    assert message.isprintable()
    refusal(path.replace("{0}", str(foreign_folder)), foreign_folder / "none")


def test_a_link_to_a_model_needs_the_file_name_of_a_model(foreign_folder: Path) -> None:
    (foreign_folder / "link.pth").symlink_to(foreign_folder / "net.toml")
    (foreign_folder / "link").symlink_to(foreign_folder / "net.toml")
    for name in ("link.pth", "link"):
        assert "neither an ONNX file" in refusal(str(foreign_folder / name), any_onnx=True)


def test_a_home_folder_that_does_not_exist_is_not_expanded() -> None:
    assert local_path("~nobody-has-this-name/clip.mp4") == Path("~nobody-has-this-name/clip.mp4")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])  # noqa: S104 - nothing listens
def test_models_by_path_are_refused_unless_the_api_listens_on_loopback(host: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--models-dir"):
        require_loopback(ApiOptions(host=host, any_onnx=True))
    require_loopback(ApiOptions(host=host))
    require_loopback(ApiOptions(host=host, any_onnx=True, models_dir=tmp_path))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_models_by_path_are_allowed_on_loopback(host: str) -> None:
    require_loopback(ApiOptions(host=host, any_onnx=True))
