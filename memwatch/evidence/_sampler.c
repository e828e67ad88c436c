/* The allocation sampler: which Python stacks hold the memory that is alive now, estimated from a sample of allocations.

   The law of this file: the program's allocation always proceeds.  Nothing in a hook allocates from a hooked domain, touches a
   reference count, sets an exception or gives up the GIL; what cannot be recorded is dropped and counted.

   How it works.  Points are thrown on the stream of allocated bytes, exponentially spaced with a mean of R bytes; a block in which a
   point falls is a sample, remembered with its Python stack until it is freed.  A block of s bytes is sampled with probability
   1 - exp(-s/R), so each sample stands for s / (1 - exp(-s/R)) bytes (Horvitz and Thompson 1952; jemalloc and Go do the same).  Each
   sample remembers its own R, hence R may change at any time.

   How it stays cheap.  pymalloc hands every block that is not in its arenas to the RAW domain, to free as well as to allocate.  So a
   *sampled* small block is asked for with a size just above what pymalloc serves, comes from RAW, and is recognised there when it goes;
   free of OBJ and MEM stays the interpreter's own function, and malloc is a subtraction, a branch and a jump.  Asking pymalloc, rather
   than RAW itself, keeps the books of sys.getallocatedblocks().  Blocks that pymalloc would not serve are sampled in RAW, once.
   Where OBJ and MEM do not lead to RAW (PYTHONMALLOC=malloc, mimalloc) their free is hooked too: "full" mode.

   How it stays cheaper still.  As no hook is needed to see a small block go, those of OBJ and MEM may be off for most of the time
   (pause, resume): a part d of the time is sampled, with points d R bytes apart, and each sample stands for as much as one that was
   thrown with R all the time.  What is allocated steadily is estimated as well as without pauses; RAW is sampled all the time.

   Sources: CPython Objects/obmalloc.c, Modules/_tracemalloc.c; ddtrace _memalloc (its crashes are why a hook here does so little). */

#include "_stacks.h"

#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define NOINLINE __attribute__((noinline))
#define load(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define store(x, value) __atomic_store_n(&(x), (value), __ATOMIC_RELAXED)

#if defined(__GLIBC__)
/* glibc keeps room for small initial-exec blocks of modules loaded late; the default model calls a function on each access. */
#define THREAD_LOCAL static __thread __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL static __thread
#endif

#ifdef __APPLE__
#define MONOTONIC CLOCK_UPTIME_RAW /* mach_absolute_time(), which time.monotonic() reads */
#else
#define MONOTONIC CLOCK_MONOTONIC
#endif

/* --- Bounds ----------------------------------------------------------------------------------------------------------------------- */

#define MEAN_LEAST 1024.0
#define MEAN_MOST ((double)(1 << 30))
#define MEAN_THINNED_MOST ((double)(1ULL << 50)) /* thinning goes on beyond what one may ask for: memory of a process */
#define SLOTS_LEAST (4u << 10)
#define SLOTS_MOST (128u << 10) /* 4 MiB; at the load below 78,643 live samples */
#define FILTER_SIZE (128u << 10)
#define RECORDS_MOST 64
#define ARENA_SMALL (256u << 10) /* an arena of pymalloc without, and with, its radix tree (Include/internal/pycore_obmalloc.h) */
#define ARENA_LARGE (1u << 20)
#define PYMALLOC_LIMIT_MOST 1024u /* pymalloc serves up to 512 bytes, with debug hooks 488; anything far from it is another allocator */
#define COMPACT_DUTY 0.01 /* where most of it is alive, compacting brings little: at most this share of the time */
#define NATIVE_EVERY_S 1e-3
#define NATIVE_DUTY 0.01 /* reading malloc's statistics walks its free chunks: at most this share of the time */
#define NATIVE_LONGEST_S 5e-3 /* one reading; where it takes longer, as in a much fragmented heap, watching ends */
#define NATIVE_KEPT 4096.0 /* a stack without live samples survives compaction if at least so many native bytes are charged to it */
#define ORPHAN_LOOKS 8
#define DUTY_LEAST 0.01
#define TRAP (INT64_MIN / 2) /* a countdown that sends the next allocation of any size into the slow path */

enum { RAW, MEM, OBJ, DOMAINS };
enum { MALLOC, CALLOC, REALLOC };
enum { MODE_NONE = 0, MODE_PYMALLOC = 1, MODE_FULL = 2, MODE_RAW = 3 };

/* --- State ------------------------------------------------------------------------------------------------------------------------ */

/* Of each thread.  All zero in a new one: the first allocation ends in the slow path, which draws the first gaps. */
struct local {
    int64_t small; /* bytes of OBJ and MEM until the next point */
    int64_t large; /* bytes of RAW (in full mode: of all) until the next point */
    double small_mean, large_mean; /* the means these two were drawn with */
    double small_duty; /* and the part of the time that is sampled, for the smaller */
    uint64_t seed; /* of xorshift64*; 0: not drawn yet */
    int64_t large_kept; /* `large`, while it is a trap */
    void *captured; /* what RAW gave out for the sampled small block that is being asked for */
    uint8_t capture; /* RAW's next block is that block */
    uint8_t asking; /* between the two */
    uint8_t small_realloc; /* OBJ or MEM realloc to a small size, which has been counted, is under way */
    uint8_t probing;
    uint8_t reached; /* bit per domain whose hook a probe has reached */
    uint8_t busy; /* this thread holds the lock */
    uint8_t orphan_looks; /* allocations still to be looked at for the stack of `orphan` */
    void *orphan; /* a sampled block that was asked for where no Python frame stood */
    uint32_t orphan_pauses; /* of `pauses`, when that was */
    int64_t small_kept; /* `small`, while it is a trap */
};
THREAD_LOCAL struct local here;

struct record {
    PyMemAllocatorEx allocator;
};

/* What was there before us.  OBJ and MEM are read and written with the GIL held; RAW is called without it, so its record is published
   whole, and immutable.  Our own allocator has the same ctx as the one before it: whoever reads the five words of an allocator while
   we exchange them gets a ctx that fits either function. */
static PyMemAllocatorEx before[DOMAINS];
static const struct record *raw_before;
static struct record records[RECORDS_MOST];
static unsigned record_count;
static PyObjectArenaAllocator arena_before;
static bool arena_hooked;

