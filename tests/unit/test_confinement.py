"""Untrusted file names stay inside their folder: on their own, as a source of the api and of a worker, and as a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vidflow.domain.errors import ModelError, SourceError, UserError
from vidflow.infra.confinement import OutsideFolder, is_written_inside, resolve_inside
from vidflow.infra.models import files, registry
from vidflow.infra.models.paths import is_path
from vidflow.roles.api.sources import validate_source
from vidflow.roles.worker.source_path import resolve_source
from vidflow.settings import ApiOptions

SPEC = 'kind = "onnx"\nfile = "net.onnx"\nlabels = ["thing"]\n[input]\nsize = [32, 64]\n[output]\ndecoder = "yolox"\n'
OUTSIDE = [
    "../secret.toml", "day/../../secret.toml", "../none.toml", "{0}/../secret.toml", "{1}/secret.toml", "{1}/none.toml", "/etc/passwd",
    "out.toml", "{0}/out.toml", "nowhere.toml", "up/secret.toml", "up/none.toml", "{0}/up/secret.toml", "{1}/folder2/a.toml", "/",
    "..", "day/up/up/secret.toml",
]  # fmt: skip
"""Names that lead out of the folder {0} in {1}, of files that exist and of files that do not."""
MISSING = ["none.toml", "day/none.toml", "{0}/none.toml", "loop.toml", "x" * 300 + ".toml", "a.toml/b.toml"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "day").mkdir(parents=True)
    for path in (tmp_path / "secret.toml", folder / "a.toml", folder / "day/b.toml"):
        path.write_text(SPEC)
        (path.parent / "net.onnx").write_bytes(b"weights")
    (tmp_path / "folder2").mkdir()
    (tmp_path / "folder2/a.toml").write_text(SPEC)
    (folder / "out.toml").symlink_to(tmp_path / "secret.toml")
    (folder / "nowhere.toml").symlink_to(tmp_path / "none.toml")
    (folder / "in.toml").symlink_to("day/b.toml")
    (folder / "up").symlink_to(tmp_path)
    (folder / "day/up").symlink_to("..")
    (folder / "loop.toml").symlink_to("loop.toml")
    return folder


def written(name: str, folder: Path) -> str:
    return name.replace("{0}", str(folder)).replace("{1}", str(folder.parent))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.toml", "a.toml"), ("{0}/a.toml", "a.toml"), ("./day//b.toml", "day/b.toml"), ("day/../a.toml", "a.toml"),
        ("in.toml", "day/b.toml"), ("day/up/a.toml", "a.toml"), ("{1}/folder/day/b.toml", "day/b.toml"), ("", "."),
    ],
)  # fmt: skip
def test_a_name_inside_the_folder_gives_its_real_path(folder: Path, name: str, expected: str) -> None:
    assert resolve_inside(folder, written(name, folder)) == folder / expected


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_folder_is_refused_whether_it_exists_or_not(folder: Path, name: str) -> None:
    with pytest.raises(OutsideFolder):
        resolve_inside(folder, written(name, folder))


@pytest.mark.parametrize("name", [*MISSING, "a\0.toml", "\ud800.toml"])
def test_a_name_inside_the_folder_that_cannot_be_resolved_is_missing(folder: Path, name: str) -> None:
    with pytest.raises(OSError, match=r".") as missing:
        resolve_inside(folder, written(name, folder))
    assert missing.value.strerror


def test_a_folder_that_is_a_link_may_be_named_by_either_path(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    for name in ("a.toml", f"{link}/a.toml", f"{folder}/a.toml"):
        assert resolve_inside(link, name) == folder / "a.toml"
        assert is_written_inside(link, name)
    with pytest.raises(OutsideFolder):
        resolve_inside(folder, f"{link}/a.toml")


def test_a_relative_folder_is_resolved_from_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "day")
    assert resolve_inside(Path(".."), "a.toml") == folder / "a.toml"
    assert resolve_inside(Path("/"), str(folder / "a.toml")) == folder / "a.toml"


def as_source_of_the_api(folder: Path, name: str) -> None:
    validate_source(name, ApiOptions(media_root=folder))


def as_source_of_a_worker(folder: Path, name: str) -> None:
    resolve_source(name, folder, any_file=False)


def as_model(folder: Path, name: str) -> None:
    registry.resolve(name, folder, any_onnx=True)


USES = pytest.mark.parametrize("use", [as_source_of_the_api, as_source_of_a_worker, as_model])


@USES
def test_sources_and_models_inside_their_folder_are_accepted(folder: Path, use: Callable[[Path, str], None]) -> None:
    for name in ("a.toml", str(folder / "a.toml"), "in.toml", "day/b.toml"):
        use(folder, name)


@USES
@pytest.mark.parametrize("name", OUTSIDE)
def test_sources_and_models_do_not_lead_out_of_their_folder(
    folder: Path, use: Callable[[Path, str], None], name: str
) -> None:
    if use is as_model and name.endswith("out.toml"):
        use(folder, written(name, folder))  # a model may be a link to a file outside, see test_model_links.py
        return
    if use is as_model and not is_path(name):
        name += "/"  # by its form, a path rather than a model's name
    with pytest.raises(UserError) as refused:
        use(folder, written(name, folder))
    # A model outside the folder has the same error as a missing one.
    expected = ("model_unknown", "models folder") if use is as_model else ("source_forbidden", "media root")
    assert refused.value.code == expected[0]
    assert expected[1] in refused.value.message


@USES
@pytest.mark.parametrize("name", MISSING)
def test_sources_and_models_that_do_not_exist_are_missing(
    folder: Path, use: Callable[[Path, str], None], name: str
) -> None:
    with pytest.raises((ModelError, SourceError)) as refused:
        use(folder, written(name, folder))
    assert refused.value.code == ("model_unknown" if use is as_model else "source_missing")


@pytest.mark.parametrize("replaced", ["folder/day/b.toml", "folder/day", "folder"])
def test_a_file_or_folder_replaced_by_a_link_after_the_check_is_not_opened(
    folder: Path, tmp_path: Path, replaced: str
) -> None:
    checked = files.require_inside(folder, "day/b.toml")
    secret = tmp_path / "elsewhere"
    (tmp_path / replaced).rename(secret)
    (tmp_path / replaced).symlink_to(secret)
    assert checked.read_text() == SPEC, "the link should lead to the file"
    with pytest.raises(ModelError, match=r"Cannot read|not a regular file"):
        files.read_file(checked, files.MAX_SPEC_BYTES)
