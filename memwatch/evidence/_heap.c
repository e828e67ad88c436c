/* The heap, looked at from a forked child: a quiet fork, a census of types, and who holds what.

   Law: nothing here runs in the watched process but `fork_quietly` up to the fork itself.  Everything else refuses to run unless this
   process is such a child, because it keeps borrowed pointers between calls: in the child no other thread exists, the collector is off,
   and nothing of the program's is ever freed.

   Nothing here writes to an object (no reference counts where it can be helped): every page written is a page copied. */

#define PY_SSIZE_T_CLEAN
#ifndef Py_BUILD_CORE
#define Py_BUILD_CORE
#endif
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#if !defined(Py_GIL_DISABLED) && PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030F0000 && defined(__linux__)
#define SUPPORTED 1
#include "internal/pycore_interp.h"
#include "internal/pycore_runtime.h"
#include "internal/pycore_frame.h"
#if PY_VERSION_HEX >= 0x030E0000
#include "internal/pycore_interpframe.h"
#endif
#include "internal/pycore_gc.h"
#include "internal/pycore_dict.h"
#include "internal/pycore_object.h"
#else
#define SUPPORTED 0
#endif

#if SUPPORTED

/* ---------------------------------------------------------------- state of the child */

static int in_child = 0;

/* What the threads that did not survive the fork held: locals of their running frames, their thread-locals and context variables.
   Taken in the child before Python deletes their thread states. */
typedef struct {
    PyObject *object;   /* borrowed */
    PyCodeObject *code; /* borrowed; NULL for what belongs to the thread itself */
    int line;
    int variable;       /* index into co_localsplusnames, or one of the VARIABLE_* */
    unsigned long thread;
} ThreadRoot;

enum { VARIABLE_GLOBALS = -1, VARIABLE_LOCALS = -2, VARIABLE_THREAD_DICT = -3, VARIABLE_CONTEXT = -4, VARIABLE_EXCEPTION = -5,
       VARIABLE_GENERATOR = -6 };

static ThreadRoot *thread_roots = NULL;
static size_t thread_roots_count = 0, thread_roots_room = 0;

static void
note_root(PyObject *object, PyCodeObject *code, int line, int variable, unsigned long thread)
{
    if (object == NULL || object == Py_None) {
        return;
    }
    if (thread_roots_count == thread_roots_room) {
        size_t room = thread_roots_room ? 2 * thread_roots_room : 4096;
        ThreadRoot *grown = realloc(thread_roots, room * sizeof(ThreadRoot));
        if (grown == NULL) {
            return;
        }
        thread_roots = grown;
        thread_roots_room = room;
    }
    thread_roots[thread_roots_count++] = (ThreadRoot){object, code, line, variable, thread};
}

static PyCodeObject *
code_of(_PyInterpreterFrame *frame)
{
#if PY_VERSION_HEX >= 0x030E0000
    PyObject *executable = PyStackRef_AsPyObjectBorrow(frame->f_executable);
    return executable != NULL && PyCode_Check(executable) ? (PyCodeObject *)executable : NULL;
#elif PY_VERSION_HEX >= 0x030D0000
    return frame->f_executable != NULL && PyCode_Check(frame->f_executable) ? (PyCodeObject *)frame->f_executable : NULL;
#else
    return frame->f_code;
#endif
}

static int
is_shim(_PyInterpreterFrame *frame)
{
#if PY_VERSION_HEX >= 0x030E0000
    return frame->owner >= FRAME_OWNED_BY_INTERPRETER;
#elif PY_VERSION_HEX >= 0x030C0000
    return frame->owner == FRAME_OWNED_BY_CSTACK;
#else
    (void)frame;
    return 0;
#endif
}

static PyObject *threading_py = NULL;

static void
note_thread(PyThreadState *tstate, PyObject *ours)
{
    unsigned long thread = tstate->thread_id;
#if PY_VERSION_HEX >= 0x030D0000
    _PyInterpreterFrame *frame = tstate->current_frame;
#else
    _PyInterpreterFrame *frame = tstate->cframe != NULL ? tstate->cframe->current_frame : NULL;
#endif
    for (int depth = 0; frame != NULL && depth < 100000; frame = frame->previous, depth++) {
        PyCodeObject *code = is_shim(frame) ? NULL : code_of(frame);
        /* Our own frames hold nothing of the program's; those of threading.py hold their thread object, which says nothing. */
        if (code == NULL || _PyFrame_IsIncomplete(frame) || PyUnicode_Tailmatch(code->co_filename, ours, 0, PY_SSIZE_T_MAX, -1) == 1 ||
            (threading_py != NULL && PyUnicode_Tailmatch(code->co_filename, threading_py, 0, PY_SSIZE_T_MAX, 1) == 1)) {
            continue;
        }
        int line = PyCode_Addr2Line(code, _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT));
        for (int i = 0; i < code->co_nlocalsplus; i++) {
#if PY_VERSION_HEX >= 0x030E0000
            if (PyStackRef_IsNull(frame->localsplus[i])) {
                continue;
            }
            note_root(PyStackRef_AsPyObjectBorrow(frame->localsplus[i]), code, line, i, thread);
#else
            note_root(frame->localsplus[i], code, line, i, thread);
#endif
        }
        note_root(frame->f_locals, code, line, VARIABLE_LOCALS, thread);
        note_root(frame->f_globals, code, line, VARIABLE_GLOBALS, thread);
        if (frame->owner == FRAME_OWNED_BY_GENERATOR) {
#if PY_VERSION_HEX >= 0x030E0000
            PyObject *generator = (PyObject *)((char *)frame - offsetof(struct _PyGenObject, gi_iframe));
#else
            PyObject *generator = (PyObject *)_PyFrame_GetGenerator(frame);
#endif
            note_root(generator, code, line, VARIABLE_GENERATOR, thread);
        }
    }
    note_root(tstate->dict, NULL, 0, VARIABLE_THREAD_DICT, thread);
    note_root(tstate->context, NULL, 0, VARIABLE_CONTEXT, thread);
    for (_PyErr_StackItem *item = tstate->exc_info; item != NULL; item = item->previous_item) {
        note_root(item->exc_value, NULL, 0, VARIABLE_EXCEPTION, thread);
    }
}

/* Deleting the states of the other threads would drop what they hold, and run its finalizers: user code.  Hold it for ever. */
static void
keep_thread(PyThreadState *tstate)
{
    Py_XINCREF(tstate->dict);
    Py_XINCREF(tstate->context);
    Py_XINCREF(tstate->c_profileobj);
    Py_XINCREF(tstate->c_traceobj);
    Py_XINCREF(tstate->async_exc);
    Py_XINCREF(tstate->async_gen_firstiter);
    Py_XINCREF(tstate->async_gen_finalizer);
#if PY_VERSION_HEX >= 0x030D0000
    Py_XINCREF(tstate->threading_local_key);
    Py_XINCREF(tstate->threading_local_sentinel);
#endif
#if PY_VERSION_HEX >= 0x030C0000
    Py_XINCREF(tstate->current_exception);
#else
    Py_XINCREF(tstate->curexc_type);
    Py_XINCREF(tstate->curexc_value);
    Py_XINCREF(tstate->curexc_traceback);
#endif
    for (_PyErr_StackItem *item = tstate->exc_info; item != NULL; item = item->previous_item) {
        Py_XINCREF(item->exc_value);
    }
}

/* ---------------------------------------------------------------- the fork */

static void
write_word(const char *path, const char *word)
{
    int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    if (descriptor >= 0) {
        ssize_t written = write(descriptor, word, strlen(word));
        (void)written;
        close(descriptor);
    }
}

