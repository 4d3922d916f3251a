// The backward pass with a launch for each time step: every size, type and cell. The gradient of h on its way back lies
// in two parts, what reached it directly and what came through the recurrent product; the next step adds them up. Rows
// that take no part in a step keep both.
//
// Cost a step: two launches for each of the cell's stages and two more with a projection, and reading w_hh again.
#include "deferred.cuh"

namespace fastrnn {
namespace {

// One step of one direction; units have stride 1.
template <class X>
struct BackwardStep {
    int64_t rows, hidden, padded;
    int64_t carried;              // rows whose state before the step is that of the step before; others have h0 and c0
    const Wide<X>* saved;         // [rows, S, Hp]
    const Wide<X>* saved_before;  // [carried, S, Hp]
    const X* y;                   // [rows, H], rows y_stride apart
    const X* y_before;            // [carried, H]
    int64_t y_stride;
    const X* h0;   // [rows, H], or null
    const X* c0;   // [rows, H], or null
    const X* d_y;  // [rows, H], rows d_y_stride apart, or null
    int64_t d_y_stride;
    const Wide<X>* d_unprojected;    // [rows, H], projection only, in the place of the two parts and d_y
    Wide<X>* direct;                 // [rows, H]
    const Wide<X>* through_product;  // [rows, H]
    Wide<X>* d_c;                    // [rows, H]
    X* d_gates_x;                    // [rows, G*H], rows gates_stride apart
    X* d_gates_h;
    int64_t gates_stride;
    X* unprojected;                              // [rows, H], projection only
    X* handed_on[kMaxCellStages];                // [rows, H] what each stage but the last handed on
    const Wide<X>* d_handed_on[kMaxCellStages];  // [rows, H] its gradient
};

template <class X>
__device__ __forceinline__ Wide<X> h_before(const BackwardStep<X>& step, int64_t row, int64_t unit) {
    if (row < step.carried) return widen(step.y_before[row * step.y_stride + unit]);
    return step.h0 ? widen(step.h0[row * step.hidden + unit]) : Wide<X>(0);
}

// the arithmetic from the last stage back to Stage
template <class C, int Stage, class X>
__device__ __forceinline__ void backward_until(const BackwardStep<X>& step, int64_t index,
                                               BackwardUnit<Wide<X>>& unit) {
    if constexpr (Stage < kLastStage<C>) {
        backward_until<C, Stage + 1>(step, index, unit);
        unit.d_out = step.d_handed_on[Stage][index];
    }
    C::template backward<Stage>(unit);
}

// what each stage before Stage handed on, again
template <class C, int Stage, class X>
__device__ __forceinline__ void hand_on(const BackwardStep<X>& step, int64_t index, const BackwardUnit<Wide<X>>& unit) {
    if constexpr (Stage > 0) {
        hand_on<C, Stage - 1>(step, index, unit);
        step.handed_on[Stage - 1][index] = narrow<X>(C::template handed_on<Stage - 1>(unit));
    }
}

// Stages come from the last to the first, and each does those after it again, so that the gradients of slots go from
// one to the next in registers. A stage but the first writes only what its product takes; the first all.
template <class X, class C, int Stage>
__global__ void __launch_bounds__(kThreads) backward_stage(BackwardStep<X> step) {
    using W = Wide<X>;
    const int64_t index = global_index(), hidden = step.hidden, padded = step.padded;
    if (index >= step.rows * hidden) return;
    const int64_t row = index / hidden, unit = index % hidden;
    W kept[kSaved<C> > 0 ? kSaved<C> : 1], d_slots[kSlots<C>] = {};
    for (int i = 0; i < kSaved<C>; ++i) kept[i] = step.saved[(row * kSaved<C> + i) * padded + unit];
    BackwardUnit<W> u{kept, 0, 0, 0, 0, nullptr, 0, 0, d_slots, nullptr};
    if constexpr (kReadsH<C>) u.h = h_before(step, row, unit);
    if constexpr (kSaved<C> == 0) u.h_next = widen(step.y[row * step.y_stride + unit]);
    if constexpr (kHasC<C>) {
        if (row < step.carried) {
            u.c = step.saved_before[(row * kSaved<C> + kSavedC<C>)*padded + unit];
        } else if (step.c0) {
            u.c = widen(step.c0[index]);
        }
        u.d_c = step.d_c[index];
    }
    if (step.d_unprojected) {
        u.d_out = step.d_unprojected[index];
    } else {
        u.d_out = step.direct[index] + step.through_product[index];
        if (step.d_y) u.d_out += widen(step.d_y[row * step.d_y_stride + unit]);
    }
    backward_until<C, Stage>(step, index, u);
    for (int slot = 0; slot < kSlots<C>; ++slot) {
        if (Stage > 0 && stage_of<C>(slot) != Stage) continue;
        const int64_t at = row * step.gates_stride + gate_of<C>(slot) * hidden + unit;
        const X value = narrow<X>(d_slots[slot]);
        if (from_x<C>(slot)) step.d_gates_x[at] = value;
        if (kTwoGradients<C> && from_h<C>(slot)) step.d_gates_h[at] = value;
    }
    if constexpr (Stage == 0) {
        if constexpr (kHasC<C>) step.d_c[index] = u.d_c;
        if constexpr (C::traits().may_project) {
            if (step.unprojected) {
                step.unprojected[index] = narrow<X>(C::template handed_on<kLastStage<C>>(u));
            }
        }
        if (!step.d_unprojected) step.direct[index] = u.d_h;
        hand_on<C, kLastStage<C>>(step, index, u);
    }
}

// d_projected = both parts + d_y, for the step's rows
template <class X>
__global__ void project_step(BackwardStep<X> step, int64_t features, X* d_projected) {
    const int64_t index = global_index();
    if (index >= step.rows * features) return;
    Wide<X> d_h = step.direct[index] + step.through_product[index];
    if (step.d_y) d_h += widen(step.d_y[index / features * step.d_y_stride + index % features]);
    d_projected[index] = narrow<X>(d_h);
    step.direct[index] = 0;
}

template <class X, class C>
class StepsBackward {
    using W = Wide<X>;

