"""Installation: locks have hashes and no hosts, no command installs another project, and old Pythons are refused."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "install.py"
TEXTS = [
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / name for name in ("README.md", "Dockerfile", "compose.yaml", "install.py", ".ci/run")),
]
OLD = ("python2", "python3.6", "python3.8", "python3.9", "python3.10")


def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def locks() -> dict[str, str]:
    return {path.stem: path.read_text() for path in (ROOT / "locks").glob("*.txt")}


def locked(text: str) -> list[str]:
    return re.findall(r"^([\w.-]+)==", text, re.MULTILINE)


def test_each_lock_belongs_to_an_extra_and_agrees_with_the_dev_lock() -> None:
    known = set(re.findall(r"^(\S+==\S+)", locks()["dev"], re.MULTILINE))
    for extra, text in locks().items():
        assert extra in project()["optional-dependencies"]
        assert set(re.findall(r"^(\S+==\S+)", text, re.MULTILINE)) <= known


@pytest.mark.parametrize("extra", sorted(locks()))
def test_a_lock_has_a_hash_for_each_package_and_no_host(extra: str) -> None:
    text = locks()[extra]
    assert "://" not in text
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert blocks
    assert [block.split("==")[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.parametrize("extra", sorted(locks()))
def test_a_lock_contains_the_requirements_of_its_extra_and_of_the_package(extra: str) -> None:
    metadata = project()
    name, extras = metadata["name"], metadata["optional-dependencies"]
    required = {package_name(requirement) for requirement in metadata["dependencies"]}
    pending_extras = [extra]
    while pending_extras:
        for requirement in extras[pending_extras.pop()]:
            package, _, included_extras = requirement.partition("[")
            if package == name:
                pending_extras += included_extras.rstrip("]").split(",")
            else:
                required.add(package_name(requirement))
    assert required <= set(locked(locks()[extra]))


def package_name(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0]


def test_no_locked_package_that_is_installed_has_a_license_of_the_agpl() -> None:
    checked = []
    for package in locked(locks()["dev"]):
        try:
            metadata = importlib.metadata.metadata(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another extra or another system
        stated = metadata.get_all("License-Expression") or []
        stated += [text[:200] for text in metadata.get_all("License") or []]  # some packages have whole texts there
        stated += [entry for entry in metadata.get_all("Classifier") or [] if entry.startswith("License")]
        checked.append(package)
        assert not re.search(r"AGPL|Affero", " ".join(stated)), package
    assert len(checked) > 40


def test_no_documented_command_installs_another_project() -> None:
    """`vidflow` on the public index is another project, and anyone may publish a name that is not taken yet."""
    assert project()["name"] != "vidflow"
    installs = re.compile(r"(?:pip|uv|pipx) (?:\S+ )*?install\b([^\n`;&]*)")
    for path in TEXTS:
        for arguments in installs.findall(path.read_text()):
            assert not re.search(r"(?<![\w/.])vidflow(?:-engine)?(?!\w|/|\.|'s)", arguments), (path, arguments)


def test_the_install_hint_uses_the_source_folder() -> None:
    from vidflow.domain.errors import format_install_hint  # noqa: PLC0415

    assert "pip install '.[runner]'" in format_install_hint("runner")


def older_pythons() -> list[str]:
    """Return the Pythons of this machine that are too old."""
    versions = sorted((Path.home() / ".pyenv" / "versions").glob("*/bin/python"))
    candidates = [shutil.which(name) for name in OLD] + [str(path) for path in versions]
    return [path for path in candidates if path and is_old(path)]


def is_old(python: str) -> bool:
    code = "import sys; sys.exit(0 if sys.version_info < (3, 11) else 1)"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def run_refused(*command: str, folder: Path) -> str:
    """Run install.py with a Python that it refuses before it creates anything, and return its error."""
    end = subprocess.run(
        [*command, "demo", str(folder / "venv")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (end.returncode, end.stdout) == (3, "")
    assert list(folder.iterdir()) == []
    assert end.stderr.count("\n") == 1
    return end.stderr


def test_an_old_python_is_refused_in_one_line_before_anything_is_installed(tmp_path: Path) -> None:
    code = f"import runpy, sys; sys.version_info = (3, 10, 13); runpy.run_path({str(INSTALL)!r}, run_name='__main__')"
    assert (
        run_refused(sys.executable, "-c", code, folder=tmp_path)
        == "install.py: vidflow needs Python 3.11 or newer, this is Python 3.10\n"
    )
    for python in older_pythons():
        assert "vidflow needs Python 3.11 or newer, this is Python " in run_refused(
            python, str(INSTALL), folder=tmp_path
        )


def test_an_environment_of_another_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").write_text("home = /nowhere\nversion = 3.10.13\n")
    command = [sys.executable, str(INSTALL), "demo", str(tmp_path)]
    end = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (end.returncode, end.stderr) == (
        3,
        f"install.py: {tmp_path} belongs to Python 3.10.13: remove it, or give another folder\n",
    )


def test_an_unknown_extra_is_refused_with_the_known_ones() -> None:
    end = subprocess.run([sys.executable, str(INSTALL), "all"], capture_output=True, text=True, timeout=60, check=False)
    assert end.returncode == 3
    assert all(extra in end.stderr for extra in locks())
