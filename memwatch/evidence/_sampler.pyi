"""The allocation sampler: which Python stacks hold the memory that is alive now, estimated from a sample of allocations.

Built where there is a C compiler; without it the import fails and callers do without.  Everything here is for the main interpreter
with the GIL held; the samples are of every thread and interpreter.  Only what was allocated since `start` is seen.

Cost: bench/sampler.py.  Memory: `statistics()["own_bytes"]`, at most about 12 MiB; and a sampled small block takes 513 bytes,
whatever was asked for, which at the default mean is less than 1 % of what is allocated.
"""

def start(mean_bytes: int = 65536, depth: int = 48) -> None:
    """Sample allocations: one point for every *mean_bytes* allocated, on average; a second call changes the two settings only.

    Args:
        mean_bytes: from 1024 to 2**30. The standard error of a site with L live bytes is about sqrt(mean_bytes / L).
        depth: frames kept per stack, from the innermost; from 1 to 128.

    Raises:
        RuntimeError: it cannot run here (free-threaded Python, a sub-interpreter, unknown allocators), in one sentence.
        ValueError: a setting is out of range.
    """

def stop() -> None:
    """Take the hooks out, or leave them as a pass-through where another tool stands on them; forget every sample."""

def running() -> bool:
    """Whether samples are being taken."""

def set_mean(mean_bytes: int) -> None:
    """Change the mean. Samples remember the one they were taken with, so estimates stay unbiased.

    This thread uses it at once, another when the gap that it has begun ends.

    Raises:
        ValueError: not from 1024 to 2**30.
    """

def govern(most_per_s: float, coarsest_bytes: int = 0, /) -> None:
    """Double the mean, up to *coarsest_bytes*, whenever 32 samples came faster than *most_per_s*; 0: leave it alone.

    For whoever sets the mean now and then, and a program that allocates a thousand times as fast in between.

    Raises:
        ValueError: the coarsest is not from 1024 to 2**30.
    """

def live(born_after_s: float = ...) -> list[tuple[int, float, float, int, float, float]]:
    """What is alive, per stack: `(key, bytes, count, samples, oldest_s, newest_s)`.

    *bytes* and *count* are unbiased estimates from *samples* blocks; times are `time.monotonic()` of allocation. *key* is made of
    the stack's contents: the same in every snapshot and process; from 0 to 2**63 - 1. Only blocks born at *born_after_s* or later
    count.
    """

def stack(key: int) -> tuple[tuple[str, str, int], ...] | None:
    """The frames of *key* as `(filename, qualname, line)`, innermost first; empty for memory that no Python frame allocated.

    None if it is not known; `maintain` may forget a stack that nothing alive comes from. Of a file name longer than 300 bytes the
    end is kept, of a qualified name the beginning.
    """

def blocks(born_after_s: float = ..., limit: int = ...) -> list[tuple[int, int, float, int, float]]:
    """Live sampled blocks: `(address, size, weight_bytes, key, born_s)`, at most *limit* of them, in no order.

    *address* is where the block begins, before any header of the object in it. It may have been freed when you look.
    """

def maintain() -> bool:
    """See that the hooks are still there, and make room in the tables; to be called now and then.

    Returns:
        True if all was well. False if another tool had taken our hooks out (tracemalloc does when it was started before us and
        stops): they are back, and the live samples are forgotten, since frees were missed.
    """

def watch_native(on: bool) -> None:
    """Charge what malloc's use (glibc; elsewhere nothing) grew by between two samples to the stack of the second.

    At most once per millisecond, and at most 1 % of the time; it ends by itself if one reading takes more than 5 ms of CPU, as it
    may in a much fragmented heap (`statistics()["native"]`).
    """

def native() -> list[tuple[int, float, int]]:
    """Native growth per stack since `start`: `(key, bytes, readings)`. It includes Python's own blocks above 512 bytes."""

def pymalloc_statistics() -> tuple[int, bytes, int] | None:
    """`sys.getallocatedblocks()`, the text of pymalloc's statistics at the same moment, and how many small blocks live outside of
    its pools because they are sampled; None where pymalloc is not in use.

    pymalloc prints nothing while other functions stand before its own, so whoever wants its numbers while we sample asks here.

    Cost: two walks over all pools, with the GIL held (bench/tick.py).
    """

def statistics() -> dict[str, float]:
    """What has been done, and what it costs.

    `samples` taken since start, `live`, `dropped` (no memory for the table), `thinned` (the table was full; the mean has risen),
    `stacks`, `frames`, `stacks_dropped` (counted under one common stack), `compactions`, `reinstalled`, `mean_bytes`, `depth`,
    `most_per_s` and `coarsest_bytes` of the governor (0: none), `own_bytes`, `arenas_bytes` (pymalloc's arenas since start, net),
    `native` (1 while it is watched), `native_readings`, and
    `mode`: 0 stopped, 1 pymalloc (with `small_limit`), 2 every allocation and free hooked, 3 RAW only.
    """
