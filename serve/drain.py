"""`python serve/drain.py [SECONDS]`: the running endpoint says "not ready", for SECONDS (10); made for a preStop hook.

Requests are answered all the while, so that a load balancer has time to look elsewhere before anything stops.
"""

import sys
import time

import ray

from zsad.distributed.serving import drain

DEFAULT_S = 10.0


def main() -> None:
    """Flip the readiness of every ingress replica of the cluster that runs here, and wait."""
    ray.init(address="auto", log_to_driver=False)
    drain()
    time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_S)


if __name__ == "__main__":
    main()
