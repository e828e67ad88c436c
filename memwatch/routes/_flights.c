/* Requests under way: what `flights.py` does, for every request, in a seventh to a third of the time.

   `flights.py` documents it; both pass the same tests.  Everything here runs with the GIL held, and nothing of it raises into a
   request: what our own side raises is dropped, what the application or the server raises is passed on.

   Parts: the list of those under way; those that are over, by route; flights of each kind (plain, ASGI, WSGI); `Flights`, which has
   them all.  What an ASGI server awaits is `_awaited.c`.

   What a request costs is not instructions but memory: between two requests the program has had the processor's caches to itself, and
   each line of code or data that is touched comes from far away.  So what runs for each request touches little: an object of its own,
   one row of `over`, and code that is kept together (HOT), away from what is seldom needed (COLD). */

#include "_flights.h"

#ifdef COUNTS_HERE

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* A request that is over. */
typedef struct {
    PyObject *route; /* str, owned */
    PyObject *verb;  /* str, owned, or NULL */
    double took_s;   /* negative: unknown */
    Py_ssize_t failed;
} Over;

/* Those that are over, by route and verb. */
typedef struct {
    PyObject *route; /* str, owned */
    PyObject *verb;  /* str, owned, or NULL */
    Py_uhash_t hash; /* of both */
    Py_ssize_t requests, errors;
    uint32_t *took; /* how many, for each bucket of time; NULL until there is one */
} Done;

typedef struct {
    Py_ssize_t used;
    uint16_t *index; /* 1 + the place in `done`, by hash; 0: free */
    Done *done;
} Waiting;

/* So many that are over are counted at once: what that needs comes into the caches once for all of them. */
#define BATCH 64

/* Readings of memory that other requests have spoiled make the next one wait so many times as long: flights.MOST_PATIENCE. */
#define MOST_PATIENCE 64.0

typedef struct {
    PyObject_HEAD
    /* What each request needs, together. */
    State *state;
    Flight *first; /* under way; borrowed, each leaves the list before it dies */
    Py_ssize_t flying;
    Flight *alone;   /* borrowed, only compared */
    PyObject *clock; /* NULL: the system's */
    double threshold_bytes, busy_s;
    Py_ssize_t over_count;
    Over over[BATCH];
    PyObject *module; /* owned: it has the state */
    PyObject *owner;
    double before; /* resident memory when `alone` began */
    double spent_s, duty, fastest;
    double due_s, paid_s; /* weigh(): not before busy_s is there, and how much of spent_s that has accounted for */
    double patience;      /* doubles with each reading in vain */
    double first_s, log_first, per_e; /* the scale of the buckets: buckets.py */
    Py_ssize_t buckets;
    Py_ssize_t most, most_rows, mask; /* mask: places in the index, less one */
    Waiting *waiting;
    Py_ssize_t waiting_requests;
} Flights;

/* What all kinds begin with. */
struct Flight {
    PyObject_HEAD
    Flights *flights; /* owned */
    Flight *previous, *next;
    double began_s;
    vectorcallfunc call;
    char kind, linked, by_template, sent, broken, fives;
    PyObject *named;   /* says the route; or the route itself; or NULL */
    PyObject *subject; /* scope, environ, or a tuple of arguments; NULL once it is over */
    PyObject *pass;    /* the server's send or start_response */
    /* ASGI: the root path it began with, and the status that was sent. */
    PyObject *root, *status;
    /* WSGI alone: the name, its verb, the answer and its iterator.  The other kinds end before these. */
    PyObject *name, *verb, *answer, *chunks;
};

enum { PLAIN, ASGI, WSGI };

#define MOST_ROWS 4096 /* an index is 16 bits wide */

static int
raise_now(void *error)
{
    PyErr_SetObject((PyObject *)Py_TYPE((PyObject *)error), (PyObject *)error);
    Py_DECREF((PyObject *)error);
    return -1;
}

/* What our own side raised.  What is no Exception (an interrupt, an exit: a signal's handler may run in whatever we call) is not ours
   to drop: it is raised again as soon as the program goes on. */