struct slot {
    uintptr_t address; /* 0: empty */
    uint64_t size;
    double born_s; /* time.monotonic() */
    uint32_t stack;
    float mean;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
/* Guarded by the mutex, but for single words read where being a moment late does not matter. */
static bool active;
static double mean_bytes = 65536.0;
static double duty = 1.0; /* part of the time in which small blocks are sampled */
static uint32_t pauses; /* how many there were */
static bool paused; /* the hooks of OBJ and MEM are off; written with the GIL too */

/* The governor: a sample costs some 10 µs, and several times that between requests that have had the caches to themselves.  What a
   program allocates may rise a thousandfold within a millisecond, and whoever sets the mean looks every few seconds. */
#define WINDOW 32 /* samples */
static double most_per_s = 0.0; /* 0: no governor */
static double coarsest_bytes = 0.0;
static double window_s = 0.0; /* when its first sample was taken */
static unsigned in_window = 0;
static unsigned stack_depth = 48;
static struct book *book;
static struct slot *slots;
static uint32_t slot_count, live_count;
static uint8_t filter[FILTER_SIZE]; /* how many live samples hash here; 255 stays 255 until the table is rebuilt */
static double compact_next_s;
static uint64_t taken, dropped, thinned, stacks_dropped, compactions;
/* Guarded by the GIL. */
static int mode;
static size_t small_limit = 512; /* the largest size that pymalloc serves itself */
static uint64_t reinstalled;
static bool fork_handled;
/* Atomic. */
static int64_t arenas_bytes;
static uint64_t seeds;

static struct {
    bool on;
    bool reading;
    double next_s, last_bytes;
    uint64_t readings;
    void *mallinfo2;
} native;

/* --- Memory, clock, chance -------------------------------------------------------------------------------------------------------- */

static double
now_s(void)
{
    struct timespec time;
    clock_gettime(MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double
chance(void) /* uniform on (0, 1] */
{
    uint64_t x = here.seed;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    here.seed = x;
    return (double)(((x * 0x2545F4914F6CDD1DULL) >> 11) + 1) * 0x1p-53;
}

static void
seed_thread(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    uint64_t number = __atomic_add_fetch(&seeds, 1, __ATOMIC_RELAXED);
    uint64_t seed = mix(number * 0x9E3779B97F4A7C15ULL + (uint64_t)time.tv_nsec) ^ mix((uint64_t)(uintptr_t)&here) ^
                    mix((uint64_t)getpid() + ((uint64_t)time.tv_sec << 32));
    here.seed = seed ? seed : 1;
}

static int64_t
gap(double mean)
{
    double bytes = -log(chance()) * mean;
    return bytes < 4e18 ? (int64_t)bytes : (int64_t)4e18;
}

static double
read_mean(void)
{
    double mean;
    __atomic_load(&mean_bytes, &mean, __ATOMIC_RELAXED);
    return mean;
}

static double
read_duty(void)
{
    double part;
    __atomic_load(&duty, &part, __ATOMIC_RELAXED);
    return part;
}

/* Throw the next point.  Without memory: it is as far from here as from anywhere. */
static void
draw_small(void)
{
    here.small_mean = read_mean();
    here.small_duty = read_duty();
    here.small = gap(here.small_mean * here.small_duty);
}

static void
draw_large(void)
{
    here.large_mean = read_mean();
    here.large = gap(here.large_mean);
}

static void
draw(void)
{
    draw_small();
    draw_large();
}

/* A countdown has run below zero in a block of n bytes: whether it has in truth, which a new thread has yet to draw. */
static bool
has_run_out(int64_t *countdown, size_t n)
{
    if (here.seed == 0) {
        seed_thread();
        draw();
        *countdown -= (int64_t)n;
    }
    return *countdown < 0;
}

/* Whether a point fell into a small block of n bytes, and the mean it stands for. */
static bool
small_point_fell(size_t n, double *mean)
{
    if (!has_run_out(&here.small, n)) {
        return false;
    }
    *mean = here.small_mean * here.small_duty / read_duty(); /* thrown for one part of the time, met in another */
    draw_small();
    return true;
}

/* Likewise of all others. */
static bool
large_point_fell(size_t n, double *mean)
{
    if (!has_run_out(&here.large, n)) {
        return false;
    }
    *mean = here.large_mean;
    draw_large();
    return true;
}

static double
probability(double size, double mean)
{
    return -expm1(-size / mean);
}

/* --- The lock --------------------------------------------------------------------------------------------------------------------- */

static void
lock(void)
{
    pthread_mutex_lock(&mutex);
    here.busy = 1;
}

static void
unlock(void)
{
    here.busy = 0;
    pthread_mutex_unlock(&mutex);
}

/* Other modules' fork handlers may allocate while we hold the lock in this thread: `busy` lets them pass. */
static void
before_fork(void)
{
    lock();
}

static void
after_fork_in_parent(void)
{
    unlock();
}

static void
after_fork_in_child(void)
{
    pthread_mutex_init(&mutex, NULL);
    here.busy = 0;
    store(native.reading, false);
    if (here.seed != 0) {
        seed_thread(); /* or all workers of one master would take the same samples */
        draw();
    }
}

/* --- Live samples (under the lock, but for maybe_sampled) ------------------------------------------------------------------------- */

static inline uint64_t
hash_address(uintptr_t address)
{
    return ((uint64_t)address >> 4) * 0x9E3779B97F4A7C15ULL;
}

static inline uint8_t *
filter_of(uintptr_t address)
{
    return &filter[hash_address(address) >> 47]; /* 17 bits: FILTER_SIZE */
}

/* No is sure; yes is to be looked up.  Whoever frees a block got its address, directly or not, from the thread that put it here. */
static inline bool
maybe_sampled(const void *address)
{
    return load(*filter_of((uintptr_t)address)) != 0;
}

static uint32_t
slot_of(uintptr_t address, uint32_t count)
{
    return (uint32_t)(hash_address(address) >> 32) & (count - 1);
}

static void
filter_add(uintptr_t address)
{
    uint8_t *entry = filter_of(address);
    if (*entry != UINT8_MAX) {
        store(*entry, (uint8_t)(*entry + 1));
    }
}

static void
filter_remove(uintptr_t address)
{
    uint8_t *entry = filter_of(address);
    if (*entry != UINT8_MAX && *entry != 0) {
        store(*entry, (uint8_t)(*entry - 1));
    }
}

/* Put a slot into a table that has room; true if it is a new address. */
static bool
put(struct slot *table, uint32_t count, const struct slot *slot)
{
    uint32_t at = slot_of(slot->address, count);
    while (table[at].address != 0) {
        if (table[at].address == slot->address) {
            table[at] = *slot; /* its free passed us by */
            return false;
        }
        at = (at + 1) & (count - 1);
    }
    table[at] = *slot;
    return true;
}

static bool
remove_slot(uintptr_t address, struct slot *removed)
{
    if (slots == NULL || address == 0) {
        return false;
    }
    uint32_t wrap = slot_count - 1, at = slot_of(address, slot_count);
    while (slots[at].address != address) {
        if (slots[at].address == 0) {
            return false;
        }
        at = (at + 1) & wrap;
    }
    *removed = slots[at];
    for (uint32_t next = (at + 1) & wrap; slots[next].address != 0; next = (next + 1) & wrap) {
        uint32_t home = slot_of(slots[next].address, slot_count);
        if (((next - home) & wrap) >= ((next - at) & wrap)) { /* it may move back to the hole without leaving its chain */
            slots[at] = slots[next];
            at = next;
        }
    }
    slots[at].address = 0;
    live_count--;
    filter_remove(address);
    return true;
}

static void
forget_samples(void)
{
    unmap(slots, slot_count * sizeof(struct slot));
    slots = NULL;
    slot_count = live_count = 0;
    for (size_t i = 0; i < FILTER_SIZE; i++) {
        if (filter[i] != 0) {
            store(filter[i], 0);
        }
    }
}

static bool
rebuild(uint32_t count)
{
    struct slot *table = map(count * sizeof(struct slot));
    if (table == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < slot_count; i++) {
        if (slots[i].address != 0) {
            put(table, count, &slots[i]);
        }
    }
    unmap(slots, slot_count * sizeof(struct slot));
    slots = table;
    slot_count = count;
    return true;
}

/* No silent cap: where the table is full the mean doubles, and each sample stays with the probability that it would have been taken with
   the larger mean, given that it was taken. */
static bool
thin(void)
{
    if (here.seed == 0) {
        return false; /* a thread that has thrown no point yet has no chance to draw */
    }
    struct slot *table = map(slot_count * sizeof(struct slot));
    if (table == NULL) {
        return false;
    }
    uint32_t enough = live_count - live_count / 4;
    uint32_t kept = live_count;
    double mean = mean_bytes;
    while (kept > enough && mean < MEAN_THINNED_MOST) {
        mean *= 2;
        kept = 0;
        for (uint32_t i = 0; i < slot_count; i++) {
            struct slot *slot = &slots[i];
            if (slot->address == 0) {
                continue;
            }
            if (slot->mean < mean) {
                double size = (double)slot->size;
                if (chance() > probability(size, mean) / probability(size, slot->mean)) {
                    filter_remove(slot->address);
                    slot->address = 0; /* the chains of this table are broken now; nobody looks anything up until it is replaced */
                    thinned++;
                    continue;
                }
                slot->mean = (float)mean;
            }
            kept++;
        }
    }
    __atomic_store(&mean_bytes, &mean, __ATOMIC_RELAXED);
    live_count = kept;
    for (uint32_t i = 0; i < slot_count; i++) {
        if (slots[i].address != 0) {
            put(table, slot_count, &slots[i]);
        }
    }
    unmap(slots, slot_count * sizeof(struct slot));
    slots = table;
    return true;
}

static bool
make_room(void)
{
    while (slots == NULL || live_count + 1 > slot_count / 5 * 3) {
        bool made = slot_count < SLOTS_MOST && rebuild(slots == NULL ? SLOTS_LEAST : slot_count * 2);
        if (!made && (slots == NULL || !thin() || live_count + 1 > slot_count / 5 * 3)) {
            return false;
        }
    }
    return true;
}

/* --- Native growth ---------------------------------------------------------------------------------------------------------------- */

struct mallinfo2_result { /* glibc's struct mallinfo2, which older headers do not have */
    size_t arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
};

static double
native_bytes(void)
{
    struct mallinfo2_result (*read)(void);
    memcpy(&read, &native.mallinfo2, sizeof(read));
    struct mallinfo2_result result = read();
    return (double)result.uordblks + (double)result.hblkhd;
}

static double
cpu_s(void) /* of this thread: what others do meanwhile is not the reading's cost */
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* What malloc has handed out since the last reading, if it is time for one. */
static bool
native_growth(double now, double *growth)
{
    double next;
    __atomic_load(&native.next_s, &next, __ATOMIC_RELAXED);
    if (now < next || __atomic_exchange_n(&native.reading, true, __ATOMIC_ACQUIRE)) {
        return false;
    }
    double started = cpu_s(), bytes = native_bytes(), cost = cpu_s() - started, wait = cost / NATIVE_DUTY;
    if (cost > NATIVE_LONGEST_S) {
        store(native.on, false);
    }
    *growth = bytes - native.last_bytes;
    native.last_bytes = bytes;
    next = now + (wait > NATIVE_EVERY_S ? wait : NATIVE_EVERY_S);
    __atomic_store(&native.next_s, &next, __ATOMIC_RELAXED);
    native.readings++;
    __atomic_store_n(&native.reading, false, __ATOMIC_RELEASE);
    return true;
}

/* --- Recording -------------------------------------------------------------------------------------------------------------------- */

static uint32_t
this_stack(void)
{
    uint32_t stack = walk_stack(book, stack_depth);
    stacks_dropped += stack == STACK_OTHER;
    return stack;
}

static NOINLINE void
track(void *address, size_t size, double mean)
{
    if (here.busy || !load(active)) {
        return;
    }
    int kept_errno = errno;
    struct slot slot = {.address = (uintptr_t)address, .size = size ? size : 1, .born_s = now_s(), .mean = (float)mean};
    double growth = 0.0;
    bool read = load(native.on) && native_growth(slot.born_s, &growth);
    lock();
    if (active) {
        taken++;
        if (most_per_s > 0 && ++in_window >= WINDOW) {
            double coarser = mean_bytes * 2 < coarsest_bytes ? mean_bytes * 2 : coarsest_bytes;
            double most = paused ? most_per_s : most_per_s / duty; /* nearly all small blocks' samples come between pauses */
            if ((slot.born_s - window_s) * most < WINDOW && coarser > mean_bytes) {
                __atomic_store(&mean_bytes, &coarser, __ATOMIC_RELAXED);
            }
            window_s = slot.born_s;
            in_window = 0;
        }
        bool keep = true;
        if (mean < mean_bytes) { /* thrown before the mean rose: thinned like those already here */
            keep = chance() <= probability((double)slot.size, mean_bytes) / probability((double)slot.size, mean);
            slot.mean = (float)mean_bytes;
        }
        if (keep || read) {
            slot.stack = this_stack();
            if (read) {
                book->stacks[slot.stack].native_bytes += growth;
                book->stacks[slot.stack].native_readings++;
            }
        }
        if (!keep) {
            thinned++;
        }
        else if (!make_room()) {
            dropped++;
        }
        else {
            if (slot.mean < (float)mean_bytes) { /* making room has thinned */
                double size_d = (double)slot.size;
                keep = chance() <= probability(size_d, mean_bytes) / probability(size_d, slot.mean);
                slot.mean = (float)mean_bytes;
                thinned += !keep;
            }
            if (keep && put(slots, slot_count, &slot)) {
                live_count++;
                filter_add(slot.address);
            }
        }
    }
    unlock();
    errno = kept_errno;
}

/* A greenlet begins without a frame, and the interpreter then asks for its stack of frames: the block has no Python stack, though it is
   a Python function's doing.  So the deepest stack of the next few allocations of the thread, from the same turn of the program, stands
   for it: an approximation, and the better answer. */
static void
adopt_later(void *block)
{
    lock();
    bool orphan = false;
    if (active && slots != NULL) {
        uint32_t at = slot_of((uintptr_t)block, slot_count);
        while (slots[at].address != 0 && slots[at].address != (uintptr_t)block) {
            at = (at + 1) & (slot_count - 1);
        }
        orphan = slots[at].address != 0 && slots[at].stack == STACK_NONE;
    }
    unlock();
    if (orphan) {
        if (here.orphan_looks == 0) {
            here.small_kept = here.small;
            here.small = TRAP;
        }
        here.orphan = block;
        here.orphan_looks = ORPHAN_LOOKS;
        here.orphan_pauses = load(pauses);
    }
}

/* The countdown of an allocation of n bytes ran into the trap of `adopt_later`. */
static NOINLINE void
adopt(size_t n)
{
    int kept_errno = errno;
    here.small = here.small_kept - (int64_t)n;
    here.orphan_looks--;
    if (!here.busy) {
        lock();
        if (active && slots != NULL) {
            uint32_t at = slot_of((uintptr_t)here.orphan, slot_count);
            while (slots[at].address != 0 && slots[at].address != (uintptr_t)here.orphan) {
                at = (at + 1) & (slot_count - 1);
            }
            if (slots[at].address == 0 || here.orphan_pauses != pauses) {
                here.orphan_looks = 0; /* freed meanwhile, or long ago */
            }
            else {
                uint32_t stack = this_stack();
                if (stack != STACK_OTHER && book->stacks[stack].depth > book->stacks[slots[at].stack].depth) {
                    slots[at].stack = stack;
                }
            }
        }
        unlock();
    }
    errno = kept_errno;
}

static NOINLINE bool
untrack(void *address, struct slot *slot)
{
    if (here.busy) {
        return false;
    }
    lock();
    bool found = remove_slot((uintptr_t)address, slot);
    unlock();
    return found;
}

/* A block that could not be reallocated is still what it was. */
static void
track_again(const struct slot *slot)
{
    lock();
    if (active && make_room() && put(slots, slot_count, slot)) {
        live_count++;
        filter_add(slot->address);
    }
    unlock();
}

/* --- Hooks ------------------------------------------------------------------------------------------------------------------------ */

static inline void *
ask(const PyMemAllocatorEx *old, int kind, void *block, size_t count, size_t size)
{
    switch (kind) {
    case MALLOC:
        return old->malloc(old->ctx, size);
    case CALLOC:
        return old->calloc(old->ctx, count, size);
    default:
        return old->realloc(old->ctx, block, size);
    }
}

/* RAW, and in full mode OBJ and MEM: a countdown ran out, or a block that may be sampled is reallocated. */
static NOINLINE void *
block_slow(int domain, const PyMemAllocatorEx *old, int kind, void *block, size_t count, size_t size)
{
    if (here.probing) {
        here.reached |= (uint8_t)(1u << domain);
        return ask(old, kind, block, count, size);
    }
    bool capture = here.capture && domain == RAW;
    double mean = 0.0;
    bool sampled = false;
    if (capture) {
        here.capture = 0;
        here.large = here.large_kept;
    }
    else if (here.large < 0) {
        sampled = large_point_fell(kind == CALLOC ? count * size : size, &mean);
    }
    struct slot slot;
    bool was = kind == REALLOC && block != NULL && maybe_sampled(block) && untrack(block, &slot);
    void *result = ask(old, kind, block, count, size);
    if (result == NULL) {
        if (was) {
            track_again(&slot);
        }
    }
    else if (capture) {
        here.captured = result;
    }
    else if (sampled) {
        track(result, kind == CALLOC ? count * size : size, mean);
    }
    return result;
}

/* OBJ and MEM over pymalloc: a countdown ran out. */
static NOINLINE void *
small_slow(int domain, const PyMemAllocatorEx *old, int kind, void *block, size_t count, size_t size)
{
    if (here.probing) {
        here.reached |= (uint8_t)(1u << domain);
        return ask(old, kind, block, count, size);
    }
    size_t n = kind == CALLOC ? count * size : size;
    double mean;
    if (UNLIKELY(here.orphan_looks)) {
        adopt(n);
        bool fell = here.small < 0;
        if (here.orphan_looks) {
            here.small_kept = here.small;
            here.small = TRAP;
        }
        if (!fell) {
            return ask(old, kind, block, count, size);
        }
        if (here.orphan_looks) { /* a point falls into this very block: void, as if it had not been thrown */
            draw_small();
            here.small_kept = here.small;
            here.small = TRAP;
            return ask(old, kind, block, count, size);
        }
    }
    /* A point in a block above the limit is void: the block is RAW's to count. */
    if (!small_point_fell(n, &mean) || n > small_limit || here.asking || here.busy || !load(active)) {
        here.small_realloc = kind == REALLOC && n <= small_limit;
        void *result = ask(old, kind, block, count, size);
        here.small_realloc = 0;
        return result;
    }
    here.asking = here.capture = 1;
    here.captured = NULL;
    here.large_kept = here.large;
    here.large = TRAP;
    void *result = ask(old, kind, block, 1, small_limit + 1);
    if (here.capture) { /* RAW was not reached after all */
        here.capture = 0;
        here.large = here.large_kept;
    }
    here.asking = 0;
    void *captured = here.captured;
    if (result == NULL) {
        here.small_realloc = kind == REALLOC;
        result = ask(old, kind, block, count, size); /* the program asked for less */
        here.small_realloc = 0;
        return result;
    }
    if (captured != NULL) {
        track(captured, n, mean);
    }
    return result;
}

static NOINLINE void
free_slow(const PyMemAllocatorEx *old, void *block)
{
    struct slot slot;
    untrack(block, &slot); /* before the address can be given out again */
    old->free(old->ctx, block);
}

#define SMALL_HOOKS(name, DOMAIN)                                                                                                    \
    static void *name##_small_malloc(void *Py_UNUSED(ctx), size_t size)                                                              \
    {                                                                                                                                \
        if (LIKELY((here.small -= (int64_t)size) >= 0)) {                                                                            \
            return before[DOMAIN].malloc(before[DOMAIN].ctx, size);                                                                  \
        }                                                                                                                            \
        return small_slow(DOMAIN, &before[DOMAIN], MALLOC, NULL, 1, size);                                                           \
    }                                                                                                                                \
    static void *name##_small_calloc(void *Py_UNUSED(ctx), size_t count, size_t size)                                                \
    {                                                                                                                                \
        if (LIKELY((here.small -= (int64_t)(count * size)) >= 0)) {                                                                  \
            return before[DOMAIN].calloc(before[DOMAIN].ctx, count, size);                                                           \
        }                                                                                                                            \
        return small_slow(DOMAIN, &before[DOMAIN], CALLOC, NULL, count, size);                                                       \
    }                                                                                                                                \
    static void *name##_small_realloc(void *Py_UNUSED(ctx), void *block, size_t size)                                                \
    {                                                                                                                                \
        if (size > small_limit && LIKELY(here.small >= 0)) {                                                                         \
            return before[DOMAIN].realloc(before[DOMAIN].ctx, block, size);                                                          \
        }                                                                                                                            \
        if (LIKELY((here.small -= (int64_t)size) >= 0)) {                                                                            \
            here.small_realloc = 1;                                                                                                  \
            void *result = before[DOMAIN].realloc(before[DOMAIN].ctx, block, size);                                                  \
            here.small_realloc = 0;                                                                                                  \
            return result;                                                                                                           \
        }                                                                                                                            \
        return small_slow(DOMAIN, &before[DOMAIN], REALLOC, block, 1, size);                                                         \
    }
SMALL_HOOKS(mem, MEM)
SMALL_HOOKS(obj, OBJ)

#define RAW_BEFORE (&__atomic_load_n(&raw_before, __ATOMIC_ACQUIRE)->allocator)
#define BLOCK_HOOKS(name, DOMAIN, BEFORE)                                                                                            \
    static void *name##_malloc(void *Py_UNUSED(ctx), size_t size)                                                                    \
    {                                                                                                                                \
        const PyMemAllocatorEx *old = BEFORE;                                                                                        \
        if (LIKELY((here.large -= (int64_t)size) >= 0)) {                                                                            \
            return old->malloc(old->ctx, size);                                                                                      \
        }                                                                                                                            \
        return block_slow(DOMAIN, old, MALLOC, NULL, 1, size);                                                                       \
    }                                                                                                                                \
    static void *name##_calloc(void *Py_UNUSED(ctx), size_t count, size_t size)                                                      \
    {                                                                                                                                \
        const PyMemAllocatorEx *old = BEFORE;                                                                                        \
        if (LIKELY((here.large -= (int64_t)(count * size)) >= 0)) {                                                                  \
            return old->calloc(old->ctx, count, size);                                                                               \
        }                                                                                                                            \
        return block_slow(DOMAIN, old, CALLOC, NULL, count, size);                                                                   \
    }                                                                                                                                \
    static void *name##_realloc(void *Py_UNUSED(ctx), void *block, size_t size)                                                      \
    {                                                                                                                                \
        const PyMemAllocatorEx *old = BEFORE;                                                                                        \
        if (!(DOMAIN == RAW && here.small_realloc)) {                                                                                \
            here.large -= (int64_t)size;                                                                                             \
        }                                                                                                                            \
        if (LIKELY(here.large >= 0 && !maybe_sampled(block))) {                                                                      \
            return old->realloc(old->ctx, block, size);                                                                              \
        }                                                                                                                            \
        return block_slow(DOMAIN, old, REALLOC, block, 1, size);                                                                     \
    }                                                                                                                                \
    static void name##_free(void *Py_UNUSED(ctx), void *block)                                                                       \
    {                                                                                                                                \
        const PyMemAllocatorEx *old = BEFORE;                                                                                        \
        if (UNLIKELY(maybe_sampled(block))) {                                                                                        \
            free_slow(old, block);                                                                                                   \
            return;                                                                                                                  \
        }                                                                                                                            \
        old->free(old->ctx, block);                                                                                                  \
    }
BLOCK_HOOKS(raw, RAW, RAW_BEFORE)
BLOCK_HOOKS(mem, MEM, &before[MEM])
BLOCK_HOOKS(obj, OBJ, &before[OBJ])

/* pymalloc's arenas are only counted.  What else is asked for here are the chunks of the interpreter's own stacks of frames. */
static void *
arena_alloc(void *Py_UNUSED(ctx), size_t size)
{
    void *block = arena_before.alloc(arena_before.ctx, size);
    if (block == NULL) {
        return NULL;
    }
    if (size == ARENA_SMALL || size == ARENA_LARGE) {
        __atomic_add_fetch(&arenas_bytes, (int64_t)size, __ATOMIC_RELAXED);
    }
    else if (here.probing) {
        here.reached |= (uint8_t)(1u << DOMAINS);
    }
    else if ((here.large -= (int64_t)size) < 0 && !here.capture) {
        double mean;
        if (large_point_fell(size, &mean)) {
            track(block, size, mean);
            if (mode == MODE_PYMALLOC) {
                adopt_later(block);
            }
        }
    }
    return block;
}

static void
arena_free(void *Py_UNUSED(ctx), void *block, size_t size)
{
    if (size == ARENA_SMALL || size == ARENA_LARGE) {
        __atomic_sub_fetch(&arenas_bytes, (int64_t)size, __ATOMIC_RELAXED);
    }
    else if (UNLIKELY(maybe_sampled(block))) {
        struct slot slot;
        untrack(block, &slot);
    }
    arena_before.free(arena_before.ctx, block, size);
}

/* --- The chain of allocators (with the GIL) --------------------------------------------------------------------------------------- */

static const PyMemAllocatorDomain domain_names[DOMAINS] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};

static void *
allocate(int domain, size_t size)
{
    return domain == RAW ? PyMem_RawMalloc(size) : domain == MEM ? PyMem_Malloc(size) : PyObject_Malloc(size);
}

static void
release(int domain, void *block)
{
    if (domain == RAW) {
        PyMem_RawFree(block);
    }
    else if (domain == MEM) {
        PyMem_Free(block);
    }
    else {
        PyObject_Free(block);
    }
}

/* The domains whose hooks an allocation of this size passes through, a bit for each. */
static unsigned
probe(int domain, size_t size)
{
    int64_t small = here.small, large = here.large;
    here.small = here.large = TRAP;
    here.reached = 0;
    here.probing = 1;
    void *block = allocate(domain, size);
    here.probing = 0;
    here.small = small;
    here.large = large;
    release(domain, block);
    return here.reached;
}

static bool
is_hooked(int domain)
{
    return (mode == MODE_RAW && domain != RAW) || (probe(domain, 8) & (1u << domain)) != 0;
}

static bool
arena_is_hooked(void)
{
    PyObjectArenaAllocator top;
    PyObject_GetArenaAllocator(&top);
    if (top.alloc == arena_alloc) {
        return true;
    }
    if (!arena_hooked) {
        return false;
    }
    here.reached = 0;
    here.probing = 1;
    void *block = top.alloc(top.ctx, 16384); /* under another tool's, or gone? */
    here.probing = 0;
    if (block != NULL) {
        top.free(top.ctx, block, 16384);
    }
    return (here.reached & (1u << DOMAINS)) != 0;
}

static bool
publish_raw(const PyMemAllocatorEx *allocator)
{
    for (unsigned i = 0; i < record_count; i++) {
        if (memcmp(&records[i].allocator, allocator, sizeof(*allocator)) == 0) {
            __atomic_store_n(&raw_before, &records[i], __ATOMIC_RELEASE);
            return true;
        }
    }
    if (record_count == RECORDS_MOST) {
        return false;
    }
    records[record_count].allocator = *allocator;
    __atomic_store_n(&raw_before, &records[record_count++], __ATOMIC_RELEASE);
    return true;
}

static bool
is_ours(int domain, const PyMemAllocatorEx *allocator)
{
    return domain == RAW   ? allocator->malloc == raw_malloc
           : domain == MEM ? allocator->malloc == mem_malloc || allocator->malloc == mem_small_malloc
                           : allocator->malloc == obj_malloc || allocator->malloc == obj_small_malloc;
}

static bool
hook(int domain)
{
    PyMemAllocatorEx top;
    PyMem_GetAllocator(domain_names[domain], &top);
    if (is_ours(domain, &top)) {
        return true; /* never onto itself */
    }
    PyMemAllocatorEx ours = top; /* ctx stays: see `before` */
    if (domain == RAW) {
        if (!publish_raw(&top)) {
            return false;
        }
        ours.malloc = raw_malloc;
        ours.calloc = raw_calloc;
        ours.realloc = raw_realloc;
        ours.free = raw_free;
    }
    else {
        bool full = mode == MODE_FULL;
        before[domain] = top;
        __atomic_thread_fence(__ATOMIC_RELEASE); /* interpreters with a GIL of their own call us without this one */
        ours.malloc = domain == MEM ? (full ? mem_malloc : mem_small_malloc) : (full ? obj_malloc : obj_small_malloc);
        ours.calloc = domain == MEM ? (full ? mem_calloc : mem_small_calloc) : (full ? obj_calloc : obj_small_calloc);
        ours.realloc = domain == MEM ? (full ? mem_realloc : mem_small_realloc) : (full ? obj_realloc : obj_small_realloc);
        if (full) {
            ours.free = domain == MEM ? mem_free : obj_free;
        }
    }
    PyMem_SetAllocator(domain_names[domain], &ours);
    return true;
}

static void
unhook(int domain)
{
    PyMemAllocatorEx top;
    PyMem_GetAllocator(domain_names[domain], &top);
    if (is_ours(domain, &top)) { /* else another tool stands on us: stay, and pass everything through */
        PyMem_SetAllocator(domain_names[domain], domain == RAW ? (PyMemAllocatorEx *)&raw_before->allocator : &before[domain]);
    }
}

/* Under the lock: the governor's window begins anew, as what comes in a second is another now. */
static void
set_paused(bool now)
{
    store(paused, now);
    pauses += now;
    window_s = now_s();
    in_window = 0;
}

/* Take the hooks of OBJ and MEM off, if they can be put back as they were: over pymalloc, with no other tool above them. */
static bool
pause_small(void)
{
    PyMemAllocatorEx mem, obj;
    if (paused || !active || mode != MODE_PYMALLOC) {
        return paused;
    }
    PyMem_GetAllocator(PYMEM_DOMAIN_MEM, &mem);
    PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &obj);
    if (!is_ours(MEM, &mem) || !is_ours(OBJ, &obj)) {
        return false;
    }
    unhook(OBJ);
    unhook(MEM);
    lock();
    set_paused(true);
    unlock();
    return true;
}

/* Whether OBJ and MEM still hand on what pymalloc would not serve: under tools that wrap them they do. */
static bool
lead_to_raw(void)
{
    return (probe(MEM, PYMALLOC_LIMIT_MOST) & probe(OBJ, PYMALLOC_LIMIT_MOST) & 1u << RAW) != 0;
}

/* Put them back.  Where another tool has come or gone meanwhile, join_chains() does that. */
static void
resume_small(void)
{
    if (!paused) {
        return;
    }
    lock();
    set_paused(false);
    unlock();
    for (int domain = MEM; domain <= OBJ; domain++) {
        PyMemAllocatorEx top;
        PyMem_GetAllocator(domain_names[domain], &top);
        if (memcmp(&top, &before[domain], sizeof(top)) == 0) {
            hook(domain);
        }
    }
}

/* Called again while inactive: a tool that stood on us may have gone since, leaving us on top. */
static void
unhook_all(void)
{
    if (mode == MODE_NONE) {
        return;
    }
    unhook(OBJ);
    unhook(MEM);
    unhook(RAW);
    PyObjectArenaAllocator top;
    PyObject_GetArenaAllocator(&top);
    if (top.alloc == arena_alloc) {
        PyObject_SetArenaAllocator(&arena_before);
        arena_hooked = false;
    }
}

/* What OBJ and MEM are made of, seen through the RAW hook.  PyExc_RuntimeError set and false where it is nothing we know. */
static bool
choose_mode(void)
{
    size_t limits[DOMAINS] = {0};
    bool never[DOMAINS] = {false}, always[DOMAINS] = {false};
    for (int domain = MEM; domain <= OBJ; domain++) {
        size_t low = 16, high = PYMALLOC_LIMIT_MOST;
        always[domain] = (probe(domain, low) & 1u << RAW) != 0;
        never[domain] = !(probe(domain, high) & 1u << RAW);
        while (high - low > 1) {
            size_t middle = (low + high) / 2;
            if (probe(domain, middle) & 1u << RAW) {
                high = middle;
            }
            else {
                low = middle;
            }
        }
        limits[domain] = low;
    }
    if (always[MEM] && always[OBJ]) {
        mode = MODE_RAW;
    }
    else if (never[MEM] && never[OBJ]) {
        mode = MODE_FULL;
    }
    else if (!always[MEM] && !always[OBJ] && !never[MEM] && !never[OBJ] && limits[MEM] == limits[OBJ]) {
        mode = MODE_PYMALLOC;
        small_limit = limits[OBJ];
    }
    else {
        PyErr_SetString(PyExc_RuntimeError, "the sampler does not know this process's memory allocators: objects and buffers are "
                                            "allocated in different ways.");
        return false;
    }
    return true;
}

/* Put every hook that is not in its chain (any more) on top of it; how many, or -1 with an exception.  *lost: whether blocks may have
   gone unseen meanwhile.  Small ones over pymalloc go through RAW, so that without the hooks of OBJ and MEM only new ones were missed. */
static int
join_chains(bool *lost)
{
    static const char *const full = "other tools have replaced the memory allocators too often for the sampler to follow.";
    int joined = 0;
    bool known = mode != MODE_NONE, obj = known && is_hooked(OBJ), mem = known && is_hooked(MEM), raw = known && is_hooked(RAW);
    if (!raw) {
        if (!hook(RAW)) {
            PyErr_SetString(PyExc_RuntimeError, full);
            return -1;
        }
        joined++;
    }
    bool same = raw && mode == MODE_PYMALLOC && (obj || mem || lead_to_raw());
    *lost = !same;
    if (!known || (!obj && !mem && !same)) {
        if (!choose_mode()) {
            unhook(RAW);
            mode = MODE_NONE;
            return -1;
        }
    }
    if (mode != MODE_RAW) {
        if (!mem) {
            joined += hook(MEM);
        }
        if (!obj) {
            joined += hook(OBJ);
        }
    }
    if (!arena_is_hooked()) {
        PyObjectArenaAllocator ours;
        PyObject_GetArenaAllocator(&arena_before);
        ours = arena_before;
        ours.alloc = arena_alloc;
        ours.free = arena_free;
        PyObject_SetArenaAllocator(&ours);
        arena_hooked = true;
        *lost = true;
        joined++;
    }
    *lost &= joined > 0;
    return joined;
}

/* --- Compaction (under the lock) -------------------------------------------------------------------------------------------------- */

/* Leave out the stacks that nothing alive came from.  The new book holds no more than the old one did, so everything fits. */
static void
compact(void)
{
    struct book *fresh = new_book();
    uint32_t *moved = map(STACKS_MOST * sizeof(uint32_t)); /* 1 + new number */
    if (fresh == NULL || moved == NULL) {
        unmap(fresh, sizeof(struct book));
        unmap(moved, STACKS_MOST * sizeof(uint32_t));
        return;
    }
    for (uint32_t i = 0; i < slot_count; i++) {
        if (slots[i].address != 0) {
            uint32_t *to = &moved[slots[i].stack];
            if (*to == 0) {
                *to = 1 + copy_stack(fresh, book, slots[i].stack);
            }
            slots[i].stack = *to - 1;
        }
    }
    /* Stacks that only native bytes are charged to stay as long as they take no more than half. */
    for (uint32_t i = 0; i < book->stack_count && fresh->stack_count < STACKS_MOST / 2 && !nearly_full(fresh); i++) {
        if (moved[i] == 0 && (i <= STACK_NONE || fabs(book->stacks[i].native_bytes) >= NATIVE_KEPT)) {
            copy_stack(fresh, book, i);
        }
    }
    unmap(moved, STACKS_MOST * sizeof(uint32_t));
    unmap(book, sizeof(struct book));
    book = fresh;
    compactions++;
}

/* --- Python ----------------------------------------------------------------------------------------------------------------------- */

static bool
may_run(void)
{
#ifdef Py_GIL_DISABLED
    PyErr_SetString(PyExc_RuntimeError, "the sampler does not support free-threaded Python: its allocators cannot be hooked safely.");
    return false;
#else
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_RuntimeError, "the sampler can be started in the main interpreter only, which samples all of them.");
        return false;
    }
    return true;
