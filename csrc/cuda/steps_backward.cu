// The backward pass with a launch for each time step: every size, type and cell. The gradient of h on its way back lies
// in two parts, what reached it directly and what came through the recurrent product; the next step adds them up. Rows
// that take no part in a step keep both.
//
// Cost a step: two launches (four with a projection or a reset before the product), and reading w_hh again.
#include "deferred.cuh"

namespace fastrnn {
namespace {

// One step of one direction; units have stride 1.
template <class X>
struct BackwardStep {
    int64_t rows, hidden;
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
    X* unprojected;            // [rows, H], projection only
    X* reset_h;                // [rows, H], reset before only
    const Wide<X>* d_reset_h;  // [rows, H]
};

template <class X>
__device__ __forceinline__ Wide<X> h_before(const BackwardStep<X>& step, int64_t row, int64_t unit) {
    if (row < step.carried) return widen(step.y_before[row * step.y_stride + unit]);
    return step.h0 ? widen(step.h0[row * step.hidden + unit]) : Wide<X>(0);
}

template <class X, class C>
__global__ void __launch_bounds__(kThreads) backward_step(BackwardStep<X> step) {
    using W = Wide<X>;
    const int64_t index = global_index(), hidden = step.hidden, padded = reserve_units(hidden);
    if (index >= step.rows * hidden) return;
    const int64_t row = index / hidden, unit = index % hidden;
    W kept[C::kSaved > 0 ? C::kSaved : 1], d_slots[C::kSlots] = {}, h = 0, h_next = 0, c = 0, d_c = 0, direct = 0;
    for (int i = 0; i < C::kSaved; ++i) kept[i] = step.saved[(row * C::kSaved + i) * padded + unit];
    if constexpr (C::kDirectPath) h = h_before(step, row, unit);
    if constexpr (C::kSaved == 0) h_next = widen(step.y[row * step.y_stride + unit]);
    if constexpr (C::kHasCellState) {
        if (row < step.carried) {
            c = step.saved_before[(row * C::kSaved + C::kSaved - 1) * padded + unit];
        } else if (step.c0) {
            c = widen(step.c0[index]);
        }
        d_c = step.d_c[index];
    }
    W d_h;
    if (step.d_unprojected) {
        d_h = step.d_unprojected[index];
    } else {
        d_h = step.direct[index] + step.through_product[index];
        if (step.d_y) d_h += widen(step.d_y[row * step.d_y_stride + unit]);
    }
    C::backward(kept, h, h_next, c, d_h, d_c, d_slots, direct);
    for (int slot = 0; slot < C::kSlots; ++slot) {
        if (C::kResetBefore && slot == 1) continue;
        const int64_t at = row * step.gates_stride + C::gate_of_slot(slot) * hidden + unit;
        const X value = narrow<X>(d_slots[slot]);
        if (from_x<C>(slot)) step.d_gates_x[at] = value;
        if (kTwoGradients<C> && from_h<C>(slot)) step.d_gates_h[at] = value;
    }
    if constexpr (C::kHasCellState) {
        step.d_c[index] = d_c;
        if (step.unprojected) step.unprojected[index] = narrow<X>(C::output(kept));
    }
    if (!step.d_unprojected) step.direct[index] = direct;
    if constexpr (C::kResetBefore) step.reset_h[index] = narrow<X>(kept[1] * h);
}

template <class X, class C>
__global__ void __launch_bounds__(kThreads) backward_reset_step(BackwardStep<X> step) {
    using W = Wide<X>;
    const int64_t index = global_index(), hidden = step.hidden, padded = reserve_units(hidden);
    if (index >= step.rows * hidden) return;
    const int64_t row = index / hidden, unit = index % hidden;
    W kept[C::kSaved > 0 ? C::kSaved : 1], d_slots[C::kSlots] = {}, direct = step.direct[index];
    for (int i = 0; i < C::kSaved; ++i) kept[i] = step.saved[(row * C::kSaved + i) * padded + unit];
    if constexpr (C::kResetBefore) {
        C::backward_reset(kept, h_before(step, row, unit), step.d_reset_h[index], d_slots, direct);
        step.d_gates_x[row * step.gates_stride + C::gate_of_slot(1) * hidden + unit] = narrow<X>(d_slots[1]);
    }
    step.direct[index] = direct;
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
          gates_(C::kGates * s_.hidden),
          arena_(workspace),
          deferred_(params, arena_) {
        direct_ = arena_.take<W>(s_.batch * recurrent_);
        through_product_ = arena_.take<W>(s_.batch * recurrent_);
        d_c_ = arena_.take<W>(C::kHasCellState ? s_.batch * s_.hidden : 0);
        d_hidden_ = arena_.take<W>(s_.projection || C::kResetBefore ? s_.batch * s_.hidden : 0);
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
        if (C::kHasCellState) {
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
        if (C::kHasCellState && p_.d_c0) {
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
            return static_cast<const W*>(p_.reserve) + (d * s_.rows + first) * C::kSaved * reserve_units(hidden);
        };
        BackwardStep<X> args{};
        args.rows = rows;
        args.hidden = hidden;
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
                              matrix(d_hidden_, rows, hidden));
            args.d_unprojected = d_hidden_;
            args.unprojected = deferred_.unprojected(d, row);
        }
        if (C::kResetBefore) args.reset_h = deferred_.reset_h(d, row);
        queue.for_each(values, backward_step<X, C>, args);
        int64_t from_gates = gates_;
        if constexpr (C::kResetBefore) {
            from_gates = 2 * hidden;
            products.multiply(matrix(args.d_gates_h + from_gates, rows, hidden, args.gates_stride), false,
                              matrix(w_hh + from_gates * hidden, hidden, hidden), false,
                              matrix(d_hidden_, rows, hidden));
            args.d_reset_h = d_hidden_;
            queue.for_each(values, backward_reset_step<X, C>, args);
        }
        products.multiply(matrix(args.d_gates_h, rows, from_gates, args.gates_stride), false,
                          matrix(w_hh, from_gates, recurrent_), false, matrix(through_product_, rows, recurrent_));
    }

    const BackwardParams& p_;
    const Shape& s_;
    const int64_t recurrent_, gates_;
    Arena arena_;
    const Deferred<X, C> deferred_;
    W *direct_, *through_product_;  // [B, R]
    W* d_c_;                        // [B, H]
    W* d_hidden_;                   // [B, H] of o act(c) before a projection; of r h
};

}  // namespace

size_t steps_backward_bytes(const BackwardParams& p, const CudaPlan& plan) {
    return visit_pass<StepsBackward>(p.dtype, p.cell, p.activation, Measure<BackwardParams>{p, plan});
}

cudaError_t steps_backward(const BackwardParams& p, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    return visit_pass<StepsBackward>(p.dtype, p.cell, p.activation, Run<BackwardParams>{p, plan, products, stream});
}

}  // namespace fastrnn