COLD void
drop_error(void)
{
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    if (type != NULL && !PyErr_GivenExceptionMatches(type, PyExc_Exception)) {
        PyErr_NormalizeException(&type, &error, &trace);
        if (error != NULL && trace != NULL) {
            PyException_SetTraceback(error, trace);
        }
        if (error != NULL && Py_AddPendingCall(raise_now, error) == 0) {
            error = NULL; /* that one has it now */
        }
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
}

static inline PyObject *
attribute(PyObject *object, PyObject *name)
{
    PyObject *found = PyObject_GetAttr(object, name);
    if (UNLIKELY(found == NULL)) {
        drop_error();
    }
    return found;
}

COLD static double
said_by_clock(Flights *self)
{
    PyObject *said = PyObject_CallNoArgs(self->clock);
    double found = said == NULL ? 0.0 : PyFloat_AsDouble(said);
    Py_XDECREF(said);
    if (PyErr_Occurred()) {
        drop_error();
    }
    return found;
}

static inline double
now(Flights *self)
{
    if (UNLIKELY(self->clock != NULL)) {
        return said_by_clock(self);
    }
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* ---------------------------------------------------------------- the list of those under way */

static inline void
unlink_flight(Flight *flight)
{
    Flights *self = flight->flights;
    if (!flight->linked) {
        return;
    }
    flight->linked = 0;
    if (flight->previous != NULL) {
        flight->previous->next = flight->next;
    }
    else {
        self->first = flight->next;
    }
    if (flight->next != NULL) {
        flight->next->previous = flight->previous;
    }
    flight->previous = flight->next = NULL;
    self->flying--;
}

/* The first of those under way begins, and memory is to be read again: how much there is now. */
COLD static void
weigh(Flights *self, Flight *flight)
{
    PyObject *before = PyObject_CallMethodNoArgs(self->owner, self->state->s_resident);
    self->due_s = self->busy_s + (self->spent_s - self->paid_s) * self->patience / self->duty;
    self->paid_s = self->spent_s;
    self->alone = NULL;
    if (before != NULL && before != Py_None) {
        self->before = PyFloat_AsDouble(before);
        self->alone = flight;
    }
    Py_XDECREF(before);
    if (PyErr_Occurred()) {
        drop_error();
        self->alone = NULL;
    }
}

static inline void
depart(Flights *self, Flight *flight)
{
    if (self->flying > 0) {
        if (self->alone != NULL) {
            self->alone = NULL;
            self->patience = self->patience < MOST_PATIENCE ? self->patience * 2 : MOST_PATIENCE;
        }
        if (UNLIKELY(self->flying >= self->most)) {
            return;
        }
    }
    else if (self->threshold_bytes > 0 && self->busy_s >= self->due_s) {
        weigh(self, flight);
    }
    flight->began_s = now(self);
    flight->previous = NULL;
    flight->next = self->first;
    if (self->first != NULL) {
        self->first->previous = flight;
    }
    self->first = flight;
    flight->linked = 1;
    self->flying++;
}

/* ---------------------------------------------------------------- those that are over */

static Waiting *
new_waiting(Flights *self)
{
    size_t places = (size_t)self->mask + 1, rows = (size_t)self->most_rows;
    Waiting *waiting = PyMem_Calloc(1, sizeof(Waiting) + rows * sizeof(Done) + places * sizeof(uint16_t));
    if (waiting != NULL) {
        waiting->done = (Done *)(waiting + 1);
        waiting->index = (uint16_t *)(waiting->done + rows);
    }
    return waiting;
}

/* Ready to be used again.  The names are exact strings: no code of anybody's runs when they go. */
static void
empty_waiting(Flights *self, Waiting *waiting)
{
    for (Py_ssize_t place = 0; place < waiting->used; place++) {
        Done *done = &waiting->done[place];
        Py_CLEAR(done->route);
        Py_CLEAR(done->verb);
        done->requests = done->errors = 0;
        if (done->took != NULL) {
            memset(done->took, 0, (size_t)self->buckets * sizeof(uint32_t));
        }
    }
    waiting->used = 0;
    memset(waiting->index, 0, ((size_t)self->mask + 1) * sizeof(uint16_t));
}

static void
free_waiting(Flights *self, Waiting *waiting)
{
    if (waiting != NULL) {
        empty_waiting(self, waiting);
        for (Py_ssize_t place = 0; place < self->most_rows; place++) {
            PyMem_Free(waiting->done[place].took);
        }
        PyMem_Free(waiting);
    }
}

static int
same(PyObject *one, PyObject *other)
{
    return one == other || (one != NULL && other != NULL && PyUnicode_Compare(one, other) == 0);
}

/* The row of that route and verb, which are exact strings; NULL if there is no room for a new one. */
static Done *
row_of(Flights *self, PyObject *route, PyObject *verb, Py_uhash_t hash)
{
    Waiting *waiting = self->waiting;
    if (waiting == NULL) {
        waiting = self->waiting = new_waiting(self);
        if (waiting == NULL) {
            return NULL;
        }
    }
    Py_ssize_t at = (Py_ssize_t)(hash & (Py_uhash_t)self->mask);
    for (; waiting->index[at] != 0; at = (at + 1) & self->mask) {
        Done *done = &waiting->done[waiting->index[at] - 1];
        if (done->hash == hash && same(done->route, route) && same(done->verb, verb)) {
            return done;
        }
    }
    if (waiting->used == self->most_rows) {
        return NULL;
    }
    Done *done = &waiting->done[waiting->used++];
    waiting->index[at] = (uint16_t)waiting->used;
    done->route = Py_NewRef(route);
    done->verb = Py_XNewRef(verb);
    done->hash = hash;
    return done;
}

static Py_ssize_t
bucket_of(const Flights *self, double took_s)
{
    if (!(took_s > self->first_s)) {
        return 0;
    }
    double bucket = (log(took_s) - self->log_first) * self->per_e;
    return bucket < (double)self->buckets ? (Py_ssize_t)bucket : self->buckets - 1;
}

/* Count one under its route; takes both names, which are exact strings: their hash and comparison run no code of anybody's. */
static void
count_over(Flights *self, const Over *over)
{
    Py_uhash_t hash = (Py_uhash_t)PyObject_Hash(over->route);
    if (over->verb != NULL) {
        hash = (hash ^ (Py_uhash_t)PyObject_Hash(over->verb)) * 1000003;
    }
    hash ^= hash >> 17;
    Done *done = row_of(self, over->route, over->verb, hash);
    for (int turn = 0; done == NULL && turn < 3; turn++) {
        /* No room: other threads may take it again before this one gets it. */
        PyObject *written = PyObject_CallMethodNoArgs(self->owner, self->state->s_write);
        Py_XDECREF(written);
        if (written == NULL) {
            drop_error();
        }
        done = row_of(self, over->route, over->verb, hash);
    }
    if (done != NULL) {
        self->waiting_requests++;
        done->requests++;
        done->errors += over->failed;
        if (over->took_s >= 0) {
            if (done->took == NULL) {
                done->took = PyMem_Calloc((size_t)self->buckets, sizeof(uint32_t));
            }
            if (done->took != NULL) {
                done->took[bucket_of(self, over->took_s)]++;
            }
        }
    }
    Py_DECREF(over->route);
    Py_XDECREF(over->verb);
}

/* Count what is over.  The owner may be called, and whoever it lets run may end requests meanwhile: they find room here. */
COLD static void
count_all(Flights *self)
{
    Over over[BATCH];
    Py_ssize_t count = self->over_count;
    memcpy(over, self->over, (size_t)count * sizeof(Over));
    self->over_count = 0;
    for (Py_ssize_t place = 0; place < count; place++) {
        count_over(self, &over[place]);
    }
}

static inline void
note(Flights *self, PyObject *route, PyObject *verb, double took_s, int failed)
{
    while (UNLIKELY(self->over_count == BATCH)) { /* again, if other threads have filled it meanwhile */
        count_all(self);
    }
    /* Exact strings; a subclass's own hash is nobody's business here. */
    route = PyUnicode_CheckExact(route) ? Py_NewRef(route) : PyUnicode_FromObject(route);
    int lost = route == NULL;
    if (verb != NULL) {
        verb = PyUnicode_CheckExact(verb) ? Py_NewRef(verb) : PyUnicode_FromObject(verb);
        lost |= verb == NULL;
    }
    if (UNLIKELY(lost)) {
        drop_error();
        Py_XDECREF(route);
        Py_XDECREF(verb);
        return;
    }
    Over *over = &self->over[self->over_count++];
    over->route = route;
    over->verb = verb;
    over->took_s = took_s;
    over->failed = failed != 0;
}

/* The only one all the time is over: what it has grown by is for the owner to say. */
COLD static void
compare(Flights *self, PyObject *route, PyObject *verb, double took_s)
{
    PyObject *arguments = Py_BuildValue("dOOd", self->before, route, verb == NULL ? Py_None : verb, took_s);
    PyObject *compare = arguments == NULL ? NULL : PyObject_GetAttr(self->owner, self->state->s_compare);
    PyObject *done = compare == NULL ? NULL : PyObject_Call(compare, arguments, NULL);
    Py_XDECREF(arguments);
    Py_XDECREF(compare);
    Py_XDECREF(done);
    if (done == NULL) {
        drop_error();
    }
}

static inline void
land(Flight *flight, PyObject *route, PyObject *verb, int failed)
{
    Flights *self = flight->flights;
    double took_s = -1.0;
    if (flight->linked) {
        unlink_flight(flight);
        took_s = now(self) - flight->began_s;
        if (took_s < 0) {
            took_s = 0.0;
        }
    }
    note(self, route, verb, took_s, failed);
    if (self->flying == 0 && took_s >= 0) {
        self->busy_s += took_s;
    }
    if (self->alone != NULL) {
        int mine = self->alone == flight;
        self->alone = NULL;
        if (mine && self->flying == 0) {
            self->patience = 1;
            if (took_s > 0 && took_s * self->fastest >= self->threshold_bytes) {
                compare(self, route, verb, took_s);
            }
        }
    }
}

/* ---------------------------------------------------------------- flights of every kind */

static inline Flight *
make(Flights *self, PyTypeObject *type, int kind, vectorcallfunc call)
{
    Flight *flight = (Flight *)type->tp_alloc(type, 0); /* all else is zero */
    if (flight != NULL) {
        flight->flights = (Flights *)Py_NewRef(self);
        flight->kind = (char)kind;
        flight->call = call;
    }
    return flight;
}

static int
flight_traverse(Flight *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->flights);
    Py_VISIT(self->named);
    Py_VISIT(self->subject);
    Py_VISIT(self->pass);
    Py_VISIT(self->root);
    Py_VISIT(self->status);
    if (self->kind == WSGI) {
        Py_VISIT(self->name);
        Py_VISIT(self->verb);
        Py_VISIT(self->answer);
        Py_VISIT(self->chunks);
    }
    return 0;
}

static int
flight_clear(Flight *self)
{
    if (self->flights != NULL) {
        unlink_flight(self);
        if (self->flights->alone == self) {
            self->flights->alone = NULL;
        }
    }
    Py_CLEAR(self->named);
    Py_CLEAR(self->subject);
    Py_CLEAR(self->pass);
    Py_CLEAR(self->root);
    Py_CLEAR(self->status);
    if (self->kind == WSGI) {
        Py_CLEAR(self->name);
        Py_CLEAR(self->verb);
        Py_CLEAR(self->answer);
        Py_CLEAR(self->chunks);
    }
    return 0;
}

HOT static void
flight_dealloc(Flight *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (type->tp_finalize != NULL && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    flight_clear(self);
    Py_CLEAR(self->flights);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot plain_slots[] = {
    {Py_tp_doc, "A request under way."},
    {Py_tp_traverse, flight_traverse},
    {Py_tp_clear, flight_clear},
    {Py_tp_dealloc, flight_dealloc},
    {0, NULL},
};

static PyType_Spec plain_spec = {
    .name = "memwatch.routes._flights.Flight",
    .basicsize = offsetof(Flight, name),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = plain_slots,
};

/* ---------------------------------------------------------------- ASGI */

static inline int
is_start(PyObject *type, State *state)
{
    static const char start[] = "http.response.start";
    if (type == state->s_start) {
        return 1;
    }
    if (!PyUnicode_CheckExact(type)) { /* a member of an enumeration */
        return PyUnicode_Check(type) && PyUnicode_Compare(type, state->s_start) == 0;
    }
    return PyUnicode_IS_COMPACT_ASCII(type) && PyUnicode_GET_LENGTH(type) == sizeof(start) - 1 &&
           memcmp(PyUnicode_1BYTE_DATA(type), start, sizeof(start) - 1) == 0;
}

/* To the server's own send or start_response.  Once the collector has cleared a request there is none. */
static inline PyObject *
pass_on(Flight *self, PyObject *const *arguments, size_t flags, PyObject *names)
{
    if (UNLIKELY(self->pass == NULL)) {
        PyErr_SetString(PyExc_RuntimeError, "the request is gone");
        return NULL;
    }
    return PyObject_Vectorcall(self->pass, arguments, flags & ~PY_VECTORCALL_ARGUMENTS_OFFSET, names);
}

HOT static PyObject *
asgi_send(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *names)
{
    Flight *self = (Flight *)callable;
    if (!self->sent && PyVectorcall_NARGS(flags) >= 1) {
        State *state = self->flights->state;
        PyObject *type = look_up(arguments[0], state->s_type);
        if (type != NULL && is_start(type, state)) {
            PyObject *status = look_up(arguments[0], state->s_status);
            if (status != NULL) {
                self->sent = status != Py_None; /* what the server refuses may be sent again, better */
                Py_XSETREF(self->status, status);
            }
        }
        Py_XDECREF(type);
    }
    return pass_on(self, arguments, flags, names);
}

static int
is_same_root(Flight *self, PyObject *root)
{
    if (root == self->root) {
        return 1;
    }
    int found = PyObject_RichCompareBool(root, self->root, Py_EQ);
    if (found < 0) {
        drop_error();
    }
    return found == 1;
}

/* What no template says. */
COLD static PyObject *
asgi_named(Flight *self, PyObject *scope)
{
    PyObject *status = self->status == NULL ? self->flights->state->zero : self->status;
    PyObject *name = PyObject_CallFunctionObjArgs(self->named, scope, self->root, status, NULL);
    if (name == NULL) {
        drop_error();
    }
    return name;
}

/* over(failed=None) */
HOT PyObject *
asgi_over(Flight *self, PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *scope = self->subject;
    if (scope == NULL) {
        Py_RETURN_NONE;
    }
    State *state = self->flights->state;
    self->subject = NULL;
    int failed = 0;
    if (UNLIKELY(count >= 1 && arguments[0] != Py_None)) {
        failed = PyObject_IsTrue(arguments[0]) == 1;
    }
    else if (self->status != NULL && PyLong_Check(self->status)) {
        int overflow;
        failed = PyLong_AsLongAndOverflow(self->status, &overflow) >= 500 || overflow > 0;
    }
    PyObject *verb = NULL, *name = NULL;
    if (self->by_template) {
        PyObject *root = look_up(scope, state->s_root_path);
        if (is_same_root(self, root == NULL ? state->s_empty : root)) {
            PyObject *route = look_up(scope, state->s_route);
            if (route != NULL) {
                name = attribute(route, state->s_path);
                verb = look_up(scope, state->s_method);
                Py_DECREF(route);
            }
        }
        Py_XDECREF(root);
    }
    if (UNLIKELY(name == NULL || verb == NULL || !PyUnicode_CheckExact(name) || !PyUnicode_CheckExact(verb))) {
        Py_CLEAR(verb);
        Py_XSETREF(name, asgi_named(self, scope));
    }
    if (name != NULL && PyUnicode_Check(name)) {
        land(self, name, verb, failed);
    }
    else {
        unlink_flight(self);
    }
    Py_XDECREF(verb);
    Py_XDECREF(name);
    Py_DECREF(scope);
    /* It may be called as `send` still, and needs nothing else for that. */
    Py_CLEAR(self->named);
    Py_RETURN_NONE;
}

static PyMethodDef asgi_methods[] = {
    {"over", (PyCFunction)(void (*)(void))asgi_over, METH_FASTCALL, "The application has returned, or raised."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef callable_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Flight, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot asgi_slots[] = {
    {Py_tp_doc, "A request of an ASGI application, and the `send` that it is given."},
    {Py_tp_traverse, flight_traverse},
    {Py_tp_clear, flight_clear},
    {Py_tp_dealloc, flight_dealloc},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_methods, asgi_methods},
    {Py_tp_members, callable_members},
    {0, NULL},
};

static PyType_Spec asgi_spec = {
    .name = "memwatch.routes._flights.AsgiFlight",
    .basicsize = offsetof(Flight, name),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = asgi_slots,
};

/* ---------------------------------------------------------------- WSGI */

HOT static PyObject *
wsgi_start(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *names)
{
    Flight *self = (Flight *)callable;
    if (PyVectorcall_NARGS(flags) >= 1 && PyUnicode_Check(arguments[0]) && self->subject != NULL) {
        State *state = self->flights->state;
        /* The route now, not at the end: Flask takes its request out of the environ when the view has answered. */
        PyObject *status = arguments[0], *environ = Py_NewRef(self->subject), *verb = NULL, *name = NULL;
        self->fives = PyUnicode_GET_LENGTH(status) > 0 && PyUnicode_READ_CHAR(status, 0) == '5';
        if (self->by_template) {
            PyObject *request = look_up(environ, state->s_werkzeug);
            PyObject *rule = request == NULL ? NULL : attribute(request, state->s_url_rule);
            if (rule != NULL && rule != Py_None) {
                name = attribute(rule, state->s_rule);
                verb = look_up(environ, state->s_request_method);
            }
            Py_XDECREF(rule);
            Py_XDECREF(request);
        }
        if (name == NULL || verb == NULL || !PyUnicode_CheckExact(name) || !PyUnicode_CheckExact(verb)) {
            Py_CLEAR(verb);
            PyObject *code = PyUnicode_Substring(status, 0, 3);
            Py_XSETREF(name, code == NULL ? NULL : PyObject_CallFunctionObjArgs(self->named, environ, code, NULL));
            Py_XDECREF(code);
            if (name == NULL) {
                drop_error();
            }
        }
        if (name != NULL && !PyUnicode_Check(name)) {
            Py_CLEAR(name);
        }
        Py_XSETREF(self->name, name);
        Py_XSETREF(self->verb, verb);
        Py_DECREF(environ);
    }
    return pass_on(self, arguments, flags, names);
}

HOT static void
wsgi_end(Flight *self, int failed)
{
    PyObject *environ = self->subject;
    if (environ == NULL) {
        return;
    }
    self->subject = NULL;
    PyObject *name = Py_XNewRef(self->name), *verb = Py_XNewRef(self->verb);
    if (UNLIKELY(name == NULL)) {
        name = PyObject_CallFunctionObjArgs(self->named, environ, self->flights->state->s_empty, NULL);
        if (name == NULL) {
            drop_error();
        }
    }
    if (name != NULL && PyUnicode_Check(name)) {
        land(self, name, verb, failed || self->broken || self->fives);
    }
    else {
        unlink_flight(self);
    }
    Py_XDECREF(name);
    Py_XDECREF(verb);
    Py_DECREF(environ);
    Py_CLEAR(self->named);
}

/* over(failed=False) */
static PyObject *
wsgi_over(Flight *self, PyObject *const *arguments, Py_ssize_t count)
{
    wsgi_end(self, count >= 1 && PyObject_IsTrue(arguments[0]) == 1);
    Py_RETURN_NONE;
}

static PyObject *
wsgi_answer(Flight *self, PyObject *answer)
{
    Py_XSETREF(self->answer, Py_NewRef(answer));
    return Py_NewRef(self);
}

HOT static PyObject *
wsgi_next(Flight *self)
{
    if (self->chunks == NULL) {
        if (self->answer == NULL) {
            return NULL; /* closed: nothing more */
        }
        PyObject *chunks = PyObject_GetIter(self->answer);
        if (chunks == NULL) {
            self->broken = 1;
            return NULL;
        }
        Py_XSETREF(self->chunks, chunks);
    }
    PyObject *chunks = Py_NewRef(self->chunks);
    PyObject *found = Py_TYPE(chunks)->tp_iternext(chunks);
    Py_DECREF(chunks);
    if (found == NULL && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_StopIteration)) {
        self->broken = 1;
    }
    return found;
}

HOT static PyObject *
wsgi_close(Flight *self, PyObject *Py_UNUSED(nothing))
{
    PyObject *answer = self->answer, *done = Py_NewRef(Py_None);
    self->answer = NULL;
    if (answer != NULL) {
        PyObject *close = PyObject_GetAttr(answer, self->flights->state->s_close);
        if (close != NULL) {
            Py_XSETREF(done, PyObject_CallNoArgs(close));
            Py_DECREF(close);
        }
        else if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear();
        }
        else {
            Py_CLEAR(done);
        }
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    wsgi_end(self, done == NULL);
    PyErr_Restore(type, value, traceback);
    Py_XDECREF(answer);
    if (done == NULL) {
        return NULL;
    }
    Py_DECREF(done);
    Py_RETURN_NONE;
}

static void
wsgi_finalize(PyObject *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    wsgi_end((Flight *)self, 0);
    PyErr_Restore(type, value, traceback);
}

static PyMethodDef wsgi_methods[] = {
    {"over", (PyCFunction)(void (*)(void))wsgi_over, METH_FASTCALL, "It is over; a second time does nothing."},
    {"answer", (PyCFunction)wsgi_answer, METH_O, "The application has returned its answer; this is then that answer."},
    {"close", (PyCFunction)wsgi_close, METH_NOARGS, "The server has sent it, or given up."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot wsgi_slots[] = {
    {Py_tp_doc, "A request of a WSGI application, the `start_response` that it is given, and then its answer."},
    {Py_tp_traverse, flight_traverse},
    {Py_tp_clear, flight_clear},
    {Py_tp_dealloc, flight_dealloc},
    {Py_tp_finalize, wsgi_finalize},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, wsgi_next},
    {Py_tp_methods, wsgi_methods},
    {Py_tp_members, callable_members},
    {0, NULL},
};

static PyType_Spec wsgi_spec = {
    .name = "memwatch.routes._flights.WsgiFlight",
    .basicsize = sizeof(Flight),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = wsgi_slots,
};

/* ---------------------------------------------------------------- all of them */

static PyObject *
flights_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"owner", "clock", "batch", "most", "duty", "fastest_bytes_per_s", "scale", NULL};
    PyObject *owner, *clock;
    Py_ssize_t batch, most, buckets;
    double duty, fastest, first_s, log_first, per_e;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "OOnndd(dddn)", names, &owner, &clock, &batch, &most, &duty, &fastest, &first_s,
                                     &log_first, &per_e, &buckets)) {
        return NULL;
    }
    if (batch < 1 || batch > MOST_ROWS || buckets < 1) {
        PyErr_Format(PyExc_ValueError, "batch is %zd and there are %zd buckets: 1 to %d, and at least 1, wanted", batch, buckets, MOST_ROWS);
        return NULL;
    }
    PyObject *module = PyType_GetModuleByDef(type, &flights_module);
    Flights *self = module == NULL ? NULL : (Flights *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->module = Py_NewRef(module);
    self->state = PyModule_GetState(module);
    self->owner = Py_NewRef(owner);
    self->clock = clock == Py_None ? NULL : Py_NewRef(clock);
    self->most_rows = batch;
    for (self->mask = 1; self->mask < 2 * batch; self->mask *= 2) {
    }
    self->mask--;
    self->first_s = first_s;
    self->log_first = log_first;
    self->per_e = per_e;
    self->buckets = buckets;
    self->most = most;
    self->duty = duty;
    self->fastest = fastest;
    self->patience = 1;
    return (PyObject *)self;
}

static void
forget_over(Flights *self)
{
    while (self->over_count > 0) {
        const Over *over = &self->over[--self->over_count];
        PyObject *route = over->route, *verb = over->verb;
        Py_DECREF(route);
        Py_XDECREF(verb);
    }
}

static PyObject *
flights_reset(Flights *self, PyObject *Py_UNUSED(nothing))
{
    while (self->first != NULL) {
        unlink_flight(self->first);
    }
    self->alone = NULL;
    self->spent_s = self->busy_s = self->due_s = self->paid_s = 0.0;
    self->patience = 1;
    forget_over(self);
    if (self->waiting != NULL) {
        empty_waiting(self, self->waiting);
    }
    self->waiting_requests = 0;
    Py_RETURN_NONE;
}

static PyObject *
flights_begin(Flights *self, PyObject *const *arguments, Py_ssize_t count)
{
    Flight *flight = make(self, self->state->plain, PLAIN, NULL);
    if (flight == NULL) {
        return NULL;
    }
    if (count >= 1 && arguments[0] != Py_None) {
        flight->named = Py_NewRef(arguments[0]);
    }
    flight->subject = PyTuple_New(count > 1 ? count - 1 : 0);
    if (flight->subject == NULL) {
        Py_DECREF(flight);
        return NULL;
    }
    for (Py_ssize_t index = 1; index < count; index++) {
        PyTuple_SET_ITEM(flight->subject, index - 1, Py_NewRef(arguments[index]));
    }
    depart(self, flight);
    return (PyObject *)flight;
}

/* The flight that was given; NULL with an error set if it is none of these. */
static Flight *
own(Flights *self, PyObject *given)
{
    if (!Py_IS_TYPE(given, self->state->plain) || ((Flight *)given)->flights != self) {
        PyErr_Format(PyExc_TypeError, "%R is not what begin() has returned", given);
        return NULL;
    }
    return (Flight *)given;
}

static PyObject *
flights_end(Flights *self, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"flight", "route", "failed", "verb", NULL};
    PyObject *given, *route, *verb = Py_None;
    int failed = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "OU|pO", names, &given, &route, &failed, &verb)) {
        return NULL;
    }
    Flight *flight = own(self, given);
    if (flight == NULL) {
        return NULL;
    }
    Py_INCREF(flight);
    land(flight, route, PyUnicode_Check(verb) ? verb : NULL, failed);
    Py_CLEAR(flight->named);
    Py_CLEAR(flight->subject);
    Py_DECREF(flight);
    Py_RETURN_NONE;
}