#endif
}

static bool
mean_from(Py_ssize_t bytes, double *mean)
{
    *mean = (double)bytes;
    if (*mean < MEAN_LEAST || *mean > MEAN_MOST) {
        PyErr_Format(PyExc_ValueError, "mean_bytes must be from 1024 to 1073741824, not %zd", bytes);
        return false;
    }
    return true;
}

static PyObject *
sampler_start(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"mean_bytes", "depth", NULL};
    Py_ssize_t bytes = 65536;
    int depth = 48;
    double mean, always = 1.0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|ni:start", names, &bytes, &depth) || !mean_from(bytes, &mean)) {
        return NULL;
    }
    if (depth < 1 || depth > DEPTH_MOST) {
        return PyErr_Format(PyExc_ValueError, "depth must be from 1 to %d, not %d", DEPTH_MOST, depth);
    }
    if (!may_run()) {
        return NULL;
    }
    if (!fork_handled) {
        if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
            PyErr_SetString(PyExc_RuntimeError, "there is no memory for the sampler's fork handlers.");
            return NULL;
        }
        fork_handled = true;
    }
    if (!active) {
        struct book *fresh = new_book();
        if (fresh == NULL) {
            PyErr_SetString(PyExc_RuntimeError, "there is no memory for the sampler's tables.");
            return NULL;
        }
        bool lost;
        if (join_chains(&lost) < 0) {
            unmap(fresh, sizeof(struct book));
            return NULL;
        }
        lock();
        book = fresh;
        taken = dropped = thinned = stacks_dropped = compactions = 0;
        reinstalled = 0;
        compact_next_s = 0.0;
        store(active, true);
        unlock();
    }
    resume_small();
    lock();
    __atomic_store(&mean_bytes, &mean, __ATOMIC_RELAXED);
    __atomic_store(&duty, &always, __ATOMIC_RELAXED);
    stack_depth = (unsigned)depth;
    unlock();
    if (here.seed != 0) { /* this thread at once; the others when the gap they have begun ends */
        draw();
    }
    Py_RETURN_NONE;
}

