/* `cache[key] = value` of most caches: what `Engine.__setitem__` in engine.py does, in half the time.

   It stands in the class in the place of that function, which documents it, and gives back to it whatever it does not do by itself:
   caches with weights, computed lifetimes, stale values, or loads under way.  Both pass the same tests.  The steps and their order
   are the same, for the same reasons: the bound holds after each, and no code of the program but a key's `__hash__` and `__eq__` and
   the timer's comparison runs under the lock.  An engine with an empty slot (never initialised; or a subclass has an
   attribute of that name) is the Python's, too.  It reads the slots of the classes by their offsets, which it asks of their descriptors. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#if !defined(Py_GIL_DISABLED)

/* Offsets of slots. */
typedef struct {
    Py_ssize_t is_special, flights, measure, ttl, now, lock, entries, wheel, room_weight, room_bytes, bytes, evicted, hooks, left, flushing;
} EngineSlots;
typedef struct {
    Py_ssize_t key, value, cause, extra, expires, dead, hot, size;
} EntrySlots;
typedef struct {
    Py_ssize_t wake, begins, ends, latest, room;
} WheelSlots;

/* The method: takes an engine, a key and a value. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyTypeObject *engine_type, *entry_type, *wheel_type;
    EngineSlots engine;
    EntrySlots entry;
    WheelSlots wheel;
    PyObject *in_python; /* the function that it stands for */
    PyObject *sizeof_function;
    PyObject *evicted; /* the cause */
    PyObject *zero, *one;
    Py_ssize_t entry_bytes, float_bytes, digit_bytes;
    PyObject *n_acquire, *n_release, *n_is_owned, *n_store, *n_measure, *n_prepare, *n_admits, *n_repair, *n_add, *n_append, *n_flush;
    PyObject *n_hook_failed, *n_raised, *n_sizeof, *size_name;
} Method;

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

static void
set_slot(PyObject *object, Py_ssize_t offset, PyObject *value) /* takes the value */
{
    PyObject *old = SLOT(object, offset);
    SLOT(object, offset) = value;
    Py_XDECREF(old);
}

/* Adds to a slot that counts, or takes off it; -1 with an error set. */
static int
change(PyObject *object, Py_ssize_t offset, PyObject *(*how)(PyObject *, PyObject *), PyObject *by)
{
    PyObject *old = Py_XNewRef(SLOT(object, offset));
    if (old == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a cache whose attributes were deleted");
        return -1;
    }
    PyObject *sum = how(old, by);
    Py_DECREF(old);
    if (sum == NULL) {
        return -1;
    }
    set_slot(object, offset, sum);
    return 0;
}

static double
number(PyObject *object) /* -1 with an error set */
{
    if (object == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a cache whose attributes were deleted");
        return -1.0;
    }
    return PyLong_CheckExact(object) ? PyLong_AsDouble(object) : PyFloat_AsDouble(object);
}

/* one < other; -1 with an error set. */
static int
less(PyObject *one, PyObject *other)
{
    if (PyFloat_CheckExact(one) && PyFloat_CheckExact(other)) {
        return PyFloat_AS_DOUBLE(one) < PyFloat_AS_DOUBLE(other);
    }
    return PyObject_RichCompareBool(one, other, Py_LT);
}

static int
is_atomic(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyBytes_Type || type == &PyFloat_Type ||
           type == &PyBool_Type || object == Py_None;
}

