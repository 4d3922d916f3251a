// fastrnn._C: its import loads libfastrnn_ops.so, and so the ops.
#include <Python.h>

#include "torch/step.h"

namespace {

constexpr const char* kWatch = "fastrnn.watch";

void delete_watch(PyObject* capsule) {
    fastrnn_delete_watch(static_cast<FastrnnWatch*>(PyCapsule_GetPointer(capsule, kWatch)));
}

// own_watch(address): what keeps it, from the op `watch`
PyObject* own_watch(PyObject*, PyObject* address) {
    void* const watch = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) return nullptr;
    return PyCapsule_New(watch, kWatch, delete_watch);
}

// whether owner[names[i]] is known[i], each
int has_each(PyObject* owner, PyObject* names, PyObject* known) {
    const Py_ssize_t count = PyTuple_Size(names);
    if (count < 0 || PyTuple_Size(known) != count) return PyErr_Occurred() ? -1 : 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* const found = PyDict_GetItemWithError(owner, PyTuple_GetItem(names, i));
        if (!found && PyErr_Occurred()) return -1;
        if (found != PyTuple_GetItem(known, i)) return 0;
    }
    return 1;
}

// forward(steps, watch, x, owner, names, known): one time step, of layers that are each a FastrnnStep in the bytes
// `steps`; x is an address. False, and nothing is done, where a tensor of the watch has moved, or where the dictionary
// `owner` has not the objects `known` under their names.
PyObject* forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 6) return PyErr_Format(PyExc_TypeError, "forward takes 6 arguments, got %zd", count);
    char* steps = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(args[0], &steps, &size) < 0) return nullptr;
    constexpr auto kStep = static_cast<Py_ssize_t>(sizeof(FastrnnStep));
    if (size % kStep) return PyErr_Format(PyExc_ValueError, "forward takes steps of %zd bytes, got %zd", kStep, size);
    const auto* const watch = static_cast<const FastrnnWatch*>(PyCapsule_GetPointer(args[1], kWatch));
    if (!watch) return nullptr;
    const void* const x = PyLong_AsVoidPtr(args[2]);
    if (PyErr_Occurred()) return nullptr;
    const int same = has_each(args[3], args[4], args[5]);
    if (same < 0) return nullptr;
    if (!same || fastrnn_has_moved(watch)) return PyBool_FromLong(0);  // others change tensors under the same lock
    const char* failure = nullptr;
    Py_BEGIN_ALLOW_THREADS;
    failure = fastrnn_step(steps, size / kStep, x);
    Py_END_ALLOW_THREADS;
    return failure ? PyErr_Format(PyExc_RuntimeError, "%s", failure) : PyBool_FromLong(1);
}

}  // namespace

PyMODINIT_FUNC PyInit__C() {
    static PyMethodDef methods[] = {
        {"forward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(forward)), METH_FASTCALL, nullptr},
        {"own_watch", own_watch, METH_O, nullptr},
        {nullptr, nullptr, 0, nullptr}};
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&module);
}