static PyObject *
sampler_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (active) {
        store(native.on, false);
        lock();
        store(active, false);
        most_per_s = 0.0; /* whoever starts it next has not asked for that */
        forget_samples();
        unmap(book, sizeof(struct book));
        book = NULL;
        set_paused(false);
        unlock();
    }
    unhook_all();
    Py_RETURN_NONE;
}

static PyObject *
sampler_running(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(active);
}

static PyObject *
sampler_set_mean(PyObject *Py_UNUSED(module), PyObject *argument)
{
    Py_ssize_t bytes = PyNumber_AsSsize_t(argument, NULL);
    double mean;
    if ((bytes == -1 && PyErr_Occurred()) || !mean_from(bytes, &mean)) {
        return NULL;
    }
    lock();
    __atomic_store(&mean_bytes, &mean, __ATOMIC_RELAXED);
    unlock();
    if (here.seed != 0) {
        draw();
    }
    Py_RETURN_NONE;
}

static PyObject *
sampler_govern(PyObject *Py_UNUSED(module), PyObject *args)
{
    double most;
    Py_ssize_t bytes = 0;
    double coarsest = 0.0;
    if (!PyArg_ParseTuple(args, "d|n:govern", &most, &bytes) || (most > 0 && !mean_from(bytes, &coarsest))) {
        return NULL;
    }
    lock();
    most_per_s = most > 0 ? most : 0.0;
    coarsest_bytes = coarsest;
    window_s = now_s();
    in_window = 0;
    unlock();
    Py_RETURN_NONE;
}

