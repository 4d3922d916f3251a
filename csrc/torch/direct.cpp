// A time step of one direction for a caller that has addresses: no dispatcher, no tensors. fastrnn/stream.py checks
// what it passes.
#include "direct.h"

#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <exception>
#include <string>

#include "fastrnn/kernels.h"
#include "workspace.h"

namespace fastrnn {
namespace {

// What stays from step to step, as fastrnn/stream.py packs it; null for what there is not. Every array is contiguous.
struct StepCall {
    int64_t cell, activation, is_float64, weight_format;  // enumerators
    int64_t batch, input, hidden, projection;
    void *h, *c;  // [B, R], [B, H], read and written
    void* y;      // [B, R]
    const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
    const float *scale_ih, *scale_hh;
};

}  // namespace

PyObject* direct_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    char* bytes = nullptr;
    Py_ssize_t size = 0;
    if (count != 3) {
        PyErr_Format(PyExc_TypeError, "forward takes 3 arguments, got %zd", count);
        return nullptr;
    }
    if (PyBytes_AsStringAndSize(args[0], &bytes, &size) < 0) return nullptr;
    StepCall call;
    if (size != static_cast<Py_ssize_t>(sizeof call)) {
        PyErr_Format(PyExc_ValueError, "forward takes a call of %zu bytes, got %zd", sizeof call, size);
        return nullptr;
    }
    std::memcpy(&call, bytes, sizeof call);
    ForwardParams p{};
    p.x = PyLong_AsVoidPtr(args[1]);
    p.threads = static_cast<int>(PyLong_AsLong(args[2]));
    if (PyErr_Occurred()) return nullptr;
    p.cell = static_cast<Cell>(call.cell);
    p.activation = static_cast<Activation>(call.activation);
    p.dtype = call.is_float64 ? DType::float64 : DType::float32;
    p.format = static_cast<WeightFormat>(call.weight_format);
    p.shape.time = 1;
    p.shape.batch = p.shape.rows = call.batch;
    p.shape.input = call.input;
    p.shape.hidden = call.hidden;
    p.shape.projection = call.projection;
    p.shape.directions = 1;
    p.x_stride_batch = call.input;
    p.y_stride_batch = call.projection ? call.projection : call.hidden;
    p.h0 = p.h_n = call.h;
    p.c0 = p.c_n = call.c;
    p.y = call.y;
    p.weights[0] = {call.w_ih, call.w_hh, call.b_ih, call.b_hh, call.w_hr};
    p.weights[0].scale_ih = call.scale_ih;
    p.weights[0].scale_hh = call.scale_hh;
    std::string failure;
    Py_BEGIN_ALLOW_THREADS;
    try {
        const Kernels& kernels = active_kernels();
        const Workspace workspace(forward_workspace_bytes(p, kernels));
        p.workspace = workspace.data();
        forward(p, kernels);
    } catch (const std::exception& error) {
        failure = error.what();
    }
    Py_END_ALLOW_THREADS;
    if (!failure.empty()) {
        PyErr_SetString(PyExc_RuntimeError, failure.c_str());
        return nullptr;
    }
    Py_INCREF(Py_None);
    return Py_None;
}

}  // namespace fastrnn
