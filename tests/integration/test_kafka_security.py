"""A broker that requires TLS and a login: clients connect with properties alone, and failures are reported with their cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from tests import clips
from tests.integration.certificates import CertificateAuthority
from tests.integration.cli_process import run_command, running_command
from tests.integration.processes import descendants
from tests.integration.server_owner import wait_until
from tests.integration.vidflow_process import running_vidflow

from vidflow.domain.topics import INIT_SCENARIO
from vidflow.infra.embedded.child_process import find_free_ports
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.kafka import admin, clients, errors, offsets, topics
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.kafka.topics import PARTITIONS
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

USER = "vidflow"
USER_WITHOUT_ACL = "poor"
PASSWORD = "correct-horse-battery"  # noqa: S105 - only used by this test's broker
WRONG = "wrong-donkey-battery"
SCRAM = "SCRAM-SHA-512"
LOGIN = "org.apache.kafka.common.security"


class SecuredBroker(EmbeddedKafka):
    """A broker with a plain listener, which `settings` uses, and one for each of SCRAM, mutual TLS and OAuth."""

    def __init__(self, folder: Path, authority: CertificateAuthority) -> None:
        broker, controller, self.scram_port, self.mtls_port, self.oauth_port = find_free_ports(5)
        self.authority = authority
        ports = {"PLAINTEXT": broker, "SCRAM": self.scram_port, "MTLS": self.mtls_port, "OAUTH": self.oauth_port}
        listeners = [f"{name}://127.0.0.1:{port}" for name, port in ports.items()]
        certificate, key = authority.issue("broker", "IP:127.0.0.1")
        keystore = folder / "broker-keystore.pem"
        keystore.write_text(key.read_text() + certificate.read_text())
        properties = {
            "listeners": ",".join([*listeners, f"CONTROLLER://127.0.0.1:{controller}"]),
            "advertised.listeners": ",".join([*listeners, f"CONTROLLER://127.0.0.1:{controller}"]),
            "listener.security.protocol.map": (
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SCRAM:SASL_SSL,MTLS:SSL,OAUTH:SASL_SSL"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(authority.ca),
            "listener.name.mtls.ssl.client.auth": "required",
            "listener.name.scram.sasl.enabled.mechanisms": SCRAM,
            "listener.name.scram.scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
            "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.oauth.oauthbearer.sasl.jaas.config": (
                f'{LOGIN}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:ANONYMOUS;User:{USER};User:CN=client",
        }
        cache = read_environment_variable("VIDFLOW_CACHE_DIR")
        super().__init__(
            folder, notify=print, stop=Stop(), ports=(broker, controller), cache=cache, extra_properties=properties
        )

    def scram(self, user: str = USER, password: str = PASSWORD, **overrides: str) -> KafkaSettings:
        """Return client settings for SCRAM over TLS. The names of `overrides` have _ instead of dots."""
        properties = {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.authority.ca),
            "sasl.mechanism": SCRAM,
            "sasl.username": user,
            "sasl.password": password,
        }
        properties |= {name.replace("_", "."): value for name, value in overrides.items()}
        return KafkaSettings(f"127.0.0.1:{self.scram_port}", properties)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    folder = tmp_path_factory.mktemp("secured")
    secured = SecuredBroker(folder, CertificateAuthority(folder / "certificates"))
    try:
        secured.start()
        client = admin.create_admin(secured.settings)
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        for user in (USER, USER_WITHOUT_ACL):
            [altered] = client.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(user, info, PASSWORD.encode())]
            ).values()
            altered.result(20)
        wait_until(lambda: creation_error(secured.scram()) is None, "the broker knows the users")
        yield secured
    finally:
        secured.stop()


def creation_error(settings: KafkaSettings) -> Exception | None:
    """Create the topics, and return the error if that fails."""
    try:
        topics.create_topics(settings)
    except errors.KafkaAway as error:
        return error
    return None


def assert_clients_work(settings: KafkaSettings) -> None:
    """Create the topics, and send and read a message, so that each kind of client is used."""
    assert set(topics.create_topics(settings)) <= set(PARTITIONS)
    consumer = clients.create_consumer(settings, client_id="reads")
    producer = clients.create_producer(settings, client_id="sends")
    try:
        offsets.assign_at_end(admin.create_admin(settings), consumer, [INIT_SCENARIO])
        clients.send(producer, INIT_SCENARIO, b"hello", b"key", [], lambda _error, _message: None)
        assert producer.flush(20) == 0
        [message] = clients.consume_available(consumer, 1, 20)
        assert message.value() == b"hello"
    finally:
        consumer.close()
    assert b"hello" in {message.value() for message in offsets.read_log(settings, INIT_SCENARIO)}


def test_scram_over_tls(broker: SecuredBroker) -> None:
    assert_clients_work(broker.scram())


def test_mtls(broker: SecuredBroker) -> None:
    certificate, key = broker.authority.issue("client")
    properties = {
        "security.protocol": "SSL",
        "ssl.ca.location": str(broker.authority.ca),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
    }
    assert_clients_work(KafkaSettings(f"127.0.0.1:{broker.mtls_port}", properties))


def test_oauthbearer(broker: SecuredBroker) -> None:
    properties = {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(broker.authority.ca),
        "sasl.mechanism": "OAUTHBEARER",
        "enable.sasl.oauthbearer.unsecure.jwt": "true",
        "sasl.oauthbearer.config": f"principal={USER}",
    }
    assert_clients_work(KafkaSettings(f"127.0.0.1:{broker.oauth_port}", properties))


def other_authority(broker: SecuredBroker) -> KafkaSettings:
    other = CertificateAuthority(broker.folder / "other", "other")
    return broker.scram(ssl_ca_location=str(other.ca))


REFUSALS: dict[str, tuple[Any, str]] = {
    "password": (lambda broker: broker.scram(password=WRONG), "Authentication failed .*Check sasl.mechanism, sasl.username"),
    "user": (lambda broker: broker.scram(user="nobody"), "Authentication failed .*sasl.password"),
    "mechanism": (lambda broker: broker.scram(sasl_mechanism="PLAIN"), "Authentication failed .*Check sasl.mechanism"),
    "authority": (other_authority, "TLS failed .*certificate.*ssl.ca.location"),
    "TLS at a plain listener": (
        lambda broker: KafkaSettings(broker.bootstrap, {"security.protocol": "SSL"}), "Check security.protocol"
    ),
    "no client certificate": (
        lambda broker: KafkaSettings(
            f"127.0.0.1:{broker.mtls_port}", {"security.protocol": "SSL", "ssl.ca.location": str(broker.authority.ca)}
        ),
        "TLS failed|Check security.protocol",
    ),
    "ACL": (lambda broker: broker.scram(user=USER_WITHOUT_ACL), "Permission denied .*ACL"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refused(broker: SecuredBroker) -> dict[str, Exception | None]:
    """The error of each case of REFUSALS. The cases run in parallel, because each takes as long as a request's timeout."""
    settings = [build_settings(broker) for build_settings, _ in REFUSALS.values()]
    with ThreadPoolExecutor(len(settings)) as threads:
        return dict(zip(REFUSALS, threads.map(creation_error, settings), strict=True))


