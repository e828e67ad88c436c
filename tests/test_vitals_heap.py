"""pymalloc, malloc, the collector."""

import ctypes
import gc
import os
import shutil
import subprocess
import sys

import pytest

from memwatch.vitals import Vitals, collect_garbage, heap, trim

MIB = 2**20
measured = pytest.mark.skipif(heap.pools() is None or heap.malloc() is None, reason="needs pymalloc and glibc")

TABLE = b"""Small block threshold = 512, in 32 size classes.

class   size   num pools   blocks in use  avail blocks
-----   ----   ---------   -------------  ------------
    0     16           1              73           948
    3     64          23            5754           111
   31    512           1              21            10

# arenas allocated total           =                    2
2 arenas * 1048576 bytes/arena     =            2,097,152

# bytes in allocated blocks        =              380,176
# bytes in available blocks        =               27,392
18 unused pools * 16384 bytes      =              294,912
# bytes lost to pool headers       =                5,184
Total                              =            2,097,152
"""


def sizes() -> dict[str, float]:
    vitals = Vitals()
    return {name: value for source in ("memory", "malloc", "pools") for name, value in vitals.sources[source]().items()}


def test_what_pymalloc_prints_is_read():
    found = heap.parse_pools(TABLE, 6000)
    assert found == (73 * 16 + 5754 * 64 + 21 * 512, 27_392 + 294_912, 73 + 5754 + 21, 6000)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        TABLE.replace(b"5754", b"5755"),
        TABLE.replace(b"380,176", b"380,177"),
        TABLE.replace(b"18 unused", b"unused"),
        b"Small block threshold = 16384, in 73 size classes.\n    Allocated Blocks: 17616\n    Allocated Bytes: 2353664\n",
    ],
)
def test_text_whose_totals_disagree_is_not_believed(text):
    assert heap.parse_pools(text, 6000) is None


@measured
def test_fifty_mebibytes_of_small_objects_are_fifty_mebibytes_of_heap():
    before = sizes()
    kept = [bytes(100) for _ in range(364_000)]  # 144 bytes each: 33 of header, 100, rounded up to 16
    after = sizes()
    assert after["heap"] - before["heap"] == pytest.approx(len(kept) * 144, rel=0.01)
    assert after["blocks"] - before["blocks"] == pytest.approx(len(kept), rel=0.01)
    assert abs(after["large_blocks"] - before["large_blocks"]) < 100


@measured
def test_fifty_mebibytes_in_large_objects_are_native_and_large_blocks():
    before = sizes()
    kept = [b"x" * MIB + bytes([number]) for number in range(50)]
    after = sizes()
    assert after["native"] - before["native"] == pytest.approx(len(kept) * MIB, rel=0.01)
    assert 50 <= after["large_blocks"] - before["large_blocks"] < 60
    assert abs(after["heap"] - before["heap"]) < MIB


@measured
def test_what_was_freed_between_things_in_use_is_retained_until_it_is_trimmed(python):
    done = python(
        """
        from memwatch.vitals import Vitals, trim

        def sizes():
            vitals = Vitals()
            return {name: value for source in ("memory", "malloc", "pools") for name, value in vitals.sources[source]().items()}

        def change(name, after, before):
            return round((after[name] - before[name]) / 1e8, 1) + 0

        start = sizes()
        kept = [b"x" * 20_000 + b"%d" % number for number in range(5_000)]
        full = sizes()
        del kept[:-1]
        free = sizes()
        print("retained", change("retained", free, start), change("rss", free, full))
        print("native", change("native", full, start), change("native", free, start))
        assert trim()
        trimmed = sizes()
        print("trimmed", change("retained", trimmed, start), change("rss", trimmed, start))
        """
    )
    assert done.stdout.splitlines() == ["retained 1.0 0.0", "native 1.0 0.0", "trimmed 0.0 0.0"]


@measured
def test_free_pools_of_pymalloc_are_retained(python):
    done = python(
        """
        from memwatch.vitals import Vitals
        read = lambda: Vitals().read(complete=True)
        before = read()
        kept = [bytes(100) for _ in range(364_000)]
        full = read()
        pins = kept[::7_000]  # one in each arena
        del kept
        after = read()
        print(round((after["heap"] - before["heap"]) / 2**20), round((after["retained"] - before["retained"]) / 2**20) > 30)
        """
    )
    assert done.stdout == "0 True\n"


@pytest.mark.parametrize(
    ("allocator", "heap_is_read", "blocks_are_read"),
    [
        ("pymalloc", True, True),
        ("malloc", False, False),
        ("debug", True, True),
        ("malloc_debug", False, False),
        ("mimalloc", False, True),
    ],
)
def test_an_allocator_that_is_not_pymalloc_has_no_heap_rather_than_a_wrong_one(allocator, heap_is_read, blocks_are_read):
    if allocator == "mimalloc" and sys.version_info < (3, 13):
        pytest.skip("elsewhere: 3.13 and later")
    code = (
        "from memwatch.vitals import Vitals; v = Vitals(); x = v.read(complete=True);"
        "print('heap' in x, 'retained' in x, 'large_blocks' in x, 'blocks' in x, x['native'] > 0, v.failed)"
    )
    environment = dict(os.environ, PYTHONMALLOC=allocator)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{heap_is_read} {heap_is_read} {heap_is_read} {blocks_are_read} True {{}}\n"


