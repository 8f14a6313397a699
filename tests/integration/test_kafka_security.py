"""A broker that asks for TLS and a login: every client gets in by properties alone, and a refusal is reported as one."""

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

from vidflow.domain.messages import INIT_SCENARIO, PARTITIONS
from vidflow.infra.embedded.child_process import find_free_ports
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.kafka import admin, clients, errors, offsets, topics
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

USER = "vidflow"
POOR = "poor"
PASSWORD = "correct-horse-battery"  # noqa: S105 - of a broker of this test alone
WRONG = "wrong-donkey-battery"
SCRAM = "SCRAM-SHA-512"
LOGIN = "org.apache.kafka.common.security"


class SecuredBroker(EmbeddedKafka):
    """A broker with a listener for each way to get in, beside the plain one; `settings` are those of SASL_SSL and SCRAM."""

    def __init__(self, folder: Path, authority: CertificateAuthority) -> None:
        broker, controller, self.scram_port, self.mtls_port, self.oauth_port = find_free_ports(5)
        self.authority = authority
        own = {"PLAINTEXT": broker, "SCRAM": self.scram_port, "MTLS": self.mtls_port, "OAUTH": self.oauth_port}
        places = [f"{name}://127.0.0.1:{port}" for name, port in own.items()]
        certificate, key = authority.issue("broker", "IP:127.0.0.1")
        keystore = folder / "broker-keystore.pem"
        keystore.write_text(key.read_text() + certificate.read_text())
        more = {
            "listeners": ",".join([*places, f"CONTROLLER://127.0.0.1:{controller}"]),
            "advertised.listeners": ",".join([*places, f"CONTROLLER://127.0.0.1:{controller}"]),
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
            folder, notify=print, stop=Stop(), ports=(broker, controller), cache=cache, extra_properties=more
        )

    def scram(self, user: str = USER, password: str = PASSWORD, **more: str) -> KafkaSettings:
        """The settings of a login by SCRAM over TLS; `extra_properties` properties have _ for the dots in their names."""
        properties = {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.authority.ca),
            "sasl.mechanism": SCRAM,
            "sasl.username": user,
            "sasl.password": password,
        }
        more = {name.replace("_", "."): value for name, value in more.items()}
        return KafkaSettings(f"127.0.0.1:{self.scram_port}", properties | more)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    folder = tmp_path_factory.mktemp("secured")
    secured = SecuredBroker(folder, CertificateAuthority(folder / "certificates"))
    try:
        secured.start()
        client = admin.create_admin(secured.settings)
        how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        for user in (USER, POOR):
            [made] = client.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(user, how, PASSWORD.encode())]
            ).values()
            made.result(20)
        wait_until(lambda: lets_in(secured.scram()), "the broker knows the users")
        yield secured
    finally:
        secured.stop()


def lets_in(settings: KafkaSettings) -> bool:
    try:
        topics.create_topics(settings)
    except errors.KafkaAway:
        return False
    return True


def carry(settings: KafkaSettings) -> None:
    """One message to and from the broker, by each kind of client."""
    assert set(topics.create_topics(settings)) <= set(PARTITIONS)
    reader = clients.create_consumer(settings, client_id="reads")
    sender = clients.create_producer(settings, client_id="sends")
    try:
        offsets.assign_at_end(admin.create_admin(settings), reader, [INIT_SCENARIO])
        clients.send(sender, INIT_SCENARIO, b"hello", b"key", [], lambda _error, _message: None)
        assert sender.flush(20) == 0
        [message] = clients.consume_available(reader, 1, 20)
        assert message.value() == b"hello"
    finally:
        reader.close()
    assert b"hello" in {message.value() for message in offsets.read_log(settings, INIT_SCENARIO)}


def test_scram_over_tls(broker: SecuredBroker) -> None:
    carry(broker.scram())


def test_mtls(broker: SecuredBroker) -> None:
    certificate, key = broker.authority.issue("client")
    properties = {
        "security.protocol": "SSL",
        "ssl.ca.location": str(broker.authority.ca),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
    }
    carry(KafkaSettings(f"127.0.0.1:{broker.mtls_port}", properties))