static void
close_from(int first)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, (unsigned)first, ~0U, 0U) == 0) {
        return;
    }
#endif
    struct rlimit limit;
    long most = getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 1000000 ? (long)limit.rlim_cur : 65536;
    for (long descriptor = first; descriptor < most; descriptor++) {
        close((int)descriptor);
    }
}

/* What a child of ours must never do: print, keep a socket open that its parent closes, run a signal handler of the program, outlive
   its deadline, or be missed by the OOM killer.  Only calls that are safe after fork(). */
static void
settle_child(int out, double deadline_s, int niceness)
{
    for (int number = 1; number < NSIG; number++) {
        if (number != SIGKILL && number != SIGSTOP) {
            signal(number, SIG_DFL);
        }
    }
    signal(SIGPIPE, SIG_IGN);
    struct itimerval alarm_at = {{0, 0}, {(time_t)deadline_s, (suseconds_t)((deadline_s - (double)(time_t)deadline_s) * 1e6)}};
    if (alarm_at.it_value.tv_sec == 0 && alarm_at.it_value.tv_usec == 0) {
        alarm_at.it_value.tv_usec = 1000;
    }
    setitimer(ITIMER_REAL, &alarm_at, NULL);
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGALRM);
    sigdelset(&all, SIGTERM);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGILL);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGABRT);
    sigprocmask(SIG_SETMASK, &all, NULL);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    setpriority(PRIO_PROCESS, 0, niceness);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    /* The pipe goes to 3, the standard streams to nowhere, everything else is closed. */
    int pipe_at = fcntl(out, F_DUPFD, 10);
    if (pipe_at < 0) {
        _exit(97);
    }
    for (int stream = 0; stream < 3; stream++) {
        if (null < 0 || dup2(null, stream) < 0) {
            close(stream);
        }
    }
    if (dup2(pipe_at, 3) < 0) {
        _exit(97);
    }
    close_from(4);
    write_word("/proc/self/oom_score_adj", "1000");
    write_word("/proc/self/comm", "memwatch-census");
}

PyDoc_STRVAR(fork_quietly_doc,
"fork_quietly(out, deadline_s, ours, niceness)\n--\n\n"
"Fork a child that writes to descriptor 3 what *out* was, and does nothing that the program could notice.  Returns its pid; 0 in it.\n"
"Frames of code in files whose names begin with *ours* hold nothing of the program's.\n"
"No handler of os.register_at_fork runs on either side.  The caller holds the import lock (`_imp.acquire_lock`), or another thread\n"
"could fork while the handlers are put aside.\n");

static PyObject *
fork_quietly(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int out;
    double deadline_s;
    PyObject *ours;
    int niceness;
    if (!PyArg_ParseTuple(arguments, "idUi:fork_quietly", &out, &deadline_s, &ours, &niceness)) {
        return NULL;
    }
    if (!(deadline_s > 0.0 && deadline_s < 1e6)) {
        PyErr_SetString(PyExc_ValueError, "deadline_s must be positive");
        return NULL;
    }
    if (threading_py == NULL) {
        threading_py = PyUnicode_FromString("/threading.py");
    }
    PyInterpreterState *interp = PyInterpreterState_Get();
    if (interp != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_RuntimeError, "not in a sub-interpreter");
        return NULL;
    }
    if (PyInterpreterState_Next(PyInterpreterState_Head()) != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a sub-interpreter is alive, and Python does not survive a fork beside one");
        return NULL;
    }
    PyObject *before = interp->before_forkers, *in_parent = interp->after_forkers_parent, *in_the_child = interp->after_forkers_child;
    interp->before_forkers = interp->after_forkers_parent = interp->after_forkers_child = NULL;
    PyOS_BeforeFork();
    /* Signals wait until the child has dropped the program's handlers. */
    sigset_t all, mask;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    pid_t pid = fork();
    int problem = errno;
    if (pid == 0) {
        settle_child(out, deadline_s, niceness);
        interp->audit_hooks = NULL; /* the program's code */
        PyThreadState *me = PyThreadState_Get();
        for (PyThreadState *tstate = interp->threads.head; tstate != NULL; tstate = tstate->next) {
            note_thread(tstate, ours);
            if (tstate != me) {
                keep_thread(tstate);
            }
        }
        PyOS_AfterFork_Child();
        PyEval_SetTrace(NULL, NULL);
        PyEval_SetProfile(NULL, NULL);
        PyGC_Disable();
        in_child = 1;
        return PyLong_FromLong(0);
    }
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    PyOS_AfterFork_Parent();
    interp->before_forkers = before;
    interp->after_forkers_parent = in_parent;
    interp->after_forkers_child = in_the_child;
    if (pid < 0) {
        errno = problem;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong((long)pid);
}

static int
demand_child(void)
{
    if (!in_child) {
        PyErr_SetString(PyExc_RuntimeError, "only in a child made by fork_quietly");
        return -1;
    }
    return 0;
}

/* ---------------------------------------------------------------- a table of pointers */

typedef struct {
    uintptr_t *keys;
    uint32_t *values; /* NULL: a set */
    size_t mask, used;
} Table;

