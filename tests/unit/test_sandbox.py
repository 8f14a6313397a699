"""What a confined process may do, and the structures that say so to the kernel: on systems without Landlock and seccomp too."""

from __future__ import annotations

import errno
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vidflow.domain.device import CPU
from vidflow.domain.errors import SetupError
from vidflow.domain.messages import Deploy
from vidflow.domain.sandbox import (
    Access,
    Grant,
    Installation,
    choose_program_folders,
    inherited_variables,
    is_looked_up_locally,
    plan_permissions,
)
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.models import registry
from vidflow.infra.process import landlock, sandbox, seccomp
from vidflow.infra.process.installation import find_installation
from vidflow.roles.worker.link import Task
from vidflow.roles.worker.permissions import prepare_permissions

INSTALLATION = Installation(
    programs=("/opt/python",),
    settings=("/etc/certificates",),
    cache="/home/u/.cache",
    weights="/home/u/.cache/torch/hub",
    gpus=("/dev/nvidia0",),
    gpu_folders=("/dev/shm",),
)
SPEC = 'kind = "onnx"\nfile = "net.onnx"\nlabels = "net.names"\n[input]\nsize = [32, 64]\n[output]\ndecoder = "yolox"\n'


def test_secrets_are_not_inherited_and_settings_of_libraries_are() -> None:
    kept = {
        "PATH": "/usr/bin", "HOME": "/home/u", "LC_ALL": "C.UTF-8", "TZ": "UTC", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0",
        "LD_LIBRARY_PATH": "/opt/lib", "SSL_CERT_FILE": "/ca.pem", "https_proxy": "http://proxy", "PYTHONPATH": "/src", "TORCH_HOME": "/w",
    }  # fmt: skip
    dropped = {
        "VIDFLOW_DATABASE_URL": "x", "VIDFLOW_KAFKA_SASL_PASSWORD": "x", "AWS_SECRET_ACCESS_KEY": "x", "PGPASSWORD": "x",
        "GOOGLE_APPLICATION_CREDENTIALS": "x", "AZURE_CLIENT_SECRET": "x", "KAFKA_PASSWORD": "x", "HF_TOKEN": "x", "GITHUB_TOKEN": "x",
        "SSH_AUTH_SOCK": "x", "DATABASE_URL": "x", "KUBECONFIG": "x", "path": "x",
    }  # fmt: skip
    assert inherited_variables(kept | dropped) == kept


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        (["/opt/lib/python", "/usr/lib/python3"], ("/opt/lib/python", "/usr/lib/python3")),
        (["/work", "", "relative"], ()),  # the working folder
        (["/named"], ("/named",)),
        (["/", "/home", "/home/u", "/home/u/"], ()),
        (["/home/u/.local/lib", "/home/us"], ("/home/u/.local/lib", "/home/us")),
    ],
)
def test_a_folder_of_programs_is_not_the_working_folder_and_does_not_contain_the_home_folder(
    entries: list[str], kept: tuple[str, ...]
) -> None:
    assert choose_program_folders(entries, "/work", "/home/u", ["/named"]) == kept


def test_a_working_folder_that_the_operator_has_named_is_one_of_programs() -> None:
    assert choose_program_folders(["/named"], "/named", "/home/u", ["/named"]) == ("/named",)


def test_nothing_is_written_without_a_reason() -> None:
    plain = plan_permissions(INSTALLATION, files=["/video"], models_dir="/models", network=True)
    writable = {grant for grant in plain.grants if grant.access not in {Access.READ, Access.LIST}}
    assert writable == {Grant("/dev/null", Access.DEVICE)}
    assert Grant("/models", Access.LIST) in plain.grants
    assert (plain.unix_sockets, plain.network) == (False, True)


def test_each_need_grants_what_it_needs() -> None:
    def added(**needs: bool) -> set[Grant]:
        plain = plan_permissions(INSTALLATION, files=[], models_dir="/models", network=False)
        return {
            *plan_permissions(INSTALLATION, files=[], models_dir="/models", network=False, **needs).grants,
        } - {*plain.grants}

    assert added(camera=True) == {Grant("/dev", Access.DEVICE)}
    assert added(weights=True) == {Grant("/home/u/.cache/torch/hub", Access.WRITE)}
    assert added(plugin=True) == {Grant("/models"), Grant("/home/u/.cache")}
    assert added(gpu=True) == {Grant("/dev/nvidia0", Access.DEVICE), Grant("/dev/shm", Access.WRITE)}


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("camera.local", True),
        ("Camera.LOCAL.", True),
        ("kafka.default.svc.cluster.local", False),
        ("local", False),
        ("camera.example", False),
    ],
)
def test_a_name_of_mdns_is_looked_up_through_a_service_of_this_machine(host: str, is_local: bool) -> None:
    assert is_looked_up_locally(host) is is_local


