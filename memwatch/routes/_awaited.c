/* What an ASGI server calls with scope, receive and send, and what it then awaits: `flights.AsgiEntry` in C.  A coroutine written in
   Python, which hands on whatever comes from either side, would be the half of what a request costs.

   What is awaited behaves as a coroutine does: sent to, thrown into, closed, thrown away or never awaited.  `_flights.c` counts. */

#include "_flights.h"

#ifdef COUNTS_HERE

typedef struct {
    PyObject_HEAD
    State *state; /* NULL until it is initialised; its type holds the module */
    PyObject *app, *flights, *says, *harmless;
    char by_template, is_ours; /* is_ours: `flights` is a Flights of this module */
} Entry;

typedef struct {
    PyObject_HEAD
    PyObject *weak;
    Entry *entry; /* owned */
    Flight *flight;
    PyObject *inner;                  /* the application's, while it runs */
    PyObject *scope, *receive, *send; /* until it begins */
    char begun, busy, over;
} Run;

static int
run_traverse(Run *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->entry);
    Py_VISIT(self->flight);
    Py_VISIT(self->inner);
    Py_VISIT(self->scope);
    Py_VISIT(self->receive);
    Py_VISIT(self->send);
    return 0;
}

static int
run_clear(Run *self)
{
    Py_CLEAR(self->scope);
    Py_CLEAR(self->receive);
    Py_CLEAR(self->send);
    Py_CLEAR(self->inner);
    Py_CLEAR(self->flight);
    Py_CLEAR(self->entry);
    return 0;
}

/* The application has returned; or raised, and `said` is whether that is an error. */
static inline void
run_over(Run *self, PyObject *said)
{
    self->over = 1;
    Py_CLEAR(self->inner);
    if (self->flight != NULL) {
        Py_XDECREF(asgi_over(self->flight, &said, said == NULL ? 0 : 1));
        Py_CLEAR(self->flight);
    }
}

/* An exception is set, which stays. */
COLD static void
run_raised(Run *self)
{
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyObject *harmless = self->entry == NULL ? NULL : self->entry->harmless;
    run_over(self, harmless != NULL && PyErr_GivenExceptionMatches(type, harmless) ? Py_False : Py_True);
    if (PyErr_Occurred()) {
        drop_error();
    }
    PyErr_Restore(type, error, trace);
}

/* `@types.coroutine` makes a generator that may be awaited. */
COLD static int
is_generator_of_types_coroutine(PyObject *awaitable)
{
    if (!PyGen_CheckExact(awaitable)) {
        return 0;
    }
    PyCodeObject *code = (PyCodeObject *)PyObject_GetAttrString(awaitable, "gi_code");
    if (code == NULL) {
        drop_error();
        return 0;
    }
    int found = (code->co_flags & CO_ITERABLE_COROUTINE) != 0;
    Py_DECREF(code);
    return found;
}

/* StopIteration out of a coroutine would be taken for its end: it becomes a RuntimeError, as in one of Python's. */
COLD static void
not_the_end(void)
{
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return;
    }
    PyObject *type, *error, *trace, *raised;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace != NULL) {
        PyException_SetTraceback(error, trace);
    }
    Py_DECREF(type);
    Py_XDECREF(trace);
    PyErr_SetString(PyExc_RuntimeError, "coroutine raised StopIteration");
    PyErr_Fetch(&type, &raised, &trace);
    PyErr_NormalizeException(&type, &raised, &trace);
    PyException_SetCause(raised, Py_NewRef(error));
    PyException_SetContext(raised, error);
    PyErr_Restore(type, raised, trace);
}

/* What `await` does with what the application has returned; takes it. */
static inline PyObject *
awaited(PyObject *awaitable)
{
    if (PyCoro_CheckExact(awaitable)) {
        return awaitable;
    }
    PyAsyncMethods *methods = Py_TYPE(awaitable)->tp_as_async;
    PyObject *found = NULL;
    if (methods != NULL && methods->am_await != NULL) {
        found = methods->am_await(awaitable);
        if (found != NULL && (!PyIter_Check(found) || PyCoro_CheckExact(found))) {
            PyErr_Format(PyExc_TypeError, "__await__() returned %.100s, which is no iterator", Py_TYPE(found)->tp_name);
            Py_CLEAR(found);
        }
    }
    else if (is_generator_of_types_coroutine(awaitable)) {
        return awaitable;
    }
    else {
        PyErr_Format(PyExc_TypeError, "object %.100s can't be used in 'await' expression", Py_TYPE(awaitable)->tp_name);
    }
    Py_DECREF(awaitable);
    return found;
}

