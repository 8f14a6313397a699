"""The lifecycle: the table of its transitions, and a diagram."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from docs.generator.markdown import GENERATED, code, table

from vidflow.domain.scenario import TRANSITIONS, Kind, State

BOX_WIDTH: Final = 200
BOX_HEIGHT: Final = 40
PLACES: Final[Mapping[State, tuple[int, int]]] = {
    State.INIT_STARTUP: (190, 20),
    State.IN_STARTUP_PROCESSING: (190, 150),
    State.ACTIVE: (190, 280),
    State.INIT_SHUTDOWN: (800, 20),
    State.IN_SHUTDOWN_PROCESSING: (800, 150),
    State.INACTIVE: (800, 280),
}
"""The upper left corner of each state's box: deployments on the left, the shutdown on the right."""
WIDTH: Final = 1020
HEIGHT: Final = 340
_LINE: Final = 'fill="none" stroke="#5b6570" marker-end="url(#end)"'


def build_table() -> str:
    """Return the table of transitions, with the diagram before it."""
    order = list(State)
    rows = [
        (code(state), code(kind), step.when, code(step.to), code(step.outcome), code(step.sends))
        for (state, kind), step in sorted(TRANSITIONS.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
    picture = "```{image} /reference/lifecycle.svg\n:alt: The six states and the transitions between them\n```\n\n"
    return GENERATED + picture + table(("from", "event", "when", "to", "outcome", "message"), rows)


def build_diagram() -> str:
    """Return an SVG of the states, with an arrow for each pair of states that has a transition."""
    arrows: dict[tuple[State, State], list[Kind]] = {}
    for (state, kind), step in TRANSITIONS.items():
        arrows.setdefault((state, step.to), []).append(kind)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        '<defs><marker id="end" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">',
        '<path d="M0 0L10 5L0 10z" fill="#5b6570"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        *(_arrow(before, after, sorted(kinds)) for (before, after), kinds in arrows.items()),
        *(_box(state) for state in State),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(state: State) -> str:
    x, y = PLACES[state]
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="#eef3fb" stroke="#2a5db0"/>'
        f'<text x="{x + BOX_WIDTH // 2}" y="{y + 25}" text-anchor="middle" font-weight="bold" fill="#111111">{state}</text>'
    )


def _arrow(before: State, after: State, kinds: list[Kind]) -> str:
    (x1, y1), (x2, y2) = PLACES[before], PLACES[after]
    if x1 != x2:
        return _arrow_to_the_shutdown(x1, y1, x2, y2, kinds)
    if abs(y1 - y2) > 2 * BOX_HEIGHT + 100:  # passes a box, on its left side
        x, start, end = x1, y1 + BOX_HEIGHT // 2, y2 + BOX_HEIGHT // 2
        label = _label(x - 44, (start + end) // 2, kinds, "end")
        return f'<path d="M{x} {start}C{x - 50} {start} {x - 50} {end} {x} {end}" {_LINE}/>{label}'
    returns = y2 < y1
    x = x1 + BOX_WIDTH // 2 + (50 if returns else -50)
    start, end = (y1, y2 + BOX_HEIGHT) if returns else (y1 + BOX_HEIGHT, y2)
    label = _label(x + (8 if returns else -8), (start + end) // 2 + 4, kinds, "start" if returns else "end")
    return f'<path d="M{x} {start}L{x} {end}" {_LINE}/>{label}'


def _arrow_to_the_shutdown(x1: int, y1: int, x2: int, y2: int, kinds: list[Kind]) -> str:
    """Return an arrow between the columns. Arrows that end at the same box end below one another."""
    start, end = y1 + BOX_HEIGHT // 2, y2 + BOX_HEIGHT // 2 + (y1 - y2) // 20
    left, right = x1 + BOX_WIDTH, x2
    label = _label(left + 12, start - 6, kinds, "start") if y1 == y2 else ""
    if y1 != y2:  # in two lines, clear of the arrows
        label = _label(left + 12, start + 22, kinds[:2], "start") + _label(left + 12, start + 36, kinds[2:], "start")
    return f'<path d="M{left} {start}L{right} {end}" {_LINE}/>{label}'


def _label(x: int, y: int, kinds: list[Kind], anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#333333">{", ".join(kinds)}</text>'
