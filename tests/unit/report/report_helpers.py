"""Small runs for the tests of this folder."""

from datetime import UTC, datetime

from zsad.errors import ErrorCode
from zsad.report.ledger import RunState, commit_shard, config_hash, write_run_state, write_shard_data
from zsad.report.manifest import ListingOptions, read_manifest_shard, write_manifest
from zsad.report.publish import publish_run
from zsad.report.schema import RunStamp, error_row, rows_to_table

CONFIG = {"detector": "nano", "decode": {"max_pixels": 100}}
HASH = config_hash(CONFIG)


def start_run(output, run_id, source):
    state = RunState(
        run_id=run_id,
        started_at=datetime(2026, 3, 1, tzinfo=UTC).isoformat(),
        input_url=source.url,
        config=CONFIG,
        config_hash=HASH,
    )
    return write_run_state(output, state)


def score_row(run_id, info, code=None):
    """An ok row with score len(key) / 100 that is anomalous for keys with "bad", or an error row."""
    stamp = RunStamp(run_id=run_id, config_hash=HASH)
    if code is not None:
        return error_row(stamp, info, code, "broken", detector="nano")
    row = error_row(stamp, info, ErrorCode.EMPTY, "", detector="nano")
    return row | {
        "status": "ok",
        "error_code": None,
        "error_message": None,
        "score": len(info.key) / 100,
        "is_anomaly": "bad" in info.key,
    }


def score_shard(output, run_id, shard, *, codes=None, fence=1):
    """Score one shard; `codes` maps keys to error codes."""
    objects = read_manifest_shard(output, run_id, shard)
    table = rows_to_table([score_row(run_id, info, (codes or {}).get(info.key)) for info in objects])
    return commit_shard(output, run_id, write_shard_data(output, run_id, shard, table, hash_=HASH, fence=fence))


def whole_run(source, output, run_id, *, rows_per_shard=2, codes=None, carrier=None):
    """List, score and publish; returns (manifest summary, run manifest)."""
    from zsad.report.carry import load_carried

    start_run(output, run_id, source)
    summary = write_manifest(source, output, run_id, ListingOptions(rows_per_shard=rows_per_shard), carrier=carrier)
    for shard in range(summary.num_shards):
        score_shard(output, run_id, shard, codes=codes)
    manifest = publish_run(
        output, run_id, num_shards=summary.num_shards, config_hash=HASH, carried=load_carried(output, run_id)
    )
    return summary, manifest
