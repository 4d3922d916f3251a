// What both engines' backward passes leave to the end: with the gradients of all preactivations at hand, those of x and
// of the weights are one product each, and those of the biases one sum. No value is added to memory twice.
#pragma once

#include "pass.cuh"

namespace fastrnn {
namespace {

template <class X, class C>
class Deferred {
    using W = Wide<X>;

   public:
    Deferred(const BackwardParams& params, Arena& arena)
        : p_(params),
          s_(params.shape),
          recurrent_(s_.projection ? s_.projection : s_.hidden),
          gates_(kGates<C> * s_.hidden),
          x_(p_.x, {p_.x_stride_time, p_.x_stride_batch, s_.packed}, s_),
          d_x_strides_{p_.d_x_stride_time, p_.d_x_stride_batch, s_.packed},
          d_x_stride_(row_stride(d_x_strides_, s_)) {
        const int64_t directions = s_.directions, rows = s_.rows;
        bool wants_w_ih = false, wants_w_hh = false;
        for (int d = 0; d < s_.directions; ++d) {
            wants_w_ih |= p_.d_weights[d].d_w_ih != nullptr;
            wants_w_hh |= p_.d_weights[d].d_w_hh != nullptr;
        }
        offsets = arena.take<int64_t>(s_.batch_sizes ? s_.time + 1 : 0);
        if (!s_.batch_sizes) offsets = nullptr;
        d_gates_x_ = arena.take<X>(rows * directions * gates_);
        d_gates_h_ = kTwoGradients<C> ? arena.take<X>(rows * directions * gates_) : d_gates_x_;
        previous_ = arena.take<X>(wants_w_hh ? rows * recurrent_ : 0);
        handed_on_ = arena.take<X>(kLastStage<C> * directions * rows * s_.hidden);
        d_projected_ = arena.take<X>(s_.projection ? directions * rows * recurrent_ : 0);
        unprojected_ = arena.take<X>(s_.projection ? directions * rows * s_.hidden : 0);
        partial_ = arena.take<W>(sum_blocks(rows) * gates_);
        x_copy_ = arena.take<X>(wants_w_ih ? x_.copied_rows(rows) * s_.input : 0);
        d_x_dense_ = arena.take<X>(p_.d_x && !d_x_stride_ ? rows * s_.input : 0);
        both_w_ih_ = arena.take<X>(p_.d_x && directions == 2 ? 2 * gates_ * s_.input : 0);
    }

    // of row `row`, [G*H]; rows are gates_stride() apart
    X* d_gates_x(int d, int64_t row) const { return d_gates_x_ + row * gates_stride() + d * gates_; }
    X* d_gates_h(int d, int64_t row) const { return d_gates_h_ + row * gates_stride() + d * gates_; }
    int64_t gates_stride() const { return s_.directions * gates_; }
    // what each stage but the last handed on, [H]
    X* handed_on(int stage, int d, int64_t row) const {
        return handed_on_ + ((stage * s_.directions + d) * s_.rows + row) * s_.hidden;
    }
    X* d_projected(int d, int64_t row) const { return d_projected_ + (d * s_.rows + row) * recurrent_; }  // [R]
    X* unprojected(int d, int64_t row) const { return unprojected_ + (d * s_.rows + row) * s_.hidden; }   // [H]
    Steps steps(bool reverse) const { return {s_.time, s_.batch, offsets, nullptr, reverse}; }  // on the device
    Strides y_strides() const { return {p_.y_stride_time, p_.y_stride_batch, s_.packed}; }

    void begin(Queue& queue) const {
        if (offsets) upload_offsets(queue, s_, offsets);
    }

    void finish(Queue& queue, Products& products) const {
        multiply_into_d_x(queue, products);
        for (int d = 0; d < s_.directions; ++d) sum_weight_gradients(queue, products, d);
    }

    int64_t* offsets;  // [T + 1] on the device, packed input only

