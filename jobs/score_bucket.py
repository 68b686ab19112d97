"""Score every image of a folder or bucket and publish a Parquet report with a gallery.

python jobs/score_bucket.py --input URL --output URL [--detector REF] [--config FILE.toml] [...]
ray job submit --working-dir . -- python jobs/score_bucket.py --input s3://... --output s3://...
"""

import sys

from zsad.batch_config import BatchConfig
from zsad.cli import run_job
from zsad.distributed.batch import score_bucket

if __name__ == "__main__":
    sys.exit(run_job(BatchConfig, score_bucket))