static inline int
run_begin(Run *self)
{
    Entry *entry = self->entry;
    self->begun = 1;
    if (UNLIKELY(entry->flights == NULL || entry->says == NULL)) { /* cleared by the collector */
        PyErr_SetString(PyExc_RuntimeError, "the application is gone");
    }
    else {
        self->flight = asgi_begin(entry->flights, entry->says, self->scope, self->send, entry->by_template);
    }
    if (self->flight == NULL) {
        self->over = 1;
        return -1;
    }
    PyObject *app = Py_NewRef(entry->app == NULL ? Py_None : entry->app); /* somebody may give it another one meanwhile */
    PyObject *scope = self->scope, *receive = self->receive, *given[] = {NULL, scope, receive, (PyObject *)self->flight};
    self->scope = self->receive = NULL;
    Py_CLEAR(self->send);
    PyObject *awaitable = PyObject_Vectorcall(app, given + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_DECREF(app);
    Py_DECREF(scope);
    Py_DECREF(receive);
    self->inner = awaitable == NULL ? NULL : awaited(awaitable);
    if (UNLIKELY(self->inner == NULL)) {
        not_the_end();
        run_raised(self);
        return -1;
    }
    return 0;
}

/* Whether it can go on; else an error is set. */
static inline int
run_is_free(Run *self)
{
    if (UNLIKELY(self->busy)) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return 0;
    }
    if (UNLIKELY(self->over)) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return 0;
    }
    return 1;
}

HOT static PySendResult
run_go_on(Run *self, PyObject *value, PyObject **result)
{
    if (!self->begun) {
        if (UNLIKELY(value != Py_None)) {
            PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
            return PYGEN_ERROR;
        }
        self->busy = 1;
        int failed = run_begin(self) < 0;
        self->busy = 0;
        if (UNLIKELY(failed)) {
            return PYGEN_ERROR;
        }
    }
    self->busy = 1;
    PySendResult found = PyIter_Send(self->inner, value, result);
    self->busy = 0;
    if (found == PYGEN_NEXT) {
        return found;
    }
    if (UNLIKELY(found == PYGEN_ERROR)) {
        run_raised(self);
        return found;
    }
    Py_SETREF(*result, Py_NewRef(Py_None));
    run_over(self, NULL);
    return found;
}

HOT static PySendResult
run_am_send(Run *self, PyObject *value, PyObject **result)
{
    *result = NULL;
    if (!run_is_free(self)) {
        return PYGEN_ERROR;
    }
    if (UNLIKELY(Py_EnterRecursiveCall(" while awaiting an application"))) {
        self->begun = 1;
        run_raised(self);
        return PYGEN_ERROR;
    }
    PySendResult found = run_go_on(self, value, result);
    Py_LeaveRecursiveCall();
    return found;
}

static PyObject *
run_next(Run *self)
{
    PyObject *result;
    if (run_am_send(self, Py_None, &result) == PYGEN_RETURN) {
        Py_CLEAR(result); /* NULL without an error: it has returned None */
    }
    return result;
}

static PyObject *
run_send(Run *self, PyObject *value)
{
    PyObject *result;
    if (run_am_send(self, value, &result) == PYGEN_RETURN) {
        Py_CLEAR(result);
        PyErr_SetNone(PyExc_StopIteration);
    }
    return result;
}

/* Raise what throw() was given; always NULL. */
COLD static PyObject *
raise_given(PyObject *arguments)
{
    PyObject *type, *value = NULL, *trace = NULL;
    if (!PyArg_UnpackTuple(arguments, "throw", 1, 3, &type, &value, &trace)) {
        return NULL;
    }
    if (PyExceptionInstance_Check(type)) {
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    }
    else if (PyExceptionClass_Check(type)) {
        PyErr_SetObject(type, value == NULL ? Py_None : value);
    }
    else {
        PyErr_Format(PyExc_TypeError, "exceptions must be classes or instances deriving from BaseException, not %.100s",
                     Py_TYPE(type)->tp_name);
        return NULL;
    }
    if (trace != NULL && PyTraceBack_Check(trace)) {
        PyObject *kind, *error, *before;
        PyErr_Fetch(&kind, &error, &before);
        Py_XSETREF(before, Py_NewRef(trace));
        PyErr_Restore(kind, error, before);
    }
    return NULL;
}

/* A method of the inner one: a new reference, or NULL without an error. */
COLD static PyObject *
method_of_inner(Run *self, const char *name)
{
    PyObject *found = PyObject_GetAttrString(self->inner, name);
    if (found == NULL) {
        drop_error();
    }
    return found;
}

