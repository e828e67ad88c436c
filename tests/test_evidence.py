"""Evidence of small programs that leak, each in a process of its own: what it names is what a person would look for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from memwatch.evidence.told import FULL

HERE = Path(__file__).parent
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere: the heap is looked at in a forked child on Linux only")
pytestmark = linux_only


@cache
def examined(
    program: str, channel: str = "heap", kind: str = "python-heap", mode: str = "auto", sample_bytes: int = 65536
) -> dict[str, Any]:
    """The conclusion on a program that defines `grow()`."""
    words = [
        sys.executable,
        str(HERE / "examined.py"),
        f"channel={channel}",
        f"kind={kind}",
        f"mode={mode}",
        f"sample_bytes={sample_bytes}",
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MEMWATCH")}
    result = subprocess.run(words, input=program, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return dict(json.loads(result.stdout))


def labels(conclusion: dict[str, Any], collector: str) -> list[str]:
    return [suspect["label"] for suspect in conclusion["evidence"][collector]["suspects"]]


def first(conclusion: dict[str, Any], collector: str) -> dict[str, Any]:
    return dict(conclusion["evidence"][collector]["suspects"][0])


SESSIONS = """
class Session:
    def __init__(self, n): self.n = n; self.text = "session %d" % n * 4
_STORE = {}
def grow():
    for i in range(3000): _STORE[len(_STORE)] = Session(len(_STORE))
"""


def test_a_leak_into_a_module_global_is_told_with_its_type_its_count_its_site_and_its_container() -> None:
    found = examined(SESSIONS)
    types = {suspect["label"]: suspect for suspect in found["evidence"]["types"]["suspects"]}
    assert types["app.Session"]["count"] == 30_000
    assert any(place.startswith("app.py:") for place in types["app.Session"]["trail"])
    assert first(found, "holders")["label"] == "module app → _STORE (dict, 30,000 entries)"
    assert first(found, "holders")["share"] > 0.4
    sites = labels(found, "sites")
    assert any(label.endswith("grow") for label in sites)
    assert any(label.endswith("Session.__init__") for label in sites)


def test_exact_counts_and_sampled_bytes_agree_on_how_much_grew() -> None:
    found = examined(SESSIONS)
    exact = sum(suspect["bytes"] for suspect in found["evidence"]["types"]["suspects"])
    sampled = sum(suspect["bytes"] for suspect in found["evidence"]["sites"]["suspects"])
    # The standard error of 8 MB sampled every 64 KiB is 9 %.
    assert sampled == pytest.approx(exact, rel=0.5)
    assert found["evidence"]["types"]["explains"] > 0.6


def test_an_unbounded_lru_cache_is_named_with_its_function() -> None:
    found = examined("""
import functools
class Api:
    @functools.lru_cache(maxsize=None)
    def look(self, n): return "answer %d" % n * 10
def grow():
    for i in range(500):
        api = Api()
        for j in range(4): api.look(j)
""")
    assert found["bounded"] is None
    assert "_lru_cache_wrapper of app.Api.look, unbounded" in first(found, "holders")["label"]


def test_an_lru_cache_below_its_maxsize_is_a_fill_with_its_bound() -> None:
    found = examined("""
import functools
n = 0
@functools.lru_cache(maxsize=100000)
def look(n): return "answer %d" % n * 10
def grow():
    global n
    for i in range(3000): n += 1; look(n)
""")
    reason, room, _ = found["bounded"]
    assert reason == "lru_cache app.look held 30,000 of at most 100,000 entries when it was looked at"
    assert room > 0


def test_a_full_lru_cache_does_not_explain_growth() -> None:
    found = examined("""
import functools
@functools.lru_cache(maxsize=100)
def look(n): return []
def grow():
    for i in range(100): look(i).append("more %d" % i * 100)
    for i in range(100): look(i).extend("x%d" % j * 9 for j in range(10))
""")
    assert FULL < 1
    assert found["bounded"] is None


def test_a_bounded_cache_of_one_object_that_grows_is_no_fill() -> None:
    found = examined("""
from functools import lru_cache
class Client:
    def __init__(self): self.log = []
@lru_cache
def get_client(): return Client()
def grow():
    for i in range(3000): get_client().log.append("line %d" % i * 9)
