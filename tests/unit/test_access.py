"""Tokens, rights and scopes: what they say, before any database."""

# ruff: noqa: S105, S106 - tokens of tests

from __future__ import annotations

import hashlib

import pytest

from vidflow.domain.access import (
    Caller,
    Rights,
    build_local_caller,
    check_owner,
    format_token,
    hash_token,
    parse_token_id,
)
from vidflow.domain.errors import ParameterError
from vidflow.domain.redaction import redact

TOKEN = format_token(bytes(range(8)), bytes(range(32)))


def test_a_token_shows_its_id_and_has_all_bits_of_its_secret() -> None:
    assert TOKEN == "vf_0001020304050607_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert parse_token_id(TOKEN) == "0001020304050607"
    assert hash_token(TOKEN) == hashlib.sha256(TOKEN.encode()).digest()


@pytest.mark.parametrize(
    "text",
    ["", "x", TOKEN[:-1], TOKEN + "A", TOKEN + "\n", " " + TOKEN, TOKEN.upper(), TOKEN.replace("_", "-"), "vf__" + TOKEN[3:], "vf_" * 20],
)  # fmt: skip
def test_another_text_is_not_a_token(text: str) -> None:
    assert parse_token_id(text) is None


@pytest.mark.parametrize("name", ["a", "team-1", "anna@example.org", "A.b_c", "0", "x" * 64])
def test_an_owner_is_a_short_name(name: str) -> None:
    assert check_owner(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a/b", "-a", ".a", "a\n", "a\0", "ä", "a,b", "'"])
def test_other_names_of_owners_are_refused(name: str) -> None:
    with pytest.raises(ParameterError, match="Invalid owner"):
        check_owner(name)


@pytest.mark.parametrize(
    ("rights", "may_write", "only_owner"), [("read", False, "a"), ("write", True, "a"), ("admin", True, None)]
)
def test_rights_decide_what_a_caller_may_reach(rights: str, only_owner: str | None, *, may_write: bool) -> None:
    caller = Caller(owner="a", rights=Rights(rights), token_id="1", address="192.0.2.1")
    assert caller.read_scope().only_owner == only_owner
    scope = caller.write_scope()
    assert (scope is not None) == may_write
    if scope is not None:
        assert (scope.owner, scope.only_owner, scope.token_id, scope.address) == ("a", only_owner, "1", "192.0.2.1")


def test_a_request_that_needs_no_token_may_do_everything() -> None:
    scope = build_local_caller("127.0.0.1").write_scope()
    assert scope is not None
    assert (scope.owner, scope.only_owner, scope.token_id) == ("local", None, None)


@pytest.mark.parametrize(
    "text", ["{}", "token {} unknown", "x={};", "Authorization: Bearer {}", "http://h/{}/x", "Invalid label '{}'"]
)
def test_a_token_is_masked_wherever_it_stands(text: str) -> None:
    masked = redact(text.format(TOKEN))
    assert TOKEN not in masked
    assert TOKEN[20:40] not in masked