static PyObject *
flights_forget(Flights *self, PyObject *given)
{
    Flight *flight = own(self, given);
    if (flight == NULL) {
        return NULL;
    }
    unlink_flight(flight);
    self->alone = NULL;
    Py_RETURN_NONE;
}

static PyObject *
flights_add(Flights *self, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"route", "took_s", "failed", NULL};
    PyObject *route;
    double took_s;
    int failed = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "Ud|p", names, &route, &took_s, &failed)) {
        return NULL;
    }
    note(self, route, NULL, took_s < 0 ? 0.0 : took_s, failed);
    Py_RETURN_NONE;
}

static inline Flight *
start(Flights *self, PyObject *const *arguments, Py_ssize_t count, PyTypeObject *type, int kind, vectorcallfunc call)
{
    if (UNLIKELY(count != 4)) {
        PyErr_Format(PyExc_TypeError, "4 arguments wanted, %zd given", count);
        return NULL;
    }
    Flight *flight = make(self, type, kind, call);
    if (flight != NULL) {
        flight->named = Py_NewRef(arguments[0]);
        flight->subject = Py_NewRef(arguments[1]);
        flight->pass = Py_NewRef(arguments[2]);
        flight->by_template = arguments[3] == Py_True;
        if (kind == ASGI) {
            PyObject *root = look_up(flight->subject, self->state->s_root_path);
            flight->root = root == NULL ? Py_NewRef(self->state->s_empty) : root;
        }
        depart(self, flight);
    }
    return flight;
}

