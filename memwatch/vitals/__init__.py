"""Reading a process: every channel of `memwatch.model.CHANNELS`, the cheapest way that is right.

`inside` reads the process we are in, `outside` another one; `process`, `heap`, `tasks`, `limits` and `portable` know one kind of
source each; `pace` decides how often each is taken; `identity` tells processes apart.

Law: importing this package reads nothing and loads neither psutil, ctypes nor asyncio.
"""

from memwatch.vitals.heap import collect_garbage, read_pools_with, trim
from memwatch.vitals.identity import Identity, ProcessGone, identity, is_running
from memwatch.vitals.inside import Vitals
from memwatch.vitals.limits import Limit, all_limits, cgroup_memory, effective_limit, oom_kills
from memwatch.vitals.outside import OutsideVitals
from memwatch.vitals.process import descriptors_by_kind

__all__ = [
    "Identity",
    "Limit",
    "OutsideVitals",
    "ProcessGone",
    "Vitals",
    "all_limits",
    "cgroup_memory",
    "collect_garbage",
    "descriptors_by_kind",
    "effective_limit",
    "identity",
    "is_running",
    "oom_kills",
    "read_pools_with",
    "trim",
]