""")
    assert found["bounded"] is None
    assert "log (list, 30,000 entries)" in first(found, "holders")["label"]


def test_a_deque_with_maxlen_that_is_not_full_is_a_fill() -> None:
    found = examined("""
import collections
RECENT = collections.deque(maxlen=1000000)
def grow():
    for i in range(5000): RECENT.append(["n %d" % i])
""")
    assert "held 50,000 of at most 1,000,000" in found["bounded"][0]
    assert first(found, "holders")["share"] > 0.4  # its blocks are its own, not "C's"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("100_000, name='rows'", "LRUCache rows held 20,000 of at most 100,000 entries"),
        ("None, max_bytes='1GiB', name='rows'", "LRUCache rows held 1"),
    ],
)
def test_a_cache_of_ours_that_is_not_full_is_a_fill_by_entries_or_by_bytes(arguments: str, reason: str) -> None:
    found = examined(f"""
from memwatch.caches import LRUCache
class Rows(LRUCache): pass
ROWS = LRUCache({arguments})
def grow():
    for i in range(2000): ROWS[len(ROWS)] = "value %d" % i * 30
""")
    assert found["bounded"][0].startswith(reason)
    assert ("of at most 1.00 GiB" in found["bounded"][0]) == ("GiB" in arguments)


def test_a_cache_with_the_attributes_of_cachetools_is_a_fill() -> None:
    found = examined("""
class Cache:
    def __init__(self, maxsize):
        self.__data, self.__maxsize, self.__currsize = {}, maxsize, 0
    def put(self, key, value): self.__data[key] = value; self.__currsize += 1
CACHE = Cache(90000)
def grow():
    for i in range(2000): CACHE.put(len(CACHE._Cache__data), "value %d" % i * 9)
""")
    assert "app.Cache held 20,000 of at most 90,000 entries" in found["bounded"][0]


def test_handlers_added_per_request_are_found_in_their_logger() -> None:
    found = examined("""
import logging, io
def grow():
    for i in range(300): logging.getLogger("app").addHandler(logging.StreamHandler(io.StringIO()))
""")
    assert any("handlers (list, 3,000 entries)" in label for label in labels(found, "holders")[:2])


def test_what_a_closure_holds_is_told_with_the_function() -> None:
    found = examined("""
def make():
    seen = []
    def handle(x): seen.append("request %d" % x * 5)
    return handle
handle = make()
def grow():
    for i in range(5000): handle(i)
""")
    assert first(found, "holders")["label"].startswith("module app → handle (function make.<locals>.handle)")


def test_what_a_thread_local_holds_is_told() -> None:
    found = examined("""
import threading
local = threading.local()
def grow():
    if not hasattr(local, "buffer"): local.buffer = []
    for i in range(5000): local.buffer.append("x%d" % i * 10)
""")
    assert "local (_thread._local)" in first(found, "holders")["label"]


def test_what_a_local_variable_of_a_running_thread_holds_is_told_with_function_variable_and_thread() -> None:
    found = examined("""
import threading, queue
jobs, done = queue.Queue(), queue.Queue()
def work():
    kept = []
    while True:
        n = jobs.get()
        kept.append(["item %d" % n * 8])
        done.put(1)
threading.Thread(target=work, daemon=True, name="worker-7").start()
def grow():
    for i in range(1500): jobs.put(i)
    for i in range(1500): done.get()
""")
    label = first(found, "holders")["label"]
    assert label.startswith("frame work (app.py:")
    assert "of thread worker-7 → kept (list, 15,000 entries)" in label


def test_what_a_suspended_generator_holds_is_told_with_its_local_variable() -> None:
    found = examined("""
def pump():
    history = []
    while True:
        n = yield
        history.append("step %d" % n * 6)
g = pump(); next(g)
def grow():
    for i in range(5000): g.send(i)
""")
    assert first(found, "holders")["label"] == "module app → g (generator pump) → local history (list, 50,000 entries)"


def test_what_a_context_variable_holds_is_told() -> None:
    found = examined("""
import contextvars
var = contextvars.ContextVar("var", default=None)
var.set([])
def grow():
    for i in range(5000): var.get().append("c%d" % i * 9)
