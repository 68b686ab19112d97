"""`--since`: which objects are too old to be scored for the first time.

It only leaves out objects without a row in the last published run; rows that stay valid are carried over, changed
objects are scored, whatever their age. The time compared is the object's modification time: S3 gives that of an upload
in parts from its beginning, so a late one can be older than the moment it appeared. Without `--since`, the etag alone
decides and nothing is missed.
"""

from datetime import UTC, datetime

from zsad.errors import ConfigError
from zsad.report import ledger
from zsad.storage import Store

LAST = "last"


def parse_since(text: str) -> datetime | None:
    """The moment that `text` names; None for none and for "last".

    Raises:
        ConfigError: it is neither "last" nor ISO 8601.
    """
    if text in ("", LAST):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"--since {text!r}: give a time as in 2026-03-01T22:00:00Z (UTC unless it says otherwise), or 'last'"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def since_moment(text: str, output: Store, previous_run_id: str | None) -> datetime | None:
    """The moment that `text` names for a run behind `previous_run_id`: for "last", when that run began.

    Raises:
        ConfigError: "last" without such a run, or `text` makes no sense.
    """
    if text != LAST:
        return parse_since(text)
    state = ledger.load_run_state(output, previous_run_id) if previous_run_id else None
    if state is None:
        raise ConfigError(f"--since last: no run is published in {output.url}; give a time, or leave it out")
    return datetime.fromisoformat(state.started_at)