   public:
    StepsBackward(const BackwardParams& params, const CudaPlan&, void* workspace)
        : p_(params),
          s_(params.shape),
          recurrent_(s_.projection ? s_.projection : s_.hidden),
          gates_(kGates<C> * s_.hidden),
          arena_(workspace),
          deferred_(params, arena_) {
        direct_ = arena_.take<W>(s_.batch * recurrent_);
        through_product_ = arena_.take<W>(s_.batch * recurrent_);
        d_c_ = arena_.take<W>(kHasC<C> ? s_.batch * s_.hidden : 0);
        d_unprojected_ = arena_.take<W>(s_.projection ? s_.batch * s_.hidden : 0);
        d_handed_on_ = arena_.take<W>(kLastStage<C> * s_.batch * s_.hidden);
    }
    size_t workspace_bytes() const { return arena_.used(); }

    cudaError_t run(Products& products, cudaStream_t stream) {
        Queue queue(stream);
        deferred_.begin(queue);
        for (int d = 0; d < s_.directions; ++d) run_direction(queue, products, d);
        deferred_.finish(queue, products);
        return queue.error();
    }

   private:
    static const X* as(const void* pointer) { return static_cast<const X*>(pointer); }
    int64_t count(int64_t t) const { return s_.batch_sizes ? s_.batch_sizes[t] : s_.batch; }

    void run_direction(Queue& queue, Products& products, int d) {
        const int64_t states = s_.batch * recurrent_, cells = s_.batch * s_.hidden;
        queue.for_each(states, copy_state<W, X>, p_.d_h_n ? as(p_.d_h_n) + d * states : nullptr, direct_, states);
        queue.zero(through_product_, states * static_cast<int64_t>(sizeof(W)));
        if (kHasC<C>) {
            queue.for_each(cells, copy_state<W, X>, p_.d_c_n ? as(p_.d_c_n) + d * cells : nullptr, d_c_, cells);
        }
        int64_t row = d ? 0 : s_.rows;
        for (int64_t step = s_.time - 1; step >= 0; --step) {
            const int64_t t = d ? s_.time - 1 - step : step;
            if (!d) row -= count(t);
            run_step(queue, products, d, t, step, row);
            if (d) row += count(t);
        }
        if (p_.d_h0) {
            queue.for_each(states, add_states<X>, static_cast<const W*>(direct_),
                           static_cast<const W*>(through_product_), static_cast<X*>(p_.d_h0) + d * states, states);
        }
        if (kHasC<C> && p_.d_c0) {
            queue.for_each(cells, copy_state<X, W>, static_cast<const W*>(d_c_), static_cast<X*>(p_.d_c0) + d * cells,
                           cells);
        }
    }

