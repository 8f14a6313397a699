"""State shared by the request handlers: options, database and admission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from litestar.di import NamedDependency
from litestar.params import QueryParameter, SkipValidation

from vidflow.domain.access import ReadScope, WriteScope
from vidflow.roles.api.admission import Admission
from vidflow.roles.api.database import Database
from vidflow.settings import ApiOptions

MAX_PAGE_ITEMS: Final = 1000
"""The largest page that a client may request."""


@dataclass(frozen=True)
class Context:
    """The shared state, created once per process."""

    options: ApiOptions
    database: Database
    admission: Admission


Api = NamedDependency[SkipValidation[Context]]
Reader = NamedDependency[SkipValidation[ReadScope]]
Writer = NamedDependency[SkipValidation[WriteScope]]
Limit = Annotated[
    int, QueryParameter(ge=1, le=MAX_PAGE_ITEMS, description=f"maximum number of items, 1 to {MAX_PAGE_ITEMS}")
]