COLD static PyObject *
run_throw(Run *self, PyObject *arguments)
{
    if (!run_is_free(self)) {
        return NULL;
    }
    if (!self->begun) {
        self->begun = self->over = 1;
        return raise_given(arguments);
    }
    /* A coroutine that is ended closes what it awaits, and has the exception itself. */
    int ends = PyTuple_GET_SIZE(arguments) > 0 && PyErr_GivenExceptionMatches(PyTuple_GET_ITEM(arguments, 0), PyExc_GeneratorExit);
    PyObject *method = method_of_inner(self, ends ? "close" : "throw"), *result = Py_None;
    self->busy = 1;
    if (method != NULL) {
        result = ends ? PyObject_CallNoArgs(method) : PyObject_Call(method, arguments, NULL);
        Py_DECREF(method);
    }
    if (method == NULL || (ends && result != NULL)) {
        if (method != NULL) {
            Py_DECREF(result);
        }
        result = raise_given(arguments);
    }
    self->busy = 0;
    if (result == NULL && PyErr_ExceptionMatches(PyExc_StopIteration)) {
        PyErr_Clear();
        run_over(self, NULL);
        PyErr_SetNone(PyExc_StopIteration);
    }
    else if (result == NULL) {
        run_raised(self);
    }
    return result;
}

COLD static PyObject *
run_close(Run *self, PyObject *Py_UNUSED(nothing))
{
    if (self->over) {
        Py_RETURN_NONE;
    }
    if (!run_is_free(self)) {
        return NULL;
    }
    if (!self->begun) {
        self->begun = self->over = 1;
        Py_RETURN_NONE;
    }
    PyObject *method = method_of_inner(self, "close");
    if (method != NULL) {
        self->busy = 1;
        PyObject *closed = PyObject_CallNoArgs(method);
        self->busy = 0;
        Py_DECREF(method);
        if (closed == NULL) {
            run_raised(self);
            return NULL;
        }
        Py_DECREF(closed);
    }
    run_over(self, Py_False);
    Py_RETURN_NONE;
}

/* Thrown away before it was over: as a coroutine is. */
COLD static void
run_finalize(Run *self)
{
    PyObject *type, *error, *trace, *done = Py_None;
    if (self->over) {
        return;
    }
    PyErr_Fetch(&type, &error, &trace);
    if (!self->begun) {
        self->begun = self->over = 1;
        if (PyErr_WarnEx(PyExc_RuntimeWarning, "coroutine 'MemwatchMiddleware.__call__' was never awaited", 1) < 0) {
            done = NULL;
        }
    }
    else {
        done = run_close(self, NULL);
        Py_XDECREF(done);
    }
    if (done == NULL) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    PyErr_Restore(type, error, trace);
}

HOT static void
run_dealloc(Run *self)
{
    if (UNLIKELY(!self->over) && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
        return;
    }
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (UNLIKELY(self->weak != NULL)) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    run_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef run_methods[] = {
    {"send", (PyCFunction)run_send, METH_O, "As a coroutine's."},
    {"throw", (PyCFunction)run_throw, METH_VARARGS, "As a coroutine's."},
    {"close", (PyCFunction)run_close, METH_NOARGS, "As a coroutine's."},
    {NULL, NULL, 0, NULL},
};

/* What tools ask a coroutine for. */
static PyObject *
run_get_running(Run *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->busy);
}

static PyObject *
run_get_suspended(Run *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->begun && !self->busy && !self->over);
}

static PyObject *
run_get_frame(Run *self, void *Py_UNUSED(closure))
{
    PyObject *found = self->inner != NULL && PyCoro_CheckExact(self->inner) ? PyObject_GetAttrString(self->inner, "cr_frame") : NULL;
    if (found == NULL) {
        PyErr_Clear();
        found = Py_NewRef(Py_None);
    }
    return found;
}

static PyObject *
run_get_name(Run *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    return PyUnicode_FromString("MemwatchMiddleware.__call__");
}

