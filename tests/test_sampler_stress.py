"""The sampler where things go wrong: forks among threads, no memory, deep stacks, signals, other interpreters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    pytest.skip("elsewhere: the sampler declines on free-threaded Python", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent

COMMON = """
import gc, os, signal, sys, threading, time
import memwatch.evidence._sampler as sampler

def leak(count, size=200):
    made = [None] * count
    for number in range(count):
        made[number] = bytes(size + number % 50)
    return made

def leaked():
    return sum(weight for _, size, weight, key, _ in sampler.blocks() if any(name == "leak" for _, name, _ in sampler.stack(key)))
"""


def test_a_child_goes_on_counting_where_the_parent_was(python: Any) -> None:
    done = python(
        COMMON
        + """
sampler.start(1024)
kept = leak(10_000)
child = os.fork()
if child == 0:
    inherited = leaked()
    kept.extend(leak(10_000))
    grown = leaked()
    kept.clear(); gc.collect()
    left = leaked()
    print(inherited, grown, left, sampler.maintain(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert sampler.maintain()
print(leaked(), flush=True)
"""
    )
    (inherited, grown, left, well), (parents,) = (line.split() for line in done.stdout.splitlines())
    assert well == "True"
    assert float(inherited) == float(parents)
    assert float(inherited) == pytest.approx(2.6e6, rel=0.2)
    assert float(grown) == pytest.approx(5.3e6, rel=0.2)
    assert float(left) < 100_000


def test_siblings_do_not_take_the_same_samples(python: Any) -> None:
    done = python(
        COMMON
        + """
sampler.start(4096)
for _ in range(4):
    child = os.fork()
    if child == 0:
        kept = leak(3_000)
        print(round(leaked(), 3), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    )
    assert len(set(done.stdout.split())) == 4


def test_forks_while_threads_allocate_never_hang_a_child(python: Any) -> None:
    python(
        COMMON
        + """
import zlib
sampler.start(1024)
going = True
def allocate():
    while going:
        kept = leak(100), [bytearray(1000) for _ in range(50)], zlib.compress(bytes(50_000))
def read():
    while going:
        sampler.live(); sampler.blocks(); sampler.maintain(); sampler.statistics()
threads = [threading.Thread(target=allocate) for _ in range(3)] + [threading.Thread(target=read)]
for thread in threads: thread.start()
for _ in range(150):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        kept = leak(200)
        sampler.live(); sampler.maintain()
        grandchild = threading.Thread(target=leak, args=(200,))
        grandchild.start(); grandchild.join()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
going = False
for thread in threads: thread.join()
""",
        timeout=120,
    )


CHURN = """
#include <stddef.h>
#include <string.h>
void *PyMem_RawMalloc(size_t); void *PyMem_RawRealloc(void *, size_t); void PyMem_RawFree(void *);
#define KEPT 500
/* Allocate, check, resize and free without the GIL; how many blocks were not what they had been. */
long churn(long rounds, unsigned long seed)
{
    unsigned char *block[KEPT] = {0};
    size_t size[KEPT] = {0};
    long wrong = 0;
    for (long i = 0; i < rounds; i++) {
        seed = seed * 6364136223846793005UL + 1442695040888963407UL;
        unsigned at = (seed >> 33) % KEPT;
        size_t wanted = 16 + (seed >> 45) % 3000;
        if (block[at] && (block[at][0] != (unsigned char)at || block[at][size[at] - 1] != (unsigned char)at)) wrong++;
        if (block[at] && (seed >> 60) % 3 == 0) { PyMem_RawFree(block[at]); block[at] = NULL; continue; }
        block[at] = PyMem_RawRealloc(block[at], wanted);
        size[at] = wanted;
        memset(block[at], at, wanted);
    }
    for (int at = 0; at < KEPT; at++) PyMem_RawFree(block[at]);
    return wrong;
}
"""


@pytest.fixture
def churn(tmp_path: Path) -> Path:
    """A library whose one function works the RAW domain without the GIL: what zlib and numpy do now and then, all the time."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("elsewhere: needs a C compiler")
    (tmp_path / "churn.c").write_text(CHURN)
    flags = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", *flags, "-o", tmp_path / "churn.so", tmp_path / "churn.c"], check=True)
    return tmp_path / "churn.so"


CHURNING = """
import ctypes
library = ctypes.CDLL(sys.argv[1])
library.churn.argtypes = [ctypes.c_long, ctypes.c_ulong]
library.churn.restype = ctypes.c_long
going, wrong = True, []
def work(seed):
    while going:
        wrong.append(library.churn(20_000, seed))
        seed += 17
threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in (1, 2, 3)]
sampler.start(1024)
for thread in threads: thread.start()
"""


def test_threads_without_the_gil_may_allocate_while_everything_else_happens(python: Any, churn: Path) -> None:
    python(
        COMMON
        + CHURNING
        + """
ends, seen = time.monotonic() + 4, 0
while time.monotonic() < ends:
    for mean in (1024, 8192, 1024):
        sampler.set_mean(mean); leak(50); sampler.live(); sampler.maintain(); time.sleep(0.01)
        sampler.pause(); leak(50); sampler.resume()
    seen = max(seen, len(sampler.blocks()))
    sampler.stop(); sampler.start(1024)
going = False
for thread in threads: thread.join()
assert wrong and not any(wrong), sum(wrong)
assert seen > 100, seen
left = [size for _, size, _, key, _ in sampler.blocks() if sampler.stack(key)[0][1] == "work" and size > 100]
assert len(left) < 20, left
""",
        churn,
        timeout=120,
    )


def test_a_fork_in_the_middle_of_other_threads_allocations_leaves_the_childs_tables_whole(python: Any, churn: Path) -> None:
    python(
        COMMON
        + CHURNING
        + """
for _ in range(120):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        addresses = [address for address, *_ in sampler.blocks()]
        assert len(set(addresses)) == len(addresses)
        assert library.churn(2_000, 5) == 0
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
going = False
for thread in threads: thread.join()
assert not any(wrong)
""",
        churn,
        timeout=120,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere: the C library has no __register_atfork")
def test_other_modules_fork_handlers_may_allocate(python: Any) -> None:
    """One that was registered before ours runs while we hold our lock; this one allocates a lock for itself."""
    done = python(
        COMMON
        + """
import ctypes
library = ctypes.CDLL(None)
register = getattr(library, "__register_atfork", None)
if register is None:
    sys.exit(77)
assert register(ctypes.cast(ctypes.pythonapi.PyThread_allocate_lock, ctypes.c_void_p), None, None, None) == 0
sampler.start(1024)
for _ in range(200):
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
""",
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("elsewhere: the C library has no __register_atfork")
    assert done.returncode == 0, done.stderr


def test_subprocesses_start_while_the_sampler_runs(python: Any) -> None:
    python(
        COMMON
        + """
import subprocess
sampler.start(1024)
for preexec in (None, os.getpid):
    done = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True, preexec_fn=preexec)
    assert done.stdout == "7\\n"
