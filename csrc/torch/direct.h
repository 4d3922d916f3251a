#pragma once

#include <Python.h>

namespace fastrnn {

// _C.forward(call, x, threads): one time step of one direction. call is a bytes object that holds a StepCall of
// direct.cpp, x [B, I] an address.
PyObject* direct_forward(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

}  // namespace fastrnn
