// The forward pass in one launch for all time steps, recurrent weights kept in shared memory. After the product with x
// for all steps at once, a step is: wait for h of the step before, multiply, add up the warps' sums, the cell, write h,
// announce it, write y and the reserve. h lies in two buffers that take turns: whoever writes one has waited for all
// that read it.
//
// Cost a step: one barrier between blocks; for every 16 rows of a part, 16 H values of h read from the second-level
// cache and units x G x H weights from shared memory by each block. On sm_90a a thread has 132 to 208 registers, none
// spilled.
#include "grid.cuh"

namespace fastrnn {
namespace {

template <class X>
struct GridForwardArgs {
    GridLayout layout;
    Steps steps;  // offsets on the device; `reverse` belongs to each direction
    int first_direction;
    int64_t rows, hidden, padded;  // N, H, Hp
    struct Direction {
        const X *w_hh, *b_ih, *b_hh;
        const float* gates_x;  // [N, G*H]
    } directions[2];
    const X* h0;  // [D, B, H], or null
    const X* c0;
    X* y;  // features d*H .. (d+1)*H for direction d
    Strides y_strides;
    X* h_n;
    X* c_n;
    float* reserve;   // [D, N, S, Hp], or null
    X* exchange;      // [D, 2, batch_padded, hidden_padded] h before and after a step, in turns
    unsigned* flags;  // [D, parts, blocks of a group]
};

// both buffers of h, which rows that begin later find as they are now
template <class X>
__global__ void fill_exchange(GridForwardArgs<X> args, int directions) {
    const int64_t padded = args.layout.hidden_padded, rows = args.layout.batch_padded();
    const int64_t index = global_index();
    if (index >= directions * 2 * rows * padded) return;
    const int64_t unit = index % padded, row = index / padded % rows, d = index / (2 * rows * padded);
    const bool given = args.h0 && unit < args.hidden && row < args.steps.batch;
    args.exchange[index] = given ? args.h0[(d * args.steps.batch + row) * args.hidden + unit] : narrow<X>(0.0f);
}

template <class X, class C, int kUnits>
__global__ void __launch_bounds__(kThreads, 1) grid_forward_kernel(GridForwardArgs<X> args) {
    static_assert(kFitsBlock<kUnits>);
    constexpr int kColumns = kGates<C> * kUnits;
    using Product = GridProduct<X, kColumns>;
    const GridLayout& layout = args.layout;
    const GridPlace place(layout, args.steps.batch, args.first_direction, args.flags);
    const GridMemory memory(layout, sizeof(X) == 2);
    const int d = place.direction;
    Steps steps = args.steps;
    steps.reverse = d == 1;
    const auto& own = args.directions[d];
    const int64_t hidden = args.hidden, first_unit = place.slice * kUnits;

    for (int64_t i = thread_index(); i < kColumns * layout.depth; i += kThreads) {
        const int64_t k = i % layout.depth, unit = first_unit + i / layout.depth % kUnits;
        const int64_t gate = i / layout.depth / kUnits;
        const bool there = k < hidden && unit < hidden;
        Product::place(memory.weights, layout.depth, static_cast<int>(i / layout.depth), k,
                       there ? own.w_hh[(gate * hidden + unit) * hidden + k] : narrow<X>(0.0f));
    }
    // a thread has at most one value of each block of rows: of row `thread_row` in it and unit `unit`
    const int column = thread_index() % kUnits;
    const int64_t thread_row = thread_index() / kUnits, unit = first_unit + column;
    const bool has_unit = thread_row < kGridRows && unit < hidden;
    float bias_x[kSlots<C>] = {}, bias_h[kSlots<C>] = {};
    if (has_unit && own.b_ih) {
        for (int slot = 0; slot < kSlots<C>; ++slot) {
            const int64_t at = gate_of<C>(slot) * hidden + unit;
            if (from_x<C>(slot)) bias_x[slot] = widen(own.b_ih[at]);
            if (from_h<C>(slot)) bias_h[slot] = widen(own.b_hh[at]);
        }
    }
    for (int64_t row = thread_row; row < place.rows && has_unit; row += kGridRows) {
        const int64_t at = (d * steps.batch + place.first_row + row) * hidden + unit;
        memory.state[0][row * kUnits + column] = args.h0 ? widen(args.h0[at]) : 0.0f;
        if constexpr (kHasC<C>) memory.state[1][row * kUnits + column] = args.c0 ? widen(args.c0[at]) : 0.0f;
    }
    block_barrier();

    const int64_t buffer = layout.batch_padded() * layout.hidden_padded;
    X* exchange = args.exchange + d * 2 * buffer + place.first_row * layout.hidden_padded;
    unsigned generation = 0;
    for (int64_t step = 0; step < steps.time; ++step) {
        const int64_t t = steps.time_of(step);
        const int64_t active = least(steps.count(t) - place.first_row, place.rows);
        if (active <= 0) continue;  // for the whole group
        const X* h = exchange + (generation & 1) * buffer;
        X* h_next = exchange + ((generation + 1) & 1) * buffer;
        for (int64_t block = 0; block < active; block += kGridRows) {
            const int64_t row = block + thread_row, b = place.first_row + row;
            const bool works = has_unit && row < active;
            const int64_t sequence_row = steps.first_row(t) + b;
            float slots[kStored<C>] = {};
            X narrowed{};
            if (works) {  // on their way while the block waits and multiplies
                const float* gates_x = own.gates_x + sequence_row * kGates<C> * hidden + unit;
                for (int slot = 0; slot < kSlots<C>; ++slot) {
                    if (from_x<C>(slot)) slots[slot] = gates_x[gate_of<C>(slot) * hidden];
                }
            }
            if (block == 0) place.wait(generation);
            Product::run(h + block * layout.hidden_padded, layout.hidden_padded, memory.weights, place.begin, place.end,
                         memory.stage, memory.template warp_partial<kColumns>(place.warp));
            block_barrier();
            if (works) {
                float& h_state = memory.state[0][row * kUnits + column];
                float& c_state = memory.state[1][row * kUnits + column];
                for (int slot = 0; slot < kSlots<C>; ++slot) {
                    slots[slot] += bias_x[slot] + bias_h[slot];
                    if (from_h<C>(slot)) {
                        slots[slot] += memory.template sum<kColumns>(thread_row, gate_of<C>(slot) * kUnits + column);
                    }
                }
                ForwardUnit<float> unit_of_row{slots, h_state, 0, 0, nullptr};
                if constexpr (kHasC<C>) unit_of_row.c = c_state;
                C::template forward<0>(unit_of_row);
                if constexpr (kHasC<C>) c_state = unit_of_row.c;
                h_state = unit_of_row.out;
                narrowed = narrow<X>(unit_of_row.out);
                h_next[row * layout.hidden_padded + unit] = narrowed;
            }
            const bool last = block + kGridRows >= active;
            if (last) place.announce(++generation);
            if (works) {  // what no other block waits for
                args.y[d * hidden + args.y_strides.at(steps, t, b) + unit] = narrowed;
                if (args.reserve) {
                    float* saved = args.reserve + (d * args.rows + sequence_row) * kSaved<C> * args.padded + unit;
                    for (int i = 0; i < kSaved<C>; ++i) saved[i * args.padded] = slots[i];
                }
            }
            if (!last) block_barrier();  // before the sums are overwritten
        }
    }

    for (int64_t row = thread_row; row < place.rows && has_unit; row += kGridRows) {
        const int64_t at = (d * steps.batch + place.first_row + row) * hidden + unit;
        args.h_n[at] = narrow<X>(memory.state[0][row * kUnits + column]);
        if constexpr (kHasC<C>) args.c_n[at] = narrow<X>(memory.state[1][row * kUnits + column]);
    }
}

template <class X, class C, int kUnits>
class GridForward {
   public:
    GridForward(const ForwardParams& params, const CudaPlan& plan, void* workspace)
        : p_(params),
          s_(params.shape),
          plan_(plan),
          layout_(grid_layout(p_.cell, s_, false, kUnits, plan.batch_parts)),
          gates_(kGates<C> * s_.hidden),
          x_(p_.x, {p_.x_stride_time, p_.x_stride_batch, s_.packed}, s_),
          arena_(workspace) {
        offsets_ = arena_.take<int64_t>(s_.batch_sizes ? s_.time + 1 : 0);
        flags_ = arena_.take<unsigned>(grid_flags(layout_, s_.directions));
        exchange_ = arena_.take<X>(s_.directions * 2 * layout_.batch_padded() * layout_.hidden_padded);
        x_copy_ = arena_.take<X>(x_.copied_rows(s_.rows) * s_.input);
        for (int d = 0; d < s_.directions; ++d) gates_x_[d] = arena_.take<float>(s_.rows * gates_);
    }
    size_t workspace_bytes() const { return arena_.used(); }

