/* Python stacks, each stored once: names, frames and stacks in a book, which grows until what is needed of it is copied to
   another; read from the interpreter's own frames.

   It runs in a hook of an allocator, under the sampler's lock, with the GIL or without: nothing here allocates from the interpreter,
   touches a reference count or sets an exception.  How a frame is laid out changes from one version of CPython to the next; all that
   knows it is here.

   Sources: CPython Include/internal/pycore_frame.h, Objects/locations.md. */

#ifndef Py_BUILD_CORE
#define Py_BUILD_CORE 1
#endif
#include "_stacks.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wsign-compare"
#if PY_VERSION_HEX >= 0x030E0000
#include <internal/pycore_interpframe_structs.h>
#else
#include <internal/pycore_frame.h>
#endif
#pragma GCC diagnostic pop

#include <string.h>

#define NEARLY_FULL 0.7

static uint64_t
hash_bytes(const char *bytes, size_t length, uint64_t seed)
{
    uint64_t hash = seed ^ 0xCBF29CE484222325ULL; /* FNV-1a, finished */
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001B3ULL;
    }
    return mix(hash);
}

static size_t
encode(Py_UCS4 c, char out[4])
{
    if (c >= 0xD800 && c <= 0xDFFF) {
        c = '?'; /* a surrogate alone: surrogateescape, as in undecodable file names */
    }
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | (c >> 6));
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | (c >> 12));
        out[1] = (char)(0x80 | ((c >> 6) & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | (c >> 18));
    out[1] = (char)(0x80 | ((c >> 12) & 0x3F));
    out[2] = (char)(0x80 | ((c >> 6) & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

/* Copy at most STRING_MOST bytes of UTF-8: the beginning, or, of a path, the end. */
static size_t
copy_string(PyObject *string, bool end, char out[STRING_MOST])
{
    if (string == NULL || !PyUnicode_Check(string)) {
        return 0;
    }
#if PY_VERSION_HEX < 0x030C0000
    if (!PyUnicode_IS_READY(string)) {
        return 0;
    }
#endif
    Py_ssize_t length = PyUnicode_GET_LENGTH(string);
    int kind = (int)PyUnicode_KIND(string);
    const void *data = PyUnicode_DATA(string);
    if (PyUnicode_IS_COMPACT_ASCII(string)) {
        size_t bytes = length > (Py_ssize_t)STRING_MOST ? STRING_MOST : (size_t)length;
        memcpy(out, (const char *)data + (end ? length - (Py_ssize_t)bytes : 0), bytes);
        return bytes;
    }
    char one[4];
    Py_ssize_t first = 0;
    if (end) {
        size_t bytes = 0;
        for (first = length; first > 0; first--) {
            bytes += encode(PyUnicode_READ(kind, data, first - 1), one);
            if (bytes > STRING_MOST) {
                break;
            }
        }
    }
    size_t used = 0;
    for (Py_ssize_t i = first; i < length; i++) {
        size_t bytes = encode(PyUnicode_READ(kind, data, i), one);
        if (used + bytes > STRING_MOST) {
            break;
        }
        memcpy(out + used, one, bytes);
        used += bytes;
    }
    return used;
}

#define CODE_UNIT 2 /* bytes of _Py_CODEUNIT, whose definition moves from header to header */

static uint32_t
intern_string(struct book *b, const char *bytes, size_t length)
{
    uint64_t hash = hash_bytes(bytes, length, 0);
    uint32_t at = (uint32_t)hash & (2 * STRINGS_MOST - 1);
    for (; b->string_index[at] != 0; at = (at + 1) & (2 * STRINGS_MOST - 1)) {
        const struct string *other = &b->strings[b->string_index[at] - 1];
        if (other->hash == hash && other->length == length && memcmp(b->text + other->offset, bytes, length) == 0) {
            return b->string_index[at] - 1;
        }
    }
    if (b->string_count == STRINGS_MOST || b->text_used + length > TEXT_MOST) {
        return ABSENT;
    }
    uint32_t number = b->string_count++;
    b->strings[number] = (struct string){hash, b->text_used, (uint32_t)length};
    memcpy(b->text + b->text_used, bytes, length);
    b->text_used += (uint32_t)length;
    b->string_index[at] = number + 1;
    return number;
}

static uint32_t
intern_frame(struct book *b, uint32_t file, uint32_t name, int32_t line)
{
    if (file == ABSENT || name == ABSENT) {
        return ABSENT;
    }
    uint64_t hash = mix(b->strings[file].hash * 3 + mix(b->strings[name].hash + (uint64_t)(int64_t)line));
    uint32_t at = (uint32_t)hash & (2 * FRAMES_MOST - 1);
    for (; b->frame_index[at] != 0; at = (at + 1) & (2 * FRAMES_MOST - 1)) {
        const struct frame *other = &b->frames[b->frame_index[at] - 1];
        if (other->hash == hash && other->file == file && other->name == name && other->line == line) {
            return b->frame_index[at] - 1;
        }
    }
    if (b->frame_count == FRAMES_MOST) {
        return ABSENT;
    }
    uint32_t number = b->frame_count++;
    b->frames[number] = (struct frame){hash, file, name, line};
    b->frame_index[at] = number + 1;
    return number;
}

uint32_t
find_stack(const struct book *b, uint64_t key, uint32_t *place)
{
    uint32_t at = (uint32_t)mix(key) & (2 * STACKS_MOST - 1);
    for (; b->stack_index[at] != 0; at = (at + 1) & (2 * STACKS_MOST - 1)) {
        if (b->stacks[b->stack_index[at] - 1].key == key) {
            return b->stack_index[at] - 1;
        }
    }
    if (place != NULL) {
        *place = at;
    }
    return ABSENT;
}

static uint32_t
add_stack(struct book *b, uint64_t key, const uint32_t *frames, uint32_t depth)
{
    uint32_t place = 0, number = find_stack(b, key, &place);
    if (number != ABSENT) {
        return number;
    }
    if (b->stack_count == STACKS_MOST || b->link_count + depth > LINKS_MOST) {
        return ABSENT;
    }
    number = b->stack_count++;
    b->stacks[number] = (struct stack){.key = key, .first = b->link_count, .depth = depth};
    for (uint32_t i = 0; i < depth; i++) {
        b->links[b->link_count++] = frames[i];
    }
    b->stack_index[place] = number + 1;
    return number;
}

/* The key is made of contents, not of addresses or table positions: the same in every snapshot and process.  63 bits, so that it fits a
   signed column of a database. */
static uint32_t
intern_stack(struct book *b, const uint32_t *frames, uint32_t depth)
{
    if (depth == 0) {
        return STACK_NONE;
    }
    uint64_t key = depth;
    for (uint32_t i = 0; i < depth; i++) {
        key = mix(key * 0x9E3779B97F4A7C15ULL + b->frames[frames[i]].hash);
    }
    key &= INT64_MAX;
    return add_stack(b, key < 16 ? key + 16 : key, frames, depth);
}

struct book *
new_book(void)
{
    struct book *b = map(sizeof(struct book));
    if (b != NULL) {
        add_stack(b, KEY_OTHER, NULL, 0);
        add_stack(b, KEY_NONE, NULL, 0);
    }
    return b;
}

/* PyCode_Addr2Line() without looking at what other threads may be writing (monitoring data, caches); the format is
   Objects/locations.md, the same from 3.11 on. */
static int
line_of(PyCodeObject *code, int offset)
{
    PyObject *table = code->co_linetable;
    if (offset < 0 || table == NULL) {
        return code->co_firstlineno;
    }
    const unsigned char *p = (const unsigned char *)PyBytes_AS_STRING(table);
    const unsigned char *end = p + PyBytes_GET_SIZE(table);
    int line = code->co_firstlineno, reached = 0;
    while (p < end) {
        int kind = (*p >> 3) & 15;
        reached += ((*p & 7) + 1) * CODE_UNIT;
        if (kind == 13 || kind == 14) { /* no columns; long form: a signed varint */
            const unsigned char *q = p + 1;
            unsigned value = 0, shift = 0;
            for (; q < end; q++, shift += 6) {
                value |= (unsigned)(*q & 63) << shift;
                if (!(*q & 64)) {
                    break;
                }
            }
            line += value & 1 ? -(int)(value >> 1) : (int)(value >> 1);
        }
        else if (kind >= 10 && kind <= 12) {
            line += kind - 10;
        }
        if (offset < reached) {
            return kind == 15 ? code->co_firstlineno : line; /* an instruction without a line: the function's */
        }
        do {
            p++;
        } while (p < end && !(*p & 128));
    }
    return code->co_firstlineno;
}

static uint32_t
frame_of(struct book *b, PyCodeObject *code, int offset)
{
    /* A code object may be freed and another put in its place; the contents' hashes (computed, for interned strings) tell them apart. */
    uint64_t tag = (uint64_t)(uintptr_t)code->co_linetable ^ ((uint64_t)(uint32_t)code->co_firstlineno << 40);
    tag = mix(tag + (uint64_t)((PyASCIIObject *)code->co_filename)->hash * 3 + (uint64_t)(uintptr_t)code->co_filename);
    tag = mix(tag + (uint64_t)((PyASCIIObject *)code->co_qualname)->hash * 5 + (uint64_t)(uintptr_t)code->co_qualname);
    tag = mix(tag + (uint64_t)(uint32_t)offset + ((uint64_t)Py_SIZE(code->co_linetable) << 32)) | 1;
    struct cached *cached = &b->cache[(uint32_t)(tag >> 20) & (CACHE_SIZE - 1)];
    if (cached->tag == tag && cached->code == code) {
        return cached->frame;
    }
    char text[STRING_MOST];
    uint32_t file = intern_string(b, text, copy_string(code->co_filename, true, text));
    uint32_t name = intern_string(b, text, copy_string(code->co_qualname, false, text));
    uint32_t number = intern_frame(b, file, name, line_of(code, offset));
    if (number != ABSENT) {
        *cached = (struct cached){tag, code, number};
    }
    return number;
}

/* This thread's Python state: its own frames are still while it is in an allocation, with the GIL or without. */
static PyThreadState *
this_thread_state(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyThreadState *state = PyThreadState_GetUnchecked();
#elif PY_VERSION_HEX >= 0x030C0000
    PyThreadState *state = _PyThreadState_UncheckedGet();
#else
    PyThreadState *state = NULL; /* on 3.11 that one is whichever thread has the GIL */
#endif
    if (state == NULL) {
        state = PyGILState_GetThisThreadState();
        /* Finalising frees the states of daemon threads under their feet. */
#if PY_VERSION_HEX >= 0x030D0000
        if (state != NULL && Py_IsFinalizing()) {
#else
        if (state != NULL && _Py_IsFinalizing() && state != _PyThreadState_UncheckedGet()) {
#endif
            state = NULL;
        }
    }
    return state;
}

uint32_t
walk_stack(struct book *b, unsigned most)
{
    uint32_t frames[DEPTH_MOST], depth = 0;
#ifndef Py_GIL_DISABLED
    PyThreadState *state = this_thread_state();
    if (state == NULL) {
        return STACK_NONE;
    }
#if PY_VERSION_HEX >= 0x030D0000
    struct _PyInterpreterFrame *frame = state->current_frame;
#else
    struct _PyInterpreterFrame *frame = state->cframe != NULL ? state->cframe->current_frame : NULL;
#endif
    for (; frame != NULL && depth < most; frame = frame->previous) {
        if (frame->owner >= 3) { /* the interpreter's own frames on the C stack: FRAME_OWNED_BY_CSTACK, _INTERPRETER */
            continue;
        }
#if PY_VERSION_HEX >= 0x030E0000
        PyObject *executable = (PyObject *)(frame->f_executable.bits & ~(uintptr_t)3); /* the tags of _PyStackRef */
        const char *instruction = (const char *)frame->instr_ptr;
#elif PY_VERSION_HEX >= 0x030D0000
        PyObject *executable = frame->f_executable;
        const char *instruction = (const char *)frame->instr_ptr;
#else
        PyObject *executable = (PyObject *)frame->f_code;
        const char *instruction = (const char *)frame->prev_instr;
#endif
        if (executable == NULL || !PyCode_Check(executable)) {
            continue;
        }
        PyCodeObject *code = (PyCodeObject *)executable;
        Py_ssize_t offset = instruction - code->co_code_adaptive;
        if (frame->owner != FRAME_OWNED_BY_GENERATOR && offset < code->_co_firsttraceable * CODE_UNIT) {
            continue; /* incomplete: not yet begun */
        }
        uint32_t number = frame_of(b, code, (int)offset);
        if (number == ABSENT) {
            return STACK_OTHER;
        }
        frames[depth++] = number;
    }
#endif
    uint32_t stack = intern_stack(b, frames, depth);
    return stack == ABSENT ? STACK_OTHER : stack;
}

bool
nearly_full(const struct book *b)
{
    return b->stack_count > NEARLY_FULL * STACKS_MOST || b->frame_count > NEARLY_FULL * FRAMES_MOST ||
           b->string_count > NEARLY_FULL * STRINGS_MOST || b->text_used > NEARLY_FULL * TEXT_MOST ||
           b->link_count > NEARLY_FULL * LINKS_MOST;
}

uint32_t
copy_stack(struct book *to, const struct book *from, uint32_t number)
{
    const struct stack *stack = &from->stacks[number];
    uint32_t frames[DEPTH_MOST];
    for (uint32_t i = 0; i < stack->depth; i++) {
        const struct frame *frame = &from->frames[from->links[stack->first + i]];
        const struct string *file = &from->strings[frame->file], *name = &from->strings[frame->name];
        frames[i] = intern_frame(to, intern_string(to, from->text + file->offset, file->length),
                                 intern_string(to, from->text + name->offset, name->length), frame->line);
    }
    uint32_t copy = add_stack(to, stack->key, frames, stack->depth);
    to->stacks[copy].native_bytes = stack->native_bytes;
    to->stacks[copy].native_readings = stack->native_readings;
    return copy;
}
