"""What an error of PostgreSQL means: wait, try again, or tell the operator."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from vidflow.domain.errors import SetupError
from vidflow.infra.postgres.errors import build_connection_error, is_away, is_timed_out, is_tls, require_version
from vidflow.infra.telemetry.outage import TIMED_OUT_STATES


@pytest.mark.parametrize(
    ("version", "said"), [(90624, r"version 9\.6\.24"), (150018, r"version 15\.18"), (170010, r"version 17\.10")]
)
def test_a_server_that_is_too_old_is_refused_in_one_line(version: int, said: str) -> None:
    with pytest.raises(SetupError, match=rf"^PostgreSQL at db:5432 is {said}; vidflow needs 18 or newer\. Upgrade .*$"):
        require_version(version, "db:5432")


@pytest.mark.parametrize("version", [180000, 180004, 190000])
def test_a_server_that_is_new_enough_is_taken(version: int) -> None:
    require_version(version, "db:5432")


@pytest.mark.parametrize(
    "error", [errors.QueryCanceled, errors.TransactionTimeout, errors.LockNotAvailable, errors.IdleSessionTimeout]
)
def test_a_time_limit_of_the_server_ends_no_role(error: type[psycopg.Error]) -> None:
    assert is_away(error())


def test_time_limits_are_told_from_a_server_that_is_away() -> None:
    assert {errors.lookup(state) for state in TIMED_OUT_STATES} == {
        errors.QueryCanceled, errors.TransactionTimeout, errors.LockNotAvailable,
    }  # fmt: skip
    assert is_timed_out(errors.QueryCanceled())
    assert not is_timed_out(errors.AdminShutdown())


class _Failed(psycopg.OperationalError):
    """As libpq reports a connection that was not made: a sentence, no SQLSTATE."""

    pgconn = object()  # type: ignore[assignment]


@pytest.mark.parametrize(
    "text",
    [
        "connection failed: ... FATAL:  the database system is starting up",
        "connection failed: ... FATAL:  sorry, too many clients already",
        'connection failed: ... FATAL:  database "x" is not currently accepting connections',
        "connection failed: ... FATAL:  server login has been failing, try again later (server_login_retry)",
        "connection failed: ... FATAL:  pgbouncer cannot connect to server",
        "connection failed: ... FATAL:  query_wait_timeout",
        "connection failed: ... FATAL:  no more connections allowed (max_client_conn)",
        "connection failed: ... SSL SYSCALL error: EOF detected",
        "connection failed: ... SSL error: unexpected eof while reading",
        "connection failed: ... Connection refused",
    ],
)
def test_what_passes_is_waited_for(text: str) -> None:
    assert is_away(_Failed(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('connection failed: ... FATAL:  password authentication failed for user "x"', "rejected the connection"),
        ('connection failed: ... FATAL:  no such database: x', "rejected the connection"),
        ("connection failed: ... SSL error: certificate verify failed", "TLS to PostgreSQL failed"),
        ("connection failed: ... SSL error: tlsv13 alert certificate required", "TLS to PostgreSQL failed"),
        ("connection failed: ... server does not support SSL, but SSL was required", "TLS to PostgreSQL failed"),
        ('connection failed: ... FATAL:  no pg_hba.conf entry for host "h", user "u", database "d"', "rejected the connection"),
        ('connection is bad: invalid sslmode value: "foo"', "TLS to PostgreSQL failed"),
        ('connection is bad: invalid require_auth value: "foo"', "a setting that libpq does not accept"),
    ],
)  # fmt: skip
def test_what_waiting_does_not_help_is_told_in_one_line(text: str, said: str) -> None:
    error = _Failed(f"{text}\n\tmore")
    assert not is_away(error)
    assert said in build_connection_error(error).message
    assert "\n" not in build_connection_error(error).message
    assert is_tls(error) == said.startswith("TLS")