def test_oauthbearer(broker: SecuredBroker) -> None:
    properties = {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(broker.authority.ca),
        "sasl.mechanism": "OAUTHBEARER",
        "enable.sasl.oauthbearer.unsecure.jwt": "true",
        "sasl.oauthbearer.config": f"principal={USER}",
    }
    carry(KafkaSettings(f"127.0.0.1:{broker.oauth_port}", properties))


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
    "ACL": (lambda broker: broker.scram(user=POOR), "does not permit .*ACL"),
}  # fmt: skip


def outcome(settings: KafkaSettings) -> Exception | None:
    try:
        topics.create_topics(settings)
    except errors.KafkaAway as error:
        return error
    return None


@pytest.fixture(scope="module")
def refused(broker: SecuredBroker) -> dict[str, Exception | None]:
    """What each of them is told: all at once, since each takes as long as a broker may take to answer."""
    settings = [settings_of(broker) for settings_of, _ in REFUSALS.values()]
    with ThreadPoolExecutor(len(settings)) as threads:
        return dict(zip(REFUSALS, threads.map(outcome, settings), strict=True))


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_reported_as_one(refused: dict[str, Exception | None], name: str) -> None:
    error = refused[name]
    assert isinstance(error, errors.SecurityFailed), error
    assert re.search(REFUSALS[name][1], error.message)
    assert WRONG not in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize("properties", [{}, {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": SCRAM}])
def test_a_client_without_tls_is_told_what_may_be_missing(broker: SecuredBroker, properties: dict[str, str]) -> None:
    """The broker only hangs up, so that nothing but a hint is possible."""
    login = {"sasl.username": USER, "sasl.password": PASSWORD} if properties else {}
    with pytest.raises(errors.KafkaAway, match=r"check security\.protocol"):
        topics.create_topics(KafkaSettings(f"127.0.0.1:{broker.scram_port}", properties | login))


def in_a_file(folder: Path, settings: KafkaSettings) -> Path:
    file = folder / "kafka.properties"
    lines = {"bootstrap.servers": settings.bootstrap, **settings.properties}
    file.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    return file


def test_commands_take_a_file_of_properties(broker: SecuredBroker, tmp_path: Path) -> None:
    file = str(in_a_file(tmp_path, broker.scram()))
    end = run_command("topics", "create", "--kafka-properties", file)
    assert (end.returncode, end.stderr) == (0, "")
    assert run_command("dlq", "list", variables={"VIDFLOW_KAFKA_PROPERTIES": file}).returncode == 0
    wrong = str(in_a_file(tmp_path, broker.scram(password=WRONG)))
    for words in (("topics", "create"), ("dlq", "list")):
        end = run_command(*words, "--kafka-properties", wrong)
        assert end.returncode == 3
        assert end.stderr.startswith("vidflow: Authentication failed at Kafka 127.0.0.1:")
        assert WRONG not in end.stderr + end.stdout
        assert end.stderr.count("\n") == 1


@pytest.mark.parametrize("role", ["runner", "inbox"])
def test_a_role_that_is_refused_says_so_once_and_waits(
    broker: SecuredBroker, role: str, tmp_path: Path, database_url: str
) -> None:
    database = [] if role == "runner" else ["--database-url", database_url]
    with running_command(tmp_path, role, *database, variables=broker.scram(password=WRONG).variables()) as waiting:
        waiting.wait_for("kafka_security server=Kafka error=Authentication failed .*sasl.password")
        assert waiting.stop() == 0
        assert waiting.stderr.count("kafka_security") == 1
        assert WRONG not in waiting.stderr


def command_lines(stack_pids: dict[str, list[int]]) -> list[bytes]:
    """The arguments of all processes of a stack and of those that they have started."""
    pids = {pid for of_a_kind in stack_pids.values() for pid in of_a_kind}
    found = []
    for pid in pids.union(*(descendants(pid) for pid in pids)):
        with suppress(OSError):  # it has ended
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def test_a_whole_vidflow_works_with_it_and_shows_no_secret(
    broker: SecuredBroker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", frames=50)
    with running_vidflow(tmp_path / "data", kafka=broker.scram()) as vidflow:
        uuid = vidflow.create_scenario(clip, "motion", "all")
        wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 0, "it is under way")
        lines = command_lines(vidflow.stack.pids())
        assert vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
    assert any(b"worker" in line or b"forkserver" in line for line in lines), lines
    assert not any(PASSWORD.encode() in line for line in lines)
    told = capfd.readouterr()
    assert PASSWORD not in told.out + told.err