static PyGetSetDef run_getset[] = {
    {"cr_running", (getter)run_get_running, NULL, NULL, NULL},
    {"cr_suspended", (getter)run_get_suspended, NULL, NULL, NULL},
    {"cr_frame", (getter)run_get_frame, NULL, "The application's.", NULL},
    {"__name__", (getter)run_get_name, NULL, NULL, NULL},
    {"__qualname__", (getter)run_get_name, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef run_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Run, weak), READONLY, NULL},
    {"cr_await", T_OBJECT, offsetof(Run, inner), READONLY, "The application's coroutine while it runs, else None."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot run_slots[] = {
    {Py_tp_doc, "A request of an ASGI application, to be awaited."},
    {Py_tp_traverse, run_traverse},
    {Py_tp_clear, run_clear},
    {Py_tp_finalize, run_finalize},
    {Py_tp_dealloc, run_dealloc},
    {Py_tp_iternext, run_next},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, run_am_send},
    {Py_tp_methods, run_methods},
    {Py_tp_members, run_members},
    {Py_tp_getset, run_getset},
    {0, NULL},
};

PyType_Spec run_spec = {
    .name = "memwatch.routes._flights.AsgiRun",
    .basicsize = sizeof(Run),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = run_slots,
};

static int
entry_init(Entry *self, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"app", "flights", "says", "by_template", "harmless", NULL};
    PyObject *app, *flights, *says, *harmless;
    int by_template;
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &flights_module);
    if (module == NULL) {
        return -1;
    }
    if (self->state != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "it is initialised already");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "OOOpO!", names, &app, &flights, &says, &by_template, &PyTuple_Type, &harmless)) {
        return -1;
    }
    self->state = PyModule_GetState(module);
    self->app = Py_NewRef(app);
    self->flights = Py_NewRef(flights);
    self->says = Py_NewRef(says);
    self->harmless = Py_NewRef(harmless);
    self->by_template = (char)by_template;
    self->is_ours = Py_IS_TYPE(flights, self->state->flights);
    return 0;
}

static int
entry_traverse(Entry *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->app);
    Py_VISIT(self->flights);
    Py_VISIT(self->says);
    Py_VISIT(self->harmless);
    return 0;
}

static int
entry_clear(Entry *self)
{
    Py_CLEAR(self->app);
    Py_CLEAR(self->flights);
    Py_CLEAR(self->says);
    Py_CLEAR(self->harmless);
    return 0;
}

static void
entry_dealloc(Entry *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    entry_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* A request is counted on the way; all else (websockets, lifespan, requests counted in Python, odd arguments) is Python's. */
HOT static PyObject *
entry_call(Entry *self, PyObject *arguments, PyObject *named)
{
    State *state = self->state;
    if (UNLIKELY(state == NULL)) {
        PyErr_Format(PyExc_RuntimeError, "%.100s.__init__() was not called", Py_TYPE(self)->tp_name);
        return NULL;
    }
    if (self->is_ours && self->flights != NULL && named == NULL && PyTuple_GET_SIZE(arguments) == 3) {
        PyObject *scope = PyTuple_GET_ITEM(arguments, 0), *type = look_up(scope, state->s_type);
        int is_http = type == state->s_http || (type != NULL && PyUnicode_Check(type) && PyUnicode_Compare(type, state->s_http) == 0);
        Py_XDECREF(type);
        if (is_http) {
            Run *run = (Run *)state->run->tp_alloc(state->run, 0);
            if (run != NULL) {
                run->entry = (Entry *)Py_NewRef(self);
                run->scope = Py_NewRef(scope);
                run->receive = Py_NewRef(PyTuple_GET_ITEM(arguments, 1));
                run->send = Py_NewRef(PyTuple_GET_ITEM(arguments, 2));
            }
            return (PyObject *)run;
        }
    }
    PyObject *method = PyObject_GetAttr((PyObject *)self, state->s_in_python);
    PyObject *found = method == NULL ? NULL : PyObject_Call(method, arguments, named);
    Py_XDECREF(method);
    return found;
}

static PyMemberDef entry_members[] = {
    {"app", T_OBJECT, offsetof(Entry, app), 0, "The application below."},
    {"flights", T_OBJECT, offsetof(Entry, flights), READONLY, NULL},
    {"says", T_OBJECT, offsetof(Entry, says), READONLY, NULL},
    {"harmless", T_OBJECT, offsetof(Entry, harmless), READONLY, NULL},
    {"by_template", T_BOOL, offsetof(Entry, by_template), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot entry_slots[] = {
    {Py_tp_doc, "An ASGI application in front of another, whose requests are counted."},
    {Py_tp_init, entry_init},
    {Py_tp_traverse, entry_traverse},
    {Py_tp_clear, entry_clear},
    {Py_tp_dealloc, entry_dealloc},
    {Py_tp_call, entry_call},
    {Py_tp_members, entry_members},
    {0, NULL},
};

PyType_Spec entry_spec = {
    .name = "memwatch.routes._flights.AsgiEntry",
    .basicsize = sizeof(Entry),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = entry_slots,
};

#endif
