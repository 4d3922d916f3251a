// From a cell's name to its kernels. Each target file includes this once and exports one Kernels table.
#pragma once

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "backward-inl.h"
#include "forward-inl.h"
#include "math-inl.h"
#include "target.h"

namespace fastrnn {
namespace {

// calls visit.template operator()<Pass>(): C++17 has no template lambdas, so a visitor struct stands in
template <template <class, class> class Pass, class T, class Visit>
auto visit_cell(Cell cell, Activation activation, const Visit& visit) {
    const auto with = [&](auto act) {
        using Act = decltype(act);
        switch (cell) {
            case Cell::gru: return visit.template call<Pass<T, GruCell<Act>>>();
            case Cell::gru_reset_before: return visit.template call<Pass<T, GruResetBeforeCell<Act>>>();
            case Cell::rnn: return visit.template call<Pass<T, RnnCell<Act>>>();
            default: return visit.template call<Pass<T, LstmCell<Act>>>();
        }
    };
    switch (activation) {
        case Activation::softsign: return with(SoftsignActivation{});
        case Activation::relu: return with(ReluActivation{});
        case Activation::hardtanh: return with(HardtanhActivation{});
        default: return with(TanhActivation{});
    }
}

template <template <class, class> class Pass, class Params, class Visit>
auto visit_pass(const Params& params, const Visit& visit) {
    return params.dtype == DType::float64 ? visit_cell<Pass, double>(params.cell, params.activation, visit)
                                          : visit_cell<Pass, float>(params.cell, params.activation, visit);
}

template <class Params>
struct WorkspaceOf {
    const Params& params;
    template <class P>
    size_t call() const {
        return P::workspace_bytes(params);
    }
};

template <class Params>
struct Run {
    const Params& params;
    template <class P>
    void call() const {
        P::run(params);
    }
};

struct PlanOf {
    const ForwardParams& params;
    template <class P>
    Plan call() const {
        return P::plan(params);
    }
};

size_t forward_workspace(const ForwardParams& p) { return visit_pass<ForwardPass>(p, WorkspaceOf<ForwardParams>{p}); }
size_t backward_workspace(const BackwardParams& p) {
    return visit_pass<BackwardPass>(p, WorkspaceOf<BackwardParams>{p});
}
Plan plan_forward_pass(const ForwardParams& p) { return visit_pass<ForwardPass>(p, PlanOf{p}); }
void run_forward(const ForwardParams& p) { visit_pass<ForwardPass>(p, Run<ForwardParams>{p}); }
void run_backward(const BackwardParams& p) { visit_pass<BackwardPass>(p, Run<BackwardParams>{p}); }

// out[i] = f(in[i]), for the test of the functions' accuracy
template <class T>
void evaluate(MathFunction function, const T* in, T* out, int64_t count) {
    for (int64_t i = 0; i < count; i += Vec<T>::kLanes) {
        const int64_t lanes = count - i < Vec<T>::kLanes ? count - i : Vec<T>::kLanes;
        const Vec<T> x = load_partial(in + i, lanes);
        store_partial(function == MathFunction::sigmoid ? sigmoid(x) : tanh(x), out + i, lanes);
    }
}

void evaluate_float(MathFunction f, const float* in, float* out, int64_t n) { evaluate(f, in, out, n); }
void evaluate_double(MathFunction f, const double* in, double* out, int64_t n) { evaluate(f, in, out, n); }

constexpr Kernels kKernels{forward_workspace, backward_workspace, plan_forward_pass, run_forward,
                           run_backward,      evaluate_float,     evaluate_double};

}  // namespace
}  // namespace fastrnn
