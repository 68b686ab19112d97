"""How a run gets its place behind the runs before it: one new run at a time, also when two drivers start together.

Each run folder holds at most one `next.json`, written by put-if-absent, that names the run which follows. Two drivers
that see the same last run compete for that one object; the loser takes the winner's run id, meets its lease and ends.
So an output never has two new runs that know nothing of each other. A driver that dies behind its claim leaves a name
that the next one takes up.
"""

from dataclasses import replace

from zsad.errors import CommitConflict, ConfigError, StorageError
from zsad.report.ledger import RunState, canonical_json, diff_fields, is_published, read_json, write_run_state
from zsad.report.paths import RUNS, run_key
from zsad.storage import Store


def last_run(output: Store) -> str | None:
    """The greatest run id of the output, whatever became of it, or None."""
    return max(output.list_folders(RUNS), default=None)


def register_run(output: Store, wanted: RunState, behind: str | None) -> RunState:
    """Register a new run behind the run `behind`; of two drivers at once both get the state of one.

    Returns:
        The stored state; its `run_id` is another's when that driver was first.

    Raises:
        ConfigError: the driver that was first has other settings.
        CommitConflict: another driver's run ended meanwhile, and readers would take it for the later one.
        StorageError: the store fails.
    """
    run_id = _claim(output, wanted.run_id, behind)
    stored = write_run_state(output, replace(wanted, run_id=run_id))
    if changed := diff_fields(stored.config, wanted.config):
        names = ", ".join(name.removeprefix("listing.") for name in changed)
        raise ConfigError(f"run {run_id} was just started by another driver with another {names}; wait for it to end")
    return stored


def _claim(output: Store, run_id: str, behind: str | None) -> str:
    """Write `next.json` of `behind`; returns the run id that counts."""
    while True:
        key = run_key(behind, "next.json") if behind else f"{RUNS}next.json"
        if output.put_if_absent(key, canonical_json({"run_id": run_id})):
            return run_id
        found = read_json(output, key)
        if found is None:
            raise StorageError(f"{output.uri(key)} was there and is gone; is another program deleting files?")
        behind = str(found["run_id"])
        is_over = is_published(output, behind) or output.exists(run_key(behind, "partial.json"))
        if not is_over:
            return behind
        if behind >= run_id:
            raise CommitConflict(f"run {behind} of {output.url} was made by another driver meanwhile; start again")