static PyObject *
sampler_set_duty(PyObject *Py_UNUSED(module), PyObject *argument)
{
    double part = PyFloat_AsDouble(argument);
    if (part == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    if (!(part >= DUTY_LEAST && part <= 1.0)) {
        return PyErr_Format(PyExc_ValueError, "duty must be from 0.01 to 1, not %R", argument);
    }
    lock();
    __atomic_store(&duty, &part, __ATOMIC_RELAXED);
    unlock();
    if (here.seed != 0 && !here.orphan_looks) { /* this thread at once; the others when the gap they have begun ends */
        draw_small();
    }
    Py_RETURN_NONE;
}

static PyObject *
sampler_pause(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(pause_small());
}

static PyObject *
sampler_resume(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    resume_small();
    Py_RETURN_NONE;
}

/* A copy of the live samples and of the stacks' keys: no Python object is made under the lock. */
struct snapshot {
    struct slot *slots;
    uint32_t live;
    size_t slots_size;
    uint64_t *keys;
    uint32_t stack_count;
    size_t keys_size;
};

static bool
take_snapshot(struct snapshot *snapshot)
{
    memset(snapshot, 0, sizeof(*snapshot));
    bool enough = true;
    lock();
    if (active && slots != NULL) {
        snapshot->slots_size = (live_count + 1) * sizeof(struct slot);
        snapshot->keys_size = book->stack_count * sizeof(uint64_t);
        snapshot->slots = map(snapshot->slots_size);
        snapshot->keys = map(snapshot->keys_size);
        enough = snapshot->slots != NULL && snapshot->keys != NULL;
        if (enough) {
            for (uint32_t i = 0; i < slot_count; i++) {
                if (slots[i].address != 0) {
                    snapshot->slots[snapshot->live++] = slots[i];
                }
            }
            snapshot->stack_count = book->stack_count;
            for (uint32_t i = 0; i < snapshot->stack_count; i++) {
                snapshot->keys[i] = book->stacks[i].key;
            }
        }
    }
    unlock();
    if (!enough) {
        unmap(snapshot->slots, snapshot->slots_size);
        unmap(snapshot->keys, snapshot->keys_size);
        PyErr_NoMemory();
    }
    return enough;
}

static void
drop_snapshot(struct snapshot *snapshot)
{
    unmap(snapshot->slots, snapshot->slots_size);
    unmap(snapshot->keys, snapshot->keys_size);
}

static bool
append(PyObject *list, PyObject *item) /* takes the item */
{
    bool done = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return done;
}

struct total {
    double bytes, count, oldest_s, newest_s;
    Py_ssize_t samples;
};

static PyObject *
sampler_live(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"born_after_s", NULL};
    double born_after_s = -INFINITY;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|d:live", names, &born_after_s)) {
        return NULL;
    }
    struct snapshot snapshot;
    if (!take_snapshot(&snapshot)) {
        return NULL;
    }
    size_t size = (snapshot.stack_count + 1) * sizeof(struct total);
    struct total *totals = map(size);
    PyObject *list = totals != NULL ? PyList_New(0) : PyErr_NoMemory();
    if (list != NULL) {
        for (uint32_t i = 0; i < snapshot.live; i++) {
            const struct slot *slot = &snapshot.slots[i];
            if (slot->born_s < born_after_s) {
                continue;
            }
            struct total *total = &totals[slot->stack];
            double taken_with = probability((double)slot->size, slot->mean);
            total->bytes += (double)slot->size / taken_with;
            total->count += 1.0 / taken_with;
            total->oldest_s = total->samples == 0 || slot->born_s < total->oldest_s ? slot->born_s : total->oldest_s;
            total->newest_s = slot->born_s > total->newest_s ? slot->born_s : total->newest_s;
            total->samples++;
        }
        for (uint32_t i = 0; i < snapshot.stack_count; i++) {
            struct total *t = &totals[i];
            if (t->samples != 0 && !append(list, Py_BuildValue("Kddndd", (unsigned long long)snapshot.keys[i], t->bytes, t->count,
                                                               t->samples, t->oldest_s, t->newest_s))) {
                Py_CLEAR(list);
                break;
            }
        }
    }
    unmap(totals, size);
    drop_snapshot(&snapshot);
    return list;
}

