#pragma once

#include <Python.h>

namespace fastrnn {

// _C.forward(cell, activation, is_float64, weight_format, T, B, I, H, P, batch_first, x, h0, c0, y, h_n, c_n, w_ih,
// w_hh, b_ih, b_hh, w_hr, scale_ih, scale_hh, threads): enumerators and addresses as integers, 0 for what there is not;
// sequences are contiguous
PyObject* direct_forward(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

}  // namespace fastrnn