assert sampler.maintain()
"""
    )


def test_threads_come_and_go_while_the_sampler_starts_and_stops(python: Any) -> None:
    python(
        COMMON
        + """
import zlib
failures = []
def work():
    try:
        kept = [leak(50), zlib.compress(bytes(70_000)), [bytearray(600) for _ in range(20)], "x" * 5000]
        del kept
    except BaseException as error:
        failures.append(error)
ends = time.monotonic() + 4
def switch():
    while time.monotonic() < ends:
        sampler.start(1024); sampler.watch_native(True); sampler.live(); sampler.set_mean(4096); sampler.stop()
switcher = threading.Thread(target=switch)
switcher.start()
while time.monotonic() < ends:
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
switcher.join()
assert failures == [], failures
assert sys.getallocatedblocks() >= 0
"""
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere: RLIMIT_AS is not kept there")
def test_where_memory_ends_the_program_gets_its_own_memory_error_and_nothing_else(python: Any) -> None:
    done = python(
        COMMON
        + """
import resource
sampler.start(1024)
def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used() + 48 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
errors = 0
for round_ in range(6):
    kept = []
    try:
        while True:
            kept.append(leak(1000) if round_ % 2 else [bytearray(300 + n) for n in range(300)])
    except MemoryError:
        errors += 1
    try:
        sampler.live(); sampler.blocks(); sampler.maintain()
    except MemoryError:
        pass
    del kept
    gc.collect()
