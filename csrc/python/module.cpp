// fastrnn._C: its import loads libfastrnn_ops.so, and so the ops.
#include <Python.h>

#include <cstring>

#include "torch/step.h"

namespace {

// forward(step, x): step is a bytes object that holds a FastrnnStep, x an address
PyObject* forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    char* bytes = nullptr;
    Py_ssize_t size = 0;
    if (count != 2) {
        PyErr_Format(PyExc_TypeError, "forward takes 2 arguments, got %zd", count);
        return nullptr;
    }
    if (PyBytes_AsStringAndSize(args[0], &bytes, &size) < 0) return nullptr;
    FastrnnStep step;
    if (size != static_cast<Py_ssize_t>(sizeof step)) {
        PyErr_Format(PyExc_ValueError, "forward takes a call of %zu bytes, got %zd", sizeof step, size);
        return nullptr;
    }
    std::memcpy(&step, bytes, sizeof step);
    const void* const x = PyLong_AsVoidPtr(args[1]);
    if (PyErr_Occurred()) return nullptr;
    const char* failure = nullptr;
    Py_BEGIN_ALLOW_THREADS;
    failure = fastrnn_step(&step, x);
    Py_END_ALLOW_THREADS;
    if (failure) {
        PyErr_SetString(PyExc_RuntimeError, failure);
        return nullptr;
    }
    Py_INCREF(Py_None);
    return Py_None;
}

}  // namespace

PyMODINIT_FUNC PyInit__C() {
    static PyMethodDef methods[] = {
        {"forward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(forward)), METH_FASTCALL, nullptr},
        {nullptr, nullptr, 0, nullptr}};
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&module);
}
