// What each instruction set's translation unit gives to the dispatcher.
#pragma once

#include "bfloat16.h"
#include "fastrnn/kernels.h"

namespace fastrnn {

enum class MathFunction { sigmoid, tanh, exp, log_sigmoid };  // exp of -|x|

// The unit is null where the CPU has none.
struct Passes {
    size_t (*forward_workspace_bytes)(const ForwardParams&, const Bfloat16Unit*);
    size_t (*backward_workspace_bytes)(const BackwardParams&);
    Plan (*plan_forward)(const ForwardParams&, const Bfloat16Unit*);
    void (*forward)(const ForwardParams&, const Bfloat16Unit*);
    void (*backward)(const BackwardParams&);
    void (*evaluate_float)(MathFunction, const float* in, float* out, int64_t count);
    void (*evaluate_double)(MathFunction, const double* in, double* out, int64_t count);
};

extern const Passes passes_generic;
#if defined(FASTRNN_X86)
extern const Passes passes_avx2;
extern const Passes passes_avx512;
#endif

struct Kernels {
    const Passes* passes;
    const Bfloat16Unit* unit;
};

}  // namespace fastrnn