    cudaError_t run(Products& products, cudaStream_t stream) {
        Queue queue(stream);
        GridForwardArgs<X> args{};
        args.layout = layout_;
        args.steps = {s_.time, s_.batch, s_.batch_sizes ? offsets_ : nullptr, nullptr, false};
        args.rows = s_.rows;
        args.hidden = s_.hidden;
        args.padded = padded_units(s_.hidden);
        args.h0 = static_cast<const X*>(p_.h0);
        args.c0 = static_cast<const X*>(p_.c0);
        args.y = static_cast<X*>(p_.y);
        args.y_strides = {p_.y_stride_time, p_.y_stride_batch, s_.packed};
        args.h_n = static_cast<X*>(p_.h_n);
        args.c_n = static_cast<X*>(p_.c_n);
        args.reserve = kSaved<C> ? static_cast<float*>(p_.reserve) : nullptr;
        args.exchange = exchange_;
        args.flags = flags_;
        if (s_.batch_sizes) upload_offsets(queue, s_, offsets_);
        const Matrix x = x_.rows(queue, 0, s_.rows, x_copy_);
        for (int d = 0; d < s_.directions; ++d) {
            const Weights& w = p_.weights[d];
            const auto as = [](const void* pointer) { return static_cast<const X*>(pointer); };
            args.directions[d] = {as(w.w_hh), as(w.b_ih), as(w.b_hh), gates_x_[d]};
            products.multiply(x, false, matrix(as(w.w_ih), gates_, s_.input), true,
                              matrix(gates_x_[d], s_.rows, gates_));
        }
        queue.for_each(s_.directions * 2 * layout_.batch_padded() * layout_.hidden_padded, fill_exchange<X>, args,
                       s_.directions);
        const int64_t blocks = layout_.blocks_per_group * layout_.batch_parts * plan_.directions_at_once;
        for (int d = 0; d < s_.directions; d += plan_.directions_at_once) {
            args.first_direction = d;
            queue.zero(flags_, grid_flags(layout_, s_.directions) * static_cast<int64_t>(sizeof(unsigned)));
            queue.run(blocks, static_cast<size_t>(layout_.shared_bytes(sizeof(X) == 2)), true,
                      grid_forward_kernel<X, C, kUnits>, args);
        }
        return queue.error();
    }

   private:
    const ForwardParams& p_;
    const Shape& s_;
    const CudaPlan& plan_;
    const GridLayout layout_;
    const int64_t gates_;
    const InputRows<X> x_;
    Arena arena_;
    int64_t* offsets_;
    unsigned* flags_;
    X *exchange_, *x_copy_;
    float* gates_x_[2];
};

}  // namespace

size_t grid_forward_bytes(const ForwardParams& p, const CudaPlan& plan) {
    return visit_grid<GridForward>(p.dtype, p.cell, p.functions, plan.units, Measure<ForwardParams>{p, plan});
}

cudaError_t grid_forward(const ForwardParams& p, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    return visit_grid<GridForward>(p.dtype, p.cell, p.functions, plan.units,
                                   Run<ForwardParams>{p, plan, products, stream});
}

}  // namespace fastrnn
