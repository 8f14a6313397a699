"""Find out within seconds whether a camera answers at all, before FFmpeg connects to it, whose attempts cannot be ended.

A camera's machine may accept connections, or leave them in its kernel's queue, while the camera itself is frozen. Once that queue is
full, the kernel drops attempts to connect without an answer, and repeats of them come only each second.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit, urlunsplit

from vidflow.domain.redaction import redact
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.source_tls import build_tls_context
from vidflow.infra.video import rtmp
from vidflow.infra.video.cameras import PORTS, SECURE, build_camera_error
from vidflow.infra.video.source_connection import STOP_POLL_S, Interruption, require_running, resolve

ANSWER_S: Final = 5.0
"""How long a camera may take to answer."""
REPEAT_S: Final = 0.5
"""A camera that has not answered is asked again after so long, over a further connection, so that its return is noticed soon."""

T = TypeVar("T")
Wait = tuple[int, int]
"""A descriptor, and the selector's events to wait for."""
Question = Generator[Wait, None, None]
"""Asks a camera over a connection of its own. Yields what it waits for, and ends once the camera has answered."""


def require_answer(url: str, access: SourceAccess, interruption: Interruption) -> None:
    """Return once the camera has answered a request that every server must answer. Sources of other kinds are not asked.

    Raises Unavailable if it has not after ANSWER_S, SourceError if its address is not allowed, or ReadingStopped.
    """
    parts, display_name = urlsplit(url), redact(url)
    scheme, host = parts.scheme.lower(), parts.hostname or ""
    if scheme not in PORTS:
        return
    request = _build_request(parts)
    tls = build_tls_context(access) if scheme in SECURE else None
    try:
        addresses = resolve(host, parts.port or PORTS[scheme], access, interruption, display_name)
        _wait_for_answer(addresses, lambda address: _ask(address, request, tls, host), interruption)
    except TimeoutError as error:
        raise build_camera_error(f"no answer within {ANSWER_S:.0f} s", display_name, "source_timeout") from error
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise build_camera_error(reason, display_name) from error


def _build_request(parts: SplitResult) -> bytes:
    """Return the beginning of RTMP's handshake, or a request for the options of RTSP."""
    if parts.scheme.lower() in rtmp.PORTS:
        return rtmp.HELLO
    shown = parts.netloc.rpartition("@")[2]
    return f"OPTIONS {urlunsplit(('rtsp', shown, parts.path, '', ''))} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode()


def _wait_for_answer(addresses: Sequence[Any], ask: Callable[[Any], Question], interruption: Interruption) -> None:
    """Ask at each address in turn until one answers. Raises the last error once each of them has failed, or TimeoutError."""
    remaining, failure = list(addresses), OSError("its name has no address")
    next_s = time.monotonic()
    deadline_s = next_s + ANSWER_S
    with ExitStack() as questions, selectors.DefaultSelector() as selector:
        while remaining:
            require_running(interruption)
            now_s = time.monotonic()
            if now_s >= deadline_s:
                raise TimeoutError
            ready: list[tuple[Any, Question]] = []
            if now_s >= next_s:
                next_s, address = now_s + REPEAT_S, remaining[0]
                remaining.append(remaining.pop(0))
                ready.append((address, questions.enter_context(closing(ask(address)))))
            else:
                for key, _ in selector.select(min(STOP_POLL_S, next_s - now_s)):
                    selector.unregister(key.fd)
                    ready.append(key.data)
            for address, question in ready:
                try:
                    descriptor, events = next(question)
                except StopIteration:
                    return
                except OSError as error:
                    failure, next_s = error, now_s
                    remaining = [other for other in remaining if other != address]
                else:
                    selector.register(descriptor, events, (address, question))
        if any(_is_answered(key.data[1]) for key, _ in selector.select(0)):
            return  # on another connection, while the last address was found to fail
    raise failure


def _is_answered(question: Question) -> bool:
    """Take the next step of a question. Return whether it has brought the answer."""
    try:
        next(question)
    except StopIteration:
        return True
    except OSError:
        return False
    return False


def _ask(address: Any, request: bytes, tls: ssl.SSLContext | None, host: str) -> Question:  # noqa: ANN401 - by its family
    """Connect, send the request and wait for the first bytes of an answer. Raises OSError."""
    connection = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.settimeout(0)
        code = connection.connect_ex(address)
        if code == errno.EINPROGRESS:
            yield connection.fileno(), selectors.EVENT_WRITE
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        if tls is not None:
            connection = secured = tls.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)
            yield from _finish(secured, secured.do_handshake)
        connection.sendall(request)
        if not (yield from _finish(connection, lambda: connection.recv(1024))):
            raise ConnectionError("it closed the connection")
    except ssl.SSLError:
        return  # it has answered; the attempt to read it will show what is wrong
    finally:
        connection.close()


def _finish(connection: socket.socket, step: Callable[[], T]) -> Generator[Wait, None, T]:
    """Take a step of a connection that does not block, and return its result."""
    while True:
        try:
            return step()
        except (BlockingIOError, ssl.SSLWantReadError):
            yield connection.fileno(), selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            yield connection.fileno(), selectors.EVENT_WRITE
