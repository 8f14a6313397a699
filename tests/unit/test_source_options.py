"""The options of sources reach the runners of `vidflow dev`."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vidflow.cli.app import app
from vidflow.commands.dev.stack import Stack
from vidflow.domain.source_access import SourceAccess, allow_local_networks
from vidflow.infra.process.stopping import Stop
from vidflow.settings import DevOptions, RunnerOptions


def parse_runner_options(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, variables: dict[str, str] | None = None
) -> SourceAccess:
    """Return the sources of a runner that this command line starts."""
    started: list[RunnerOptions] = []
    monkeypatch.setattr("vidflow.cli.app._run_role", lambda _run, options, _format: started.append(options))
    end = CliRunner().invoke(app, ["runner", *arguments], env=variables, catch_exceptions=False)
    assert end.exit_code == 0, end.output
    return started[0].sources


@pytest.fixture
def authorities(tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    path.write_text(ssl.DER_cert_to_PEM_cert(ssl.create_default_context().get_ca_certs(binary_form=True)[0]))
    return str(path)


def test_certificates_are_verified_unless_an_option_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, authorities: str
) -> None:
    assert parse_runner_options(monkeypatch) == SourceAccess()
    options = parse_runner_options(monkeypatch, "--source-ca-file", authorities, "--insecure-sources")
    assert options == SourceAccess(authorities, verify=False)


def test_networks_are_given_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = ("10.0.0.0/8", "192.168.1.20/32")
    arguments = ("--allow-source-network", "10.0.0.0/8", "--allow-source-network", "192.168.1.20")
    assert parse_runner_options(monkeypatch, *arguments).networks == networks
    variables = {"VIDFLOW_ALLOW_SOURCE_NETWORK": "10.0.0.0/8 192.168.1.20"}
    assert parse_runner_options(monkeypatch, variables=variables).networks == networks


def test_dev_passes_its_options_to_its_runners(monkeypatch: pytest.MonkeyPatch, authorities: str) -> None:
    other = SourceAccess(
        authorities, verify=False, networks=("203.0.113.0/24",), devices=("/dev/video0", "/dev/video2")
    )
    for access in (SourceAccess(), other):
        stack = Stack(DevOptions(sources=access), print, print, Stop())
        variables = stack._variables("runner")
        variables = {name: variables[name] for name in variables if "SOURCE" in name or "DEVICE" in name}
        assert parse_runner_options(monkeypatch, variables=variables) == allow_local_networks(access)


def test_devices_are_given_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = ("/dev/video0", "/dev/v4l/by-id/usb-camera")
    arguments = ("--allow-device", devices[0], "--allow-device", devices[1])
    assert parse_runner_options(monkeypatch, *arguments).devices == devices
    assert parse_runner_options(monkeypatch, variables={"VIDFLOW_ALLOW_DEVICE": " ".join(devices)}).devices == devices