/* What `__sizeof__` says of what `is_atomic`; -1 with an error set. */
static Py_ssize_t
size_of(const Method *method, PyObject *object)
{
    if (PyUnicode_CheckExact(object) && PyUnicode_IS_COMPACT_ASCII(object)) {
        return (Py_ssize_t)sizeof(PyASCIIObject) + PyUnicode_GET_LENGTH(object) + 1;
    }
    if (PyBytes_CheckExact(object)) {
        return (Py_ssize_t)offsetof(PyBytesObject, ob_sval) + 1 + PyBytes_GET_SIZE(object);
    }
    if (PyFloat_CheckExact(object)) {
        return method->float_bytes;
    }
    if (PyLong_CheckExact(object)) {
        int overflow;
        long value = PyLong_AsLongAndOverflow(object, &overflow);
        if (!overflow && value != 0 && value < (1 << 15) && value > -(1 << 15)) { /* one digit, also where a digit has 15 bits */
            return method->digit_bytes;
        }
    }
    PyObject *said = PyObject_CallMethodNoArgs(object, method->n_sizeof);
    Py_ssize_t found = said == NULL ? -1 : PyLong_AsSsize_t(said);
    Py_XDECREF(said);
    return found;
}

#define MOST_BYTES (1LL << 50) /* what is larger, for whatever reason it is said to be, is for the Python */

/* Accounted bytes of a value and its key, or MOST_BYTES and more; -1 with an error set.  *of_value*: what the value alone holds, a new
   reference. */
static long long
measured(const Method *method, PyObject *self, PyObject *measure, PyObject *key, PyObject *value, PyObject **of_value)
{
    if (measure == method->sizeof_function && is_atomic(value)) {
        Py_ssize_t bytes = size_of(method, value);
        *of_value = bytes < 0 ? NULL : PyLong_FromSsize_t(bytes);
    }
    else {
        *of_value = PyObject_CallOneArg(measure, value);
    }
    if (*of_value == NULL) {
        return -1;
    }
    if (is_atomic(key) && PyLong_CheckExact(*of_value)) {
        int overflow;
        long long bytes = PyLong_AsLongLongAndOverflow(*of_value, &overflow);
        if (!overflow && bytes >= 0 && bytes < MOST_BYTES) {
            Py_ssize_t of_key = size_of(method, key);
            return of_key < 0 ? -1 : bytes + of_key + method->entry_bytes;
        }
    }
    /* It refuses what is less than nothing. */
    PyObject *held = PyObject_CallMethodObjArgs(self, method->n_measure, key, *of_value, NULL);
    int overflow = 0;
    long long found = held == NULL ? -1 : PyLong_AsLongLongAndOverflow(held, &overflow);
    Py_XDECREF(held);
    return overflow ? MOST_BYTES : found;
}

/* The entry that goes first, if taking it out is all that is needed; NULL without an error if more is. */
static PyObject *
simply_out(const Method *method, PyObject *entries, PyObject *iterator)
{
    PyObject *first = PyIter_Next(iterator);
    if (first == NULL) {
        return NULL;
    }
    PyObject *out = Py_XNewRef(PyDict_GetItemWithError(entries, first));
    if (out != NULL && (!Py_IS_TYPE(out, method->entry_type) || SLOT(out, method->entry.hot) != Py_False ||
                        SLOT(out, method->entry.extra) != Py_None)) {
        Py_CLEAR(out);
    }
    if (out != NULL && PyObject_DelItem(entries, first) < 0) {
        Py_CLEAR(out);
    }
    Py_DECREF(first);
    return out;
}