    // t: the step's time; row: its first
    void run_step(Queue& queue, Products& products, int d, int64_t t, int64_t step, int64_t row) {
        const int64_t hidden = s_.hidden, rows = count(t), values = rows * hidden;
        const int64_t before = d ? t + 1 : t - 1;  // the time of the step before, if any
        const int64_t row_before = d ? row + rows : step ? row - count(before) : 0;
        const auto at = [&](const void* base, int64_t stride_time, int64_t stride_batch, int64_t time, int64_t first) {
            return as(base) + d * recurrent_ + (s_.batch_sizes ? first * stride_batch : time * stride_time);
        };
        const auto saved = [&](int64_t first) {
            return static_cast<const W*>(p_.reserve) + (d * s_.rows + first) * kSaved<C> * padded_units(hidden);
        };
        BackwardStep<X> args{};
        args.rows = rows;
        args.hidden = hidden;
        args.padded = padded_units(hidden);
        args.carried = step ? least(rows, count(before)) : 0;
        args.saved = saved(row);
        args.saved_before = saved(row_before);
        args.y = at(p_.y, p_.y_stride_time, p_.y_stride_batch, t, row);
        args.y_before = step ? at(p_.y, p_.y_stride_time, p_.y_stride_batch, before, row_before) : nullptr;
        args.y_stride = p_.y_stride_batch;
        args.h0 = p_.h0 ? as(p_.h0) + d * s_.batch * recurrent_ : nullptr;
        args.c0 = p_.c0 ? as(p_.c0) + d * s_.batch * hidden : nullptr;
        args.d_y = p_.d_y ? at(p_.d_y, p_.d_y_stride_time, p_.d_y_stride_batch, t, row) : nullptr;
        args.d_y_stride = p_.d_y_stride_batch;
        args.direct = direct_;
        args.through_product = through_product_;
        args.d_c = d_c_;
        args.d_gates_x = deferred_.d_gates_x(d, row);
        args.d_gates_h = deferred_.d_gates_h(d, row);
        args.gates_stride = deferred_.gates_stride();
        const X* w_hh = as(p_.weights[d].w_hh);
        if (s_.projection) {
            X* d_projected = deferred_.d_projected(d, row);
            queue.for_each(rows * recurrent_, project_step<X>, args, recurrent_, d_projected);
            products.multiply(matrix(d_projected, rows, recurrent_), false,
                              matrix(as(p_.weights[d].w_hr), recurrent_, hidden), false,
                              matrix(d_unprojected_, rows, hidden));
            args.d_unprojected = d_unprojected_;
            args.unprojected = deferred_.unprojected(d, row);
        }
        for_each_stage_back<C>([&](auto stage) {
            if constexpr (stage < kLastStage<C>) args.handed_on[stage] = deferred_.handed_on(stage, d, row);
            queue.for_each(values, backward_stage<X, C, stage>, args);
            constexpr SlotRange of = stage_gates<C, stage>();
            const auto multiply = [&](W* to, int64_t features) {
                products.multiply(
                    matrix(args.d_gates_h + of.begin * hidden, rows, of.count * hidden, args.gates_stride), false,
                    matrix(w_hh + of.begin * hidden * features, of.count * hidden, features), false,
                    matrix(to, rows, features));
            };
            if constexpr (stage == 0) {
                multiply(through_product_, recurrent_);
            } else {
                W* d_handed_on = d_handed_on_ + (stage - 1) * s_.batch * hidden;
                multiply(d_handed_on, hidden);
                args.d_handed_on[stage - 1] = d_handed_on;
            }
        });
    }

    const BackwardParams& p_;
    const Shape& s_;
    const int64_t recurrent_, gates_;
    Arena arena_;
    const Deferred<X, C> deferred_;
    W *direct_, *through_product_;  // [B, R]
    W* d_c_;                        // [B, H]
    W* d_unprojected_;              // [B, H] of h' before a projection
    W* d_handed_on_;                // [stages - 1, B, H]
};

}  // namespace

size_t steps_backward_bytes(const BackwardParams& p, const CudaPlan& plan) {
    return visit_pass<StepsBackward>(p.dtype, p.cell, p.functions, Measure<BackwardParams>{p, plan});
}

cudaError_t steps_backward(const BackwardParams& p, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    return visit_pass<StepsBackward>(p.dtype, p.cell, p.functions, Run<BackwardParams>{p, plan, products, stream});
}

}  // namespace fastrnn
