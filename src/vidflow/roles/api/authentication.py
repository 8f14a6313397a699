"""Tokens of requests: who sends a request, and what it may do.

A token is looked up in the database at most once a second, however many requests carry it. As long as no token was ever created, an
api on a loopback address serves requests without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, NamedTuple, TypeVar

from litestar import Request
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from vidflow.domain.access import Caller, ReadScope, WriteScope, build_local_caller, hash_token
from vidflow.domain.errors import SetupError
from vidflow.infra.postgres.tokens import TokenRow, find_token, has_tokens
from vidflow.roles.api.database import Database
from vidflow.roles.api.hosts import is_loopback
from vidflow.roles.api.problems import problem
from vidflow.roles.api.quotas import RequestQuota, add_headers
from vidflow.settings import ApiOptions

PUBLIC: Final = {"is_public": True}
"""`opt` of the handlers that need no token."""
SHOWS_LESS: Final = {"shows_less": True}
"""`opt` of the handlers that answer without a token, with less in it. See `has_caller`."""
REFRESH_S: Final = 1.0
"""Age at which what is known of a token is read again, while requests go on with it."""
MAX_AGE_S: Final = 3.0
"""Age at which requests wait for it. A revoked token is refused after this time at the latest."""
MAX_KNOWN_TOKENS: Final = 10_000
_CALLER: Final = "caller"
_SCHEME: Final = "bearer "

K = TypeVar("K")
V = TypeVar("V")


class _Known(NamedTuple, Generic[V]):
    value: V
    read_s: float


class RecentValues(Generic[K, V]):
    """Values that are read in a thread and kept for a short time, at most `limit` of them. Use only on the event loop's thread.

    `read`: is called once at a time for a key. Its error is raised for all requests that wait for it.
    """

    def __init__(self, read: Callable[[K], V], threads: ThreadPoolExecutor, limit: int) -> None:
        self._read, self._threads, self._limit = read, threads, limit
        self._known: dict[K, _Known[V]] = {}
        self._reading: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """Return the value of `key`, which is at most MAX_AGE_S old. Raises what `read` raises."""
        known = self._known.get(key)
        age_s = float("inf") if known is None else asyncio.get_running_loop().time() - known.read_s
        if known is not None and age_s < MAX_AGE_S:
            if age_s >= REFRESH_S:
                self._start_reading(key)
            return known.value
        return await asyncio.shield(self._start_reading(key))

    def _start_reading(self, key: K) -> asyncio.Task[V]:
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._read_again(key))
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it
        return reading

    async def _read_again(self, key: K) -> V:
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._threads, self._read, key)
            self._known.pop(key, None)
            self._known[key] = _Known(value, asyncio.get_running_loop().time())
            if len(self._known) > self._limit:
                del self._known[next(iter(self._known))]
            return value
        finally:
            del self._reading[key]


class _SentToken(NamedTuple):
    text: str
    sha256: bytes


class Authentication(ASGIMiddleware):
    """Finds the caller of each request, or answers 401. Handlers with `opt=PUBLIC` and preflights need no token."""

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = "is_public"

    def __init__(self, options: ApiOptions, database: Database) -> None:
        self._is_off = not options.auth
        self._is_loopback = is_loopback(options.host)
        self._database = database
        self._requests = RequestQuota(options)
        threads = ThreadPoolExecutor(4, thread_name_prefix="tokens")
        self._tokens = RecentValues(self._find_token, threads, MAX_KNOWN_TOKENS)
        self._has_tokens = RecentValues(self._read_has_tokens, threads, 1)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on with its caller. Raises a 401 problem, and a 429 problem if the owner has sent too many."""
        if scope.get("method") != "OPTIONS":
            caller = await self._identify(scope)
            if caller is not None:
                scope["state"][_CALLER] = caller
                if headers := self._requests.take(caller.read_scope()):
                    send = add_headers(send, headers)
        await next_app(scope, receive, send)

    async def _identify(self, scope: Scope) -> Caller | None:
        """Return the caller, None for a request without a token that needs none. Raises a 401 problem."""
        client = scope["client"]
        address = client[0] if client else None
        if self._is_off:
            return build_local_caller(address)
        values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        if len(values) > 1:
            raise problem(401, "token_invalid", "The request has several Authorization headers. Send exactly one.")
        if not values or not values[0].lower().startswith(_SCHEME):
            if self._is_loopback and not await self._has_tokens.get(None):
                return build_local_caller(address)
            if scope["route_handler"].opt.get("shows_less"):
                return None
            raise problem(
                401,
                "token_missing",
                "This server needs a token. Send the header Authorization: Bearer with one from its operator (vidflow token create).",
            )
        text = values[0][len(_SCHEME) :].strip()
        token = await self._tokens.get(_SentToken(text, hash_token(text)))
        if token is None:
            raise problem(401, "token_invalid", "The token is unknown. Check that it is complete, or get a new one.")
        if token.revoked_at is not None or token.is_expired:
            ended = "was revoked" if token.revoked_at is not None else "has expired"
            raise problem(401, "token_invalid", f"The token {token.token_id} {ended}. Get a new one from the operator.")
        return Caller(owner=token.owner, rights=token.rights, token_id=token.token_id, address=address)

    def _find_token(self, sent: _SentToken) -> TokenRow | None:
        with self._database.connection() as connection:
            return find_token(connection, sent.text, sent.sha256)

    def _read_has_tokens(self, _key: None) -> bool:
        with self._database.connection() as connection:
            return has_tokens(connection)


def require_tokens(options: ApiOptions, database: Database) -> None:
    """Raise SetupError if others can reach this server and nobody has a token. The database must be ready."""
    if not options.auth or is_loopback(options.host):
        return
    with database.connection() as connection:
        if has_tokens(connection):
            return
    raise SetupError(
        f"The api would listen on {options.host}, where others can reach it, and there is no token. Create one with: vidflow token "
        "create --owner NAME. Or listen on 127.0.0.1, or say --no-auth to let everyone in who reaches it."
    )


def provide_reader(request: Request[Any, Any, Any]) -> ReadScope:
    """Return what the request may read."""
    return _caller(request).read_scope()


def provide_writer(request: Request[Any, Any, Any]) -> WriteScope:
    """Return what the request may change. Raises a 403 problem if its token is for reading alone."""
    caller = _caller(request)
    scope = caller.write_scope()
    if scope is None:
        raise problem(
            403,
            "token_read_only",
            f"The token {caller.token_id} may only read. Use one with the right to write (vidflow token create --rights write).",
        )
    return scope


def has_caller(request: Request[Any, Any, Any]) -> bool:
    """Return whether the request has a token, or comes from where none is needed."""
    return _CALLER in request.scope["state"]


def _caller(request: Request[Any, Any, Any]) -> Caller:
    """Return who sent the request. Without authentication there is no caller, and the KeyError becomes a 500."""
    caller = request.scope["state"][_CALLER]
    assert isinstance(caller, Caller)
    return caller
