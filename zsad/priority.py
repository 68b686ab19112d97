"""Which processes give way when cores are short: those around the model, to the one that runs it.

A model that computes without a pause is the first to be interrupted, by dozens of threads that wake for a millisecond
each: on two busy cores an endpoint's scorer had work all the time and a core for only two thirds of it. The others wait
for the scorer anyway, so they lower their own priority; whenever it has nothing to do they run at full speed. It costs
latency where others' work competes for the same cores; containers have shares of their own, which this does not touch.
"""

import contextlib
import os
from pathlib import Path

STEP = 10  # nice levels, each a factor of 1.25 in the kernel's weights; Ray's workers begin at 15, where 4 are left
_LOWEST = 19


def give_way() -> None:
    """Lower the priority of this process, its present threads and the threads and children it will start; call it once.

    Linux keeps a priority per thread, and a thread inherits that of the one that starts it.
    """
    wanted = min(_LOWEST, os.getpriority(os.PRIO_PROCESS, os.getpid()) + STEP)
    for task in Path("/proc/self/task").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):  # the thread has just ended
            os.setpriority(os.PRIO_PROCESS, int(task.name), wanted)