/* Make room and store.  Under the lock.  -1 with an error set; *out*: what had to go, if the hooks are still to be told. */
static int
store(const Method *method, PyObject *self, PyObject *entry, PyObject *key, PyObject *now, PyObject *dead, PyObject *held_object,
      long long held, int accounts, PyObject **out)
{
    const EngineSlots *slots = &method->engine;
    int status = -1;
    PyObject *entries = NULL, *iterator = NULL, *wheel = NULL, *done;
    /* What is new here and known to the collector comes first: it may run for it, and with it any code, which may use the cache. */
    do {
        Py_XSETREF(entries, Py_XNewRef(SLOT(self, slots->entries)));
        if (entries == NULL) {
            PyErr_SetString(PyExc_AttributeError, "a cache whose attributes were deleted");
            goto end;
        }
        Py_XSETREF(iterator, PyObject_GetIter(entries));
        if (iterator == NULL) {
            goto end;
        }
    } while (entries != SLOT(self, slots->entries));
    wheel = Py_XNewRef(SLOT(self, slots->wheel));
    if (!PyDict_Check(entries) || wheel == NULL || !Py_IS_TYPE(wheel, method->wheel_type)) {
        PyErr_SetString(PyExc_TypeError, "a cache whose attributes were exchanged");
        goto end;
    }
    int prepare = PyDict_Contains(entries, key);
    if (prepare == 0 && now != NULL) {
        PyObject *wake = Py_NewRef(SLOT(wheel, method->wheel.wake));
        prepare = less(now, wake);
        prepare = prepare < 0 ? prepare : !prepare;
        Py_DECREF(wake);
    }
    if (prepare < 0) {
        goto end;
    }
    if (prepare) {
        done = PyObject_CallMethodObjArgs(self, method->n_prepare, key, now == NULL ? Py_None : now, NULL);
        Py_XDECREF(done);
        if (done == NULL) {
            goto end;
        }
        Py_CLEAR(iterator); /* of what was there before */
    }
    double count = (double)PyDict_Size(entries), room = number(SLOT(self, slots->room_weight));
    double room_bytes = number(SLOT(self, slots->room_bytes)), bytes = number(SLOT(self, slots->bytes));
    if (PyErr_Occurred()) {
        goto end;
    }
    if (count >= room || bytes + (double)held > room_bytes) {
        if (iterator != NULL && bytes + (double)held <= room_bytes && count <= room) {
            *out = simply_out(method, entries, iterator);
            if (PyErr_Occurred()) {
                goto end;
            }
        }
        if (*out == NULL) {
            done = PyObject_CallMethodObjArgs(self, method->n_admits, entry, held_object, NULL);
            Py_XDECREF(done);
            if (done == NULL) {
                goto end;
            }
        }
        else {
            PyObject *size = SLOT(*out, method->entry.size);
            set_slot(*out, method->entry.cause, Py_NewRef(method->evicted));
            if (change(self, slots->evicted, PyNumber_Add, method->one) < 0 ||
                (accounts && change(self, slots->bytes, PyNumber_Subtract, size) < 0)) {
                goto end;
            }
        }
    }
    if (SLOT(entry, method->entry.cause) == Py_None) { /* else its room was lowered meanwhile, and it is refused */
        if (PyObject_SetItem(entries, key, entry) < 0 || (accounts && change(self, slots->bytes, PyNumber_Add, held_object) < 0)) {
            goto end;
        }
        if (now != NULL) {
            Py_SETREF(wheel, Py_NewRef(SLOT(self, slots->wheel)));
            PyObject *begins = Py_NewRef(SLOT(wheel, method->wheel.begins)), *ends = Py_NewRef(SLOT(wheel, method->wheel.ends));
            PyObject *latest = Py_NewRef(SLOT(wheel, method->wheel.latest));
            int early = less(dead, begins), within = early == 0 ? less(dead, ends) : 0, failed = early < 0 || within < 0;
            long room_left = failed ? 0 : PyLong_AsLong(SLOT(wheel, method->wheel.room));
            if (!failed && within && room_left > 0 && PyList_CheckExact(latest)) {
                failed = PyList_Append(latest, key) < 0 || change(wheel, method->wheel.room, PyNumber_Subtract, method->one) < 0;
            }
            else if (!failed) {
                done = PyObject_CallMethodObjArgs(wheel, method->n_add, key, dead, NULL);
                Py_XDECREF(done);
                failed = done == NULL;
            }
            Py_DECREF(begins);
            Py_DECREF(ends);
            Py_DECREF(latest);
            if (failed) {
                goto end;
            }
        }
    }
    status = 0;
end:
    Py_XDECREF(entries);
    Py_XDECREF(iterator);
    Py_XDECREF(wheel);
    return status;
}