static void *
get_pages(size_t bytes)
{
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static int
table_make(Table *table, size_t slots, int with_values)
{
    table->keys = get_pages(slots * sizeof(uintptr_t));
    table->values = with_values ? get_pages(slots * sizeof(uint32_t)) : NULL;
    table->mask = slots - 1;
    table->used = 0;
    return table->keys != NULL && (!with_values || table->values != NULL) ? 0 : -1;
}

static void
table_drop(Table *table)
{
    if (table->keys != NULL) {
        munmap(table->keys, (table->mask + 1) * sizeof(uintptr_t));
    }
    if (table->values != NULL) {
        munmap(table->values, (table->mask + 1) * sizeof(uint32_t));
    }
    table->keys = NULL;
    table->values = NULL;
    table->used = 0;
}

static inline size_t
table_slot(const Table *table, uintptr_t key)
{
    size_t slot = (size_t)((key >> 4) * 0x9E3779B97F4A7C15ull >> 20) & table->mask;
    while (table->keys[slot] != 0 && table->keys[slot] != key) {
        slot = (slot + 1) & table->mask;
    }
    return slot;
}

static inline int
table_has(const Table *table, uintptr_t key, uint32_t *value)
{
    size_t slot = table_slot(table, key);
    if (table->keys[slot] == 0) {
        return 0;
    }
    if (value != NULL) {
        *value = table->values[slot];
    }
    return 1;
}

/* 1 if it is new, 0 if it was there, -1 without memory. */
static int
table_add(Table *table, uintptr_t key, uint32_t value)
{
    if (table->used * 10 >= (table->mask + 1) * 7) {
        Table grown;
        if (table_make(&grown, 2 * (table->mask + 1), table->values != NULL) < 0) {
            table_drop(&grown);
            return -1;
        }
        for (size_t slot = 0; slot <= table->mask; slot++) {
            if (table->keys[slot] != 0) {
                size_t target = table_slot(&grown, table->keys[slot]);
                grown.keys[target] = table->keys[slot];
                if (grown.values != NULL) {
                    grown.values[target] = table->values[slot];
                }
            }
        }
        grown.used = table->used;
        table_drop(table);
        *table = grown;
    }
    size_t slot = table_slot(table, key);
    if (table->keys[slot] != 0) {
        return 0;
    }
    table->keys[slot] = key;
    if (table->values != NULL) {
        table->values[slot] = value;
    }
    table->used++;
    return 1;
}

/* ---------------------------------------------------------------- every container */

/* Containers that the collector does not track (dicts and tuples of atoms), found by the census. */
static PyObject **untracked = NULL;
static size_t untracked_count = 0, untracked_room = 0;

typedef int (*Meet)(PyObject *, void *);

#if PY_VERSION_HEX >= 0x030E0000
typedef struct { Meet meet; void *context; int result; } Visiting;

static int
visiting(PyObject *object, void *context)
{
    Visiting *visit = context;
    visit->result = visit->meet(object, visit->context);
    return visit->result == 0;
}
#endif

static int
for_each_tracked(Meet meet, void *context)
{
#if PY_VERSION_HEX >= 0x030E0000
    Visiting visit = {meet, context, 0};
    PyUnstable_GC_VisitObjects(visiting, &visit);
    return visit.result;
#else
    struct _gc_runtime_state *gc = &PyInterpreterState_Get()->gc;
    for (int i = 0; i <= NUM_GENERATIONS; i++) {
        PyGC_Head *head = i < NUM_GENERATIONS ? &gc->generations[i].head : &gc->permanent_generation.head;
        for (PyGC_Head *item = _PyGCHead_NEXT(head); item != head && item != NULL; item = _PyGCHead_NEXT(item)) {
            int result = meet((PyObject *)(item + 1), context);
            if (result != 0) {
                return result;
            }
        }
    }
    return 0;
#endif
}

static int
for_each_container(Meet meet, void *context)
{
    int result = for_each_tracked(meet, context);
    for (size_t i = 0; result == 0 && i < untracked_count; i++) {
        result = meet(untracked[i], context);
    }
    return result;
}

static int
is_tracked(PyObject *object)
{
    return PyObject_IS_GC(object) && PyObject_GC_IsTracked(object);
}

/* tp_traverse, and what it leaves out because the collector has no use for it: the text keys of dictionaries, the parts of code. */
static void
traverse_all(PyObject *object, visitproc visit, void *context)
{
    traverseproc traverse = Py_TYPE(object)->tp_traverse;
    if (traverse != NULL) {
        traverse(object, visit, context);
    }
    if (PyDict_Check(object)) {
        PyDictKeysObject *keys = ((PyDictObject *)object)->ma_keys;
        if (keys->dk_kind != DICT_KEYS_GENERAL) {
            PyDictUnicodeEntry *entries = DK_UNICODE_ENTRIES(keys);
            for (Py_ssize_t i = 0; i < keys->dk_nentries; i++) {
                if (entries[i].me_key != NULL) {
                    visit(entries[i].me_key, context);
                }
            }
        }
    }
    else if (PyFunction_Check(object)) {
        visit(((PyFunctionObject *)object)->func_code, context);
    }
    else if (PyCode_Check(object)) {
        PyCodeObject *code = (PyCodeObject *)object;
        PyObject *parts[] = {code->co_consts, code->co_names, code->co_localsplusnames, code->co_localspluskinds, code->co_filename,
                             code->co_name, code->co_qualname, code->co_linetable, code->co_exceptiontable};
        for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
            if (parts[i] != NULL) {
                visit(parts[i], context);
            }
        }
    }
}

static int
has_parts(PyObject *object)
{
    return (PyObject_IS_GC(object) && Py_TYPE(object)->tp_traverse != NULL) || PyCode_Check(object);
}

/* ---------------------------------------------------------------- sizes */

#define DRAWN 32
#define MOST_WORDS 128

typedef enum { PLAIN, TEXT, WHOLE, LIST, DICT, SET, BYTES_ARRAY, ASK } Layout;

typedef struct {
    PyTypeObject *type;
    uint64_t count, bytes;
    Layout layout;
    Py_ssize_t header;   /* bytes in front of an object */
    Py_ssize_t inside;   /* bytes of attribute values that live in a block of their own */
    int opaque;          /* words of an instance that may point to blocks which only it uses: a type written in C */
    PyObject *drawn[DRAWN]; /* borrowed: each instance is as likely to be here as any other */
} TypeEntry;

static TypeEntry *types = NULL;
static size_t types_count = 0, types_room = 0;
static Table type_index;
static uint64_t random_state = 0x9E3779B97F4A7C15ull;
static destructor made_by_python = NULL; /* how instances of classes written in Python are freed */

static Layout
layout_of(PyTypeObject *type)
{
    if (PyType_HasFeature(type, Py_TPFLAGS_UNICODE_SUBCLASS)) {
        return TEXT;
    }
    if (PyType_HasFeature(type, Py_TPFLAGS_LONG_SUBCLASS)) {
        return WHOLE;
    }
    if (PyType_HasFeature(type, Py_TPFLAGS_LIST_SUBCLASS)) {
        return LIST;
    }
    if (PyType_HasFeature(type, Py_TPFLAGS_DICT_SUBCLASS)) {
        return DICT;
    }
    if (PyType_IsSubtype(type, &PySet_Type) || PyType_IsSubtype(type, &PyFrozenSet_Type)) {
        return SET;
    }
    if (PyType_IsSubtype(type, &PyByteArray_Type)) {
        return BYTES_ARRAY;
    }
    /* A size of its own, told by C code: asked.  One told by Python code is user code: never. */
    while (type != NULL && PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) {
        type = type->tp_base;
    }
    if (type == NULL || type == &PyBaseObject_Type || type == &PyTuple_Type || type == &PyBytes_Type || type == &PyFloat_Type ||
        type == &PyFunction_Type || type == &PyCell_Type || type == &PyMethod_Type || type == &PyCFunction_Type ||
        type == &PyType_Type || type == &PyModule_Type || type == &PyBool_Type || type == &PyComplex_Type) {
        return PLAIN;
    }
    return ASK;
}

static TypeEntry *
entry_of(PyTypeObject *type)
{
    uint32_t index;
    if (table_has(&type_index, (uintptr_t)type, &index)) {
        return &types[index];
    }
    if (types_count == types_room) {
        size_t room = types_room ? 2 * types_room : 1024;
        TypeEntry *grown = realloc(types, room * sizeof(TypeEntry));
        if (grown == NULL) {
            return NULL;
        }
        types = grown;
        types_room = room;
    }
    if (table_add(&type_index, (uintptr_t)type, (uint32_t)types_count) < 0) {
        return NULL;
    }
    TypeEntry *entry = &types[types_count++];
    memset(entry, 0, sizeof(*entry));
    entry->type = type;
    entry->layout = layout_of(type);
    entry->header = (Py_ssize_t)_PyType_PreHeaderSize(type);
    if (entry->layout == ASK || (entry->layout == PLAIN && PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE) &&
                                 type->tp_dealloc != made_by_python)) {
        Py_ssize_t words = type->tp_basicsize / (Py_ssize_t)sizeof(void *);
        entry->opaque = (int)(words < MOST_WORDS ? words : MOST_WORDS);
    }
#if PY_VERSION_HEX < 0x030D0000
    if (PyType_HasFeature(type, Py_TPFLAGS_MANAGED_DICT) && PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) {
        PyDictKeysObject *keys = ((PyHeapTypeObject *)type)->ht_cached_keys;
        if (keys != NULL) {
            entry->inside = (keys->dk_usable + keys->dk_nentries) * (Py_ssize_t)sizeof(PyObject *) + 16;
        }
    }
#endif
    return entry;
}

static Py_ssize_t
keys_bytes(PyDictKeysObject *keys)
{
    Py_ssize_t entry = keys->dk_kind == DICT_KEYS_GENERAL ? (Py_ssize_t)sizeof(PyDictKeyEntry) : (Py_ssize_t)sizeof(PyDictUnicodeEntry);
    Py_ssize_t usable = ((Py_ssize_t)DK_SIZE(keys) << 1) / 3;
    return (Py_ssize_t)sizeof(PyDictKeysObject) + ((Py_ssize_t)1 << keys->dk_log2_index_bytes) + usable * entry;
}