HOT static PyObject *
flights_asgi(Flights *self, PyObject *const *arguments, Py_ssize_t count)
{
    return (PyObject *)start(self, arguments, count, self->state->asgi, ASGI, asgi_send);
}

HOT Flight *
asgi_begin(PyObject *flights, PyObject *says, PyObject *scope, PyObject *send, int by_template)
{
    Flights *self = (Flights *)flights;
    PyObject *arguments[] = {says, scope, send, by_template ? Py_True : Py_False};
    return start(self, arguments, 4, self->state->asgi, ASGI, asgi_send);
}

HOT static PyObject *
flights_wsgi(Flights *self, PyObject *const *arguments, Py_ssize_t count)
{
    return (PyObject *)start(self, arguments, count, self->state->wsgi, WSGI, wsgi_start);
}

static PyObject *
flights_under_way(Flights *self, PyObject *Py_UNUSED(nothing))
{
    State *state = self->state;
    PyObject *found = PyList_New(0);
    if (found == NULL) {
        return NULL;
    }
    /* Making objects may run the collector, and that any code: hold each one and what it has while it is looked at, and go on only
       from one that is still under way. */
    Flight *flight = (Flight *)Py_XNewRef(self->first);
    while (flight != NULL) {
        PyObject *what = Py_NewRef(flight->named == NULL ? Py_None : flight->named), *row = NULL;
        PyObject *subject = Py_XNewRef(flight->subject), *root = Py_XNewRef(flight->root);
        if (flight->kind == ASGI && subject != NULL) {
            row = Py_BuildValue("O(OOO)", what, subject, root, state->zero);
        }
        else if (flight->kind == WSGI && subject != NULL) {
            row = Py_BuildValue("O(OO)", what, subject, state->s_empty);
        }
        else if (flight->kind == PLAIN && subject != NULL) {
            row = Py_BuildValue("OO", what, subject);
        }
        else {
            row = Py_BuildValue("O()", Py_None);
        }
        Py_DECREF(what);
        Py_XDECREF(subject);
        Py_XDECREF(root);
        if (row == NULL || PyList_Append(found, row) < 0) {
            Py_XDECREF(row);
            Py_DECREF(flight);
            Py_DECREF(found);
            return NULL;
        }
        Py_DECREF(row);
        Flight *next = flight->linked ? (Flight *)Py_XNewRef(flight->next) : NULL;
        Py_DECREF(flight);
        flight = next;
    }
    return found;
}