/* Call the hooks for what had to go; -1 with an error set.  Not under the lock, unless this thread holds it further up. */
static int
tell(const Method *method, PyObject *self, PyObject *lock, PyObject *hooks, PyObject *left, PyObject *out)
{
    const EngineSlots *slots = &method->engine;
    PyObject *done = NULL;
    Py_ssize_t waiting = PyObject_Size(left);
    int owned = -1, status = -1;
    if (waiting >= 0) {
        done = PyObject_CallMethodNoArgs(lock, method->n_is_owned);
        owned = done == NULL ? -1 : PyObject_IsTrue(done);
        Py_CLEAR(done);
    }
    double flushing = number(SLOT(self, slots->flushing));
    if (owned < 0 || (flushing == -1.0 && PyErr_Occurred())) {
        return -1;
    }
    if (waiting > 0 || flushing != 0 || owned) {
        done = PyObject_CallMethodOneArg(left, method->n_append, out);
        if (done != NULL) {
            Py_SETREF(done, PyObject_CallMethodNoArgs(self, method->n_flush));
        }
        status = done == NULL ? -1 : 0;
        Py_XDECREF(done);
        return status;
    }
    if (change(self, slots->flushing, PyNumber_Add, method->one) < 0) {
        return -1;
    }
    status = 0;
    for (Py_ssize_t place = 0; status == 0 && place < PyTuple_GET_SIZE(hooks); place++) {
        PyObject *hook = PyTuple_GET_ITEM(hooks, place);
        PyObject *arguments[] = {SLOT(out, method->entry.key), SLOT(out, method->entry.value), method->evicted};
        done = PyObject_Vectorcall(hook, arguments, 3, NULL);
        if (done == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
            PyObject *type, *error, *trace;
            PyErr_Fetch(&type, &error, &trace);
            PyErr_NormalizeException(&type, &error, &trace);
            if (trace != NULL) {
                PyException_SetTraceback(error, trace);
            }
            done = PyObject_CallMethodObjArgs(self, method->n_hook_failed, hook, method->n_raised, error, NULL);
            Py_XDECREF(type);
            Py_XDECREF(error);
            Py_XDECREF(trace);
        }
        status = done == NULL ? -1 : 0;
        Py_XDECREF(done);
    }
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    int counted = change(self, slots->flushing, PyNumber_Subtract, method->one);
    if (status < 0) {
        PyErr_Restore(type, error, trace);
    }
    else {
        status = counted;
    }
    return status;
}

