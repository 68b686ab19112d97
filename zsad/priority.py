"""Which processes give way when cores are short: those around the model, to the one that runs it.

A model that computes without a pause is the first to be interrupted, by dozens of threads that wake for a millisecond
each: on two busy cores an endpoint's scorer had work all the time and a core for only two thirds of it. The others wait
for the scorer anyway, so they lower their own priority, and whenever the scorer has nothing to do they run at full
speed. They also declare themselves batch work (SCHED_BATCH): a thread of theirs that wakes up does not interrupt who
runs on its core, it waits for the end of that one's slice of a few milliseconds, and so does more at once when it runs.
It costs latency where others' work competes for the same cores; containers have shares of their own, which this does
not touch. Where a sandbox refuses, all goes on as equals.
"""

import contextlib
import os
from pathlib import Path

STEP = 10  # nice levels, each a factor of 1.25 in the kernel's weights; Ray's workers begin at 15, where 4 are left
_LOWEST = 19


def give_way() -> None:
    """Lower the priority of this process, its present threads and the threads and children it will start; call it once.

    Linux keeps priority and policy per thread, and a thread inherits those of the one that starts it.
    """
    wanted = min(_LOWEST, os.getpriority(os.PRIO_PROCESS, os.getpid()) + STEP)
    for task in Path("/proc/self/task").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the thread has just ended, or a sandbox refuses: no reason not to serve
            os.setpriority(os.PRIO_PROCESS, int(task.name), wanted)
            os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))