""")
    assert first(found, "holders")["label"].startswith("context variables of thread")


def test_what_a_class_attribute_holds_is_told_with_the_class() -> None:
    found = examined("""
class Registry:
    items = []
def grow():
    for i in range(5000): Registry.items.append({"n": i})
""")
    assert first(found, "holders")["label"] == "module app → Registry (class app.Registry) → items (list, 50,000 entries)"


def test_text_keys_of_a_dictionary_are_held_by_it_though_the_collector_never_visits_them() -> None:
    found = examined("""
CACHE = {}
def grow():
    for i in range(4000): CACHE["key %d" % len(CACHE)] = b"v"
""")
    assert first(found, "holders")["label"] == "module app → CACHE (dict, 40,000 entries)"
    assert first(found, "holders")["share"] > 0.4


def test_a_long_chain_is_told_by_what_refers_to_its_first_link() -> None:
    found = examined("""
class Link:
    __slots__ = ("next", "value")
HEAD = Link(); HEAD.next = None; HEAD.value = 0
def grow():
    for i in range(5000):
        new = Link(); new.value = "value %d" % i; new.next = HEAD.next; HEAD.next = new
""")
    assert first(found, "holders")["label"] == "module app → HEAD (app.Link)"
    assert first(found, "holders")["trail"][0].startswith("app.Link (a chain of ")


def test_a_chain_of_built_in_containers_is_told_by_its_own_beginning_and_no_other() -> None:
    found = examined("""
chain = None
def grow():
    global chain
    for i in range(20000): chain = (chain, i + 0.5)
""")
    assert first(found, "holders")["label"] == "module app → chain (tuple)"
    assert first(found, "holders")["trail"][0].startswith("tuple (a chain of ")
    assert first(found, "holders")["share"] > 0.4


def test_a_chain_of_two_types_in_turn_is_told_by_its_beginning() -> None:
    found = examined("""
class Node: pass
HEAD = Node()
def grow():
    for i in range(3000):
        node = Node(); node.value = "value %d" % i; node.links = [getattr(HEAD, "links", None)]; HEAD.links = [node]
""")
    assert first(found, "holders")["label"].startswith("module app → HEAD (app.Node)")


def test_cycles_that_the_collector_has_not_reached_are_said_to_be_that() -> None:
    found = examined("""
import gc; gc.disable()
class Node: pass
def grow():
    for i in range(2000):
        a, b = Node(), Node(); a.other, b.other = b, a; a.text = "x" * 100 + str(i)
""")
    assert found["cycles_share"] > 0.9
    assert "a cycle that the collector has not reached yet" in first(found, "holders")["label"]


def test_garbage_in_large_cycles_is_said_to_be_that_too() -> None:
    found = examined("""
import gc; gc.disable()
class Node:
    def __init__(self, parent): self.parent, self.children, self.text = parent, [], "text of %d" % id(self) * 5
def tree():
    root = Node(None); level = [root]
    for depth in range(11):
        below = []
        for node in level:
            for _ in range(2): node.children.append(Node(node))
            below += node.children
        level = below
def grow(): tree()
""")
    assert found["cycles_share"] > 0.8
    assert "a cycle that the collector has not reached yet" in first(found, "holders")["label"]


def test_a_reference_lost_in_c_is_said_to_be_that() -> None:
    found = examined("""
import ctypes
class Lost:
    def __init__(self): self.data = "y" * 150
def grow():
    for i in range(1500): ctypes.pythonapi.Py_IncRef(ctypes.py_object(Lost()))
""")
    assert first(found, "holders")["label"] == "a reference held in C, to app.Lost"


def test_a_block_that_c_took_through_pythons_allocator_is_said_to_hold_no_object() -> None:
    found = examined("""
import ctypes
take = ctypes.pythonapi.PyObject_Malloc
take.argtypes, take.restype = [ctypes.c_size_t], ctypes.c_void_p
def leak_a_buffer(): take(200)
def grow():
    for i in range(3000): leak_a_buffer()
""")
    assert first(found, "holders")["label"].startswith("nothing that Python can see: C code")
    assert first(found, "sites")["label"].endswith("leak_a_buffer")


def test_memory_of_malloc_is_charged_to_the_lines_that_ran_and_said_to_be_native() -> None:
    found = examined(
        """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def parse():
    libc.memset(libc.malloc(20000), 1, 20000)
    return ["x%d" % i for i in range(300)]