print(errors, sampler.maintain())
kept = leak(5000)
assert 0.7 < leaked() / sum(map(sys.getsizeof, kept)) < 1.3
sampler.stop()
sampler.start(1024)
"""
    )
    assert done.stdout.split() == ["6", "True"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere: RLIMIT_AS is not kept there")
def test_without_memory_for_its_tables_it_declines_in_one_sentence(python: Any) -> None:
    done = python(
        COMMON
        + """
import resource
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 2 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    sampler.start()
except RuntimeError as error:
    print(error)
assert not sampler.running()
"""
    )
    assert done.stdout == "there is no memory for the sampler's tables.\n"


def test_very_deep_recursion_is_sampled_without_walking_all_of_it(python: Any) -> None:
    python(
        COMMON
        + """
sys.setrecursionlimit(200_000)
threading.stack_size(900 * 2**20)
sampler.start(1024)
depths = []
def deep(left):
    kept = [left] * 20
    if left:
        return deep(left - 1)
    depths.extend(len(sampler.stack(key)) for key, *_ in sampler.live())
    return kept
def run():
    deep(100_000)
thread = threading.Thread(target=run)
thread.start(); thread.join()
assert max(depths) == 48, max(depths)
""",
        timeout=120,
    )


def test_an_endless_recursion_ends_in_a_recursion_error(python: Any) -> None:
    python(
        COMMON
        + """
sampler.start(1024)
def endless(items):
    return endless([*items, 1][-5:])
for _ in range(20):
    try:
        endless([])
    except RecursionError:
        pass
    else:
        raise AssertionError
assert sampler.maintain()
"""
    )


def test_signal_handlers_allocate_in_the_middle_of_anything(python: Any) -> None:
    python(
        COMMON
        + """
sampler.start(1024)
handled = []
def handle(number, frame):
    handled.append(leak(20)); sampler.live()
    if len(handled) > 50:
        handled.clear()
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
ends = time.monotonic() + 3
total = 0
while time.monotonic() < ends:
    kept = leak(300), {number: str(number) for number in range(200)}, sampler.blocks(), sampler.maintain()
    total += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert total
"""
    )


SUBINTERPRETER = """
import sys
import memwatch.evidence._sampler as sampler
sampler.start(1024)
try:
    import _interpreters as interpreters  # 3.13
except ImportError:
    import _xxsubinterpreters as interpreters
choices = [()]
if sys.version_info >= (3, 13):
    choices += [("legacy",), ("isolated",)]
elif sys.version_info >= (3, 12):
    choices += [(False,)]
for options in choices:
    other = interpreters.create(isolated=False) if options == (False,) else interpreters.create(*options)
    program = '''
kept = [bytes(300) for _ in range(2000)]
try:
    import memwatch.evidence._sampler as sampler
    sampler.start()
except (RuntimeError, ImportError) as error:
    reason = str(error)
assert "main interpreter" in reason or "does not support loading in subinterpreters" in reason, reason
del kept
'''
    failed = interpreters.run_string(other, program)
    assert failed is None, failed
    interpreters.destroy(other)
assert sampler.running() and sampler.maintain() and sampler.live() is not None
sampler.stop()
"""


def test_another_interpreter_is_refused_and_its_allocations_pass(python: Any) -> None:
    python(SUBINTERPRETER)


def test_interpreters_with_a_gil_of_their_own_allocate_at_the_same_time(python: Any) -> None:
    if sys.version_info < (3, 12):
        pytest.skip("elsewhere: interpreters have had a GIL of their own since Python 3.12")
    python(
        COMMON
        + """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
