"""Who may do what: tokens, their rights, and the scope of a request.

A token is `vf_<id>_<secret>`. The id is public: it names the token in lists, logs and the audit. Only a hash of the token is stored.
"""

from __future__ import annotations

import base64
import hashlib
import re
from enum import StrEnum
from typing import Final

import msgspec

from vidflow.domain.errors import ParameterError

LOCAL_OWNER: Final = "local"
"""Owner of the scenarios of requests without a token."""
MAX_OWNER_CHARACTERS: Final = 64
MAX_NOTE_CHARACTERS: Final = 200
ID_BYTES: Final = 8
SECRET_BYTES: Final = 32
_OWNER: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@-]{{0,{MAX_OWNER_CHARACTERS - 1}}}")
_TOKEN: Final = re.compile(rf"vf_(?P<id>[0-9a-f]{{{2 * ID_BYTES}}})_[A-Za-z0-9_-]{{43}}")


class Rights(StrEnum):
    """What a token allows. Each value includes those before it. `admin` is for the scenarios of all owners."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def includes(self, other: Rights) -> bool:
        """Return whether these rights include the other."""
        order = list(Rights)
        return order.index(self) >= order.index(other)


class ReadScope(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may read: the scenarios of `owner`, or of all owners. Each statement that reads for a client takes one.

    `token_id`: the token that was sent, None for a request without one. `address`: where the request came from.
    """

    owner: str
    is_for_all: bool
    token_id: str | None = None
    address: str | None = None

    @property
    def only_owner(self) -> str | None:
        """The owner whose rows may be read, None for those of all. For the condition of a statement."""
        return None if self.is_for_all else self.owner


class WriteScope(ReadScope, frozen=True, kw_only=True):
    """What a request may read and change. New scenarios belong to `owner`."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sent a request: `owner` with `rights`."""

    owner: str
    rights: Rights
    token_id: str | None = None
    address: str | None = None

    def read_scope(self) -> ReadScope:
        """Return what the caller may read."""
        is_for_all = self.rights is Rights.ADMIN
        return ReadScope(owner=self.owner, is_for_all=is_for_all, token_id=self.token_id, address=self.address)

    def write_scope(self) -> WriteScope | None:
        """Return what the caller may change, None if it may only read."""
        if not self.rights.includes(Rights.WRITE):
            return None
        return WriteScope(**msgspec.structs.asdict(self.read_scope()))


def build_local_caller(address: str | None) -> Caller:
    """Return the caller of a request that needs no token. It may do everything."""
    return Caller(owner=LOCAL_OWNER, rights=Rights.ADMIN, address=address)


def check_owner(name: str) -> str:
    """Return the name of an owner. Raises ParameterError for a name that is not allowed."""
    if not _OWNER.fullmatch(name):
        raise ParameterError(
            f"Invalid owner {name[:80]!r}. Use up to {MAX_OWNER_CHARACTERS} letters, digits, '.', '_', '@' and '-', beginning with a "
            "letter or digit."
        )
    return name


def format_token(id_bytes: bytes, secret_bytes: bytes) -> str:
    """Return the token of ID_BYTES and SECRET_BYTES random bytes."""
    secret = base64.urlsafe_b64encode(secret_bytes).rstrip(b"=").decode()
    return f"vf_{id_bytes.hex()}_{secret}"


def parse_token_id(token: str) -> str | None:
    """Return the id of a token, None for a text that is not a token."""
    match = _TOKEN.fullmatch(token)
    return match["id"] if match else None


def hash_token(token: str) -> bytes:
    """Return what is stored of a token. The secret has 256 random bits, so that one round of SHA-256 cannot be reversed by trial."""
    return hashlib.sha256(token.encode()).digest()