static PyObject *
sampler_blocks(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"born_after_s", "limit", NULL};
    double born_after_s = -INFINITY;
    Py_ssize_t limit = PY_SSIZE_T_MAX;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|dn:blocks", names, &born_after_s, &limit)) {
        return NULL;
    }
    struct snapshot snapshot;
    if (!take_snapshot(&snapshot)) {
        return NULL;
    }
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < snapshot.live && PyList_GET_SIZE(list) < limit; i++) {
        const struct slot *slot = &snapshot.slots[i];
        if (slot->born_s >= born_after_s &&
            !append(list, Py_BuildValue("KKdKd", (unsigned long long)slot->address, (unsigned long long)slot->size,
                                        (double)slot->size / probability((double)slot->size, slot->mean),
                                        (unsigned long long)snapshot.keys[slot->stack], slot->born_s))) {
            Py_CLEAR(list);
        }
    }
    drop_snapshot(&snapshot);
    return list;
}

struct copied {
    uint32_t file_length, name_length;
    int32_t line;
    char file[STRING_MOST], name[STRING_MOST];
};

static PyObject *
sampler_stack(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long long key = PyLong_AsUnsignedLongLong(argument);
    if (key == (unsigned long long)-1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
            return NULL;
        }
        PyErr_Clear(); /* no stack has such a key */
        Py_RETURN_NONE;
    }
    struct copied *frames = map(DEPTH_MOST * sizeof(struct copied));
    if (frames == NULL) {
        return PyErr_NoMemory();
    }
    uint32_t depth = 0;
    lock();
    uint32_t number = active ? find_stack(book, key, NULL) : ABSENT;
    if (number != ABSENT) {
        const struct stack *stack = &book->stacks[number];
        for (; depth < stack->depth; depth++) {
            const struct frame *frame = &book->frames[book->links[stack->first + depth]];
            const struct string *file = &book->strings[frame->file], *name = &book->strings[frame->name];
            frames[depth].file_length = file->length;
            frames[depth].name_length = name->length;
            frames[depth].line = frame->line;
            memcpy(frames[depth].file, book->text + file->offset, file->length);
            memcpy(frames[depth].name, book->text + name->offset, name->length);
        }
    }
    unlock();
    PyObject *result = NULL;
    if (number == ABSENT) {
        result = Py_NewRef(Py_None);
    }
    else if (number == STACK_OTHER) {
        result = Py_BuildValue("((ssi))", "<memwatch>", "<stacks beyond the sampler's limit>", 0);
    }
    else if ((result = PyTuple_New(depth)) != NULL) {
        for (uint32_t i = 0; i < depth; i++) {
            PyObject *file = PyUnicode_DecodeUTF8(frames[i].file, frames[i].file_length, "replace");
            PyObject *name = PyUnicode_DecodeUTF8(frames[i].name, frames[i].name_length, "replace");
            PyObject *frame = file != NULL && name != NULL ? Py_BuildValue("OOi", file, name, (int)frames[i].line) : NULL;
            Py_XDECREF(file);
            Py_XDECREF(name);
            if (frame == NULL) {
                Py_CLEAR(result);
                break;
            }
            PyTuple_SET_ITEM(result, i, frame);
        }
    }
    unmap(frames, DEPTH_MOST * sizeof(struct copied));
    return result;
}