   private:
    void multiply_into_d_x(Queue& queue, Products& products) const {
        if (!p_.d_x) return;
        const int64_t size = gates_ * s_.input;
        const X* w_ih = static_cast<const X*>(p_.weights[0].w_ih);
        if (s_.directions == 2) {
            for (int d = 0; d < 2; ++d) {
                queue.copy(both_w_ih_ + d * size, p_.weights[d].w_ih, size * static_cast<int64_t>(sizeof(X)));
            }
            w_ih = both_w_ih_;
        }
        X* d_x = static_cast<X*>(p_.d_x);
        const Matrix out =
            d_x_stride_ ? matrix(d_x, s_.rows, s_.input, d_x_stride_) : matrix(d_x_dense_, s_.rows, s_.input);
        products.multiply(matrix(d_gates_x_, s_.rows, gates_stride()), false, matrix(w_ih, gates_stride(), s_.input),
                          false, out);
        if (d_x_stride_) return;
        queue.for_each(s_.rows * s_.input, copy_rows<X>, static_cast<const X*>(d_x_dense_), Strides{0, s_.input, true},
                       d_x, d_x_strides_, steps(false), int64_t{0}, s_.rows, s_.input);
    }

    void sum_weight_gradients(Queue& queue, Products& products, int d) const {
        const WeightGradients& out = p_.d_weights[d];
        const int64_t rows = s_.rows, hidden = s_.hidden;
        const auto gates = [&](const X* from, int64_t first, int64_t count) {
            return matrix(from + d * gates_ + first, rows, count, gates_stride());
        };
        const auto multiply = [&](const Matrix& a, const Matrix& b, void* to) {
            products.multiply(a, true, b, false, matrix(static_cast<X*>(to), a.columns, b.columns));
        };
        if (out.d_w_ih) {
            multiply(gates(d_gates_x_, 0, gates_), x_.rows(queue, 0, rows, x_copy_), out.d_w_ih);
        }
        if (out.d_w_hh) {
            const X* h0 = p_.h0 ? static_cast<const X*>(p_.h0) + d * s_.batch * recurrent_ : nullptr;
            queue.for_each(rows * recurrent_, previous_states<X>, static_cast<const X*>(p_.y) + d * recurrent_,
                           y_strides(), h0, steps(d == 1), rows, recurrent_, previous_);
            for_each_stage<C>([&](auto stage) {
                constexpr SlotRange of = stage_gates<C, stage>();
                const Matrix operand =
                    stage == 0 ? matrix(previous_, rows, recurrent_) : matrix(handed_on(stage - 1, d, 0), rows, hidden);
                multiply(gates(d_gates_h_, of.begin * hidden, of.count * hidden), operand,
                         static_cast<X*>(out.d_w_hh) + of.begin * hidden * operand.columns);
            });
        }
        if (out.d_w_hr) {
            multiply(matrix(d_projected(d, 0), rows, recurrent_), matrix(unprojected(d, 0), rows, hidden), out.d_w_hr);
        }
        if (out.d_b_ih) sum(queue, d_gates_x_ + d * gates_, out.d_b_ih);
        if (out.d_b_hh) sum(queue, d_gates_h_ + d * gates_, out.d_b_hh);
    }

    void sum(Queue& queue, const X* from, void* to) const {
        const int64_t blocks = sum_blocks(s_.rows);
        queue.for_each(blocks * gates_, sum_blocks_of_rows<X>, from, gates_stride(), s_.rows, gates_, partial_);
        queue.for_each(gates_, sum_of_blocks<X>, static_cast<const W*>(partial_), blocks, gates_, static_cast<X*>(to));
    }

    const BackwardParams& p_;
    const Shape& s_;
    const int64_t recurrent_, gates_;
    const InputRows<X> x_;
    const Strides d_x_strides_;
    const int64_t d_x_stride_;
    X *d_gates_x_, *d_gates_h_;  // [N, D, G*H], in torch's order of gates
    X* previous_;                // [N, R] h before each step
    X* handed_on_;               // [stages - 1, D, N, H]
    X* d_projected_;             // [D, N, R] whole gradient of each h
    X* unprojected_;             // [D, N, H]
    W* partial_;
    X* x_copy_;     // [N, I]
    X* d_x_dense_;  // [N, I]
    X* both_w_ih_;  // [D*G*H, I]
};

}  // namespace
}  // namespace fastrnn