static PyObject *
set_item(const Method *method, PyObject *self, PyObject *key, PyObject *value)
{
    const EngineSlots *slots = &method->engine;
    PyObject *result = NULL, *entry = NULL, *now = NULL, *dead = NULL, *held_object = NULL, *of_value = NULL, *out = NULL, *done;
    /* Whatever is called may change them. */
    PyObject *measure = Py_NewRef(SLOT(self, slots->measure)), *ttl = Py_NewRef(SLOT(self, slots->ttl));
    PyObject *lock = Py_NewRef(SLOT(self, slots->lock)), *hooks = Py_NewRef(SLOT(self, slots->hooks));
    PyObject *left = Py_NewRef(SLOT(self, slots->left));
    long long held = 0;
    if (measure != Py_None) {
        held = measured(method, self, measure, key, value, &of_value);
        if (held < 0) {
            goto end;
        }
        if (held >= MOST_BYTES) {
            PyObject *arguments[] = {self, key, value};
            result = PyObject_Vectorcall(method->in_python, arguments, 3, NULL);
            goto end;
        }
        double room_bytes = number(SLOT(self, slots->room_bytes));
        if (room_bytes == -1.0 && PyErr_Occurred()) {
            goto end;
        }
        if ((double)held > room_bytes) {
            PyObject *store_it = PyObject_GetAttr(self, method->n_store);
            PyObject *arguments[] = {key, value, of_value};
            done = store_it == NULL ? NULL : PyObject_Vectorcall(store_it, arguments, 2, method->size_name);
            Py_XDECREF(store_it);
            Py_XDECREF(done);
            result = done == NULL ? NULL : Py_NewRef(Py_None);
            goto end;
        }
        held_object = PyLong_FromLongLong(held);
    }
    else {
        held_object = Py_NewRef(method->zero);
    }
    if (ttl != Py_None) {
        PyObject *timer = Py_XNewRef(SLOT(self, slots->now));
        if (timer == NULL) {
            PyErr_SetString(PyExc_AttributeError, "a cache whose attributes were deleted");
            goto end;
        }
        now = PyObject_CallNoArgs(timer);
        Py_DECREF(timer);
        dead = now == NULL ? NULL : PyNumber_Add(now, ttl);
        if (dead == NULL) {
            goto end;
        }
    }
    entry = held_object == NULL ? NULL : method->entry_type->tp_alloc(method->entry_type, 0);
    if (entry == NULL) {
        goto end;
    }
    SLOT(entry, method->entry.key) = Py_NewRef(key);
    SLOT(entry, method->entry.value) = Py_NewRef(value);
    SLOT(entry, method->entry.cause) = Py_NewRef(Py_None);
    SLOT(entry, method->entry.extra) = Py_NewRef(Py_None);
    SLOT(entry, method->entry.hot) = Py_NewRef(Py_False);
    SLOT(entry, method->entry.size) = Py_NewRef(held_object);
    SLOT(entry, method->entry.expires) = dead == NULL ? Py_NewRef(Py_None) : Py_NewRef(dead);
    SLOT(entry, method->entry.dead) = Py_XNewRef(dead);

    done = PyObject_CallMethodNoArgs(lock, method->n_acquire);
    if (done == NULL) {
        goto end;
    }
    Py_DECREF(done);
    int status = store(method, self, entry, key, now, dead, held_object, held, measure != Py_None, &out);
    PyObject *type = NULL, *error = NULL, *trace = NULL;
    if (status < 0) {
        PyErr_Fetch(&type, &error, &trace);
        done = PyObject_CallMethodNoArgs(self, method->n_repair);
        if (done == NULL) { /* that one is raised */
            Py_CLEAR(type);
            Py_CLEAR(error);
            Py_CLEAR(trace);
            PyErr_Fetch(&type, &error, &trace);
        }
        Py_XDECREF(done);
        if (out != NULL) { /* it has left all the same: the hooks are told with the next */
            done = PyObject_CallMethodOneArg(left, method->n_append, out);
            Py_XDECREF(done);
            PyErr_Clear(); /* no memory even for that: what is raised below says more */
        }
    }
    done = PyObject_CallMethodNoArgs(lock, method->n_release);
    Py_XDECREF(done);
    if (status < 0) {
        PyErr_Restore(type, error, trace);
        goto end;
    }
    if (done == NULL) {
        goto end;
    }
    if (out != NULL && PyTuple_GET_SIZE(hooks) > 0 && tell(method, self, lock, hooks, left, out) < 0) {
        goto end;
    }
    Py_ssize_t waiting = PyObject_Size(left);
    if (waiting > 0) {
        done = PyObject_CallMethodNoArgs(self, method->n_flush);
        Py_XDECREF(done);
    }
    if (waiting >= 0 && done != NULL) {
        result = Py_NewRef(Py_None);
    }
end:
    Py_DECREF(measure);
    Py_DECREF(ttl);
    Py_DECREF(lock);
    Py_DECREF(hooks);
    Py_DECREF(left);
    Py_XDECREF(of_value);
    Py_XDECREF(held_object);
    Py_XDECREF(now);
    Py_XDECREF(dead);
    Py_XDECREF(entry);
    Py_XDECREF(out); /* its value may die here: nothing is held any more */
    return result;
}

/* Whether it is an engine whose attributes all are where they belong: they are not in one that was never initialised, nor where a
   subclass has an attribute of the same name. */