# The numbers are those of the kernel's landlock.h. A version that is newer than this code has at least what the last known one has.
@pytest.mark.parametrize(
    ("version", "fields"),
    [
        (1, (0x1FFF,)),
        (2, (0x3FFF,)),
        (3, (0x7FFF,)),
        (4, (0x7FFF, 3)),
        (5, (0xFFFF, 3)),
        (6, (0xFFFF, 3, 3)),
        (9, (0xFFFF, 3, 3)),
    ],
)
def test_a_ruleset_takes_away_all_that_a_version_of_landlock_knows(version: int, fields: tuple[int, ...]) -> None:
    assert landlock.build_ruleset(version, network=False, unix_sockets=False) == struct.pack(
        f"={len(fields)}Q", *fields
    )


def test_with_a_network_connections_may_be_opened_and_not_accepted() -> None:
    assert struct.unpack("=3Q", landlock.build_ruleset(6, network=True, unix_sockets=False)) == (0xFFFF, 1, 3)
    assert struct.unpack("=3Q", landlock.build_ruleset(6, network=True, unix_sockets=True)) == (0xFFFF, 1, 2)


@pytest.mark.parametrize(
    ("access", "version", "is_folder", "rights"),
    [
        (Access.READ, 7, True, 0b1100),
        (Access.READ, 7, False, 0b0100),
        (Access.LIST, 7, True, 0b1000),
        (Access.LIST, 7, False, 0),
        (Access.WRITE, 7, True, 0b0100_0001_1011_1110),
        (Access.WRITE, 2, True, 0b0000_0001_1011_1110),  # without truncation
        (Access.WRITE, 7, False, 0b0100_0000_0000_0110),
        (Access.DEVICE, 5, False, 0b1100_0000_0000_0110),
        (Access.DEVICE, 4, False, 0b0100_0000_0000_0110),  # without ioctl
    ],
)
def test_a_rule_has_the_rights_that_the_version_and_the_kind_of_file_have(
    access: Access, version: int, is_folder: bool, rights: int
) -> None:
    assert landlock.choose_rights(access, version, is_folder=is_folder) == rights


PID = 4711
X86_64, AARCH64 = 0xC000003E, 0xC00000B7
ALLOWED, REFUSED, MISSING, KILLED = "allowed", "refused", "missing", "killed"


