"""Run the four OpenStack Swift servers of one S3 endpoint; uses the interpreter of `.venv-s3`, never zsad's.

Proxy, account, container and object server: one device, one replica, one process each, all on 127.0.0.1. They are
forked from this process after the imports, so that the imports are paid and held in memory once. This process stays as
their supervisor: at the end of its standard input, or when one server ends, it kills the others and exits.
The servers are Swift's own, with one filter of ours (`one_writer.py`); the settings below remove time-outs that a busy
test machine would hit.

Usage: swift_processes.py ROOT PROXY_PORT ACCOUNT_PORT CONTAINER_PORT OBJECT_PORT ACCESS_KEY SECRET_KEY
"""

import gc
import os
import select
import signal
import sys
from pathlib import Path

import swift.account.server
import swift.common.middleware.s3api.s3api
import swift.container.server
import swift.obj.server
import swift.proxy.server  # noqa: F401 - these five are imported before the fork, to be shared
from swift.common import wsgi
from swift.common.ring import RingBuilder

SERVICES = ("proxy", "account", "container", "object")

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_suffix = tests
[storage-policy:0]
name = single
default = yes
"""

DEFAULT_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
bind_timeout = 5
swift_dir = {root}
devices = {root}/node
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
workers = 0
log_level = WARNING
conn_timeout = 30
node_timeout = 60
container_update_timeout = 60
"""

STORAGE_CONF = """
[pipeline:main]
pipeline = healthcheck {service}-server
[app:{service}-server]
use = egg:swift#{service}
eventlet_tpool_num_threads = 4
[filter:healthcheck]
use = egg:swift#healthcheck
"""

# The order s3api, tempauth is required. Swift adds gatekeeper, listing_formats, copy, dlo and versioned_writes itself.
PROXY_CONF = """
[pipeline:main]
pipeline = catch_errors healthcheck one_writer s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
error_suppression_limit = 1000000
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:one_writer]
paste.filter_factory = one_writer:filter_factory
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_{user} = {secret} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""


def write_configuration(root: Path, ports: dict[str, int], access_key: str, secret_key: str) -> None:
    """Write swift.conf, one configuration file per server and the three rings (which device holds what) under root."""
    (root / "swift.conf").write_text(SWIFT_CONF)
    (root / "node" / "disk").mkdir(parents=True, exist_ok=True)
    user = access_key.replace(":", "_")
    for service in SERVICES:
        body = PROXY_CONF if service == "proxy" else STORAGE_CONF
        text = (DEFAULT_CONF + body).format(
            root=root, port=ports[service], service=service, user=user, secret=secret_key
        )
        (root / f"{service}.conf").write_text(text)
    for service in SERVICES[1:]:
        ring = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
        ring.add_dev({"region": 1, "zone": 1, "weight": 1, "ip": "127.0.0.1", "port": ports[service], "device": "disk"})
        ring.rebalance()
        ring.get_ring().save(str(root / f"{service}.ring.gz"))


def fork_server(root: Path, service: str) -> int:
    """Start one server in a child process of this process group and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # Stay in the supervisor's process group (setsid would leave it) and keep the user who runs the tests.
        wsgi.clean_up_daemon_hygiene = lambda: None
        code = wsgi.run_wsgi(str(root / f"{service}.conf"), f"{service}-server", verbose=True)
    finally:
        sys.stderr.flush()
        os._exit(code)


def supervise(services: dict[int, str]) -> int:
    """Wait for the end of standard input (0) or of any server (1); then kill and reap every server."""
    try:
        while True:
            readable, _, _ = select.select([0], [], [], 0.2)
            if readable and not os.read(0, 1024):
                return 0
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                name = services.pop(pid)
                print(f"the {name} server ended by itself, status {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
                return 1
    finally:
        for pid in services:
            os.kill(pid, signal.SIGKILL)
        for pid in services:
            os.waitpid(pid, 0)


def main() -> int:
    """Write the configuration, start the servers and stay until they are to stop."""
    root = Path(sys.argv[1])
    ports = dict(zip(SERVICES, map(int, sys.argv[2:6]), strict=True))
    write_configuration(root, ports, *sys.argv[6:8])
    gc.freeze()  # a collection in a child would otherwise copy the shared pages
    return supervise({fork_server(root, service): service for service in SERVICES})


if __name__ == "__main__":
    sys.exit(main())