sampler.start(1024)
failures = []
program = "for _ in range(30): kept = [bytes(300) for _ in range(500)], [{} for _ in range(200)]"
def work():
    try:
        other = interpreters.create()
        failed = interpreters.run_string(other, program)
        assert failed is None, failed
        interpreters.destroy(other)
    except BaseException as error:
        failures.append(error)
for _ in range(8):
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    while any(thread.is_alive() for thread in threads):
        leak(200); sampler.live(); sampler.maintain(); sampler.stop(); sampler.start(1024)
    for thread in threads: thread.join()
assert failures == [], failures
""",
        timeout=120,
    )


def test_it_may_run_until_the_interpreter_has_gone_with_daemon_threads_at_work(python: Any) -> None:
    for _ in range(5):
        done = python(
            COMMON
            + """
import zlib, hashlib
sampler.start(1024)
def work():
    while True:
        kept = zlib.compress(os.urandom(200_000)), leak(50), hashlib.sha256(bytes(100_000)).digest()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
kept = leak(20_000)
time.sleep(0.05)
"""
        )
        assert done.stderr == ""


def test_importing_it_hooks_nothing(python: Any) -> None:
    done = python(
        """
        import memwatch.evidence._sampler as sampler, sys
        before = sys.getallocatedblocks()
        kept = [bytes(100) for _ in range(1000)]
        print(sampler.running(), sampler.live(), sampler.maintain(), sampler.statistics()["samples"])
        """
    )
    assert done.stdout == "False [] True 0.0\n"


def test_code_of_the_interpreters_own_test_suite_passes_beside_it(python: Any) -> None:
    """A few of its modules about memory; bench/cpython_tests.py has many more."""
    done = python(
        """
        import sys, unittest
        import memwatch.evidence._sampler as sampler
        sampler.start(1024)
        try:
            from test import test_gc, test_json
        except ImportError:
            sys.exit(77)
        import test.test_list, test.test_bytes, test.test_generators
        loader = unittest.TestLoader()
        suite = unittest.TestSuite(
            loader.loadTestsFromModule(module) for module in (test.test_list, test.test_bytes, test.test_generators)
        )
        result = unittest.TextTestRunner(stream=sys.stdout).run(suite)
        assert sampler.maintain()
        sys.exit(not result.wasSuccessful())
        """,
        check=False,
        timeout=120,
    )
    if done.returncode == 77:
        pytest.skip("elsewhere: this Python comes without its test suite")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_greenlet_switch_in_the_middle_of_anything_leaves_stacks_right(python: Any) -> None:
    pytest.importorskip("gevent", reason="elsewhere: gevent has no wheel for this interpreter")
    python(
        COMMON
        + """
import gevent
sampler.start(1024)
def work(number):
    kept = []
    for _ in range(20):
        kept.append(leak(50))
        gevent.sleep(0)
    return kept
jobs = [gevent.spawn(work, number) for number in range(20)]
gevent.joinall(jobs)
truth = sum(sys.getsizeof(one) for job in jobs for made in job.value for one in made)
for key, *_ in sampler.live():
    names = [name for _, name, _ in sampler.stack(key)]
    if "leak" in names:
        assert names[names.index("leak") + 1] == "work", names
assert 0.8 < leaked() / truth < 1.25, (leaked(), truth)
"""
    )


def test_without_a_compiler_the_package_installs_and_only_the_extensions_are_missing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "-C", ROOT, "checkout-index", "-a", f"--prefix={source}/"], check=True)
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--quiet",
            "--wheel-dir",
            tmp_path / "wheels",
            source,
        ],
        env={**os.environ, "CC": "/nowhere/cc", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, system_site_packages=False)
    done = subprocess.run(
        [
            place / "bin" / "python",
            "-c",
            "import zipimport, sys; sys.path.insert(0, sys.argv[1]); import memwatch.evidence._sampler",
            wheel,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'memwatch.evidence._sampler'" in done.stderr
