// The forward pass with a launch for each time step: every size, type and cell. For a chunk of steps at once the
// product with x; then, step by step, a product with h through the library and one kernel for the cell.
//
// h_n itself is the operand of the recurrent product and takes each step's h: rows that begin later hold h0 there, rows
// that have ended their last h.
//
// Cost a step: two launches for each of the cell's stages and two more with a projection, and reading w_hh again.
#include "pass.cuh"

namespace fastrnn {
namespace {

constexpr int64_t kChunkBytes = int64_t{128} << 20;  // of preactivations from x

// One step of one direction; units have stride 1.
template <class X>
struct ForwardStep {
    int64_t rows, hidden, padded;
    const Wide<X>* gates_x;                  // [rows, G*H]
    const Wide<X>* gates_h[kMaxCellStages];  // [rows, gates of the stage * H] of each stage's product
    const X* b_ih;                           // [G*H], or null with b_hh
    const X* b_hh;
    Wide<X>* h;      // [rows, H] read and written, of a cell that reads h
    Wide<X>* c;      // [rows, H] read and written, of a cell that has c
    Wide<X>* saved;  // [rows, S, Hp], or null
    X* y;            // [rows, H], rows y_stride apart; null with a projection
    int64_t y_stride;
    X* operand;  // [rows, H] what the stage hands on, as the next product takes it
};

// adds to the slots of each stage up to Stage what its product made
template <int Stage, class X, class C>
__device__ __forceinline__ void add_products(const ForwardStep<X>& step, int64_t row, int64_t unit, Wide<X>* slots) {
    if constexpr (Stage > 0) add_products<Stage - 1, X, C>(step, row, unit, slots);
    constexpr SlotRange gates = stage_gates<C, Stage>(), fed = C::traits().recurrent[Stage];
    const Wide<X>* gates_h = step.gates_h[Stage] + row * gates.count * step.hidden + unit;
    for (int slot = fed.begin; slot < fed.end(); ++slot) {
        slots[slot] += gates_h[(gate_of<C>(slot) - gates.begin) * step.hidden];
    }
}

// The slots as far as the products up to Stage have fed them.
template <int Stage, class X, class C>
__device__ __forceinline__ void load_slots(const ForwardStep<X>& step, int64_t row, int64_t unit, Wide<X>* slots) {
    const int64_t hidden = step.hidden;
    const Wide<X>* gates_x = step.gates_x + row * kGates<C> * hidden + unit;
    for (int slot = 0; slot < kSlots<C>; ++slot) {
        const int64_t at = gate_of<C>(slot) * hidden;
        Wide<X> sum = from_x<C>(slot) ? gates_x[at] : Wide<X>(0);
        if (step.b_ih) {
            if (from_x<C>(slot)) sum += widen(step.b_ih[at + unit]);
            if (from_h<C>(slot)) sum += widen(step.b_hh[at + unit]);
        }
        slots[slot] = sum;
    }
    add_products<Stage, X, C>(step, row, unit, slots);
}

template <class X, class C, int Stage>
__global__ void __launch_bounds__(kThreads) forward_stage(ForwardStep<X> step) {
    const int64_t index = global_index();
    if (index >= step.rows * step.hidden) return;
    const int64_t row = index / step.hidden, unit = index % step.hidden;
    Wide<X> slots[kStored<C>] = {};
    load_slots<Stage, X, C>(step, row, unit, slots);
    ForwardUnit<Wide<X>> u{slots, 0, 0, 0, nullptr};
    if constexpr (kReadsH<C>) u.h = step.h[index];
    if constexpr (kHasC<C>) u.c = step.c[index];
    forward_until<C, Stage>(u);
    const X narrowed = narrow<X>(u.out);
    step.operand[index] = narrowed;
    if constexpr (Stage == kLastStage<C>) {
        if constexpr (kHasC<C>) step.c[index] = u.c;
        if (step.saved) {
            for (int i = 0; i < kSaved<C>; ++i) step.saved[(row * kSaved<C> + i) * step.padded + unit] = slots[i];
        }
        if constexpr (kReadsH<C>) step.h[index] = u.out;  // may be the operand's own place
        if (step.y) step.y[row * step.y_stride + unit] = narrowed;
    }
}

template <class X, class C>
class StepsForward {
    using W = Wide<X>;
    static constexpr bool kWidened = sizeof(X) < sizeof(W);

   public:
    StepsForward(const ForwardParams& params, const CudaPlan&, void* workspace)
        : p_(params),
          s_(params.shape),
          recurrent_(s_.projection ? s_.projection : s_.hidden),
          gates_(kGates<C> * s_.hidden),
          x_(p_.x, {p_.x_stride_time, p_.x_stride_batch, s_.packed}, s_),
          arena_(workspace) {
        const int64_t step_bytes = s_.batch * gates_ * static_cast<int64_t>(sizeof(W));
        chunk_ = step_bytes > 0 ? kChunkBytes / step_bytes : 1;
        chunk_ = chunk_ < 1 ? 1 : least(chunk_, s_.time);
        const int64_t chunk_rows = least(chunk_ * s_.batch, s_.rows);
        gates_x_ = arena_.take<W>(chunk_rows * gates_);
        gates_h_ = arena_.take<W>(s_.batch * gates_);
        x_copy_ = arena_.take<X>(x_.copied_rows(chunk_rows) * s_.input);
        h_ = arena_.take<W>(kReadsH<C> && kWidened ? s_.batch * s_.hidden : 0);
        c_ = arena_.take<W>(kHasC<C> && kWidened ? s_.batch * s_.hidden : 0);
        operand_ = arena_.take<X>(s_.projection || kLastStage<C> > 0 ? s_.batch * s_.hidden : 0);
    }
    size_t workspace_bytes() const { return arena_.used(); }

