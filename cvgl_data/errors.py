"""Every exception that cvgl raises on purpose.

```
CvglError
├── RecipeError(ValueError)            wrong or unknown key: names the key path and the nearest valid key
├── UnknownNameError(LookupError)      registry or catalogue: suggests the nearest name
├── AreaError(ValueError)              an area of interest is empty, invalid or outside the Mercator range
├── GridError(ValueError)              a tile grid cannot be laid out as asked
├── SchemaError(ValueError)            a table does not match; names column, expected, found
├── WorkspaceError                     a folder belongs to another recipe, is locked or incomplete
├── DatasetNotFoundError(FileNotFoundError)
├── DatasetError                       a dataset on disk is damaged: names the file and what is wrong
├── TermsError                         terms of use were not accepted: says what they restrict and how to accept
├── CheckpointError                    a run or its weights cannot be loaded; says what did not match
├── HubError                           the Hub refuses, cannot be reached, or holds something else; says what to do
│   └── RedistributionError            images may not be published; counts the rows by reason
└── FetchError                         a source gave up; carries source, item, outcome
    ├── NoImagery                      the source has no pixels there: a fact, not a failure
    ├── NoPanorama                     the id no longer resolves: a fact, not a failure
    └── SourceStopped                  nothing more can be had for now: wrong key, or quota used up
```

Each also derives from the built-in it refines, so ``except FileNotFoundError`` works as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cvgl_data.types import Outcome


class CvglError(Exception):
    """Base of all errors; the command line prints it as one red line and exits with 1."""


class RecipeError(CvglError, ValueError):
    """A recipe key is unknown or its value is wrong."""


class UnknownNameError(CvglError, LookupError):
    """A name is in no registry or catalogue; the message suggests the nearest."""


class AreaError(CvglError, ValueError):
    """An area of interest is empty, invalid, or reaches beyond the Mercator range."""


class GridError(CvglError, ValueError):
    """A tile grid cannot be laid out as asked."""


class SchemaError(CvglError, ValueError):
    """A table does not have the columns, types or version that are expected."""


class WorkspaceError(CvglError):
    """A folder belongs to another recipe, is in use, or is incomplete."""


class DatasetNotFoundError(CvglError, FileNotFoundError):
    """There is no dataset at the given place."""


class DatasetError(CvglError):
    """A dataset on disk is damaged."""


class TermsError(CvglError):
    """A source's terms of use have to be accepted first."""


class CheckpointError(CvglError):
    """A run folder or its weights cannot be loaded."""


class HubError(CvglError):
    """The Hub refuses, cannot be reached, or does not hold what was asked for."""


class RedistributionError(HubError):
    """Some images may not be published; nothing was uploaded.

    Args:
        message: How many rows for which reasons.
        rows: One `cvgl_data.hub.redistribution.Refusal` per image.
    """

    def __init__(self, message: str, rows: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class FetchError(CvglError):
    """A source could not deliver one item.

    Args:
        message: What happened, without secrets.
        source: Name of the source.
        item: The tile or panorama that was asked for.
        outcome: Class of the failure; it decides whether a later run tries again.
    """

    def __init__(
        self, message: str, *, source: str = "", item: str = "", outcome: Outcome = Outcome.CONNECTION
    ) -> None:
        super().__init__(message)
        self.source = source
        self.item = item
        self.outcome = outcome


class NoImagery(FetchError):  # noqa: N818 - a fact, not an error
    """The source has no pixels at this tile."""

    def __init__(self, message: str, *, source: str = "", item: str = "") -> None:
        super().__init__(message, source=source, item=item, outcome=Outcome.NO_IMAGERY)


class NoPanorama(FetchError):  # noqa: N818 - a fact, not an error
    """The panorama id does not resolve (any more)."""

    def __init__(self, message: str, *, source: str = "", item: str = "") -> None:
        super().__init__(message, source=source, item=item, outcome=Outcome.NOT_FOUND)


class SourceStopped(FetchError):  # noqa: N818 - ends the run, not only the item
    """The source refuses this request and every further one: a key is wrong, or the quota is used up.

    The run ends with it; the item stays unfetched and is asked for again by the next run.
    """
