"""The lock on a data folder, and the ports that are remembered in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vidflow.domain.errors import SetupError
from vidflow.infra.embedded.child_process import choose_ports, find_free_ports
from vidflow.infra.embedded.folder_lock import FolderLock


def test_a_second_owner_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(SetupError, match=rf"Another vidflow \(process {os.getpid()}\) uses {tmp_path}") as refused:
        FolderLock(tmp_path)
    assert "\n" not in refused.value.message
    lock.release()


def test_a_released_folder_can_be_locked_again(tmp_path: Path) -> None:
    FolderLock(tmp_path).release()
    FolderLock(tmp_path).release()


def test_a_second_release_does_not_close_another_file(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.release()
    with (tmp_path / "other").open("w") as other:
        lock.release()
        other.write("still open")
    assert (tmp_path / "other").read_text() == "still open"


def test_a_child_that_inherited_the_lock_holds_it_after_its_owner_released_it(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    command = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[lock.fd]) as child:
        lock.release()
        with pytest.raises(SetupError, match="Another vidflow"):
            FolderLock(tmp_path)
        child.communicate()
    FolderLock(tmp_path).release()


def test_a_server_gets_its_previous_ports_again(tmp_path: Path) -> None:
    first = choose_ports(tmp_path / "ports", 2)
    assert choose_ports(tmp_path / "ports", 2) == first


def test_explicit_ports_take_precedence_over_remembered_ones(tmp_path: Path) -> None:
    choose_ports(tmp_path / "ports", 1)
    [port] = find_free_ports(1)
    assert choose_ports(tmp_path / "ports", 1, [port]) == [port]
    assert choose_ports(tmp_path / "ports", 1) == [port]
