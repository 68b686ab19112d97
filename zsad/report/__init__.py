"""From a listing to a published run, and back.

One run is a folder `runs/<run_id>/` of the output store; nothing in it is ever changed, only added:

| key | written by | with |
|---|---|---|
| `run.json` | the driver, first | put-if-absent |
| `lease/<n>.json` | the driver that holds the run | put-if-absent, then heartbeats |
| `manifest/<shard>.parquet`, `manifest/_DONE.json` | the listing | put |
| `data/<shard>-<attempt>.parquet` | a scoring task; a loser's file is garbage | put |
| `maps/<shard>/<row>.png` | a scoring task | put |
| `shards/<shard>.json` | the task that commits the shard | put-if-absent |
| `_MANIFEST.json`, then `published/<run_id>.json` outside the folder | the driver | put-if-absent |
| `partial.json` | the driver, instead of publishing | put |

Readers follow `published/` only, so they see a whole run or nothing.
"""

from zsad.report.read import read_report

__all__ = ["read_report"]