@pytest.mark.parametrize("name", REFUSALS)
def test_a_security_failure_is_reported_with_its_cause(refused: dict[str, Exception | None], name: str) -> None:
    error = refused[name]
    assert isinstance(error, errors.SecurityFailed), error
    assert re.search(REFUSALS[name][1], error.message)
    assert WRONG not in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize("properties", [{}, {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": SCRAM}])
def test_the_error_of_a_client_without_tls_names_the_likely_setting(
    broker: SecuredBroker, properties: dict[str, str]
) -> None:
    """The broker closes the connection without an error, so the message can only be a hint."""
    login = {"sasl.username": USER, "sasl.password": PASSWORD} if properties else {}
    with pytest.raises(errors.KafkaAway, match=r"Check security\.protocol"):
        topics.create_topics(KafkaSettings(f"127.0.0.1:{broker.scram_port}", properties | login))


def write_properties_file(folder: Path, settings: KafkaSettings) -> Path:
    file = folder / "kafka.properties"
    properties = {"bootstrap.servers": settings.bootstrap, **settings.properties}
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return file


def test_commands_read_a_properties_file(broker: SecuredBroker, tmp_path: Path) -> None:
    file = str(write_properties_file(tmp_path, broker.scram()))
    end = run_command("topics", "create", "--kafka-properties", file)
    assert (end.returncode, end.stderr) == (0, "")
    assert run_command("dlq", "list", variables={"VIDFLOW_KAFKA_PROPERTIES": file}).returncode == 0
    wrong = str(write_properties_file(tmp_path, broker.scram(password=WRONG)))
    for command in (("topics", "create"), ("dlq", "list")):
        end = run_command(*command, "--kafka-properties", wrong)
        assert end.returncode == 3
        assert end.stderr.startswith("vidflow: Authentication failed at Kafka 127.0.0.1:")
        assert WRONG not in end.stderr + end.stdout
        assert end.stderr.count("\n") == 1


@pytest.mark.parametrize("role", ["runner", "inbox"])
def test_a_role_logs_a_security_failure_once_and_waits(
    broker: SecuredBroker, role: str, tmp_path: Path, database_url: str
) -> None:
    database = [] if role == "runner" else ["--database-url", database_url]
    with running_command(tmp_path, role, *database, variables=broker.scram(password=WRONG).variables()) as process:
        process.wait_for("kafka_security server=Kafka error=Authentication failed .*sasl.password")
        assert process.stop() == 0
        assert process.stderr.count("kafka_security") == 1
        assert WRONG not in process.stderr


def read_command_lines(stack_pids: dict[str, list[int]]) -> list[bytes]:
    """Return the command lines of a stack's processes and their descendants."""
    pids = {pid for role_pids in stack_pids.values() for pid in role_pids}
    command_lines = []
    for pid in pids.union(*(descendants(pid) for pid in pids)):
        with suppress(OSError):  # the process has ended
            command_lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return command_lines


def test_a_whole_vidflow_works_with_a_secured_broker_and_shows_no_secret(
    broker: SecuredBroker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", frames=50)
    with running_vidflow(tmp_path / "data", kafka=broker.scram()) as vidflow:
        uuid = vidflow.create_scenario(clip, "motion", "all")
        wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 0, "a frame is stored")
        lines = read_command_lines(vidflow.stack.pids())
        assert vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
    assert any(b"worker" in line or b"forkserver" in line for line in lines), lines
    assert not any(PASSWORD.encode() in line for line in lines)
    captured = capfd.readouterr()
    assert PASSWORD not in captured.out + captured.err