def other():
    return ["y%d" % i for i in range(300)]
def grow():
    for i in range(300): parse(); other()
""",
        "native",
        "native",
    )
    assert found["evidence"]["sites"]["suspects"] == []
    assert "did not grow" in found["evidence"]["sites"]["note"]
    assert "parse" in first(found, "native")["label"] or "parse" in first(found, "native")["trail"][0]
    assert "malloc in use changed by +" in found["evidence"]["native"]["note"]


def test_arrays_whose_data_no_python_allocator_gave_out_are_found_by_their_type() -> None:
    found = examined(
        """
import mmap
class Table:
    def __init__(self): self.rows = mmap.mmap(-1, 8192)
TABLES = []
def grow():
    for i in range(300): TABLES.append(Table())
"""
    )
    assert "module app → TABLES (list, 3,000 entries)" in labels(found, "holders")


def test_classes_made_again_and_again_are_one_row() -> None:
    found = examined("""
REG = []
def make(n):
    class Message:
        field = n
    return Message
def grow():
    for i in range(150): REG.append(make(i))
""")
    assert first(found, "types")["label"] == "type"
    assert first(found, "types")["count"] == pytest.approx(1500, abs=5)
    assert first(found, "holders")["label"] == "module app → REG (list, 1,500 entries)"


def test_tasks_are_grouped_by_coroutine_and_where_it_waits_with_who_holds_them() -> None:
    found = examined(
        """
import asyncio, threading
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
async def watch():
    await asyncio.sleep(3600)
async def begin():
    for i in range(30): KEEP.append(asyncio.create_task(watch()))
KEEP = []
def grow(): asyncio.run_coroutine_threadsafe(begin(), loop).result()
""",
        "tasks",
        "tasks",
        sample_bytes=4096,  # of 300 small objects some are sampled for sure
    )
    group = first(found, "resources")
    assert group["label"].startswith("task watch (app.py), waiting in asyncio/tasks.py:")
    assert group["count"] == 300
    assert group["trail"][0].endswith("begin"), "where the tasks were made"
    assert first(found, "holders")["label"] == "module app → KEEP (list, 300 entries)"


def test_threads_are_grouped_by_name_without_numbers_and_target() -> None:
    found = examined(
        """
import threading
stop = threading.Event()
def poll_forever(): stop.wait()
def grow():
    for i in range(5): threading.Thread(target=poll_forever, daemon=True, name="poller-%d" % i).start()
""",
        "threads",
        "threads",
    )
    assert first(found, "resources")["label"] == "thread poller-* (target app.poll_forever)"
    assert first(found, "resources")["count"] == 50
    assert first(found, "resources")["trail"][0].endswith("grow"), "where the threads were made"


def test_threads_of_an_executor_below_its_max_workers_are_a_fill() -> None:
    found = examined(
        """
import concurrent.futures, threading
stop = threading.Event()
EXECUTOR = concurrent.futures.ThreadPoolExecutor(max_workers=500)
def grow():
    for i in range(5): EXECUTOR.submit(stop.wait)
""",
        "threads",
        "threads",
    )
    assert found["bounded"][0].startswith("concurrent.futures.thread.ThreadPoolExecutor held 50 of at most 500 entries")
    assert found["bounded"][1:] == [50.0, "threads"]


def test_sockets_are_grouped_by_peer_and_state_and_followed_to_their_holder() -> None:
    found = examined(
        """
import socket
server = socket.create_server(("127.0.0.1", 0)); port = server.getsockname()[1]
OPEN = []
def grow():
    for i in range(5): OPEN.append((socket.create_connection(("127.0.0.1", port)), server.accept()[0]))
""",
        "fds",
        "descriptors",
    )
    groups = labels(found, "resources")
    assert any(label.startswith("connection to 127.0.0.1:") and label.endswith("(ESTABLISHED)") for label in groups)
    assert any(label.startswith("connection from 127.0.0.1 to port ") for label in groups)
    assert first(found, "holders")["label"] == "module app → OPEN (list, 50 entries)"


def test_files_are_grouped_by_path_without_numbers_and_followed_to_their_holder() -> None:
    found = examined(
        """
