"""A training on two Ray nodes of which the one with the workers is killed; a script, for it needs a Ray of its own.

python two_nodes.py '[BACKBONE, DATA, OUTPUT, CHANGES]' EPOCHS [--again]

The list is of `config_for`, EPOCHS those after which the node goes. With --again another node takes its place soon
after; the script stops the training when it has gone on for two epochs with two workers.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from training_runs import config_for, training_workers, when_epochs_are_done

from zsad.distributed.train_prompts import train_prompts

STORE_BYTES = 128 * 2**20
GROWTH_S = 300.0  # Ray Train looks for more room once a minute


def main() -> None:
    """Two workers fit on the second node, one on the first: after the kill there can be only one."""
    backbone, data, output, changes = json.loads(sys.argv[1])
    config, epochs = config_for(Path(backbone), Path(data), Path(output), **changes), int(sys.argv[2])
    head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=3, object_store_memory=STORE_BYTES)
    ray.init(address=cluster.address, log_to_driver=False)

    def kill() -> None:
        print("epochs before", when_epochs_are_done(Path(output), epochs), flush=True)
        print("workers before", len(training_workers()), flush=True)
        cluster.remove_node(node, allow_graceful=False)
        if "--again" in sys.argv:
            grow()

    def grow() -> None:
        when_epochs_are_done(Path(output), epochs + 3)
        print("workers left", len(training_workers()), flush=True)
        started = start_node(cluster.address)
        deadline = time.monotonic() + GROWTH_S
        while len(training_workers()) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        done = when_epochs_are_done(Path(output), 0)
        when_epochs_are_done(Path(output), done + 2)
        print("workers again", len(training_workers()), flush=True)
        started.kill()
        ray.shutdown()
        cluster.shutdown()
        os._exit(0)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    train_prompts(config)
    killer.join(60)
    print("CPUs after", int(ray.cluster_resources()["CPU"]), flush=True)


def start_node(address: str) -> "subprocess.Popen[bytes]":
    """Another node; `Cluster.add_node` sets signal handlers, and so works in the main thread only."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=3", "--block"]
    return subprocess.Popen([*command, f"--object-store-memory={STORE_BYTES}"], stdout=sys.stderr)


if __name__ == "__main__":
    main()