static PyObject *
sampler_maintain(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    bool well = true;
    if (!active) {
        unhook_all();
    }
    else if (PyInterpreterState_Get() == PyInterpreterState_Main()) {
        bool was_paused = paused;
        resume_small();
        bool lost = true;
        int joined = join_chains(&lost);
        if (joined < 0) {
            PyErr_Clear(); /* nothing can be said about what lives any more */
            lost = true;
        }
        if (was_paused) {
            pause_small();
        }
        well = !lost;
        lock();
        reinstalled += joined != 0;
        if (lost) {
            forget_samples();
        }
        double started_s = now_s();
        if (nearly_full(book) && started_s >= compact_next_s) {
            compact();
            double ended_s = now_s();
            compact_next_s = ended_s + (ended_s - started_s) / COMPACT_DUTY;
        }
        unlock();
    }
    return PyBool_FromLong(well);
}

static PyObject *
sampler_watch_native(PyObject *Py_UNUSED(module), PyObject *argument)
{
    int on = PyObject_IsTrue(argument);
    if (on < 0) {
        return NULL;
    }
    if (on && !native.on && active) {
        native.mallinfo2 = dlsym(RTLD_DEFAULT, "mallinfo2"); /* glibc 2.33; elsewhere nothing is charged */
        if (native.mallinfo2 != NULL) {
            native.last_bytes = native_bytes();
            native.next_s = 0.0;
            store(native.on, true);
        }
    }
    else if (!on) {
        store(native.on, false);
    }
    Py_RETURN_NONE;
}

