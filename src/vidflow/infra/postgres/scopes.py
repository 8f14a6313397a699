"""SQL conditions that keep a statement within the scope of a request. `owner` is `ReadScope.only_owner`, null for all owners."""

from __future__ import annotations

from typing import Final

IS_IN_SCOPE: Final = "(%(owner)s::text IS NULL OR s.owner = %(owner)s)"
"""A row `s` of scenarios is in scope."""
IS_SCENARIO_IN_SCOPE: Final = (
    f"EXISTS (SELECT FROM scenarios s WHERE s.scenario_uuid = %(scenario_uuid)s AND {IS_IN_SCOPE})"
)
"""The scenario that the statement reads is in scope."""
