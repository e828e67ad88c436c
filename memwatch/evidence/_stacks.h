/* Python stacks, each stored once: what `_stacks.c` gives to `_sampler.c`.  One extension. */

#define PY_SSIZE_T_CLEAN
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1
#endif
#include <Python.h>

#if PY_VERSION_HEX < 0x030B0000
#error "memwatch needs Python 3.11 or later"
#endif

#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

#define DEPTH_MOST 128
#define STACKS_MOST (16u << 10)
#define FRAMES_MOST (32u << 10)
#define STRINGS_MOST (32u << 10)
#define TEXT_MOST (4u << 20)
#define LINKS_MOST (768u << 10) /* frames of all stacks together: 48 for each of 16 Ki */
#define STRING_MOST 300u /* bytes of UTF-8 kept of a file name (its end) or of a qualified name (its beginning) */
#define CACHE_SIZE (4u << 10)

struct string {
    uint64_t hash;
    uint32_t offset;
    uint32_t length;
};

struct frame {
    uint64_t hash;
    uint32_t file, name;
    int32_t line;
};

struct stack {
    uint64_t key;
    uint32_t first, depth; /* in links */
    uint32_t native_readings;
    double native_bytes;
};

struct cached {
    uint64_t tag;
    PyCodeObject *code;
    uint32_t frame;
};

/* Names, frames and stacks, each stored once.  One mapping of which only the used pages are ever touched. */
struct book {
    uint32_t text_used, string_count, frame_count, link_count, stack_count;
    uint32_t string_index[2 * STRINGS_MOST]; /* 1 + number; 0: empty */
    uint32_t frame_index[2 * FRAMES_MOST];
    uint32_t stack_index[2 * STACKS_MOST];
    struct cached cache[CACHE_SIZE];
    struct string strings[STRINGS_MOST];
    struct frame frames[FRAMES_MOST];
    struct stack stacks[STACKS_MOST];
    uint32_t links[LINKS_MOST];
    char text[TEXT_MOST];
};
#define STACK_OTHER 0u /* those that no longer fit */
#define STACK_NONE 1u /* no Python frame */
#define KEY_OTHER 1ULL
#define KEY_NONE 2ULL
#define ABSENT UINT32_MAX

static inline void *
map(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static inline void
unmap(void *memory, size_t size)
{
    if (memory != NULL) {
        munmap(memory, size);
    }
}

static inline uint64_t
mix(uint64_t x) /* the finaliser of SplitMix64 */
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

/* No name of ours is the program's. */
#pragma GCC visibility push(hidden)

/* NULL if there is no memory; to be unmapped. */
struct book *new_book(void);

/* The number of the stack with that key, or ABSENT; *place*, if not NULL: where it would go in the index. */
uint32_t find_stack(const struct book *b, uint64_t key, uint32_t *place);

/* The number of this thread's stack, of at most *most* frames: STACK_NONE if there are none, STACK_OTHER if it no longer fits. */
uint32_t walk_stack(struct book *b, unsigned most);

bool nearly_full(const struct book *b);

/* Its number in the other book, which has room for it. */
uint32_t copy_stack(struct book *to, const struct book *from, uint32_t number);

#pragma GCC visibility pop