import tempfile, os
folder = tempfile.mkdtemp(prefix="logs")
class Log:
    def __init__(self, n): self.file = open(os.path.join(folder, "app-%d.log" % n), "w")
LOGS = []
def grow():
    for i in range(5): LOGS.append(Log(len(LOGS)))
""",
        "fds",
        "descriptors",
    )
    assert first(found, "resources")["label"].endswith("/app-*.log")
    assert first(found, "resources")["count"] == 50
    assert first(found, "holders")["label"] == "module app → LOGS (list, 50 entries)"
    assert "app.Log" in first(found, "holders")["trail"]


def test_child_processes_are_grouped_by_command() -> None:
    found = examined(
        """
import subprocess
PROCS = []
def grow():
    for i in range(3): PROCS.append(subprocess.Popen(["sleep", "60"]))
""",
        "children",
        "children",
    )
    assert first(found, "resources")["label"] == "child process sleep *"
    assert first(found, "resources")["count"] == 30
    assert first(found, "holders")["label"] == "module app → PROCS (list, 30 entries)"


def test_no_code_of_the_program_runs_while_its_heap_is_looked_at() -> None:
    found = examined("""
import sys
def tell(*arguments):
    sys.stderr.write("user code ran\\n"); sys.stderr.flush()
    raise RuntimeError("user code ran")
class Meta(type):
    __repr__ = __str__ = __len__ = __bool__ = __instancecheck__ = __subclasscheck__ = __eq__ = tell
    __hash__ = type.__hash__
class Hostile(metaclass=Meta):
    __repr__ = __str__ = __len__ = __bool__ = __eq__ = __sizeof__ = __iter__ = __call__ = tell
    __hash__ = object.__hash__
    __class__ = property(tell)
    def __getattr__(self, name): tell()
    def __del__(self): tell()
    def __init__(self): object.__setattr__(self, "payload", "p" * 200)
KEPT = []
def grow():
    for i in range(1000): KEPT.append(Hostile())
""")
    assert "app.Hostile" in labels(found, "types")
    assert first(found, "holders")["label"] == "module app → KEPT (list, 10,000 entries)"


def test_a_program_that_traces_itself_goes_on_doing_so_beside_our_tracing() -> None:
    found = examined(
        SESSIONS
        + "\nimport tracemalloc; tracemalloc.start(3)\n_grow = grow\ndef grow():\n    assert tracemalloc.is_tracing(); _grow()\n",
        mode="tracemalloc",
    )
    assert found["tracing"] is True
    assert any("app.py:" in label for label in labels(found, "sites"))


def test_without_the_sampler_tracemalloc_tells_the_sites_from_the_suspicion_on() -> None:
    found = examined(SESSIONS, mode="tracemalloc")
    assert found["tracing"] is False, "it was started for the suspicion and is stopped after"
    assert any("app.py:" in label for label in labels(found, "sites"))
    assert first(found, "types")["label"] in ("app.Session", "str")


def test_with_evidence_switched_off_nothing_is_taken(tmp_path: Path) -> None:
    program = (
        "import memwatch, sys; w = memwatch.start(evidence='off', directory=False); memwatch.stop();"
        "print('memwatch.evidence._sampler' in sys.modules, 'memwatch.evidence._heap' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_where_no_child_may_be_forked_the_types_of_a_small_heap_are_counted_in_the_process_and_that_is_said() -> None:
    found = examined(
        "from memwatch.evidence import child, suspicion\nsuspicion.refusal = lambda *_: 'no child today'\n"
        "class Session: pass\n_STORE = []\ndef grow():\n    for i in range(300): _STORE.append(Session())\n"
    )
    types = found["evidence"]["types"]
    assert types["suspects"][0]["label"] == "app.Session"
    assert types["suspects"][0]["count"] == 3000
    assert "no child today; counted in the process itself: growth in number" in types["note"]


def test_where_no_child_may_be_forked_a_large_heap_is_left_alone_and_that_is_said() -> None:
    found = examined(
        "from memwatch.evidence import child, suspicion\nsuspicion.refusal = lambda *_: 'no child today'\n"
        "class Session: pass\n_STORE = []\ndef grow():\n    for i in range(110000): _STORE.append(Session())\n"
    )
    assert "would be a pause" in found["evidence"]["types"]["note"]
