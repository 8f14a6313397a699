"""compose.yaml and Dockerfile, as far as they can be checked without a container engine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import typer
import yaml

from vidflow.cli.app import app

ROOT = Path(__file__).parents[2]
ROLES = {"api", "inbox", "relay", "orchestrator", "runner"}


def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"])


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def variables(command: Any) -> set[str]:
    names: set[str] = set()
    for parameter in command.params:
        envvar = parameter.envvar
        names.update([envvar] if isinstance(envvar, str) else envvar or [])
    return names


def test_every_role_is_a_separate_service() -> None:
    assert {service["command"][0] for service in services().values() if "command" in service} == ROLES


def test_services_use_only_options_that_their_role_has() -> None:
    for service in services().values():
        if "command" not in service:
            continue
        role, *options = service["command"]
        known = {word for parameter in commands()[role].params for word in (*parameter.opts, *parameter.secondary_opts)}
        assert set(options) <= known


def test_services_set_only_environment_variables_that_a_command_reads() -> None:
    names = {
        name
        for service in services().values()
        for name in service.get("environment", {})
        if name.startswith("VIDFLOW_")
    }
    known = set().union(*(variables(command) for command in commands().values()))
    assert names
    assert names <= known


def test_only_the_api_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}


def roles() -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services().items() if name in ROLES}


def test_every_role_and_the_setup_run_unprivileged_on_a_read_only_file_system() -> None:
    vidflow_services = [service for service in services().values() if service.get("image") == "vidflow"]
    assert len(vidflow_services) == len(ROLES) + 1
    for service in vidflow_services:
        assert service["read_only"] is True
        assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_media_and_models_are_mounted_read_only_at_the_configured_paths() -> None:
    for name in ("api", "runner"):
        service = roles()[name]
        mounts = dict(volume.removesuffix(":ro").split(":") for volume in service["volumes"] if volume.endswith(":ro"))
        environment = service["environment"]
        assert mounts == {
            "./media": environment["VIDFLOW_MEDIA_ROOT"],
            "./models": environment["VIDFLOW_MODELS_DIR"],
        }


def test_every_role_uses_the_health_check_of_the_image() -> None:
    file = dockerfile()
    assert "HEALTHCHECK" in file
    assert re.search(r'CMD \["python", "-m", "vidflow.healthcheck"\]', file)
    assert re.search(r"^ENV .*VIDFLOW_HEALTH_FILE=/tmp/", file, re.MULTILINE)
    assert all("healthcheck" not in service for service in roles().values())


def dockerfile() -> str:
    """Return the instructions, one per line."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def test_the_image_installs_only_locked_packages() -> None:
    installs = re.findall(r"pip (?:install|wheel) [^&\n]*", dockerfile())
    assert len(installs) == 4
    for command in installs:
        assert "--require-hashes -r" in command or "--no-deps" in command
        assert "--no-build-isolation" in command or not command.rstrip().endswith(" .")
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = (ROOT / "locks" / "build.lock").read_text()
    assert all(f"{re.split('[<>=]', requirement)[0]}==" in locked for requirement in requires)


def test_the_build_context_contains_exactly_the_files_that_are_copied() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = [arguments.split()[:-1] for arguments in re.findall(r"^COPY (?!--from)(.*)$", dockerfile(), re.MULTILINE)]
    names = {name.removeprefix("./") for sources in copied for name in sources}
    assert {re.sub(r"\$\{EXTRA\}", "*", name) for name in names} == allowed
    assert all(list(ROOT.glob(name)) for name in allowed)


def test_the_default_extra_of_the_image_has_a_lock_and_its_user_is_not_root() -> None:
    [extra] = re.findall(r"^ARG EXTRA=(\w+)$", dockerfile(), re.MULTILINE)
    assert (ROOT / "locks" / f"{extra}.txt").is_file()
    assert re.findall(r"^USER (\d+)$", dockerfile(), re.MULTILINE) == ["10001"]


def test_the_api_allows_its_service_name_as_host() -> None:
    environment = services()["api"]["environment"]
    assert "api" in environment["VIDFLOW_ALLOWED_HOSTS"].split(",")