struct charge {
    uint64_t key;
    double bytes;
    uint32_t readings;
};

static PyObject *
sampler_native(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    size_t size = STACKS_MOST * sizeof(struct charge);
    struct charge *charges = map(size);
    if (charges == NULL) {
        return PyErr_NoMemory();
    }
    uint32_t count = 0;
    lock();
    for (uint32_t i = 0; active && i < book->stack_count; i++) {
        const struct stack *stack = &book->stacks[i];
        if (stack->native_readings != 0) {
            charges[count++] = (struct charge){stack->key, stack->native_bytes, stack->native_readings};
        }
    }
    unlock();
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < count; i++) {
        if (!append(list, Py_BuildValue("KdI", (unsigned long long)charges[i].key, charges[i].bytes, charges[i].readings))) {
            Py_CLEAR(list);
        }
    }
    unmap(charges, size);
    return list;
}

static double
own_bytes(void) /* touched, not merely mapped; the hashed indexes and the cache in full once there is anything in them */
{
    double bytes = 0.0;
    if (book != NULL) {
        bytes += (double)offsetof(struct book, strings);
        bytes += (double)(book->string_count * sizeof(struct string) + book->frame_count * sizeof(struct frame));
        bytes += (double)(book->stack_count * sizeof(struct stack) + book->link_count * sizeof(uint32_t) + book->text_used);
        bytes += FILTER_SIZE;
    }
    return bytes + (double)slot_count * sizeof(struct slot);
}

static bool
add_figure(PyObject *dictionary, const char *name, double value)
{
    PyObject *number = PyFloat_FromDouble(value);
    bool done = number != NULL && PyDict_SetItemString(dictionary, name, number) == 0;
    Py_XDECREF(number);
    return done;
}

static PyObject *
sampler_statistics(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    lock();
    const struct {
        const char *name;
        double value;
    } figures[] = {
        {"mean_bytes", mean_bytes},
        {"duty", duty},
        {"paused", paused},
        {"most_per_s", most_per_s},
        {"coarsest_bytes", coarsest_bytes},
        {"depth", stack_depth},
        {"mode", active ? mode : MODE_NONE},
        {"small_limit", active && mode == MODE_PYMALLOC ? (double)small_limit : 0.0},
        {"samples", (double)taken},
        {"live", live_count},
        {"dropped", (double)dropped},
        {"thinned", (double)thinned},
        {"stacks", book != NULL ? (double)(book->stack_count - 2) : 0.0},
        {"frames", book != NULL ? (double)book->frame_count : 0.0},
        {"stacks_dropped", (double)stacks_dropped},
        {"compactions", (double)compactions},
        {"reinstalled", (double)reinstalled},
        {"native", native.on},
        {"native_readings", (double)native.readings},
        {"own_bytes", own_bytes()},
        {"arenas_bytes", (double)__atomic_load_n(&arenas_bytes, __ATOMIC_RELAXED)},
    };
    unlock();
    PyObject *dictionary = PyDict_New();
    for (size_t i = 0; dictionary != NULL && i < sizeof(figures) / sizeof(figures[0]); i++) {
        if (!add_figure(dictionary, figures[i].name, figures[i].value)) {
            Py_CLEAR(dictionary);
        }
    }
    return dictionary;
}

/* Through void (*)(void): the cast of a function that takes keywords, without a warning. */
#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

/* What pymalloc prints about itself, and the number of blocks at the same moment; and how many small blocks live outside of its pools
   because they are sampled.  It prints nothing where its functions are not the
   outermost, so for as long as it prints (nobody else has the GIL) ours are taken off. */
static PyObject *
sampler_pymalloc_statistics(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(argument))
{
    int (*print)(FILE *) = NULL;
    void *symbol = dlsym(RTLD_DEFAULT, "_PyObject_DebugMallocStats");
    PyObject *count = PySys_GetObject("getallocatedblocks"); /* borrowed */
    if (symbol == NULL || count == NULL) {
        Py_RETURN_NONE;
    }
    memcpy(&print, &symbol, sizeof(print));
    PyObject *blocks = PyObject_CallNoArgs(count);
    if (blocks == NULL) {
        return NULL;
    }
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    if (stream == NULL) {
        Py_DECREF(blocks);
        Py_RETURN_NONE;
    }
    PyMemAllocatorEx top;
    PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &top);
    bool ours = top.malloc == obj_malloc || top.malloc == obj_small_malloc;
    if (ours) {
        PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &before[OBJ]);
    }
    int printed = print(stream);
    if (ours) {
        PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &top);
    }
    fclose(stream);
    Py_ssize_t moved = 0;
    lock();
    for (uint32_t i = 0; mode == MODE_PYMALLOC && slots != NULL && i < slot_count; i++) {
        moved += slots[i].address != 0 && slots[i].size <= small_limit;
    }
    unlock();
    PyObject *result = printed && text != NULL ? Py_BuildValue("Ny#n", blocks, text, (Py_ssize_t)length, moved) : NULL;
    free(text);
    if (result == NULL && !PyErr_Occurred()) {
        Py_DECREF(blocks);
        Py_RETURN_NONE;
    }
    return result;
}

static PyMethodDef methods[] = {
    {"start", WITH_KEYWORDS(sampler_start),
     "start(mean_bytes=65536, depth=48)\n--\n\nSample allocations, one per mean_bytes on average; RuntimeError where it cannot."},
    {"stop", sampler_stop, METH_NOARGS, "stop()\n--\n\nTake the hooks out and forget every sample."},
    {"running", sampler_running, METH_NOARGS, "running()\n--\n\nWhether samples are being taken."},
    {"set_mean", sampler_set_mean, METH_O, "set_mean(mean_bytes, /)\n--\n\nChange the mean; samples already taken keep theirs."},
    {"govern", sampler_govern, METH_VARARGS,
     "govern(most_per_s, coarsest_bytes=0, /)\n--\n\nDouble the mean, up to the coarsest, whenever samples come faster; 0: never."},
    {"set_duty", sampler_set_duty, METH_O,
     "set_duty(duty, /)\n--\n\nSmall blocks are sampled in this part of the time only, as whoever sets it sees to with pause and resume."},
    {"pause", sampler_pause, METH_NOARGS, "pause()\n--\n\nSample no small blocks until resume(); False if that is not possible now."},
    {"resume", sampler_resume, METH_NOARGS, "resume()\n--\n\nSample small blocks again."},
    {"live", WITH_KEYWORDS(sampler_live),
     "live(born_after_s=-inf)\n--\n\nPer stack: (key, bytes, count, samples, oldest_s, newest_s) of what is alive."},
    {"stack", sampler_stack, METH_O, "stack(key, /)\n--\n\nThe frames of a key, innermost first, or None."},
    {"blocks", WITH_KEYWORDS(sampler_blocks),
     "blocks(born_after_s=-inf, limit=all)\n--\n\nLive sampled blocks: (address, size, weight_bytes, key, born_s)."},
    {"maintain", sampler_maintain, METH_NOARGS, "maintain()\n--\n\nPut dropped hooks back and compact the tables; True if all was well."},
    {"watch_native", sampler_watch_native, METH_O, "watch_native(on, /)\n--\n\nCharge malloc's growth to the stacks that are sampled."},
    {"native", sampler_native, METH_NOARGS, "native()\n--\n\nPer stack: (key, bytes, readings) of native growth."},
    {"pymalloc_statistics", sampler_pymalloc_statistics, METH_NOARGS,
     "pymalloc_statistics()\n--\n\nBlocks of all Python allocators, what pymalloc prints about itself (None for all if nothing), small blocks moved out."},
    {"statistics", sampler_statistics, METH_NOARGS, "statistics()\n--\n\nWhat the sampler has done and what it costs."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* start() declines; importing must not bring the GIL back */
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_sampler",
    .m_doc = "A sample of live allocations, with the Python stacks they came from.",
    .m_methods = methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__sampler(void)
{
    return PyModuleDef_Init(&module_definition);
}