/* [(bucket, how many), ...] of what is not zero. */
static PyObject *
counted(const uint32_t *took, Py_ssize_t buckets)
{
    PyObject *found = PyList_New(0);
    for (Py_ssize_t bucket = 0; found != NULL && took != NULL && bucket < buckets; bucket++) {
        if (took[bucket] != 0) {
            PyObject *pair = Py_BuildValue("nI", bucket, took[bucket]);
            if (pair == NULL || PyList_Append(found, pair) < 0) {
                Py_CLEAR(found);
            }
            Py_XDECREF(pair);
        }
    }
    return found;
}

static PyObject *
flights_take(Flights *self, PyObject *Py_UNUSED(nothing))
{
    if (self->over_count > 0) {
        count_all(self);
    }
    /* Out of reach first: making objects may run the collector, and that a finalizer that ends a request. */
    Waiting *waiting = self->waiting;
    if (waiting == NULL) {
        return PyList_New(0);
    }
    self->waiting = NULL;
    self->waiting_requests = 0;
    PyObject *found = PyList_New(waiting->used);
    for (Py_ssize_t place = 0; found != NULL && place < waiting->used; place++) {
        const Done *done = &waiting->done[place];
        PyObject *took = counted(done->took, self->buckets);
        PyObject *verb = done->verb == NULL ? Py_None : done->verb;
        PyObject *row = took == NULL ? NULL : Py_BuildValue("OOnnO", done->route, verb, done->requests, done->errors, took);
        Py_XDECREF(took);
        if (row == NULL) {
            Py_CLEAR(found);
            break;
        }
        PyList_SET_ITEM(found, place, row);
    }
    if (self->waiting == NULL) {
        empty_waiting(self, waiting);
        self->waiting = waiting; /* the same room again */
    }
    else {
        free_waiting(self, waiting);
    }
    return found;
}

