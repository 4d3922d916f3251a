// The forward pass with a launch for each time step: every size, type and cell. For a chunk of steps at once the
// product with x; then, step by step, a product with h through the library and one kernel for the cell.
//
// h_n itself is the operand of the recurrent product and takes each step's h: rows that begin later hold h0 there, rows
// that have ended their last h.
//
// Cost a step: two launches (four with a projection or a reset before the product), and reading w_hh again.
#include "pass.cuh"

namespace fastrnn {
namespace {

constexpr int64_t kChunkBytes = int64_t{128} << 20;  // of preactivations from x

// One step of one direction; units have stride 1.
template <class X>
struct ForwardStep {
    int64_t rows, hidden;
    const Wide<X>* gates_x;  // [rows, G*H]
    const Wide<X>* gates_h;  // [rows, G*H]; reset before: r and z, [rows, 2*H]
    const Wide<X>* gates_n;  // reset before: [rows, H]
    const X* b_ih;           // [G*H], or null with b_hh
    const X* b_hh;
    Wide<X>* h;      // [rows, H] read and written, cells with a direct path only
    Wide<X>* c;      // [rows, H] read and written, LSTM only
    Wide<X>* saved;  // [rows, S, Hp], or null
    X* y;            // [rows, H], rows y_stride apart; null with a projection
    int64_t y_stride;
    X* operand;  // [rows, H] h as the next product takes it; before a projection o act(c); reset before: r h, first
                 // half
};

template <class X, class C>
__device__ __forceinline__ void load_slots(const ForwardStep<X>& step, int64_t row, int64_t unit, Wide<X>* slots,
                                           bool candidate) {
    const int64_t hidden = step.hidden;
    const Wide<X>* gates_x = step.gates_x + row * C::kGates * hidden + unit;
    for (int slot = 0; slot < C::kSlots; ++slot) {
        const int64_t at = C::gate_of_slot(slot) * hidden;
        Wide<X> sum = from_x<C>(slot) ? gates_x[at] : Wide<X>(0);
        if (step.b_ih) {
            if (from_x<C>(slot)) sum += widen(step.b_ih[at + unit]);
            if (from_h<C>(slot)) sum += widen(step.b_hh[at + unit]);
        }
        if (C::kResetBefore && slot == 0) {
            if (candidate) sum += step.gates_n[row * hidden + unit];
        } else if (from_h<C>(slot)) {
            sum += step.gates_h[row * (C::kResetBefore ? 2 : C::kGates) * hidden + at + unit];
        }
        slots[slot] = sum;
    }
}

template <class X, class C>
__global__ void __launch_bounds__(kThreads) forward_step(ForwardStep<X> step) {
    const int64_t index = global_index();
    if (index >= step.rows * step.hidden) return;
    const int64_t row = index / step.hidden, unit = index % step.hidden;
    Wide<X> slots[kStored<C>] = {}, h_next = 0, h = 0, c = 0;
    load_slots<X, C>(step, row, unit, slots, true);
    if constexpr (C::kDirectPath) h = step.h[index];
    if constexpr (C::kHasCellState) c = step.c[index];
    if constexpr (C::kResetBefore) C::reset(slots, h);
    C::forward(slots, h, c, h_next);
    if constexpr (C::kHasCellState) step.c[index] = c;
    if (step.saved) {
        const int64_t padded = reserve_units(step.hidden);
        for (int i = 0; i < C::kSaved; ++i) step.saved[(row * C::kSaved + i) * padded + unit] = slots[i];
    }
    const X narrowed = narrow<X>(h_next);
    step.operand[index] = narrowed;
    if constexpr (C::kDirectPath) step.h[index] = h_next;  // may be the operand's own place
    if (step.y) step.y[row * step.y_stride + unit] = narrowed;
}

template <class X, class C>
__global__ void __launch_bounds__(kThreads) reset_step(ForwardStep<X> step) {
    const int64_t index = global_index();
    if (index >= step.rows * step.hidden) return;
    Wide<X> slots[kStored<C>] = {};
    load_slots<X, C>(step, index / step.hidden, index % step.hidden, slots, false);
    if constexpr (C::kResetBefore) step.operand[index] = narrow<X>(C::reset(slots, step.h[index]));
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
          gates_(C::kGates * s_.hidden),
          timeline_{s_.time, s_.batch, s_.rows, nullptr, false},
          x_(p_.x, {p_.x_stride_time, p_.x_stride_batch}, packed_timeline(), s_.input),
          arena_(workspace) {
        const int64_t step_bytes = s_.batch * gates_ * static_cast<int64_t>(sizeof(W));
        chunk_ = step_bytes > 0 ? kChunkBytes / step_bytes : 1;
        chunk_ = chunk_ < 1 ? 1 : least(chunk_, s_.time);
        const int64_t chunk_rows = least(chunk_ * s_.batch, s_.rows);
        gates_x_ = arena_.take<W>(chunk_rows * gates_);
        gates_h_ = arena_.take<W>(s_.batch * gates_);
        x_copy_ = arena_.take<X>(x_.copied_rows(chunk_rows) * s_.input);
        h_ = arena_.take<W>(C::kDirectPath && kWidened ? s_.batch * s_.hidden : 0);
        c_ = arena_.take<W>(C::kHasCellState && kWidened ? s_.batch * s_.hidden : 0);
        operand_ = arena_.take<X>(s_.projection || C::kResetBefore ? s_.batch * s_.hidden : 0);
    }
    size_t workspace_bytes() const { return arena_.used(); }

    cudaError_t run(Products& products, cudaStream_t stream) {
        Queue queue(stream);
        for (int d = 0; d < s_.directions; ++d) run_direction(queue, products, d);
        return queue.error();
    }

   private:
    // rows of x are evenly apart in packed input; whether there are offsets is all that InputRows asks
    Timeline packed_timeline() const { return {s_.time, s_.batch, s_.rows, s_.batch_sizes, false}; }

    int64_t count(int64_t t) const { return s_.batch_sizes ? s_.batch_sizes[t] : s_.batch; }

    void run_direction(Queue& queue, Products& products, int d) {
        const int64_t states = s_.batch * recurrent_, cells = s_.batch * s_.hidden;
        X* h_n = static_cast<X*>(p_.h_n) + d * states;
        const X* h0 = p_.h0 ? static_cast<const X*>(p_.h0) + d * states : nullptr;
        queue.for_each(states, copy_state<X, X>, h0, h_n, states);
        ForwardStep<X> step{};
        if constexpr (C::kDirectPath) {
            step.h = kWidened ? h_ : reinterpret_cast<W*>(h_n);
            if (kWidened) queue.for_each(states, copy_state<W, X>, h0, step.h, states);
        }
        X* c_n = C::kHasCellState ? static_cast<X*>(p_.c_n) + d * cells : nullptr;
        if constexpr (C::kHasCellState) {
            const X* c0 = p_.c0 ? static_cast<const X*>(p_.c0) + d * cells : nullptr;
            step.c = kWidened ? c_ : reinterpret_cast<W*>(c_n);
            queue.for_each(cells, copy_state<W, X>, c0, step.c, cells);
        }
        step.hidden = s_.hidden;
        step.b_ih = static_cast<const X*>(p_.weights[d].b_ih);
        step.b_hh = static_cast<const X*>(p_.weights[d].b_hh);
        int64_t row = d ? s_.rows : 0;
        for (int64_t first = 0; first < s_.time; first += chunk_) {
            const int64_t last = least(first + chunk_, s_.time);
            int64_t chunk_rows = 0;
            for (int64_t i = first; i < last; ++i) chunk_rows += count(d ? s_.time - 1 - i : i);
            const int64_t chunk_row = d ? row - chunk_rows : row;
            const Matrix w_ih = matrix(static_cast<const X*>(p_.weights[d].w_ih), gates_, s_.input);
            products.multiply(x_.rows(queue, timeline_, chunk_row, chunk_rows, x_copy_), false, w_ih, true,
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
        if (C::kHasCellState && kWidened) queue.for_each(cells, copy_state<X, W>, c_, c_n, cells);
    }

    void run_step(Queue& queue, Products& products, ForwardStep<X>& step, int d, int64_t t, int64_t row, X* h_n) {
        const int64_t rows = step.rows, hidden = s_.hidden, values = rows * hidden;
        const X* w_hh = static_cast<const X*>(p_.weights[d].w_hh);
        const Matrix h = matrix(h_n, rows, recurrent_);
        X* y =
            static_cast<X*>(p_.y) + d * recurrent_ + (s_.batch_sizes ? row * p_.y_stride_batch : t * p_.y_stride_time);
        if (p_.reserve && C::kSaved) {
            step.saved = static_cast<W*>(p_.reserve) + (d * s_.rows + row) * C::kSaved * reserve_units(hidden);
        }
        step.gates_h = gates_h_;
        if constexpr (C::kResetBefore) {
            step.gates_n = gates_h_ + s_.batch * 2 * hidden;
            step.operand = operand_;
            products.multiply(h, false, matrix(w_hh, 2 * hidden, hidden), true, matrix(gates_h_, rows, 2 * hidden));
            queue.for_each(values, reset_step<X, C>, step);
            products.multiply(matrix(operand_, rows, hidden), false, matrix(w_hh + 2 * hidden * hidden, hidden, hidden),
                              true, matrix(gates_h_ + s_.batch * 2 * hidden, rows, hidden));
        } else {
            products.multiply(h, false, matrix(w_hh, gates_, recurrent_), true, matrix(gates_h_, rows, gates_));
        }
        step.operand = s_.projection ? operand_ : h_n;
        step.y = s_.projection ? nullptr : y;
        step.y_stride = p_.y_stride_batch;
        queue.for_each(values, forward_step<X, C>, step);
        if (s_.projection) {
            products.multiply(matrix(operand_, rows, hidden), false,
                              matrix(static_cast<const X*>(p_.weights[d].w_hr), recurrent_, hidden), true, h);
            const Timeline rows_of_step{1, rows, rows, nullptr, false};
            queue.for_each(rows * recurrent_, copy_rows<X>, static_cast<const X*>(h_n), Strides{0, recurrent_}, y,
                           Strides{0, p_.y_stride_batch}, rows_of_step, int64_t{0}, rows, recurrent_);
        }
    }

    const ForwardParams& p_;
    const Shape& s_;
    const int64_t recurrent_, gates_;
    const Timeline timeline_;  // without offsets: rows of packed input are copied by nobody
    const InputRows<X> x_;
    Arena arena_;
    int64_t chunk_;  // steps whose product with x is made at once
    W *gates_x_, *gates_h_, *h_, *c_;
    X *x_copy_, *operand_;
};

}  // namespace

size_t steps_forward_bytes(const ForwardParams& p, const CudaPlan& plan) {
    return visit_pass<StepsForward>(p.dtype, p.cell, p.activation, Measure<ForwardParams>{p, plan});
}

cudaError_t steps_forward(const ForwardParams& p, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    return visit_pass<StepsForward>(p.dtype, p.cell, p.activation, Run<ForwardParams>{p, plan, products, stream});
}

}  // namespace fastrnn
