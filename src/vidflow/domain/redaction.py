"""Removal of secrets from text such as URLs, connection strings, headers and properties.

Everything a client or an operator reads passes through here: responses, stored errors, logs, command output. In URLs an
allow-list applies: scheme, host, port and path are shown, without what looks like a secret in the path. The values in the query
and the fragment are masked, except numbers and a few words in parameters that select a camera's picture. In other text a
deny-list of names applies. Possessive quantifiers keep each pattern linear in its input, so that hostile text cannot slow it down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import unquote

import msgspec

from vidflow.domain.errors import ErrorInfo

MASK: Final = "***"

_HARMLESS: Final = frozenset({
    "angle", "audio", "bitrate", "camera", "cameraid", "cam", "ch", "chan", "channel", "channelid", "channels", "chid", "clock",
    "codec", "compression", "count", "day", "delay", "duration", "enablesrtp", "end", "fps", "framerate", "from", "hd", "height",
    "hour", "index", "interval", "length", "limit", "live", "minute", "mode", "month", "n", "num", "number", "offset", "overlays",
    "page", "part", "port", "profile", "proto", "protocol", "quality", "rate", "realstream", "realtime", "res", "resolution",
    "rotation", "sample", "second", "segment", "seq", "size", "speed", "start", "stream", "streamid", "streamnumber", "streamtype",
    "sub", "subtype", "t", "tcp", "time", "to", "track", "transport", "transportmode", "udp", "unicast", "v", "vcodec", "version",
    "video", "videocodec", "vid", "view", "w", "width", "x", "y", "year", "zoom",
})  # fmt: skip
"""Normalized names (`_normalize_name`) of URL parameters whose values may be shown."""
_HARMLESS_VALUE: Final = re.compile(
    r"[0-9]{1,4}(?:[.x][0-9]{1,4}|\.(?:sdp|cgi|mp4|ts))?|true|false|on|off|yes|no|all|tcp|udp|unicast|multicast|main|sub|h26[45]|mjpeg"
)
"""Values that may be shown: what says which picture of a camera is meant. A short word may be a password."""

_SECRET_PARTS: Final = (
    "token", "secret", "passw", "passphrase", "passwd", "pwd", "apikey", "accesskey", "accesskeyid", "privatekey", "secretkey",
    "sharedkey", "accountkey", "signature", "credential", "authorization", "jwt", "loginpas", "hmac", "jaas", "cookie",
    "sessionid", "passcode", "keypem", "xgoogsig", "xamzsig", "sslkey", "wowza", "hdnea", "hdnts", "otp", "passfile",
    "oauthbearerconfig", "userinfo",
)  # fmt: skip
"""A value is a secret if its normalized name contains one of these."""
_SECRET_NAMES: Final = frozenset(
    {"pass", "auth", "sig", "md5", "pin", "psk", "sas", "key", "pw", "psw", "hash", "code", "loginpass", "userpass"}
)
"""A value is a secret if its normalized name equals one of these."""
_COMMON_WORDS: Final = frozenset({"key", "hash", "code", "pin"})
"""Exceptions to _SECRET_NAMES: their values are secrets in URLs only."""

_URL: Final = re.compile(r"(?:[a-zA-Z]{0,8}+)://\S++")
_USER_AT_HOST: Final = re.compile(r"(?<![^\s\"'`(<=,/])[^\s:/@\"'`(<=,]++:[^\s@/]{1,200}+@(?=[\w\[])")
_QUERY: Final = re.compile(r"(?<=\?)[^\s\"'<>`?]*+")
_NAME: Final = re.compile(r"(?<![\w.-])(?P<name>[\w.-]++)\\?[\"']?[ \t]{0,8}[=:]{1,2}[ \t]{0,8}")
_VALUE: Final = re.compile(
    r"""\\"(?:[^"\\]|\\[^"])*+(?:\\"|$)|"(?:[^"\\]|\\.)*+(?:"|$)|'(?:[^'\\]|\\.)*+(?:'|$)|[^\s,;&"'})\]]*+""", re.DOTALL
)
_QUOTE: Final = re.compile(r"\\?[\"']")
_HEADER: Final = re.compile(
    r"(?i)(?<![\w-])(?P<name>(?:proxy-)?authorization|(?:set-)?cookie|x-(?:[a-z]+-)?(?:api-key|auth-token|token|security-token))"
    r"(?P<is>\\?[\"']?[ \t]{0,8}[:=][ \t]{0,8})(?P<value>[^\r\n]*+)"
)
_SCHEME: Final = re.compile(
    r"\b(?P<scheme>(?i:bearer|aws4-hmac-sha256)[ \t]{1,8}|(?i:basic|digest|negotiate|apikey)[ \t]{1,8}(?=[a-z]*+[0-9A-Z+/=]))"
    r"(?P<value>[^\s,;\"']{6,}+)"
)
_PRIVATE_KEY: Final = re.compile(r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----(?:[^-]|-(?!----END))*+")
_JWT: Final = re.compile(r"(?<![\w-])eyJ[\w-]{8,}+(?:\.[\w-]*+){1,4}")
_OWN_TOKEN: Final = re.compile(r"(?<=vf_)(?P<id>[0-9a-f]{16}_)[\w-]{8,}+")
"""A token of vidflow itself. Its id may be shown."""

_ITEM: Final = re.compile(r"([&;,/]|_(?=[A-Za-z]+=))")
_PUNCTUATION: Final = ".,;:)]}>\"'`"
_BOT: Final = re.compile(r"[^:]*:(?=.)")
_CLOCK: Final = re.compile(r"[\dTZtz.:+-]*")
_HEX: Final = re.compile(r"[0-9a-fA-F]{32,}")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_KNOWN_TOKEN: Final = re.compile(
    r"(?:[spr]k[-_](?:live|test)[-_]|A[KS]IA[A-Z0-9]{8}|gh[opsu]_|glpat-|xox[abp]-|AUTH_tk)"
)
"""The beginnings of some services' tokens."""
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{16,}")
_RUN: Final = re.compile(r"[0-9]++|[a-z]++|[A-Z]++")
_RTMP: Final = re.compile(r"rtmp[est]{0,2}$", re.IGNORECASE)
_NAME_WORD: Final = re.compile(r"(?:(?:[A-Z][a-z]{1,11}){1,2}|[a-z]{1,12}|[A-Z]{1,12})[0-9]{0,4}|[0-9]{1,4}[ikp]?")
_NAME_JOINT: Final = re.compile(r"[-_.]")
_MOST_NAME_WORDS: Final = 3
"""The name of a stream of an RTMP server is shown if it has only so many words and small numbers. Others may be the key with which
the stream is sent."""
_IPTV: Final = frozenset({"live", "movie", "movies", "series", "timeshift"})
_TOO_LONG_NAME: Final = 40
_SHORTEST_PASSWORD: Final = 4
_SHORTEST_VALUE: Final = 6
_SHORTEST_PART: Final = 8
_JOINT: Final = re.compile(r"[~=&,;:/@]")


def redact(text: str, known_secrets: Sequence[str] = ()) -> str:
    """Return the text with every secret replaced by `***`.

    `known_secrets` are strings to mask wherever they occur, see `find_secrets`.
    """
    for secret in known_secrets:
        text = text.replace(secret, MASK)
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    found: list[str] = []
    text = _HEADER.sub(rf"\g<name>\g<is>{MASK}", text)
    text = _SCHEME.sub(rf"\g<scheme>{MASK}", text)
    text = _URL.sub(lambda match: _mask_chunk(match.group(), found), text)
    text = _USER_AT_HOST.sub(f"{MASK}@", text)
    text = _QUERY.sub(lambda match: _mask_relative_query(match.group(), found), text)
    text = _JWT.sub(MASK, text)
    text = _OWN_TOKEN.sub(rf"\g<id>{MASK}", text)
    return _mask_pairs(text)


def redact_error(error: ErrorInfo, known_secrets: Sequence[str] = ()) -> ErrorInfo:
    """Return the error with the secrets in its message masked, see `redact`."""
    return msgspec.structs.replace(error, message=redact(error.message, known_secrets))


def find_secrets(url: str) -> tuple[str, ...]:
    """Return the secrets in a URL, the longest first, each also with its percent-encoding decoded.

    A library that fails on a URL may print parts of it in another form. Pass these strings to `redact` to mask them anywhere.
    """
    found: list[str] = []
    _URL.sub(lambda match: _mask_chunk(match.group(), found), url)
    found += [part for secret in found for part in _JOINT.split(secret) if len(part) >= _SHORTEST_PART]
    return tuple(sorted({*found, *map(unquote, found)}, key=lambda secret: (-len(secret), secret)))


def _mask_chunk(chunk: str, found: list[str]) -> str:
    """Mask a run of non-space characters that begins with a scheme, or its end, and `://`. It may contain several URLs."""
    scheme, *parts = chunk.split("://")
    masked = [scheme]
    for part in parts:
        masked.append(_mask_url(part, found, _mask_stream_path if _RTMP.search(scheme) else _mask_path))
        scheme = part
    return "://".join(masked)


def _mask_url(part: str, found: list[str], mask_path: Callable[[str, list[str]], str]) -> str:
    """Mask the part of a URL after `://`: user and password, path, query and fragment."""
    if not part:
        return part
    user, location = _split_user(part)
    if user is not None:
        _record_secret(found, user.partition(":")[2] or user, _SHORTEST_PASSWORD)
        _record_secret(found, user, _SHORTEST_VALUE)
    authority = re.split(r"[/?#\\]", location, maxsplit=1)[0]
    rest = location[len(authority) :]
    path, hash_sign, fragment = rest.partition("#")
    path, question_mark, query = path.partition("?")
    return "".join((
        "" if user is None else f"{MASK}@",
        _mask_host(authority) if user is None else authority,
        mask_path(path, found),
        question_mark,
        _mask_query(query, found),
        hash_sign,
        _mask_query(fragment, found),
    ))  # fmt: skip


def _split_user(part: str) -> tuple[str | None, str]:
    """Split off `user:password@` (None: there is none). A password may contain an unescaped `/`, `?` or `#`."""
    authority = re.split(r"[/?#]", part, maxsplit=1)[0]
    if "@" in authority and ":" not in authority.partition("@")[0]:
        user = authority.rpartition("@")[0]
        return user, part[len(user) + 1 :]
    if "@" in authority or ("@" in part and not _is_host(authority)):
        user, _, location = part.rpartition("@")
        return user, location
    return None, part


def _is_host(authority: str) -> bool:
    """Return whether this can be a host with an optional port, rather than a user and the beginning of a password."""
    port = authority.rstrip(_PUNCTUATION).rpartition(":")[2] if ":" in authority else ""
    return authority.startswith("[") or not port or port.isdecimal() or port.lower() in {"port", "<port"}


def _mask_host(authority: str) -> str:
    """Mask an invalid port, since a truncated text may end within a password."""
    return authority if _is_host(authority) else f"{authority.partition(':')[0]}:{MASK}"


def _mask_path(path: str, found: list[str]) -> str:
    """Mask secrets in a path: `name=value`, `/bot123:token/`, `/token/value/`, `/live/user/password/7.ts`, and token-like segments."""
    if not path:
        return path
    segments = path.split("/")
    masked = [_mask_segment(segment, found) for segment in segments]
    names = [segment.lower() for segment in segments]
    for index, name in enumerate(names[:-1]):
        if segments[index + 1] and (_is_secret(name) or name in _COMMON_WORDS):
            masked[index + 1] = _record_secret(found, segments[index + 1], _SHORTEST_VALUE)
    for index, name in enumerate(names[:-3]):
        if name in _IPTV and names[index + 3][:1].isdigit():
            for secret in (segments[index + 1], segments[index + 2]):
                _record_secret(found, secret, _SHORTEST_VALUE)
            masked[index + 1 : index + 3] = [MASK, MASK]
    return "/".join(masked)


def _mask_stream_path(path: str, found: list[str]) -> str:
    """Mask secrets in a path of an RTMP server, whose parts are shown only if they are plain names."""
    segments = zip(path.split("/"), _mask_path(path, found).split("/"), strict=True)
    return "/".join(_mask_stream_segment(segment, masked, found) for segment, masked in segments)


def _mask_stream_segment(segment: str, masked: str, found: list[str]) -> str:
    name = segment.rstrip(_PUNCTUATION)
    words = _NAME_JOINT.split(name)
    if name in {"", MASK} or (len(words) <= _MOST_NAME_WORDS and all(map(_NAME_WORD.fullmatch, words))):
        return masked
    return _record_secret(found, name, _SHORTEST_VALUE) + segment[len(name) :]


def _mask_segment(segment: str, found: list[str]) -> str:
    if not segment:
        return segment
    plain = unquote(segment)
    if "=" in segment or "&" in segment:
        return "".join(_mask_path_item(item, found) for item in _ITEM.split(segment))
    if plain != segment and ("=" in plain or ":" in plain):
        return _record_secret(found, segment, _SHORTEST_VALUE)
    if ":" in segment and not _CLOCK.fullmatch(segment) and (bot := _BOT.match(segment)):
        value = segment[bot.end() :]
        is_number = value.strip(_PUNCTUATION).isdecimal() and not segment.lower().startswith("bot")
        if value.strip(_PUNCTUATION) and not is_number:
            _record_secret(found, value, _SHORTEST_VALUE)
            return bot.group() + MASK
    return _record_secret(found, segment, _SHORTEST_VALUE) if _looks_like_a_token(segment) else segment


def _looks_like_a_token(segment: str) -> bool:
    """Return whether this is a JWT, a long hexadecimal number, or a mix of digits and letters unlike a name that a person gave."""
    stem = segment.partition(".")[0]
    if segment.startswith("eyJ") or _HEX.fullmatch(stem) or _KNOWN_TOKEN.match(segment):
        return True
    if not _WORD.fullmatch(stem) or _UUID.fullmatch(stem):
        return False
    runs = len(_RUN.findall(stem))
    return any(map(str.isdigit, stem)) and 3 * runs >= len(stem)


def _mask_path_item(item: str, found: list[str]) -> str:
    name, sign, value = item.partition("=")
    return _mask_parameter(name, value, found) if sign else item


def _mask_query(query: str, found: list[str]) -> str:
    if not query:
        return query
    return "".join(
        _mask_query_item(item, found) if number % 2 == 0 else item
        for number, item in enumerate(re.split(r"([&;])", query))
    )


def _mask_query_item(item: str, found: list[str]) -> str:
    name, sign, value = item.partition("=")
    if not sign:
        return item if not item or _is_harmless(name) else _record_secret(found, item, _SHORTEST_VALUE)
    return _mask_parameter(name, value, found)


def _mask_parameter(name: str, value: str, found: list[str]) -> str:
    """Mask the value unless it and its name are harmless. Also mask a name that is too long to be one."""
    if not value:
        return f"{name}="
    if _is_harmless(name) and _HARMLESS_VALUE.fullmatch(value):
        return f"{name}={value}"
    _record_secret(found, value, _SHORTEST_VALUE)
    return f"{name if len(name) <= _TOO_LONG_NAME else MASK}={MASK}"


def _mask_relative_query(query: str, found: list[str]) -> str:
    """Mask the text after a question mark outside of a URL, if it looks like a query."""
    return _mask_query(query, found) if "=" in query else query


def _is_harmless(name: str) -> bool:
    return _normalize_name(name) in _HARMLESS


def _mask_pairs(text: str) -> str:
    """Mask the value of each `name=value` or `"name": "value"` whose name marks a secret."""
    parts: list[str] = []
    done = 0
    for match in _NAME.finditer(text):
        if match.start() < done or not _is_secret(match["name"]):
            continue
        value = _VALUE.match(text, match.end())
        if value is None or not value.group():
            continue
        quote_match = _QUOTE.match(value.group())
        quote = quote_match.group() if quote_match else ""
        parts += [text[done : match.end()], quote, MASK, quote]
        done = value.end()
    return "".join(parts) + text[done:]


def _is_secret(name: str) -> bool:
    plain = _normalize_name(name)
    if plain in _COMMON_WORDS:
        return False
    return plain in _SECRET_NAMES or any(part in plain for part in _SECRET_PARTS)


def _normalize_name(name: str) -> str:
    """Return the name in lower case without punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _record_secret(found: list[str], secret: str, min_length: int) -> str:
    """Add a secret to `found` if it is long enough to be searched for elsewhere. Return the mask."""
    if len(secret) >= min_length and secret != MASK:
        found.append(secret)
    return MASK
