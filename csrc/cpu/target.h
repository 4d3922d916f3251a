// What each instruction set's translation unit gives to the dispatcher.
#pragma once

#include "fastrnn/kernels.h"

namespace fastrnn {

enum class MathFunction { sigmoid, tanh, exp, log_sigmoid };  // exp of -|x|

struct Kernels {
    size_t (*forward_workspace_bytes)(const ForwardParams&);
    size_t (*backward_workspace_bytes)(const BackwardParams&);
    Plan (*plan_forward)(const ForwardParams&);
    void (*forward)(const ForwardParams&);
    void (*backward)(const BackwardParams&);
    void (*evaluate_float)(MathFunction, const float* in, float* out, int64_t count);
    void (*evaluate_double)(MathFunction, const double* in, double* out, int64_t count);
};

extern const Kernels kernels_generic;
#if defined(FASTRNN_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace fastrnn