static Py_ssize_t
asked_bytes(PyObject *object, PyTypeObject *type)
{
    while (PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE) && type->tp_base != NULL) {
        type = type->tp_base;
    }
    PyObject *told = PyObject_CallMethod((PyObject *)type, "__sizeof__", "O", object);
    Py_ssize_t bytes = told == NULL ? -1 : PyLong_AsSsize_t(told);
    Py_XDECREF(told);
    if (bytes < 0) {
        PyErr_Clear();
        bytes = Py_TYPE(object)->tp_basicsize;
    }
    return bytes;
}

/* Shallow bytes of an object: its block, its header and the buffers that only it uses; rounded up as allocators do. */
static Py_ssize_t
bytes_of(PyObject *object, TypeEntry *entry)
{
    PyTypeObject *type = entry->type;
    Py_ssize_t bytes = type->tp_basicsize;
    switch (entry->layout) {
    case TEXT: {
        Py_ssize_t length = PyUnicode_GET_LENGTH(object);
        PyASCIIObject *head = (PyASCIIObject *)object;
        if (head->state.compact && head->state.ascii) {
            bytes = (Py_ssize_t)sizeof(PyASCIIObject) + length + 1;
        }
        else {
            bytes = (Py_ssize_t)sizeof(PyCompactUnicodeObject) + (length + 1) * (Py_ssize_t)head->state.kind;
            bytes += ((PyCompactUnicodeObject *)object)->utf8 != NULL ? ((PyCompactUnicodeObject *)object)->utf8_length + 1 : 0;
        }
        break;
    }
    case WHOLE: {
#if PY_VERSION_HEX >= 0x030C0000
        Py_ssize_t digits = (Py_ssize_t)(((PyLongObject *)object)->long_value.lv_tag >> 3);
#else
        Py_ssize_t digits = Py_SIZE(object) < 0 ? -Py_SIZE(object) : Py_SIZE(object);
#endif
        bytes += (digits ? digits : 1) * (Py_ssize_t)sizeof(digit);
        break;
    }
    case LIST:
        bytes += ((PyListObject *)object)->allocated * (Py_ssize_t)sizeof(PyObject *);
        break;
    case DICT: {
        PyDictObject *dict = (PyDictObject *)object;
        if (dict->ma_values == NULL) {
            bytes += dict->ma_keys->dk_refcnt > 1 ? 0 : keys_bytes(dict->ma_keys);
        }
        else {
            bytes += (dict->ma_keys->dk_usable + dict->ma_keys->dk_nentries) * (Py_ssize_t)sizeof(PyObject *) + 16;
        }
        break;
    }
    case SET: {
        PySetObject *set = (PySetObject *)object;
        bytes += set->table != set->smalltable ? (set->mask + 1) * (Py_ssize_t)sizeof(setentry) : 0;
        break;
    }
    case BYTES_ARRAY:
        bytes += ((PyByteArrayObject *)object)->ob_alloc;
        break;
    case ASK:
        bytes = asked_bytes(object, type);
        break;
    case PLAIN:
        if (type->tp_itemsize > 0) {
            Py_ssize_t items = Py_SIZE(object);
            bytes += (items < 0 ? -items : items) * type->tp_itemsize;
        }
        break;
    }
    return (bytes + entry->header + entry->inside + 15) & ~(Py_ssize_t)15;
}

/* ---------------------------------------------------------------- the census */

typedef struct {
    Table seen;     /* what the collector does not track and was counted */
    Table blocks;   /* addresses looked for -> their number */
    PyObject **owners; /* by number of the block: the object that lives there or owns it; borrowed */
    int short_of_memory;
} Census;

static PyObject **owners = NULL;
static size_t owners_count = 0;

static inline void
look_for(Census *census, void *block, PyObject *object)
{
    uint32_t number;
    if (census->blocks.used && block != NULL && table_has(&census->blocks, (uintptr_t)block, &number)) {
        owners[number] = object;
    }
}

/* Modules/_collectionsmodule.c: a chain of blocks of 64 references, each between a link to its left and one to its right. */
static PyTypeObject *deque_type = NULL;

static int
is_deque(PyTypeObject *type)
{
    return deque_type != NULL && PyType_IsSubtype(type, deque_type);
}

static void
look_along_deque(Census *census, PyObject *object)
{
    char *block = *(char **)((char *)object + sizeof(PyVarObject));
    Py_ssize_t blocks = Py_SIZE(object) / 64 + 2;
    for (Py_ssize_t i = 0; block != NULL && i < blocks; i++) {
        look_for(census, block, object);
        if (block == *(char **)((char *)object + sizeof(PyVarObject) + sizeof(char *))) {
            break; /* the rightmost: its right link leads nowhere */
        }
        block = *(char **)(block + 65 * sizeof(PyObject *));
    }
}

static PyTypeObject *
type_named(const char *module_name, const char *name)
{
    /* Not imported: an import may run code of the program, and what is not there has no instances. */
    PyObject *key = PyUnicode_FromString(module_name);
    PyObject *module = key != NULL ? PyImport_GetModule(key) : NULL;
    PyObject *found = module != NULL ? PyObject_GetAttrString(module, name) : NULL;
    Py_XDECREF(key);
    Py_XDECREF(module);
    if (found == NULL || !PyType_Check(found)) {
        PyErr_Clear();
        Py_XDECREF(found);
        return NULL;
    }
    return (PyTypeObject *)found; /* for ever */
}

static void
count(Census *census, PyObject *object)
{
    TypeEntry *entry = entry_of(Py_TYPE(object));
    if (entry == NULL) {
        census->short_of_memory = 1;
        return;
    }
    uint64_t place = entry->count++;
    if (place >= DRAWN) { /* a reservoir (Vitter, algorithm R) */
        random_state ^= random_state << 13;
        random_state ^= random_state >> 7;
        random_state ^= random_state << 17;
        place = random_state % entry->count;
    }
    if (place < DRAWN) {
        entry->drawn[place] = object;
    }
    entry->bytes += (uint64_t)bytes_of(object, entry);
    if (!census->blocks.used) {
        return;
    }
    look_for(census, (char *)object - entry->header, object);
    switch (entry->layout) {
    case LIST:
        look_for(census, ((PyListObject *)object)->ob_item, object);
        break;
    case DICT: {
        PyDictObject *dict = (PyDictObject *)object;
        if (dict->ma_values == NULL) {
            look_for(census, dict->ma_keys, object);
        }
        break;
    }
    case SET:
        look_for(census, ((PySetObject *)object)->table, object);
        break;
    case BYTES_ARRAY:
        look_for(census, ((PyByteArrayObject *)object)->ob_bytes, object);
        break;
    default:
        break;
    }
    /* What a type written in C keeps in blocks of its own (arrays, buffers, nodes): any word that is the address of one. */
    for (int i = 2; i < entry->opaque; i++) {
        look_for(census, ((void **)object)[i], object);
    }
    if (PyType_Check(object) && PyType_HasFeature((PyTypeObject *)object, Py_TPFLAGS_HEAPTYPE)) {
        look_for(census, ((PyHeapTypeObject *)object)->ht_cached_keys, object);
    }
    if (is_deque(entry->type)) {
        look_along_deque(census, object);
    }
#if PY_VERSION_HEX < 0x030D0000
    if (entry->inside) { /* attribute values in a block of their own, behind a prefix whose size is the byte in front of them */
        char *values = NULL;
#if PY_VERSION_HEX >= 0x030C0000
        PyDictOrValues *either = _PyObject_DictOrValuesPointer(object);
        values = _PyDictOrValues_IsValues(*either) ? (char *)_PyDictOrValues_GetValues(*either) : NULL;
#else
        values = (char *)*_PyObject_ValuesPointer(object);
#endif
        if (values != NULL) {
            look_for(census, values - ((uint8_t *)values)[-1], object);
        }
    }
#endif
}