def run_filter(program: tuple[seccomp.Instruction, ...], audit: int, number: int, *arguments: int) -> str:
    """Run a program as the kernel does, and return what becomes of the call."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<iIQ6Q", number, audit, 0, *(value & 0xFFFF_FFFF_FFFF_FFFF for value in padded))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        match code:
            case 0x20:
                [accumulator] = struct.unpack_from("<I", data, value)
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
                at += if_true if holds else if_false
            case 0x06:
                return {
                    0x7FFF0000: ALLOWED, 0x80000000: KILLED, 0x50000 | errno.EPERM: REFUSED, 0x50000 | errno.ENOSYS: MISSING,
                }[value]  # fmt: skip
            case _:
                raise AssertionError(f"unknown instruction {code}")


CALLS = {
    # name: (x86_64, aarch64), arguments, outcome
    "read": ((0, 63), (), ALLOWED),
    "openat": ((257, 56), (), ALLOWED),
    "mmap": ((9, 222), (), ALLOWED),
    "futex": ((202, 98), (), ALLOWED),
    "execve": ((59, 221), (), REFUSED),
    "execveat": ((322, 281), (), REFUSED),
    "ptrace": ((101, 117), (), REFUSED),
    "bpf": ((321, 280), (), REFUSED),
    "io_uring_setup": ((425, 425), (), REFUSED),
    "keyctl": ((250, 219), (), REFUSED),
    "unshare": ((272, 97), (), REFUSED),
    "process_vm_readv": ((310, 270), (), REFUSED),
    "fchmodat": ((268, 53), (), REFUSED),
    "clone3": ((435, 435), (), MISSING),
    "clone: a process": ((56, 220), (17,), REFUSED),
    "clone: a thread": ((56, 220), (0x3D0F00,), ALLOWED),
    "clone: a thread in a namespace": ((56, 220), (0x3D0F00 | 0x10000000,), REFUSED),
    "kill: itself": ((62, 129), (PID,), ALLOWED),
    "kill: another": ((62, 129), (1,), REFUSED),
    "kill: all": ((62, 129), (-1,), REFUSED),
    "tgkill: itself": ((234, 131), (PID, PID), ALLOWED),
    "tgkill: another": ((234, 131), (1, PID), REFUSED),
    "prlimit64: itself": ((302, 261), (0,), ALLOWED),
    "prlimit64: another": ((302, 261), (1,), REFUSED),
    "ioctl: typing": ((16, 29), (0, 0x5412), REFUSED),
    "ioctl: others": ((16, 29), (0, 0x5401), ALLOWED),
    "socket: IPv4": ((41, 198), (2, 1, 6), ALLOWED),
    "socket: IPv6": ((41, 198), (10, 1, 6), ALLOWED),
    "socket: a path": ((41, 198), (1, 1, 0), REFUSED),
    "socket: addresses of this machine": ((41, 198), (16, 3, 0), ALLOWED),
    "socket: audit": ((41, 198), (16, 3, 9), REFUSED),
    "socket: packets": ((41, 198), (17, 3, 0), REFUSED),
    "socket: virtual machines": ((41, 198), (40, 1, 0), REFUSED),
}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("call", CALLS)
def test_a_filter_lets_a_worker_do_its_work_and_nothing_else(machine: str, call: str) -> None:
    numbers, arguments, outcome = CALLS[call]
    program = seccomp.build_filter(seccomp.ARCHITECTURES[machine], PID, unix_sockets=False, network=True)
    audit, number = (X86_64, numbers[0]) if machine == "x86_64" else (AARCH64, numbers[1])
    assert run_filter(program, audit, number, *arguments) == outcome


def test_fork_and_the_calls_of_other_architectures_are_no_way_around_the_filter() -> None:
    program = seccomp.build_filter(seccomp.ARCHITECTURES["x86_64"], PID, unix_sockets=False, network=True)
    assert run_filter(program, X86_64, 57) == REFUSED  # fork
    assert run_filter(program, X86_64, 58) == REFUSED  # vfork
    assert run_filter(program, X86_64, 0x40000000 | 0) == REFUSED  # x32
    assert run_filter(program, 0x40000003, 3) == KILLED  # i386


@pytest.mark.parametrize(
    ("unix_sockets", "network", "families"),
    [(False, False, []), (True, False, [1]), (False, True, [2, 10, 16]), (True, True, [1, 2, 10, 16])],
)
def test_a_process_opens_the_sockets_that_it_needs(unix_sockets: bool, network: bool, families: list[int]) -> None:
    program = seccomp.build_filter(seccomp.ARCHITECTURES["x86_64"], PID, unix_sockets=unix_sockets, network=network)
    allowed = [family for family in range(50) if run_filter(program, X86_64, 41, family, 1, 0) == ALLOWED]
    assert allowed == families


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_kernel_accepts_the_size_and_the_jumps_of_a_filter(machine: str) -> None:
    program = seccomp.build_filter(seccomp.ARCHITECTURES[machine], PID, unix_sockets=True, network=True)
    assert len(program) <= 4096
    for at, (_, if_true, if_false, _) in enumerate(program):
        assert max(if_true, if_false) <= 255
        assert at + 1 + max(if_true, if_false) <= len(program)
    assert program[-1][0] == 0x06


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_of_calls_are_those_of_the_headers_of_the_kernel(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"no {header}")
    pattern = r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$"
    numbers = {name: int(number) for name, number in re.findall(pattern, Path(header).read_text(), re.MULTILINE)}
    ours = {name: known for name, pair in seccomp._DENIED.items() if (known := pair[column]) is not None}
    assert {name: numbers[name] for name in ours if name in numbers} == {
        name: ours[name] for name in ours if name in numbers
    }
    assert len(ours.keys() & numbers.keys()) > 50


@pytest.mark.skipif(seccomp.find_fault() is not None, reason=f"no seccomp: {seccomp.find_fault()}")
def test_a_filter_applies_to_threads_that_are_running_already() -> None:
    program = """if True:
        import os, threading
        from vidflow.infra.process import seccomp
        go = threading.Event()
        def attempt():
            go.wait()
            try:
                os.fork()
            except PermissionError:
                print("refused")
        thread = threading.Thread(target=attempt)
        thread.start()
        seccomp.install_filter(unix_sockets=False, network=False)
        go.set()
        thread.join()
    """
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "refused\n"


def test_a_system_that_cannot_confine_is_refused_where_that_is_required() -> None:
    sandbox.require_complete({})
    with pytest.raises(SetupError, match=r"landlock: needs Linux 5.13; seccomp: not permitted.*--sandbox auto"):
        sandbox.require_complete({"seccomp": "not permitted", "landlock": "needs Linux 5.13"})


# What a worker's task needs


def granted(folder: Path, task: Task) -> set[str]:
    """Return the granted paths in the folder."""
    return {grant.path for grant in prepare_permissions(task).grants if grant.path.startswith(str(folder))}


def make_task(source: object, model: str = "motion", **fields: Any) -> Task:
    deploy = Deploy("0190a0b1-0000-7000-8000-000000000000", 1, str(source), model)
    return Task(deploy, KafkaSettings("broker:9092"), device=CPU, **fields)


def test_a_worker_may_read_its_own_video_and_no_other_one(tmp_path: Path) -> None:
    for name in ("own.mp4", "other.mp4"):
        (tmp_path / name).write_text(name)
    own = tmp_path / "own.mp4"
    assert granted(tmp_path, make_task(own, any_file=True)) == {str(own)}
    assert granted(tmp_path, make_task(own, media_root=tmp_path)) == {str(own)}
    assert granted(tmp_path, make_task(own)) == set()
    assert granted(tmp_path, make_task(tmp_path, any_file=True)) == set(), "a folder would grant all that is in it"
    assert granted(tmp_path, make_task(tmp_path / "missing.mp4", any_file=True)) == set()


def test_a_worker_may_read_the_files_of_its_model_and_see_the_names_of_others(tmp_path: Path) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    for folder in (models, elsewhere):
        folder.mkdir()
    (models / "net.toml").write_text(SPEC)
    (models / "net.names").write_text("one\n")
    (elsewhere / "blob").write_text("weights")
    (models / "net.onnx").symlink_to(elsewhere / "blob")
    (models / "other.onnx").write_text("weights")
    files = {str(path) for path in (models, models / "net.toml", models / "net.names", elsewhere / "blob")}
    assert granted(tmp_path, make_task("http://host/a", "net", models_dir=models)) == files
    assert Grant(str(models), Access.LIST) in prepare_permissions(make_task("http://host/a", models_dir=models)).grants


def test_a_model_that_cannot_be_used_grants_what_shows_why(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("kind = ")
    (tmp_path / "lonely.toml").write_text(SPEC)
    assert registry.find_use("broken", tmp_path).files == (tmp_path / "broken.toml",)
    assert registry.find_use("lonely", tmp_path).files == (tmp_path / "lonely.toml",)
    assert registry.find_use("unknown", tmp_path) == registry.ModelUse()
    assert registry.find_use("/etc/shadow.onnx") == registry.ModelUse()


def test_only_a_model_whose_weights_torchvision_fetches_may_write_them(tmp_path: Path) -> None:
    (tmp_path / "named.toml").write_text('kind = "torchvision"\narchitecture = "ssd300_vgg16"\nweights = "COCO_V1"\n')
    assert registry.find_use("ssd300_vgg16").fetches_weights
    assert registry.find_use("named", tmp_path).fetches_weights
    assert not registry.find_use("yolox_nano").fetches_weights


def test_certificates_that_settings_name_may_be_read(tmp_path: Path) -> None:
    properties = {
        "ssl.ca.location": f"{tmp_path}/ca.pem",
        "ssl.key.location": f"{tmp_path}/key.pem",
        "sasl.password": f"{tmp_path}/no",
    }
    task = make_task("http://host/a", sources=SourceAccess(ca_file=f"{tmp_path}/cameras.pem"))
    deploy, kafka = task.deploy, KafkaSettings("broker:9092", properties)
    task = Task(deploy, kafka, sources=task.sources, device=CPU)
    assert granted(tmp_path, task) == {f"{tmp_path}/{name}.pem" for name in ("ca", "key", "cameras")}


def test_only_a_worker_of_a_camera_of_this_machine_may_use_devices() -> None:
    access = SourceAccess(devices=("/dev/video0",))
    assert Grant("/dev", Access.DEVICE) in prepare_permissions(make_task("/dev/video0", sources=access)).grants
    assert Grant("/dev", Access.DEVICE) not in prepare_permissions(make_task("/dev/video1", sources=access)).grants


@pytest.mark.parametrize(
    ("source", "fields", "may_connect"),
    [
        ("rtsp://10.0.0.1/a", {}, False),
        ("rtsp://camera.local/a", {}, True),
        ("http://[broken", {}, False),
        ("http://host/a", {"inference_socket": Path("/tmp/model")}, True),
    ],
)
def test_a_worker_connects_to_servers_of_this_machine_only_where_it_must(
    source: str, fields: dict[str, Any], may_connect: bool
) -> None:
    assert prepare_permissions(make_task(source, **fields)).unix_sockets is may_connect


def test_a_process_of_a_forkserver_without_a_guard_is_not_taken_for_confined() -> None:
    with pytest.raises(OSError, match="starts processes for anyone"):
        sandbox.require_guard()


def test_packages_that_are_links_are_part_of_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, packages = tmp_path / "cache" / "deep" / "av", tmp_path / "packages"
    cached.mkdir(parents=True)
    packages.mkdir()
    (packages / "av").symlink_to(cached)
    (packages / "root").symlink_to("/")
    monkeypatch.syspath_prepend(str(packages))
    find_installation.cache_clear()
    try:
        programs = find_installation().programs
    finally:
        find_installation.cache_clear()
    assert str(cached.resolve()) in programs
    assert "/" not in programs
