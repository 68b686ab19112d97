"""The main job: manifest -> decode tasks -> fixed pool of scorers -> committed shards -> published report.

One block of the Ray Data pipeline is one manifest shard from end to end: a read task makes the block, `batch_size=None`
keeps it whole, and the sink checks that it is. So the ledger commits exactly what was listed, and a restart skips whole
shards. Shards are small enough (`rows_per_shard`) that a decoded one stays far below Ray's target block size, which
would split it.

On machines without GPUs there is one single-threaded scorer per CPU, and decoding shares those CPUs: scorers and decode
tasks ask for half a CPU each, so both always fit. With GPUs there is one scorer per GPU and decoding has the CPUs.
"""

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Datasink

from zsad import __version__
from zsad.batch_config import BatchConfig, absolute, result_fields
from zsad.bundle import DetectorConfig
from zsad.distributed.progress import Progress, ProgressReporter
from zsad.distributed.prepare import prepare_detector
from zsad.errors import CommitConflict, ConfigError, StorageError, TooManyBadImages, ZsadError
from zsad.images import DecodeLimits, Preprocess
from zsad.report import ledger, manifest, publish
from zsad.report.lease import Lease, acquire_lease
from zsad.report.ledger import RunState
from zsad.report.paths import map_key, new_run_id, run_key
from zsad.report.schema import RunStamp
from zsad.storage import Store, open_store

log = logging.getLogger(__name__)
