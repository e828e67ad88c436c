/* What `_flights.c` (requests are counted) and `_awaited.c` (what an ASGI server awaits) share: one extension. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

extern struct PyModuleDef flights_module __attribute__((visibility("hidden")));

/* Else flights.py: what is here relies on the GIL. */
#if !defined(Py_GIL_DISABLED) && !defined(MS_WINDOWS)
#define COUNTS_HERE 1

#define HOT __attribute__((hot))
#define COLD __attribute__((cold, noinline))
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

#pragma GCC visibility push(hidden) /* no name of ours is the program's */

typedef struct Flight Flight;

/* Nothing else but pointers to objects: module_free(). */
typedef struct {
    PyTypeObject *flights, *plain, *asgi, *wsgi, *run, *entry;
    PyObject *s_type, *s_start, *s_status, *s_root_path, *s_route, *s_path, *s_method;
    PyObject *s_request_method, *s_werkzeug, *s_url_rule, *s_rule, *s_write, *s_resident, *s_compare, *s_close, *s_empty, *s_http,
        *s_in_python, *zero;
} State;

extern PyType_Spec run_spec, entry_spec;

/* Drop what our own side raised; an interrupt or an exit is raised again as soon as the program goes on. */
COLD void drop_error(void);

/* A request of an ASGI application begins: the `send` to give to it, or NULL with an error.  *flights*: a Flights of this module. */
Flight *asgi_begin(PyObject *flights, PyObject *says, PyObject *scope, PyObject *send, int by_template);

/* It is over; at most one argument: whether it failed, which its status says otherwise. */
PyObject *asgi_over(Flight *flight, PyObject *const *arguments, Py_ssize_t count);

#pragma GCC visibility pop

/* mapping[key], borrowed or owned alike: a new reference; NULL without an error if there is none or it cannot be had. */
static inline PyObject *
look_up(PyObject *mapping, PyObject *key)
{
    PyObject *found;
    if (PyDict_CheckExact(mapping)) {
        found = PyDict_GetItemWithError(mapping, key);
        Py_XINCREF(found);
    }
    else {
        found = PyObject_GetItem(mapping, key);
    }
    if (UNLIKELY(found == NULL)) {
        drop_error();
    }
    return found;
}

#endif
