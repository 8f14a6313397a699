"""`vidflow dlq`: what people do with dead letters, and how it is printed. Kafka alone is needed; no database is asked.

What lies in a dead letter is hostile: of it nothing reaches a terminal that is not printable.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from vidflow.domain.errors import ParameterError, UserError
from vidflow.domain.escaping import escape_json, escape_unprintable, escape_unprintable_lines
from vidflow.infra.kafka.dead_letters import (
    DeadLetterProducer,
    PendingDeadLetter,
    read_pending_dead_letters,
    why_not_replayable,
)
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.pipes import discard_output

MAX_SHOWN_CHARACTERS: Final = 2000
MAX_LISTED_CHARACTERS: Final = 100
_KEY_CHARACTERS: Final = 36
_TIME: Final = "%Y-%m-%d %H:%M:%SZ"


class UnknownDeadLetter(UserError):
    """No letter waits under this name."""

    default_code = "dead_letter_unknown"


class DeadLetterNotReplayable(UserError):
    """A letter cannot be sent again."""

    default_code = "dead_letter_not_replayable"


def print_dead_letters(settings: KafkaSettings, output: str) -> None:
    """Prints a line for each letter that waits, the oldest first. Raises kafka.KafkaAway."""
    with _ignore_broken_pipe():
        if output == "json":
            _print_array(_summary(one) for one in read_pending_dead_letters(settings))
        else:
            _print_table(read_pending_dead_letters(settings))


def print_dead_letter(settings: KafkaSettings, place: str, output: str) -> None:
    """Prints all that is known of a letter, its payload cut where it is long. Raises NoSuchLetter, kafka.KafkaAway."""
    [one] = _find_letters(settings, [place])
    if output == "json":
        _print(_json(_full_record(one)))
        return
    for name, value in _describe_letter(one):
        _print(f"{name:<8} {value}")
    if one.letter is not None and one.letter.value:
        _print("\n" + _escape_and_truncate(one.letter.value, MAX_SHOWN_CHARACTERS, lines=True))


def replay(settings: KafkaSettings, places: Sequence[str], output: str, *, all_letters: bool) -> None:
    """Sends letters' messages again and drops the letters. What cannot be sent stays, and is told in the end.

    Raises ParameterError, NoSuchLetter, NotReplayable, kafka.KafkaAway.
    """
    chosen = _select_letters(settings, places, all_letters=all_letters)
    sender = DeadLetterProducer(settings)
    refused: list[tuple[str, str]] = []

    def sendable() -> Iterator[PendingDeadLetter]:
        for one in chosen:
            if (reason := why_not_replayable(one)) is None:
                yield one
            else:
                refused.append((one.place, reason))

    with _print_done(sender, output, "replayed"):
        sender.replay(sendable())
    if refused:
        place, reason = refused[0]
        raise DeadLetterNotReplayable(
            f"{len(refused)} cannot be sent again: {place}, since {reason}"
            f"{' (and others)' if len(refused) > 1 else ''}; look with: vidflow dlq show, or: vidflow dlq drop"
        )


def drop(settings: KafkaSettings, places: Sequence[str], output: str, *, all_letters: bool) -> None:
    """Drops letters: nobody needs their messages. Raises ParameterError, NoSuchLetter, kafka.KafkaAway."""
    chosen = _select_letters(settings, places, all_letters=all_letters)
    sender = DeadLetterProducer(settings)
    with _print_done(sender, output, "dropped"):
        sender.drop(chosen)


def _select_letters(
    settings: KafkaSettings, places: Sequence[str], *, all_letters: bool
) -> Iterator[PendingDeadLetter]:
    if bool(places) == all_letters:
        raise ParameterError("name the dead letters by their places (vidflow dlq list), or give --all for all of them")
    return read_pending_dead_letters(settings) if all_letters else iter(_find_letters(settings, places))


def _find_letters(settings: KafkaSettings, places: Collection[str]) -> list[PendingDeadLetter]:
    """The letters of these names, all of them: none is dealt with where one is mistyped."""
    found = list(read_pending_dead_letters(settings, set(places)))
    if missing := set(places) - {one.place for one in found}:
        raise UnknownDeadLetter(
            f"no dead letter waits at {', '.join(sorted(missing))}; those that do: vidflow dlq list"
        )
    return found


def _print_table(letters: Iterable[PendingDeadLetter]) -> None:
    count = 0
    for count, one in enumerate(letters, 1):
        if count == 1:
            _print(f"{'PLACE':<20}  {'SINCE':<20}  {'KEY':<{_KEY_CHARACTERS}}  {'BYTES':>8}  ERROR")
        _print(_line(one))
    if not count:
        sys.stderr.write("no dead letter waits\n")


def _line(one: PendingDeadLetter) -> str:
    letter = one.letter
    key, size = (letter.key or b"", len(letter.value or b"")) if letter else (b"", 0)
    shown = [
        f"{_escape_and_truncate(one.key, 200):<20}",
        one.at.strftime(_TIME),
        f"{_escape_and_truncate(key, _KEY_CHARACTERS) or '-':<{_KEY_CHARACTERS}}",
        f"{size:>8}",
        _escape_and_truncate(one.error.encode(errors="backslashreplace"), MAX_LISTED_CHARACTERS),
    ]
    return "  ".join(shown)


def _describe_letter(one: PendingDeadLetter) -> Iterator[tuple[str, str]]:
    yield "place", _escape_and_truncate(one.key, 200)
    yield "since", one.at.strftime(_TIME)
    yield "error", _escape_and_truncate(one.error.encode(errors="backslashreplace"), MAX_SHOWN_CHARACTERS)
    if one.letter is not None:
        yield "key", _escape_and_truncate(one.letter.key or b"", 200) or "-"
        for name, content in one.letter.headers:
            yield "header", f"{_escape_and_truncate(name.encode(), 200)}: {_escape_and_truncate(content or b'', 200)}"
        yield "bytes", str(len(one.letter.value or b"")) + (" of more: it was cut" if one.letter.cut else "")
    yield "replay", why_not_replayable(one) or "it can be sent again"


def _summary(one: PendingDeadLetter) -> dict[str, Any]:
    letter = one.letter
    return {
        "place": one.place,
        "since": one.at,
        "key": letter.key.decode(errors="backslashreplace") if letter and letter.key is not None else None,
        "bytes": len(letter.value or b"") if letter else None,
        "error": one.error,
        "replayable": why_not_replayable(one) is None,
    }


def _full_record(one: PendingDeadLetter) -> dict[str, Any]:
    """Bytes as base64, and as text where they are text."""
    letter = one.letter
    more = {"headers": letter.headers, "value": letter.value, "text": _text(letter.value)} if letter else {}
    return {**_summary(one), **more}


def _text(value: bytes | None) -> str | None:
    try:
        return value.decode() if value is not None else None
    except UnicodeDecodeError:
        return None


def _escape_and_truncate(content: bytes, most: int, *, lines: bool = False) -> str:
    """Bytes as text of which every character can be printed, and no more than so many of them."""
    text = content[: 4 * most].decode(errors="backslashreplace")
    safe = escape_unprintable_lines(text) if lines else escape_unprintable(text)
    if len(safe) <= most and len(content) <= 4 * most:
        return safe
    return safe[: most - 1] + "…" + (f"\n({len(content)} bytes in all: --output json has them)" if lines else "")


@contextmanager
def _print_done(sender: DeadLetterProducer, output: str, did: str) -> Iterator[None]:
    """Prints what was done by the end of the block, be it an error."""
    try:
        yield
    finally:
        if output == "json":
            _print_array({"place": one.place, "now_at": one.now_at} for one in sender.done)
        for one in sender.done if output != "json" else ():
            _print(
                f"{did} {_escape_and_truncate(one.place.encode(), 200)}{f', now {one.now_at}' if one.now_at else ''}"
            )


def _print_array(items: Iterable[dict[str, Any]]) -> None:
    separator = "[\n"
    for item in items:
        sys.stdout.write(separator + _json(item))
        separator = ",\n"
    _print("[]" if separator == "[\n" else "\n]")


def _json(item: dict[str, Any]) -> str:
    return escape_json(msgspec.json.encode(item).decode())


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


@contextmanager
def _ignore_broken_pipe() -> Iterator[None]:
    """Ends in silence once nobody reads on, as in `vidflow dlq list | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)