static int
is_whole(const Method *method, PyObject *self)
{
    if (!PyObject_TypeCheck(self, method->engine_type)) {
        return 0;
    }
    const Py_ssize_t *offsets = (const Py_ssize_t *)&method->engine;
    for (size_t place = 0; place < sizeof(EngineSlots) / sizeof(Py_ssize_t); place++) {
        if (SLOT(self, offsets[place]) == NULL) {
            return 0;
        }
    }
    return SLOT(self, method->engine.is_special) == Py_False && SLOT(self, method->engine.flights) == Py_None &&
           PyTuple_Check(SLOT(self, method->engine.hooks));
}

static PyObject *
method_call(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *names)
{
    Method *method = (Method *)callable;
    if (PyVectorcall_NARGS(flags) == 3 && names == NULL && is_whole(method, arguments[0])) {
        return set_item(method, arguments[0], arguments[1], arguments[2]);
    }
    return PyObject_Vectorcall(method->in_python, arguments, flags, names);
}

static PyObject *
method_get(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type))
{
    return object == NULL || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

/* Where a class keeps that slot; -1 with an error set. */
static Py_ssize_t
offset_of(PyTypeObject *type, const char *name)
{
    PyObject *found = PyObject_GetAttrString((PyObject *)type, name);
    Py_ssize_t offset = -1;
    if (found != NULL && Py_IS_TYPE(found, &PyMemberDescr_Type) && ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT_EX) {
        offset = ((PyMemberDescrObject *)found)->d_member->offset;
    }
    else if (found != NULL) {
        PyErr_Format(PyExc_TypeError, "%s.%s is not a slot", type->tp_name, name);
    }
    Py_XDECREF(found);
    return offset;
}

static int
find_slots(PyTypeObject *type, const char *const *names, Py_ssize_t *offsets)
{
    for (; *names != NULL; names++, offsets++) {
        *offsets = offset_of(type, *names);
        if (*offsets < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
method_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    static char *keywords[] = {"engine", "entry", "wheel", "in_python", "sizeof", "entry_bytes", "evicted", NULL};
    /* In the order of the structures above. */
    static const char *const of_engine[] = {"_is_special",  "_flights",    "_sizeof", "_ttl",     "_now",   "_lock", "_entries",  "_wheel",
                                            "_room_weight", "_room_bytes", "_bytes",  "_evicted", "_hooks", "_left", "_flushing", NULL};
    static const char *const of_entry[] = {"key", "value", "cause", "extra", "expires", "dead", "hot", "size", NULL};
    static const char *const of_wheel[] = {"wake", "begins", "ends", "latest", "room", NULL};
    PyObject *engine, *entry, *wheel, *in_python, *sizeof_function, *evicted;
    Py_ssize_t entry_bytes;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "O!O!O!OOnO", keywords, &PyType_Type, &engine, &PyType_Type, &entry, &PyType_Type,
                                     &wheel, &in_python, &sizeof_function, &entry_bytes, &evicted)) {
        return NULL;
    }
    Method *self = (Method *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->call = method_call;
    self->engine_type = (PyTypeObject *)Py_NewRef(engine);
    self->entry_type = (PyTypeObject *)Py_NewRef(entry);
    self->wheel_type = (PyTypeObject *)Py_NewRef(wheel);
    self->in_python = Py_NewRef(in_python);
    self->sizeof_function = Py_NewRef(sizeof_function);
    self->evicted = Py_NewRef(evicted);
    self->entry_bytes = entry_bytes;
    const struct {
        PyObject **where;
        const char *text;
    } words[] = {
        {&self->n_acquire, "acquire"}, {&self->n_release, "release"}, {&self->n_is_owned, "_is_owned"}, {&self->n_store, "_store"},
        {&self->n_measure, "_measure"}, {&self->n_prepare, "_prepare"}, {&self->n_admits, "_admits"}, {&self->n_repair, "_repair"},
        {&self->n_add, "add"}, {&self->n_append, "append"}, {&self->n_flush, "_flush"}, {&self->n_hook_failed, "_hook_failed"},
        {&self->n_raised, "raised"}, {&self->n_sizeof, "__sizeof__"},
    };
    for (size_t index = 0; index < sizeof(words) / sizeof(*words); index++) {
        *words[index].where = PyUnicode_InternFromString(words[index].text);
        if (*words[index].where == NULL) {
            Py_DECREF(self);
            return NULL;
        }
    }
    self->zero = PyLong_FromLong(0);
    self->one = PyLong_FromLong(1);
    self->size_name = Py_BuildValue("(s)", "size");
    PyObject *half = PyFloat_FromDouble(0.5);
    PyObject *of_one = self->one == NULL ? NULL : PyObject_CallMethodNoArgs(self->one, self->n_sizeof);
    PyObject *of_half = half == NULL ? NULL : PyObject_CallMethodNoArgs(half, self->n_sizeof);
    if (of_one != NULL && of_half != NULL) {
        self->digit_bytes = PyLong_AsSsize_t(of_one);
        self->float_bytes = PyLong_AsSsize_t(of_half);
    }
    Py_XDECREF(half);
    Py_XDECREF(of_one);
    Py_XDECREF(of_half);
    if (PyErr_Occurred() || self->zero == NULL || self->size_name == NULL ||
        find_slots(self->engine_type, of_engine, (Py_ssize_t *)&self->engine) < 0 ||
        find_slots(self->entry_type, of_entry, (Py_ssize_t *)&self->entry) < 0 ||
        find_slots(self->wheel_type, of_wheel, (Py_ssize_t *)&self->wheel) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* All that it holds, for the collector and for the end. */
#define EACH(DO)                                                                                                                       \
    DO(self->engine_type) DO(self->entry_type) DO(self->wheel_type) DO(self->in_python) DO(self->sizeof_function) DO(self->evicted)     \
    DO(self->zero) DO(self->one) DO(self->n_acquire) DO(self->n_release) DO(self->n_is_owned) DO(self->n_store) DO(self->n_measure)     \
    DO(self->n_prepare) DO(self->n_admits) DO(self->n_repair) DO(self->n_add) DO(self->n_append) DO(self->n_flush)                      \
    DO(self->n_hook_failed) DO(self->n_raised) DO(self->n_sizeof) DO(self->size_name)

static int
method_traverse(Method *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
#define VISIT(member) Py_VISIT(member);
    EACH(VISIT)
    return 0;
}

static int
method_clear(Method *self)
{
#define CLEAR(member) Py_CLEAR(member);
    EACH(CLEAR)
    return 0;
}

static void
method_dealloc(Method *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    method_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef method_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Method, call), READONLY, NULL},
    {"__wrapped__", T_OBJECT_EX, offsetof(Method, in_python), READONLY, "The same in Python."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot method_slots[] = {
    {Py_tp_doc, "The method `__setitem__` of the engine."},
    {Py_tp_new, method_new},
    {Py_tp_traverse, method_traverse},
    {Py_tp_clear, method_clear},
    {Py_tp_dealloc, method_dealloc},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, method_get},
    {Py_tp_members, method_members},
    {0, NULL},
};

static PyType_Spec method_spec = {
    .name = "memwatch.caches._engine.SetItem",
    .basicsize = sizeof(Method),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .slots = method_slots,
};

static int
module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &method_spec, NULL);
    int status = type == NULL ? -1 : PyModule_AddObjectRef(module, "SetItem", type);
    Py_XDECREF(type);
    return status;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

#else /* without a GIL: engine.py */

static PyModuleDef_Slot module_slots[] = {{0, NULL}};

#endif

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memwatch.caches._engine",
    .m_doc = "Storing in a cache.",
    .m_size = 0,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__engine(void)
{
    return PyModuleDef_Init(&definition);
}