static int
meet_child(PyObject *object, void *context)
{
    Census *census = context;
    if (object == NULL || is_tracked(object)) {
        return 0; /* its turn comes */
    }
#if PY_VERSION_HEX >= 0x030C0000
    if (_Py_IsImmortal(object) && !PyObject_IS_GC(object) && !PyUnicode_Check(object)) { /* 3.12: all interned text is immortal */
        return 0; /* the interpreter's own */
    }
#endif
    int fresh = table_add(&census->seen, (uintptr_t)object, 0);
    if (fresh < 0) {
        census->short_of_memory = 1;
        return 0;
    }
    if (!fresh) {
        return 0;
    }
    count(census, object);
    if (has_parts(object) && !PyType_Check(object)) {
        if (untracked_count == untracked_room) {
            size_t room = untracked_room ? 2 * untracked_room : 65536;
            PyObject **grown = realloc(untracked, room * sizeof(PyObject *));
            if (grown == NULL) {
                census->short_of_memory = 1;
                return 0;
            }
            untracked = grown;
            untracked_room = room;
        }
        untracked[untracked_count++] = object;
    }
    return 0;
}

static int
meet_container(PyObject *object, void *context)
{
    Census *census = context;
    count(census, object);
    traverse_all(object, meet_child, census);
    return 0;
}

PyDoc_STRVAR(census_doc,
"census(blocks)\n--\n\n"
"Count every object.  *blocks*: native 64-bit addresses as a bytes-like object, of memory blocks whose owners are wanted.\n"
"Returns ([(type, count, bytes), ...], whole): whole is False if memory was short and atoms are missing.\n");

