// The forward pass of one direction for a caller that has addresses: no dispatcher, no tensors. fastrnn/stream.py
// checks what it passes.
#include "direct.h"

#include <torch/csrc/stable/ops.h>

#include <exception>
#include <string>

#include "fastrnn/kernels.h"
#include "workspace.h"

namespace fastrnn {
namespace {

constexpr Py_ssize_t kArguments = 24;

}  // namespace

PyObject* direct_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != kArguments) {
        PyErr_Format(PyExc_TypeError, "forward takes %zd arguments, got %zd", kArguments, count);
        return nullptr;
    }
    int64_t value[kArguments];
    for (Py_ssize_t i = 0; i < kArguments; ++i) {
        value[i] = PyLong_AsLongLong(args[i]);
        if (value[i] == -1 && PyErr_Occurred()) return nullptr;
    }
    const auto address = [&value](int i) { return reinterpret_cast<void*>(value[i]); };
    ForwardParams p{};
    p.cell = static_cast<Cell>(value[0]);
    p.activation = static_cast<Activation>(value[1]);
    p.dtype = value[2] ? DType::float64 : DType::float32;
    p.format = static_cast<WeightFormat>(value[3]);
    p.shape.time = value[4];
    p.shape.batch = value[5];
    p.shape.rows = p.shape.time * p.shape.batch;
    p.shape.input = value[6];
    p.shape.hidden = value[7];
    p.shape.projection = value[8];
    p.shape.directions = 1;
    const int64_t recurrent = p.shape.projection ? p.shape.projection : p.shape.hidden;
    const bool batch_first = value[9] != 0;
    p.x = address(10);
    p.x_stride_time = p.shape.input * (batch_first ? 1 : p.shape.batch);
    p.x_stride_batch = p.shape.input * (batch_first ? p.shape.time : 1);
    p.h0 = address(11);
    p.c0 = address(12);
    p.y = address(13);
    p.y_stride_time = recurrent * (batch_first ? 1 : p.shape.batch);
    p.y_stride_batch = recurrent * (batch_first ? p.shape.time : 1);
    p.h_n = address(14);
    p.c_n = address(15);
    p.weights[0] = {address(16), address(17), address(18), address(19), address(20)};
    p.weights[0].scale_ih = static_cast<const float*>(address(21));
    p.weights[0].scale_hh = static_cast<const float*>(address(22));
    p.threads = static_cast<int>(value[23]);
    std::string failure;
    Py_BEGIN_ALLOW_THREADS;
    try {
        const Workspace workspace(forward_workspace_bytes(p));
        p.workspace = workspace.data();
        forward(p);
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
