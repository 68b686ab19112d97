"""In processes of its own: whoever gives way can't take it back."""

import json
import os
import subprocess
import sys

from zsad.priority import give_way

WHO_GIVES_WAY = """
import json, os, subprocess, sys, threading
from zsad.priority import give_way

os.setpriority(os.PRIO_PROCESS, 0, {before})
stop = threading.Event()
early = threading.Thread(target=stop.wait)
early.start()
give_way()
late = threading.Thread(target=stop.wait)
late.start()
tell = "import os; print(os.nice(0), os.sched_getscheduler(0))"
child = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True)
threads = [thread.native_id for thread in (threading.main_thread(), early, late)]
told = [[os.getpriority(os.PRIO_PROCESS, thread), os.sched_getscheduler(thread)] for thread in threads]
stop.set()
print(json.dumps([*told, [int(word) for word in child.stdout.split()]]))
"""


def told_from(before):
    """Level and policy of the main thread, an early one, a late one and a child, of a process that had `before`."""
    script = WHO_GIVES_WAY.format(before=before)
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(told.stdout)


def test_threads_that_run_threads_to_come_and_children_all_give_way():
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert told_from(own) == [[min(19, own + 10), os.SCHED_BATCH]] * 4


def test_nobody_goes_below_the_lowest_level():
    assert told_from(17) == [[19, os.SCHED_BATCH]] * 4


def test_a_sandbox_that_refuses_is_no_reason_not_to_serve(monkeypatch):
    asked = []

    def refused(*arguments):
        asked.append(arguments)
        raise PermissionError("not here")

    monkeypatch.setattr(os, "setpriority", refused)
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    give_way()
    assert asked
