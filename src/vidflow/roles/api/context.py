"""What the handlers share: the options they were started with, the way to the database, and who is let in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from litestar.di import NamedDependency
from litestar.params import QueryParameter, SkipValidation

from vidflow.roles.api.admission import Admission
from vidflow.roles.api.database import Database
from vidflow.settings import ApiOptions

MAX_PAGE_ITEMS: Final = 1000
"""The largest page."""


@dataclass(frozen=True)
class Context:
    """Made once, by the app's factory."""

    options: ApiOptions
    database: Database
    admission: Admission


Api = NamedDependency[SkipValidation[Context]]
Limit = Annotated[
    int, QueryParameter(ge=1, le=MAX_PAGE_ITEMS, description=f"how many items at most, 1 to {MAX_PAGE_ITEMS}")
]