static int
flights_traverse(Flights *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->module);
    Py_VISIT(self->owner);
    Py_VISIT(self->clock);
    return 0;
}

static int
flights_clear(Flights *self)
{
    Py_CLEAR(self->owner);
    Py_CLEAR(self->clock);
    return 0;
}

static void
flights_dealloc(Flights *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    flights_clear(self);
    forget_over(self);
    free_waiting(self, self->waiting);
    Py_CLEAR(self->module);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef flights_methods[] = {
    {"reset", (PyCFunction)flights_reset, METH_NOARGS, "Forget all."},
    {"begin", (PyCFunction)(void (*)(void))flights_begin, METH_FASTCALL, "A request begins."},
    {"end", (PyCFunction)(void (*)(void))flights_end, METH_VARARGS | METH_KEYWORDS, "A request is over."},
    {"forget", (PyCFunction)flights_forget, METH_O, "What began was not done after all."},
    {"add", (PyCFunction)(void (*)(void))flights_add, METH_VARARGS | METH_KEYWORDS, "Something is over whose beginning was not told."},
    {"asgi", (PyCFunction)(void (*)(void))flights_asgi, METH_FASTCALL, "A request of an ASGI application begins."},
    {"wsgi", (PyCFunction)(void (*)(void))flights_wsgi, METH_FASTCALL, "A request of a WSGI application begins."},
    {"under_way", (PyCFunction)flights_under_way, METH_NOARGS, "What each request under way is called."},
    {"take", (PyCFunction)flights_take, METH_NOARGS, "What is over, once."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef flights_members[] = {
    {"threshold_bytes", T_DOUBLE, offsetof(Flights, threshold_bytes), 0, NULL},
    {"spent_s", T_DOUBLE, offsetof(Flights, spent_s), 0, NULL},
    {"in_flight", T_PYSSIZET, offsetof(Flights, flying), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *
flights_waiting(Flights *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(self->over_count + self->waiting_requests);
}

static PyGetSetDef flights_getset[] = {
    {"waiting", (getter)flights_waiting, NULL, "Those over that nobody has taken.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot flights_slots[] = {
    {Py_tp_doc, "The requests of one process."},
    {Py_tp_new, flights_new},
    {Py_tp_traverse, flights_traverse},
    {Py_tp_clear, flights_clear},
    {Py_tp_dealloc, flights_dealloc},
    {Py_tp_methods, flights_methods},
    {Py_tp_members, flights_members},
    {Py_tp_getset, flights_getset},
    {0, NULL},
};

static PyType_Spec flights_spec = {
    .name = "memwatch.routes._flights.Flights",
    .basicsize = sizeof(Flights),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = flights_slots,
};

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    const struct {
        PyObject **where;
        const char *text;
    } words[] = {
        {&state->s_type, "type"}, {&state->s_start, "http.response.start"}, {&state->s_status, "status"},
        {&state->s_root_path, "root_path"}, {&state->s_route, "route"}, {&state->s_path, "path"}, {&state->s_method, "method"},
        {&state->s_request_method, "REQUEST_METHOD"}, {&state->s_werkzeug, "werkzeug.request"}, {&state->s_url_rule, "url_rule"},
        {&state->s_rule, "rule"}, {&state->s_write, "write"}, {&state->s_resident, "resident"}, {&state->s_compare, "compare"},
        {&state->s_close, "close"}, {&state->s_empty, ""}, {&state->s_http, "http"}, {&state->s_in_python, "in_python"},
    };
    for (size_t index = 0; index < sizeof(words) / sizeof(*words); index++) {
        *words[index].where = PyUnicode_InternFromString(words[index].text);
        if (*words[index].where == NULL) {
            return -1;
        }
    }
    state->zero = PyLong_FromLong(0);
    state->flights = (PyTypeObject *)PyType_FromModuleAndSpec(module, &flights_spec, NULL);
    state->plain = (PyTypeObject *)PyType_FromModuleAndSpec(module, &plain_spec, NULL);
    state->asgi = (PyTypeObject *)PyType_FromModuleAndSpec(module, &asgi_spec, NULL);
    state->wsgi = (PyTypeObject *)PyType_FromModuleAndSpec(module, &wsgi_spec, NULL);
    state->run = (PyTypeObject *)PyType_FromModuleAndSpec(module, &run_spec, NULL);
    state->entry = (PyTypeObject *)PyType_FromModuleAndSpec(module, &entry_spec, NULL);
    if (state->zero == NULL || state->flights == NULL || state->plain == NULL || state->asgi == NULL || state->wsgi == NULL ||
        state->run == NULL || state->entry == NULL) {
        return -1;
    }
    if (PyModule_AddObjectRef(module, "AsgiEntry", (PyObject *)state->entry) < 0) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "Flights", (PyObject *)state->flights);
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->flights);
    Py_VISIT(state->plain);
    Py_VISIT(state->asgi);
    Py_VISIT(state->wsgi);
    Py_VISIT(state->run);
    Py_VISIT(state->entry);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->flights);
    Py_CLEAR(state->plain);
    Py_CLEAR(state->asgi);
    Py_CLEAR(state->wsgi);
    Py_CLEAR(state->run);
    Py_CLEAR(state->entry);
    return 0;
}

static void
module_free(void *module)
{
    /* Nothing else but pointers to objects; whoever uses them holds the module. */
    PyObject **members = PyModule_GetState(module);
    for (size_t place = 0; members != NULL && place < sizeof(State) / sizeof(PyObject *); place++) {
        Py_CLEAR(members[place]);
    }
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

#else /* without a GIL: flights.py */

static PyModuleDef_Slot module_slots[] = {{0, NULL}};
typedef struct { int unused; } State;
#define module_traverse NULL
#define module_clear NULL
#define module_free NULL

#endif

struct PyModuleDef flights_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memwatch.routes._flights",
    .m_doc = "Requests under way.",
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__flights(void)
{
    return PyModuleDef_Init(&flights_module);
}
