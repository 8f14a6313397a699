"""The commands `vidflow dlq`: list, show, replay and drop dead letters. They need Kafka, but no database.

The content of a dead letter may be hostile, so it is printed with all unprintable characters escaped.
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
    """No dead letter is pending at this place."""

    default_code = "dead_letter_unknown"


class DeadLetterNotReplayable(UserError):
    """The message of a dead letter cannot be sent again."""

    default_code = "dead_letter_not_replayable"


def print_dead_letters(settings: KafkaSettings, output: str) -> None:
    """Print a line for each pending dead letter, the oldest first. Raises KafkaAway."""
    with _ignore_broken_pipe():
        if output == "json":
            _print_array(_summary(pending) for pending in read_pending_dead_letters(settings))
        else:
            _print_table(read_pending_dead_letters(settings))


def print_dead_letter(settings: KafkaSettings, place: str, output: str) -> None:
    """Print all details of a dead letter, with a long payload truncated. Raises UnknownDeadLetter, KafkaAway."""
    [pending] = _find_letters(settings, [place])
    if output == "json":
        _print(_json(_full_record(pending)))
        return
    for name, value in _describe_letter(pending):
        _print(f"{name:<8} {value}")
    if pending.letter is not None and pending.letter.value:
        _print("\n" + _escape_and_truncate(pending.letter.value, MAX_SHOWN_CHARACTERS, lines=True))


def replay(settings: KafkaSettings, places: Sequence[str], output: str, *, all_letters: bool) -> None:
    """Send the messages of dead letters again and delete the letters. Letters whose message cannot be sent are kept.

    Raises DeadLetterNotReplayable after all others were sent; ParameterError, UnknownDeadLetter, KafkaAway.
    """
    selected = _select_letters(settings, places, all_letters=all_letters)
    producer = DeadLetterProducer(settings)
    refused: list[tuple[str, str]] = []

    def replayable() -> Iterator[PendingDeadLetter]:
        for pending in selected:
            if (reason := why_not_replayable(pending)) is None:
                yield pending
            else:
                refused.append((pending.place, reason))

    with _print_done(producer, output, "replayed"):
        producer.replay(replayable())
    if refused:
        place, reason = refused[0]
        raise DeadLetterNotReplayable(
            f"Dead letters that cannot be replayed: {len(refused)}, the first at {place} ({reason}). Inspect them with "
            "vidflow dlq show, or delete them with vidflow dlq drop."
        )


def drop(settings: KafkaSettings, places: Sequence[str], output: str, *, all_letters: bool) -> None:
    """Delete dead letters without sending their messages. Raises ParameterError, UnknownDeadLetter, KafkaAway."""
    selected = _select_letters(settings, places, all_letters=all_letters)
    producer = DeadLetterProducer(settings)
    with _print_done(producer, output, "dropped"):
        producer.drop(selected)


def _select_letters(
    settings: KafkaSettings, places: Sequence[str], *, all_letters: bool
) -> Iterator[PendingDeadLetter]:
    if bool(places) == all_letters:
        raise ParameterError("Give either the places of dead letters (see vidflow dlq list) or --all.")
    return read_pending_dead_letters(settings) if all_letters else iter(_find_letters(settings, places))


def _find_letters(settings: KafkaSettings, places: Collection[str]) -> list[PendingDeadLetter]:
    """Return the letters at all these places. Raises UnknownDeadLetter if one is missing, so that a typo changes nothing."""
    letters = list(read_pending_dead_letters(settings, set(places)))
    if missing := set(places) - {pending.place for pending in letters}:
        raise UnknownDeadLetter(
            f"No dead letter at {', '.join(sorted(missing))}. List the dead letters with: vidflow dlq list"
        )
    return letters


def _print_table(letters: Iterable[PendingDeadLetter]) -> None:
    count = 0
    for count, pending in enumerate(letters, 1):
        if count == 1:
            _print(f"{'PLACE':<20}  {'SINCE':<20}  {'KEY':<{_KEY_CHARACTERS}}  {'BYTES':>8}  ERROR")
        _print(_line(pending))
    if not count:
        sys.stderr.write("no dead letters\n")


def _line(pending: PendingDeadLetter) -> str:
    letter = pending.letter
    key, size = (letter.key or b"", len(letter.value or b"")) if letter else (b"", 0)
    columns = [
        f"{_escape_and_truncate(pending.key, 200):<20}",
        pending.at.strftime(_TIME),
        f"{_escape_and_truncate(key, _KEY_CHARACTERS) or '-':<{_KEY_CHARACTERS}}",
        f"{size:>8}",
        _escape_and_truncate(pending.error.encode(errors="backslashreplace"), MAX_LISTED_CHARACTERS),
    ]
    return "  ".join(columns)


def _describe_letter(pending: PendingDeadLetter) -> Iterator[tuple[str, str]]:
    yield "place", _escape_and_truncate(pending.key, 200)
    yield "since", pending.at.strftime(_TIME)
    yield "error", _escape_and_truncate(pending.error.encode(errors="backslashreplace"), MAX_SHOWN_CHARACTERS)
    if (letter := pending.letter) is not None:
        yield "key", _escape_and_truncate(letter.key or b"", 200) or "-"
        for name, content in letter.headers:
            yield "header", f"{_escape_and_truncate(name.encode(), 200)}: {_escape_and_truncate(content or b'', 200)}"
        yield "bytes", str(len(letter.value or b"")) + (" (truncated)" if letter.cut else "")
    yield "replay", why_not_replayable(pending) or "it can be sent again"


def _summary(pending: PendingDeadLetter) -> dict[str, Any]:
    letter = pending.letter
    return {
        "place": pending.place,
        "since": pending.at,
        "key": letter.key.decode(errors="backslashreplace") if letter and letter.key is not None else None,
        "bytes": len(letter.value or b"") if letter else None,
        "error": pending.error,
        "replayable": why_not_replayable(pending) is None,
    }


def _full_record(pending: PendingDeadLetter) -> dict[str, Any]:
    """Return the summary with headers and value. The value is base64, and also text if it is UTF-8."""
    letter = pending.letter
    content = {"headers": letter.headers, "value": letter.value, "text": _text(letter.value)} if letter else {}
    return {**_summary(pending), **content}


def _text(value: bytes | None) -> str | None:
    try:
        return value.decode() if value is not None else None
    except UnicodeDecodeError:
        return None


def _escape_and_truncate(content: bytes, limit: int, *, lines: bool = False) -> str:
    """Return bytes as printable text of at most `limit` characters. `lines`: keep line breaks and note what was truncated."""
    text = content[: 4 * limit].decode(errors="backslashreplace")
    safe = escape_unprintable_lines(text) if lines else escape_unprintable(text)
    if len(safe) <= limit and len(content) <= 4 * limit:
        return safe
    return safe[: limit - 1] + "…" + (f"\n({len(content)} bytes in total, see --output json)" if lines else "")


@contextmanager
def _print_done(producer: DeadLetterProducer, output: str, verb: str) -> Iterator[None]:
    """Print which letters were handled in the block, even if it raises an error."""
    try:
        yield
    finally:
        if output == "json":
            _print_array({"place": handled.place, "now_at": handled.now_at} for handled in producer.done)
        else:
            for handled in producer.done:
                place, now = _escape_and_truncate(handled.place.encode(), 200), handled.now_at
                _print(f"{verb} {place}{f', now at {now}' if now else ''}")


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
    """End silently if the reader closes the pipe, as in `vidflow dlq list | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)