static PyObject *
census_types(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer given;
    if (!PyArg_ParseTuple(arguments, "y*:census", &given)) {
        return NULL;
    }
    if (demand_child() < 0) {
        PyBuffer_Release(&given);
        return NULL;
    }
    PyTypeObject *of_python = type_named("abc", "ABC"); /* a class written in Python, and always there */
    made_by_python = of_python != NULL ? of_python->tp_dealloc : NULL;
    deque_type = type_named("collections", "deque");
    Census census;
    memset(&census, 0, sizeof(census));
    owners_count = (size_t)given.len / sizeof(uint64_t);
    free(owners);
    owners = calloc(owners_count + 1, sizeof(PyObject *));
    types_count = untracked_count = 0;
    table_drop(&type_index);
    size_t slots = 1024;
    while (slots < 3 * owners_count) {
        slots *= 2;
    }
    int failed = owners == NULL || table_make(&type_index, 4096, 1) < 0 || table_make(&census.seen, 1 << 20, 0) < 0 ||
                 table_make(&census.blocks, slots, 1) < 0;
    const uint64_t *addresses = given.buf;
    for (size_t i = 0; !failed && i < owners_count; i++) {
        if (addresses[i] != 0) {
            failed = table_add(&census.blocks, (uintptr_t)addresses[i], (uint32_t)i) < 0;
        }
    }
    PyBuffer_Release(&given);
    if (failed) {
        return PyErr_NoMemory();
    }
    for_each_tracked(meet_container, &census);
    for (size_t i = 0; i < untracked_count; i++) { /* grows meanwhile */
        traverse_all(untracked[i], meet_child, &census);
    }
    table_drop(&census.seen);
    table_drop(&census.blocks);
    PyObject *found = PyList_New(0); /* not a dictionary: a metaclass may have a hash of its own */
    for (size_t i = 0; found != NULL && i < types_count; i++) {
        PyObject *row = Py_BuildValue("OKK", (PyObject *)types[i].type, (unsigned long long)types[i].count,
                                      (unsigned long long)types[i].bytes);
        if (row == NULL || PyList_Append(found, row) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(row);
    }
    if (found == NULL) {
        return NULL;
    }
    return Py_BuildValue("NO", found, census.short_of_memory ? Py_False : Py_True);
}

PyDoc_STRVAR(owner_doc,
"owner(number)\n--\n\nThe object that lives in, or alone uses, block *number* of the last census; None if there is none: the block is C's.\n");

static PyObject *
owner(PyObject *Py_UNUSED(module), PyObject *argument)
{
    size_t number = PyLong_AsSize_t(argument);
    if (demand_child() < 0 || (number == (size_t)-1 && PyErr_Occurred())) {
        return NULL;
    }
    PyObject *found = number < owners_count && owners[number] != NULL ? owners[number] : Py_None;
    return Py_NewRef(found);
}

/* ---------------------------------------------------------------- who holds it */

#define MOST_NODES 60000
#define MOST_PER_LEVEL 6000
#define KINDS_PER_CHILD 12
#define PARENTS_PER_KIND 3
#define MOST_LEVELS 40
#define CHAIN_LEVELS 18
#define FAR 1000000
#define FRAME_PENALTY 6 /* a module's global up to this many steps further away is the better answer (guess) */

typedef struct {
    PyObject *object;
    int root;          /* -1 none, else number of the root */
    int level;
    int distance;      /* from a root, in steps */
    int up;            /* node nearer to the root */
    int cut;           /* some of its holders were left out */
    int inner;         /* references to it from other nodes */
    PyTypeObject *kinds[KINDS_PER_CHILD];
    uint8_t per_kind[KINDS_PER_CHILD];
} Node;

typedef struct { int child, parent; } Edge;

typedef struct {
    Node *nodes;
    size_t count;
    Edge *edges;
    size_t edges_count, edges_room;
    Table index;       /* object -> node */
    Table roots;       /* object -> number of the root */
    Table ignored;
    int firm_roots;    /* roots below this number end a search */
    int level;
    size_t fresh;      /* nodes made on this level */
    PyObject *parent;  /* whose references are being visited */
    int parent_is_root;
    int failed;
} Search;

static int
node_of(Search *search, PyObject *object, int always)
{
    uint32_t number;
    if (table_has(&search->index, (uintptr_t)object, &number)) {
        return (int)number;
    }
    if (search->count >= MOST_NODES || (!always && search->fresh >= MOST_PER_LEVEL)) {
        return -1;
    }
    if (table_add(&search->index, (uintptr_t)object, (uint32_t)search->count) < 0) {
        search->failed = 1;
        return -1;
    }
    Node *node = &search->nodes[search->count];
    memset(node, 0, sizeof(*node));
    node->object = object;
    node->level = search->level;
    node->up = -1;
    node->distance = FAR;
    uint32_t root;
    node->root = table_has(&search->roots, (uintptr_t)object, &root) ? (int)root : -1;
    search->fresh++;
    return (int)search->count++;
}

static int
meet_held(PyObject *object, void *context)
{
    Search *search = context;
    uint32_t number;
    if (object == NULL || !table_has(&search->index, (uintptr_t)object, &number)) {
        return 0;
    }
    Node *child = &search->nodes[number];
    /* A module's globals are an end.  What a frame holds may be held by a module too, which is the better answer. */
    if (child->level != search->level - 1 || (child->root >= 0 && child->root < search->firm_roots) || search->parent == object) {
        return 0;
    }
    PyTypeObject *kind = Py_TYPE(search->parent);
    if (!search->parent_is_root) {
        int place = 0;
        while (place < KINDS_PER_CHILD && child->kinds[place] != NULL && child->kinds[place] != kind) {
            place++;
        }
        if (place == KINDS_PER_CHILD || child->per_kind[place] >= PARENTS_PER_KIND) {
            child->cut = 1;
            return 0;
        }
        child->kinds[place] = kind;
        child->per_kind[place]++;
    }
    int parent = node_of(search, search->parent, search->parent_is_root);
    if (parent < 0) {
        search->nodes[number].cut = 1;
        return 0;
    }
    if (search->edges_count == search->edges_room) {
        size_t room = search->edges_room ? 2 * search->edges_room : 65536;
        Edge *grown = realloc(search->edges, room * sizeof(Edge));
        if (grown == NULL) {
            search->failed = 1;
            return 0;
        }
        search->edges = grown;
        search->edges_room = room;
    }
    search->edges[search->edges_count++] = (Edge){(int)number, parent};
    return 0;
}

static int
meet_holder(PyObject *object, void *context)
{
    Search *search = context;
    if (search->ignored.used && table_has(&search->ignored, (uintptr_t)object, NULL)) {
        return 0;
    }
    if (PyFrame_Check(object)) {
        return 0; /* of running frames the roots know the locals; frame objects of ended ones hold what their traceback holds */
    }
    search->parent = object;
    search->parent_is_root = search->roots.used && table_has(&search->roots, (uintptr_t)object, NULL);
    traverse_all(object, meet_held, search);
    return search->failed;
}

static int
meet_frame_holder(PyObject *object, void *context)
{
    Search *search = context;
    if (!PyFrame_Check(object) || (search->ignored.used && table_has(&search->ignored, (uintptr_t)object, NULL))) {
        return 0;
    }
    search->parent = object;
    search->parent_is_root = 0;
    Py_TYPE(object)->tp_traverse(object, meet_held, search);
    return search->failed;
}

static int
count_inner(PyObject *object, void *context)
{
    Search *search = context;
    uint32_t number;
    if (object != NULL && table_has(&search->index, (uintptr_t)object, &number)) {
        search->nodes[number].inner++;
    }
    return 0;
}

/* Distances from the roots, nearest first; a module is a better answer than a running frame a step nearer. */
static size_t
spread(Search *search, const int *penalty, size_t roots_given, size_t targets)
{
    for (size_t i = 0; i < search->count; i++) {
        Node *node = &search->nodes[i];
        node->distance = node->root >= 0 ? ((size_t)node->root < roots_given ? penalty[node->root] : 0) : FAR;
        node->up = -1;
    }
    int changed = 1;
    for (int round = 0; changed && round < 3 * MOST_LEVELS; round++) {
        changed = 0;
        for (size_t i = search->edges_count; i-- > 0;) {
            Edge edge = search->edges[i];
            int through = search->nodes[edge.parent].distance + 1;
            if (through < search->nodes[edge.child].distance) {
                search->nodes[edge.child].distance = through;
                search->nodes[edge.child].up = edge.parent;
                changed = 1;
            }
        }
    }
    size_t settled = 0; /* nothing that is found later can be nearer */
    for (size_t i = 0; i < targets; i++) {
        settled += search->nodes[i].distance <= search->level + 1;
    }
    return settled;
}

enum { FOUND = 0, CYCLE = 1, FROM_C = 2, UNKNOWN = 3 };

/* For what no root reaches: the nodes that hold it, directly or not. */
static int
why_unreached(Search *search, int target, int *holder)
{
    int *members = malloc(MOST_NODES * sizeof(int));
    char *inside = calloc(MOST_NODES, 1);
    int answer = UNKNOWN;
    *holder = target;
    if (members == NULL || inside == NULL) {
        goto done;
    }
    size_t count = 0, next = 0;
    members[count++] = target;
    inside[target] = 1;
    search->nodes[target].up = -1;
    while (next < count) { /* quadratic in the worst case; such closures are small */
        int current = members[next++];
        if (search->nodes[current].cut) {
            *holder = current; /* as far as the search came */
            goto done;
        }
        for (size_t i = 0; i < search->edges_count; i++) {
            if (search->edges[i].child == current && !inside[search->edges[i].parent]) {
                inside[search->edges[i].parent] = 1;
                search->nodes[search->edges[i].parent].up = current; /* towards the target, for the trail */
                members[count++] = search->edges[i].parent;
            }
        }
        if (count > 400) { /* larger ones are told by `garbage` */
            goto done;
        }
    }
    answer = CYCLE;
    for (size_t i = 0; i < count; i++) {
        search->nodes[members[i]].inner = 0;
    }
    for (size_t i = 0; i < count; i++) {
        PyObject *object = search->nodes[members[i]].object;
        if (has_parts(object)) {
            traverse_all(object, count_inner, search);
        }
    }
    for (size_t i = count; i-- > 0;) {
        Node *node = &search->nodes[members[i]];
        if (Py_REFCNT(node->object) > node->inner) {
            answer = FROM_C;
            *holder = members[i];
            break;
        }
    }
done:
    free(members);
    free(inside);
    return answer;
}

PyDoc_STRVAR(paths_doc,
"paths(targets, roots, penalties, ignored)\n--\n\n"
"The shortest way from a root to each target.\n\n"
"targets: numbers of blocks of the last census, or from `instances`.  roots: objects, better ones with a smaller penalty (steps).  ignored: ids of\n"
"objects that count for nothing.  After the given roots come those that other threads held at the fork (`thread_roots`).\n"
"Returns a list of (status, root number or -1, [objects from the root to the target]).\n");

static PyObject *
paths(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *targets, *roots, *penalties, *ignored;
    if (!PyArg_ParseTuple(arguments, "O!O!O!O!:paths", &PyList_Type, &targets, &PyList_Type, &roots, &PyList_Type, &penalties,
                          &PyList_Type, &ignored)) {
        return NULL;
    }
    if (demand_child() < 0) {
        return NULL;
    }
    Py_ssize_t given = PyList_GET_SIZE(roots), wanted = PyList_GET_SIZE(targets);
    size_t all_roots = (size_t)given + thread_roots_count;
    Search search;
    memset(&search, 0, sizeof(search));
    search.nodes = get_pages(MOST_NODES * sizeof(Node));
    int *penalty = calloc(all_roots + 1, sizeof(int));
    int *numbers = calloc((size_t)wanted + 1, sizeof(int));
    PyObject *result = NULL;
    if (search.nodes == NULL || penalty == NULL || numbers == NULL || table_make(&search.index, 1 << 17, 1) < 0 ||
        table_make(&search.roots, 1 << 14, 1) < 0 || table_make(&search.ignored, 1 << 12, 0) < 0) {
        PyErr_NoMemory();
        goto done;
    }
    search.firm_roots = (int)given;
    for (Py_ssize_t i = 0; i < given; i++) {
        penalty[i] = (int)PyLong_AsLong(PyList_GET_ITEM(penalties, i));
        table_add(&search.roots, (uintptr_t)PyList_GET_ITEM(roots, i), (uint32_t)i);
    }
    for (size_t i = 0; i < thread_roots_count; i++) {
        penalty[given + (Py_ssize_t)i] = FRAME_PENALTY;
        table_add(&search.roots, (uintptr_t)thread_roots[i].object, (uint32_t)((size_t)given + i));
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(ignored); i++) {
        void *address = PyLong_AsVoidPtr(PyList_GET_ITEM(ignored, i));
        if (address != NULL) {
            table_add(&search.ignored, (uintptr_t)address, 0);
        }
    }
    table_add(&search.ignored, (uintptr_t)roots, 0); /* the caller's list refers to what it holds */
    if (PyErr_Occurred()) {
        goto done;
    }
    for (Py_ssize_t i = 0; i < wanted; i++) {
        size_t number = PyLong_AsSize_t(PyList_GET_ITEM(targets, i));
        if (number == (size_t)-1 && PyErr_Occurred()) {
            goto done;
        }
        numbers[i] = number < owners_count && owners[number] != NULL ? node_of(&search, owners[number], 1) : -1;
    }
    size_t distinct = search.count;
    int whole = 0;
    for (search.level = 1; search.level < MOST_LEVELS && !search.failed; search.level++) {
        search.fresh = 0;
        for_each_container(meet_holder, &search);
        if (!search.fresh) { /* nobody else: frames that ended, kept by a traceback or a generator */
            for_each_tracked(meet_frame_holder, &search);
        }
        if (spread(&search, penalty, all_roots, distinct) == distinct || !search.fresh) {
            whole = 1;
            break;
        }
        if (search.level >= CHAIN_LEVELS && search.fresh <= 2 * distinct) {
            break; /* a long chain: `climb` goes along it at once */
        }
    }
    if (!whole) { /* who holds the last ones was not asked any more */
        for (size_t i = 0; i < search.count; i++) {
            search.nodes[i].cut |= search.nodes[i].level >= search.level - 1;
        }
    }
    result = PyList_New(0);
    for (Py_ssize_t i = 0; result != NULL && i < wanted; i++) {
        PyObject *trail = PyList_New(0);
        int status = UNKNOWN, root = -1, current = numbers[i];
        if (trail == NULL) {
            Py_CLEAR(result);
            break;
        }
        if (current >= 0 && search.nodes[current].distance < FAR) {
            status = FOUND;
            int steps = 0;
            while (current >= 0 && steps++ < 3 * MOST_LEVELS) {
                PyList_Append(trail, search.nodes[current].object);
                root = search.nodes[current].root;
                current = search.nodes[current].up;
            }
            PyList_Reverse(trail);
        }
        else if (current >= 0) {
            int holder = current;
            status = why_unreached(&search, current, &holder);
            int steps = 0;
            for (current = holder; current >= 0 && steps++ < 3 * MOST_LEVELS; current = search.nodes[current].up) {
                PyList_Append(trail, search.nodes[current].object);
            }
        }
        PyObject *row = Py_BuildValue("iiN", status, root, trail);
        if (row == NULL || PyList_Append(result, row) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(row);
    }
    if (result != NULL && PyErr_Occurred()) {
        Py_CLEAR(result);
    }
done:
    table_drop(&search.index);
    table_drop(&search.roots);
    table_drop(&search.ignored);
    free(search.edges);
    free(penalty);
    free(numbers);
    if (search.nodes != NULL) {
        munmap(search.nodes, MOST_NODES * sizeof(Node));
    }
    return result;
}

PyDoc_STRVAR(thread_roots_doc,
"thread_roots()\n--\n\n"
"What the other threads held at the fork, in the order of `paths`' further roots: (code or None, line, variable, thread identity).\n"
"A negative variable is -1 globals, -2 locals, -3 thread-local storage, -4 context, -5 an exception being handled, -6 a generator.\n");

static PyObject *
list_thread_roots(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(argument))
{
    if (demand_child() < 0) {
        return NULL;
    }
    PyObject *result = PyList_New(0);
    for (size_t i = 0; result != NULL && i < thread_roots_count; i++) {
        ThreadRoot *root = &thread_roots[i];
        PyObject *row = Py_BuildValue("Oiik", root->code != NULL ? (PyObject *)root->code : Py_None, root->line, root->variable, root->thread);
        if (row == NULL || PyList_Append(result, row) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(row);
    }
    return result;
}

static int
add_owner(PyObject *object, PyObject *numbers)
{
    PyObject **grown = realloc(owners, (owners_count + 2) * sizeof(PyObject *));
    if (grown == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    owners = grown;
    owners[owners_count] = object;
    PyObject *number = PyLong_FromSize_t(owners_count++);
    int result = number == NULL ? -1 : PyList_Append(numbers, number);
    Py_XDECREF(number);
    return result;
}

PyDoc_STRVAR(instances_doc,
"instances(type)\n--\n\n"
"A few instances of exactly *type*, drawn by the last census.  Returns numbers that `owner` and `paths` take: a list of the objects\n"
"would itself hold them.\n");

static PyObject *
instances(PyObject *Py_UNUSED(module), PyObject *type)
{
    uint32_t index;
    if (demand_child() < 0) {
        return NULL;
    }
    PyObject *result = PyList_New(0);
    if (result == NULL || type_index.used == 0 || !table_has(&type_index, (uintptr_t)type, &index)) {
        return result;
    }
    for (int i = 0; i < DRAWN && types[index].drawn[i] != NULL; i++) {
        if (add_owner(types[index].drawn[i], result) < 0) {
            Py_DECREF(result);
            return NULL;
        }
    }
    return result;
}

/* One holder for each object, of the types that a long chain is made of. */
#define MOST_LINKS (1 << 23)
#define LINK_TYPES 4

typedef struct {
    PyTypeObject *types[LINK_TYPES];
    int count;
    PyObject *start;
    PyObject **holders; /* by number */
    size_t used, room;
    Table index; /* object -> number of its holder */
    PyObject *holder;
    int failed;
} Climb;

static int
is_link(const Climb *climb, PyObject *object)
{
    for (int i = 0; i < climb->count; i++) {
        if (Py_TYPE(object) == climb->types[i]) {
            return 1;
        }
    }
    return 0;
}

static int
meet_link(PyObject *object, void *context)
{
    Climb *climb = context;
    if (object == NULL || object == climb->holder || !(object == climb->start || is_link(climb, object))) {
        return 0;
    }
    if (climb->used == climb->room) {
        size_t room = climb->room ? 2 * climb->room : 65536;
        PyObject **grown = room > MOST_LINKS ? NULL : realloc(climb->holders, room * sizeof(PyObject *));
        if (grown == NULL) {
            climb->failed = 1;
            return 0;
        }
        climb->holders = grown;
        climb->room = room;
    }
    int fresh = table_add(&climb->index, (uintptr_t)object, (uint32_t)climb->used);
    if (fresh < 0) {
        climb->failed = 1;
    }
    else if (fresh) {
        climb->holders[climb->used++] = climb->holder;
    }
    return 0;
}

static int
meet_link_holder(PyObject *object, void *context)
{
    Climb *climb = context;
    if (is_link(climb, object)) {
        climb->holder = object;
        traverse_all(object, meet_link, climb);
    }
    return climb->failed;
}

PyDoc_STRVAR(climb_doc,
"climb(number, types)\n--\n\n"
"Go up from an owner along holders of these types (at most four) for as long as there is one: to where a long chain begins.\n"
"Returns (the number of what is there, links passed), or None if there is no such holder, no end, or not enough memory.\n");

static PyObject *
climb(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_ssize_t number;
    PyObject *types_given;
    if (!PyArg_ParseTuple(arguments, "nO!:climb", &number, &PyList_Type, &types_given) || demand_child() < 0) {
        return NULL;
    }
    if (number < 0 || (size_t)number >= owners_count || owners[number] == NULL || PyList_GET_SIZE(types_given) > LINK_TYPES) {
        Py_RETURN_NONE;
    }
    Climb up;
    memset(&up, 0, sizeof(up));
    up.start = owners[number];
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(types_given); i++) {
        up.types[up.count++] = (PyTypeObject *)PyList_GET_ITEM(types_given, i);
    }
    PyObject *head = NULL;
    size_t links = 0;
    if (table_make(&up.index, 1 << 17, 1) == 0) {
        for_each_container(meet_link_holder, &up);
        uint32_t holder;
        PyObject *current = up.start;
        while (!up.failed && links <= up.used && table_has(&up.index, (uintptr_t)current, &holder)) {
            current = up.holders[holder];
            links++;
        }
        head = up.failed || links == 0 || links > up.used ? NULL : current; /* round and round: a ring has no beginning */
    }
    table_drop(&up.index);
    free(up.holders);
    if (head == NULL) {
        Py_RETURN_NONE;
    }
    PyObject *numbers = PyList_New(0);
    if (numbers == NULL || add_owner(head, numbers) < 0) {
        Py_XDECREF(numbers);
        return NULL;
    }
    Py_DECREF(numbers);
    return Py_BuildValue("nn", (Py_ssize_t)owners_count - 1, (Py_ssize_t)links);
}

/* What the collector would find: references that come from tracked objects are taken off; what still has some is held from outside, and
   so is what it reaches (CPython, Python/gc.c: subtract_refs and move_unreachable).  Without the collector, which runs finalizers. */
#define MOST_TRACKED (1 << 24)

typedef struct {
    Table index;
    PyObject **objects;
    Py_ssize_t *references;
    uint8_t *reached;
    uint32_t *waiting;
    size_t count, waiting_count;
    int failed;
} Reach;

static int
count_tracked(PyObject *Py_UNUSED(object), void *context)
{
    return ++*(size_t *)context > MOST_TRACKED;
}

static int
list_tracked(PyObject *object, void *context)
{
    Reach *reach = context;
    if (table_add(&reach->index, (uintptr_t)object, (uint32_t)reach->count) <= 0) {
        reach->failed = 1;
        return 1;
    }
    reach->objects[reach->count] = object;
    reach->references[reach->count++] = Py_REFCNT(object);
    return 0;
}

static int
take_off(PyObject *object, void *context)
{
    Reach *reach = context;
    uint32_t number;
    if (object != NULL && table_has(&reach->index, (uintptr_t)object, &number)) {
        reach->references[number]--;
    }
    return 0;
}

static int
reach_it(PyObject *object, void *context)
{
    Reach *reach = context;
    uint32_t number;
    if (object != NULL && table_has(&reach->index, (uintptr_t)object, &number) && !reach->reached[number]) {
        reach->reached[number] = 1;
        reach->waiting[reach->waiting_count++] = number; /* each once: there is room */
    }
    return 0;
}

PyDoc_STRVAR(garbage_doc,
"garbage(numbers)\n--\n\n"
"Whether each of these owners is garbage that the collector has not reached: a list of booleans, None for what it does not track; or\n"
"None for all if the heap is too large or memory is short.\n");

static PyObject *
garbage(PyObject *Py_UNUSED(module), PyObject *numbers)
{
    if (demand_child() < 0) {
        return NULL;
    }
    if (!PyList_Check(numbers)) {
        PyErr_SetString(PyExc_TypeError, "a list is wanted");
        return NULL;
    }
    Reach reach;
    memset(&reach, 0, sizeof(reach));
    size_t count_all = 0, slots = 1024;
    if (for_each_tracked(count_tracked, &count_all) != 0) {
        Py_RETURN_NONE;
    }
    size_t room = count_all + 1024;
    while (slots < 2 * room) {
        slots *= 2;
    }
    reach.objects = get_pages(room * sizeof(PyObject *));
    reach.references = get_pages(room * sizeof(Py_ssize_t));
    reach.reached = get_pages(room);
    reach.waiting = get_pages(room * sizeof(uint32_t));
    PyObject *result = NULL;
    if (reach.objects == NULL || reach.references == NULL || reach.reached == NULL || reach.waiting == NULL ||
        table_make(&reach.index, slots, 1) < 0 || for_each_tracked(list_tracked, &reach) != 0 || reach.failed) {
        result = Py_NewRef(Py_None);
        goto done;
    }
    for (size_t i = 0; i < reach.count; i++) {
        Py_TYPE(reach.objects[i])->tp_traverse(reach.objects[i], take_off, &reach);
    }
    for (size_t i = 0; i < reach.count; i++) {
        if (reach.references[i] > 0 && !reach.reached[i]) {
            reach.reached[i] = 1;
            reach.waiting[reach.waiting_count++] = (uint32_t)i;
        }
        while (reach.waiting_count > 0) {
            PyObject *object = reach.objects[reach.waiting[--reach.waiting_count]];
            Py_TYPE(object)->tp_traverse(object, reach_it, &reach);
        }
    }
    result = PyList_New(0);
    for (Py_ssize_t i = 0; result != NULL && i < PyList_GET_SIZE(numbers); i++) {
        size_t number = PyLong_AsSize_t(PyList_GET_ITEM(numbers, i));
        uint32_t place;
        PyObject *answer = Py_None;
        if (number < owners_count && owners[number] != NULL && table_has(&reach.index, (uintptr_t)owners[number], &place)) {
            answer = reach.reached[place] ? Py_False : Py_True;
        }
        if (PyErr_Occurred() || PyList_Append(result, answer) < 0) {
            Py_CLEAR(result);
        }
    }
done:
    table_drop(&reach.index);
    if (reach.objects != NULL) {
        munmap(reach.objects, room * sizeof(PyObject *));
    }
    if (reach.references != NULL) {
        munmap(reach.references, room * sizeof(Py_ssize_t));
    }
    if (reach.reached != NULL) {
        munmap(reach.reached, room);
    }
    if (reach.waiting != NULL) {
        munmap(reach.waiting, room * sizeof(uint32_t));
    }
    return result;
}

static int
count_type(PyObject *object, void *context)
{
    Table *counts = context;
    PyTypeObject *type = Py_TYPE(object);
    size_t slot = table_slot(counts, (uintptr_t)type);
    if (counts->keys[slot] != 0) {
        counts->values[slot]++;
        return 0;
    }
    return table_add(counts, (uintptr_t)type, 1) < 0;
}

PyDoc_STRVAR(count_here_doc,
"count_here()\n--\n\n"
"In the watched process itself: [(type, count)] of what the collector tracks.  One walk with the GIL held, and no reference to any\n"
"object: another thread may be in the middle of making one, and nothing may die here.  About 10 ms per million objects.\n");

static PyObject *
count_here(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(argument))
{
    Table counts;
    if (table_make(&counts, 4096, 1) < 0 || for_each_tracked(count_type, &counts) != 0) {
        table_drop(&counts);
        return PyErr_NoMemory();
    }
    PyObject *result = PyList_New(0);
    for (size_t slot = 0; result != NULL && slot <= counts.mask; slot++) {
        if (counts.keys[slot] == 0) {
            continue;
        }
        PyObject *row = Py_BuildValue("OI", (PyObject *)counts.keys[slot], (unsigned)counts.values[slot]);
        if (row == NULL || PyList_Append(result, row) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(row);
    }
    table_drop(&counts);
    return result;
}

static PyMethodDef methods[] = {
    {"count_here", count_here, METH_NOARGS, count_here_doc},
    {"fork_quietly", fork_quietly, METH_VARARGS, fork_quietly_doc},
    {"census", census_types, METH_VARARGS, census_doc},
    {"owner", owner, METH_O, owner_doc},
    {"paths", paths, METH_VARARGS, paths_doc},
    {"thread_roots", list_thread_roots, METH_NOARGS, thread_roots_doc},
    {"instances", instances, METH_O, instances_doc},
    {"climb", climb, METH_VARARGS, climb_doc},
    {"garbage", garbage, METH_O, garbage_doc},
    {NULL, NULL, 0, NULL},
};

#else /* not SUPPORTED */

static PyMethodDef methods[] = {{NULL, NULL, 0, NULL}};

#endif

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memwatch.evidence._heap",
    .m_doc = "The heap, looked at from a forked child.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__heap(void)
{
    return PyModule_Create(&definition);
}
