"""A training on two Ray nodes of which the one with the workers is killed; a script, for it needs a Ray of its own.

python two_nodes.py '[BACKBONE, DATA, OUTPUT, CHANGES]' EPOCHS    (of `config_for`; epochs after which the node goes)
"""

import json
import sys
import threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from training_runs import config_for, training_workers, when_epochs_are_done

from zsad.distributed.train_prompts import train_prompts

STORE_BYTES = 128 * 2**20


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

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    train_prompts(config)
    killer.join(60)
    print("CPUs after", int(ray.cluster_resources()["CPU"]), flush=True)


if __name__ == "__main__":
    main()
