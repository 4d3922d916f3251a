// From a type to its passes. Each target file includes this once and exports one table of Passes.
#pragma once

#include "backward-inl.h"
#include "forward-inl.h"
#include "target.h"

namespace fastrnn {
namespace {

bool is_double(DType dtype) { return dtype == DType::float64; }

size_t forward_workspace(const ForwardParams& p, const Bfloat16Unit* unit) {
    return is_double(p.dtype) ? ForwardPass<double>::workspace_bytes(p, unit)
                              : ForwardPass<float>::workspace_bytes(p, unit);
}
size_t backward_workspace(const BackwardParams& p) {
    return is_double(p.dtype) ? BackwardPass<double>::workspace_bytes(p) : BackwardPass<float>::workspace_bytes(p);
}
Plan plan_forward_pass(const ForwardParams& p, const Bfloat16Unit* unit) {
    return is_double(p.dtype) ? ForwardPass<double>::plan(p, unit) : ForwardPass<float>::plan(p, unit);
}
void run_forward(const ForwardParams& p, const Bfloat16Unit* unit) {
    is_double(p.dtype) ? ForwardPass<double>::run(p, unit) : ForwardPass<float>::run(p, unit);
}
void run_backward(const BackwardParams& p) {
    is_double(p.dtype) ? BackwardPass<double>::run(p) : BackwardPass<float>::run(p);
}

// out[i] = f(in[i]), for the test of the functions' accuracy
template <class T>
void evaluate(MathFunction function, const T* in, T* out, int64_t count) {
    for (int64_t i = 0; i < count; i += Vec<T>::kLanes) {
        const int64_t lanes = count - i < Vec<T>::kLanes ? count - i : Vec<T>::kLanes;
        const Vec<T> x = load_partial(in + i, lanes);
        const Vec<T> y = function == MathFunction::sigmoid ? sigmoid(x)
                         : function == MathFunction::tanh  ? tanh(x)
                         : function == MathFunction::exp   ? exp(Vec<T>{T(0)} - absolute(x))
                                                           : log_sigmoid(x);
        store_partial(y, out + i, lanes);
    }
}

void evaluate_float(MathFunction f, const float* in, float* out, int64_t n) { evaluate(f, in, out, n); }
void evaluate_double(MathFunction f, const double* in, double* out, int64_t n) { evaluate(f, in, out, n); }

constexpr Passes kPasses{forward_workspace, backward_workspace, plan_forward_pass, run_forward,
                         run_backward,      evaluate_float,     evaluate_double};

}  // namespace
}  // namespace fastrnn