    cudaError_t run(Products& products, cudaStream_t stream) {
        Queue queue(stream);
        for (int d = 0; d < s_.directions; ++d) run_direction(queue, products, d);
        return queue.error();
    }

   private:
    int64_t count(int64_t t) const { return s_.batch_sizes ? s_.batch_sizes[t] : s_.batch; }

    void run_direction(Queue& queue, Products& products, int d) {
        const int64_t states = s_.batch * recurrent_, cells = s_.batch * s_.hidden;
        X* h_n = static_cast<X*>(p_.h_n) + d * states;
        const X* h0 = p_.h0 ? static_cast<const X*>(p_.h0) + d * states : nullptr;
        queue.for_each(states, copy_state<X, X>, h0, h_n, states);
        ForwardStep<X> step{};
        if constexpr (kReadsH<C>) {
            step.h = kWidened ? h_ : reinterpret_cast<W*>(h_n);
            if (kWidened) queue.for_each(states, copy_state<W, X>, h0, step.h, states);
        }
        X* c_n = kHasC<C> ? static_cast<X*>(p_.c_n) + d * cells : nullptr;
        if constexpr (kHasC<C>) {
            const X* c0 = p_.c0 ? static_cast<const X*>(p_.c0) + d * cells : nullptr;
            step.c = kWidened ? c_ : reinterpret_cast<W*>(c_n);
            queue.for_each(cells, copy_state<W, X>, c0, step.c, cells);
        }
        step.hidden = s_.hidden;
        step.padded = padded_units(s_.hidden);
        step.b_ih = static_cast<const X*>(p_.weights[d].b_ih);
        step.b_hh = static_cast<const X*>(p_.weights[d].b_hh);
        int64_t row = d ? s_.rows : 0;
        for (int64_t first = 0; first < s_.time; first += chunk_) {
            const int64_t last = least(first + chunk_, s_.time);
            int64_t chunk_rows = 0;
            for (int64_t i = first; i < last; ++i) chunk_rows += count(d ? s_.time - 1 - i : i);
            const int64_t chunk_row = d ? row - chunk_rows : row;
            const Matrix w_ih = matrix(static_cast<const X*>(p_.weights[d].w_ih), gates_, s_.input);
            products.multiply(x_.rows(queue, chunk_row, chunk_rows, x_copy_), false, w_ih, true,
                              matrix(gates_x_, chunk_rows, gates_));
            for (int64_t i = first; i < last; ++i) {
                const int64_t t = d ? s_.time - 1 - i : i;
                step.rows = count(t);
                if (d) row -= step.rows;
                step.gates_x = gates_x_ + (row - chunk_row) * gates_;
                run_step(queue, products, step, d, t, row, h_n);
                if (!d) row += step.rows;
            }
        }
        if (kHasC<C> && kWidened) queue.for_each(cells, copy_state<X, W>, c_, c_n, cells);
    }

    void run_step(Queue& queue, Products& products, ForwardStep<X>& step, int d, int64_t t, int64_t row, X* h_n) {
        const int64_t rows = step.rows, hidden = s_.hidden, values = rows * hidden;
        const X* w_hh = static_cast<const X*>(p_.weights[d].w_hh);
        X* y =
            static_cast<X*>(p_.y) + d * recurrent_ + (s_.batch_sizes ? row * p_.y_stride_batch : t * p_.y_stride_time);
        if (p_.reserve && kSaved<C>) {
            step.saved = static_cast<W*>(p_.reserve) + (d * s_.rows + row) * kSaved<C> * step.padded;
        }
        step.y = s_.projection ? nullptr : y;
        step.y_stride = p_.y_stride_batch;
        for_each_stage<C>([&](auto stage) {
            constexpr SlotRange of = stage_gates<C, stage>();
            const Matrix operand = stage == 0 ? matrix(h_n, rows, recurrent_) : matrix(operand_, rows, hidden);
            W* gates_h = gates_h_ + s_.batch * of.begin * hidden;
            step.gates_h[stage] = gates_h;
            products.multiply(operand, false,
                              matrix(w_hh + of.begin * hidden * operand.columns, of.count * hidden, operand.columns),
                              true, matrix(gates_h, rows, of.count * hidden));
            step.operand = s_.projection || stage < kLastStage<C> ? operand_ : h_n;
            queue.for_each(values, forward_stage<X, C, stage>, step);
        });
        if (s_.projection) {
            products.multiply(matrix(operand_, rows, hidden), false,
                              matrix(static_cast<const X*>(p_.weights[d].w_hr), recurrent_, hidden), true,
                              matrix(h_n, rows, recurrent_));
            queue.for_each(rows * recurrent_, copy_rows<X>, static_cast<const X*>(h_n), Strides{0, recurrent_, true}, y,
                           Strides{0, p_.y_stride_batch, true}, Steps{}, int64_t{0}, rows, recurrent_);
        }
    }

    const ForwardParams& p_;
    const Shape& s_;
    const int64_t recurrent_, gates_;
    const InputRows<X> x_;
    Arena arena_;
    int64_t chunk_;  // steps whose product with x is made at once
    W *gates_x_, *gates_h_, *h_, *c_;
    X *x_copy_, *operand_;
};

}  // namespace

size_t steps_forward_bytes(const ForwardParams& p, const CudaPlan& plan) {
    return visit_pass<StepsForward>(p.dtype, p.cell, p.functions, Measure<ForwardParams>{p, plan});
}

cudaError_t steps_forward(const ForwardParams& p, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    return visit_pass<StepsForward>(p.dtype, p.cell, p.functions, Run<ForwardParams>{p, plan, products, stream});
}

}  // namespace fastrnn