OTHER_MALLOC = r"""
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
static char *next;
static void *take(size_t align, size_t size) {
    char *block;
    if (!next) next = mmap(0, 1UL << 36, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    block = (char *)(((size_t)next + 16 + align - 1) & ~(align - 1));
    next = block + size;
    ((size_t *)block)[-1] = size;
    return block;
}
void *malloc(size_t size) { return take(16, size); }
void *calloc(size_t count, size_t size) { return take(16, count * size); }
void free(void *block) { (void)block; }
void *realloc(void *block, size_t size) {
    void *moved = take(16, size);
    if (block) memcpy(moved, block, ((size_t *)block)[-1] < size ? ((size_t *)block)[-1] : size);
    return moved;
}
int posix_memalign(void **block, size_t align, size_t size) { *block = take(align, size); return 0; }
void *aligned_alloc(size_t align, size_t size) { return take(align, size); }
void *memalign(size_t align, size_t size) { return take(align, size); }
"""


@pytest.mark.skipif(not shutil.which("cc") or sys.platform != "linux", reason="needs a C compiler")
def test_a_preloaded_malloc_is_not_mistaken_for_glibcs(tmp_path):
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    source.write_text(OTHER_MALLOC)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-fno-builtin", "-o", library, source], check=True)
    code = (
        "from memwatch.vitals import Vitals, trim; v = Vitals(); x = v.read(complete=True);"
        "print('native' in x, 'retained' in x, 'heap' in x, trim(), v.failed)"
    )
    environment = dict(os.environ, LD_PRELOAD=str(library))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False False True False {}\n"


@measured
def test_glibcs_malloc_is_known_by_its_books_where_its_address_does_not_tell(monkeypatch):
    monkeypatch.setattr(heap, "_is_in_libc", lambda library: False)
    heap._malloc_functions.cache_clear()
    before = heap.malloc()
    heap._malloc_functions.cache_clear()
    assert before is not None and before.used_bytes > MIB // 2


@measured
def test_a_block_with_a_mapping_of_its_own_is_native():
    before = sizes()
    kept = bytearray(48 * MIB)
    assert sizes()["native"] - before["native"] == pytest.approx(len(kept), rel=0.01)


@measured
def test_reading_the_heap_leaks_nothing():
    for _ in range(20):
        heap.pools(), heap.malloc()
    gc.collect()
    gc.disable()  # what earlier tests have left must not go in between
    try:
        before, malloc_before = heap.pools(), heap.malloc()
        for _ in range(500):
            heap.pools(), heap.malloc()
        after, malloc_after = heap.pools(), heap.malloc()
    finally:
        gc.enable()
    assert abs(after.all_blocks - before.all_blocks) < 100
    assert malloc_after.used_bytes - malloc_before.used_bytes < 100_000  # 500 streams of 8 KiB would be 4 MB


def test_the_functions_that_others_may_have_bound_are_left_alone():
    shared = ctypes.pythonapi._PyObject_DebugMallocStats
    shared.argtypes = None
    heap._statistics_printer.cache_clear()
    heap.pools()
    assert shared.argtypes is None


class Node:
    def __init__(self) -> None:
        self.me = self
        self.load = "x" * 20_000 + str(id(self))


@measured
def test_collecting_garbage_says_what_it_freed():
    gc.collect()
    gc.disable()
    try:
        for _ in range(2_000):
            Node()
        freed = collect_garbage()
    finally:
        gc.enable()
    assert freed.collected >= 2_000
    assert freed.heap_bytes > 38 * MIB
    assert freed.rss_bytes > 30 * MIB
    assert freed.trimmed and freed.took_s > 0


@measured
def test_trimming_is_possible_with_glibc():
    assert trim() is True


def test_the_heap_is_absent_where_python_does_not_print_it(monkeypatch):
    monkeypatch.setattr(heap, "_statistics_printer", lambda: None)
    assert heap.pools() is None
    assert "heap" not in Vitals().read(complete=True)


def test_what_was_freed_is_none_where_nothing_can_be_read(monkeypatch, tmp_path):
    monkeypatch.setattr(heap, "pools", lambda: None)
    monkeypatch.setattr(heap, "malloc", lambda: None)
    monkeypatch.setattr(heap, "_malloc_functions", lambda: None)
    freed = collect_garbage(proc_root=str(tmp_path))
    assert (freed.heap_bytes, freed.trimmed) == (None, False)
