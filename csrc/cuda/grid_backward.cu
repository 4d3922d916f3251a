// The backward pass in one launch for all time steps, recurrent weights kept in shared memory. A step is: the cell's
// gradients for the block's units, written for all blocks to see and announced, then written for the products after the
// loop; wait for those of all units; multiply. The gradient of h on its way back never leaves the block that needs it.
//
// Cost a step: one barrier between blocks; for every 16 rows of a part, 16 G H gradients read from the second-level
// cache and units x G x H weights from shared memory by each block. On sm_90a a thread has 132 to 208 registers, none
// spilled.
#include "deferred.cuh"
#include "grid.cuh"

namespace fastrnn {
namespace {

template <class X>
struct GridBackwardArgs {
    GridLayout layout;
    Steps steps;  // offsets on the device; `reverse` belongs to each direction
    int first_direction;
    int64_t rows, hidden, padded;  // N, H, Hp
    struct Direction {
        const X* w_hh;
        X *d_gates_x, *d_gates_h;  // [N, G*H], rows gates_stride apart
    } directions[2];
    int64_t gates_stride;
    const X* h0;  // [D, B, H], or null
    const X* c0;
    const X* y;
    Strides y_strides;
    const float* reserve;  // [D, N, S, Hp]
    const X* d_y;          // or null
    Strides d_y_strides;
    const X* d_h_n;  // [D, B, H], or null
    const X* d_c_n;
    X* d_h0;  // [D, B, H], or null
    X* d_c0;
    X* exchange;      // [D, 2, batch_padded, G, hidden_padded] gradients of the recurrent product, in turns
    unsigned* flags;  // [D, parts, blocks of a group]
};

// what one value's cell needs from memory
template <class C>
struct GridInputs {
    float kept[kSaved<C> > 0 ? kSaved<C> : 1];
    float h, h_next, c, d_y;
};

template <class X, class C>
__device__ __forceinline__ GridInputs<C> load_inputs(const GridBackwardArgs<X>& args, const Steps& steps, int d,
                                                     int64_t step, int64_t b, int64_t unit) {
    GridInputs<C> in{};
    const int64_t hidden = args.hidden, t = steps.time_of(step);
    const auto saved = [&](int64_t time, int i) {
        const int64_t row = d * args.rows + steps.first_row(time) + b;
        return args.reserve[(row * kSaved<C> + i) * args.padded + unit];
    };
    const bool carried = steps.carries(step, b);
    const int64_t before = carried ? steps.time_of(step - 1) : t;
    const int64_t state = (d * steps.batch + b) * hidden + unit;
    for (int i = 0; i < kSaved<C>; ++i) in.kept[i] = saved(t, i);
    if constexpr (kReadsH<C>) {
        if (carried) {
            in.h = widen(args.y[d * hidden + args.y_strides.at(steps, before, b) + unit]);
        } else if (args.h0) {
            in.h = widen(args.h0[state]);
        }
    }
    if constexpr (kSaved<C> == 0) in.h_next = widen(args.y[d * hidden + args.y_strides.at(steps, t, b) + unit]);
    if constexpr (kHasC<C>) {
        if (carried) {
            in.c = saved(before, kSavedC<C>);
        } else if (args.c0) {
            in.c = widen(args.c0[state]);
        }
    }
    if (args.d_y) in.d_y = widen(args.d_y[d * hidden + args.d_y_strides.at(steps, t, b) + unit]);
    return in;
}

template <class X, class C, int kUnits>
__global__ void __launch_bounds__(kThreads, 1) grid_backward_kernel(GridBackwardArgs<X> args) {
    static_assert(kFitsBlock<kUnits>);
    using Product = GridProduct<X, kUnits>;
    const GridLayout& layout = args.layout;
    const GridPlace place(layout, args.steps.batch, args.first_direction, args.flags);
    const GridMemory memory(layout, sizeof(X) == 2);
    const int d = place.direction;
    Steps steps = args.steps;
    steps.reverse = d == 1;
    const auto& own = args.directions[d];
    const int64_t hidden = args.hidden, first_unit = place.slice * kUnits;

    for (int64_t i = thread_index(); i < kUnits * layout.depth; i += kThreads) {
        const int column = static_cast<int>(i % kUnits);
        const int64_t k = i / kUnits, gate = k / layout.hidden_padded, from = k % layout.hidden_padded;
        const bool there = from < hidden && first_unit + column < hidden;
        Product::place(memory.weights, layout.depth, column, k,
                       there ? own.w_hh[(gate * hidden + from) * hidden + first_unit + column] : narrow<X>(0.0f));
    }
    // a thread has at most one value of each block of rows: of row `thread_row` in it and unit `unit`
    const int column = thread_index() % kUnits;
    const int64_t thread_row = thread_index() / kUnits, unit = first_unit + column;
    const bool has_unit = thread_row < kGridRows && unit < hidden;
    for (int64_t row = thread_row; row < place.rows && has_unit; row += kGridRows) {
        const int64_t at = (d * steps.batch + place.first_row + row) * hidden + unit;
        memory.state[0][row * kUnits + column] = args.d_h_n ? widen(args.d_h_n[at]) : 0.0f;
        if constexpr (kHasC<C>) {
            memory.state[1][row * kUnits + column] = args.d_c_n ? widen(args.d_c_n[at]) : 0.0f;
        }
    }
    block_barrier();

    const int64_t exchange_row = kGates<C> * layout.hidden_padded, buffer = layout.batch_padded() * exchange_row;
    X* exchange = args.exchange + d * 2 * buffer + place.first_row * exchange_row;
    const auto active_rows = [&](int64_t step) {
        return least(steps.count(steps.time_of(step)) - place.first_row, place.rows);
    };
    const auto load = [&](int64_t step, int64_t row) {
        if (step < 0 || !has_unit || row >= active_rows(step)) return GridInputs<C>{};
        return load_inputs<X, C>(args, steps, d, step, place.first_row + row, unit);
    };
    GridInputs<C> next = load(steps.time - 1, thread_row);
    unsigned generation = 0;
    for (int64_t step = steps.time - 1; step >= 0; --step) {
        const int64_t active = active_rows(step);
        const GridInputs<C> first = next;
        if (active <= 0) {  // for the whole group
            next = load(step - 1, thread_row);
            continue;
        }
        X* d_gates = exchange + (generation & 1) * buffer;
        for (int64_t block = 0; block < active; block += kGridRows) {
            const int64_t row = block + thread_row;
            const bool works = has_unit && row < active;
            X narrowed[kSlots<C>] = {};
            if (works) {
                const GridInputs<C> in = block == 0 ? first : load(step, row);
                float& d_h_state = memory.state[0][row * kUnits + column];
                float& d_c_state = memory.state[1][row * kUnits + column];
                float d_slots[kSlots<C>] = {};
                BackwardUnit<float> unit_of_row{in.kept, in.h, in.c, in.h_next, d_h_state + in.d_y,
                                                nullptr, 0,    0,    d_slots,   nullptr};
                if constexpr (kHasC<C>) unit_of_row.d_c = d_c_state;
                C::template backward<0>(unit_of_row);
                if constexpr (kHasC<C>) d_c_state = unit_of_row.d_c;
                d_h_state = unit_of_row.d_h;
                for (int slot = 0; slot < kSlots<C>; ++slot) {
                    narrowed[slot] = narrow<X>(d_slots[slot]);
                    if (!from_h<C>(slot)) continue;
                    d_gates[row * exchange_row + gate_of<C>(slot) * layout.hidden_padded + unit] = narrowed[slot];
                }
            }
            if (block + kGridRows >= active) place.announce(++generation);
            if (works) {  // what no other block waits for
                const int64_t sequence_row = steps.first_row(steps.time_of(step)) + place.first_row + row;
                for (int slot = 0; slot < kSlots<C>; ++slot) {
                    const int64_t at = sequence_row * args.gates_stride + gate_of<C>(slot) * hidden + unit;
                    if (from_x<C>(slot)) own.d_gates_x[at] = narrowed[slot];
                    if (kTwoGradients<C> && from_h<C>(slot)) own.d_gates_h[at] = narrowed[slot];
                }
            }
        }
        next = load(step - 1, thread_row);  // on its way while the block waits and multiplies
        for (int64_t block = 0; block < active; block += kGridRows) {
            if (block == 0) place.wait(generation);
            Product::run(d_gates + block * exchange_row, exchange_row, memory.weights, place.begin, place.end,
                         memory.stage, memory.template warp_partial<kUnits>(place.warp));
            block_barrier();
            const int64_t row = block + thread_row;
            if (has_unit && row < active) {
                memory.state[0][row * kUnits + column] += memory.template sum<kUnits>(thread_row, column);
            }
            block_barrier();  // before the sums are overwritten
        }
    }

    for (int64_t row = thread_row; row < place.rows && has_unit; row += kGridRows) {
        const int64_t at = (d * steps.batch + place.first_row + row) * hidden + unit;
        if (args.d_h0) args.d_h0[at] = narrow<X>(memory.state[0][row * kUnits + column]);
        if constexpr (kHasC<C>) {
            if (args.d_c0) args.d_c0[at] = narrow<X>(memory.state[1][row * kUnits + column]);
        }
    }
}

template <class X, class C, int kUnits>
class GridBackward {
   public:
    GridBackward(const BackwardParams& params, const CudaPlan& plan, void* workspace)
        : p_(params),
          s_(params.shape),
          plan_(plan),
          layout_(grid_layout(p_.cell, s_, true, kUnits, plan.batch_parts)),
          arena_(workspace),
          deferred_(params, arena_) {
        flags_ = arena_.take<unsigned>(grid_flags(layout_, s_.directions));
        exchange_ = arena_.take<X>(exchange_size());
    }
    size_t workspace_bytes() const { return arena_.used(); }

    cudaError_t run(Products& products, cudaStream_t stream) {
        Queue queue(stream);
        deferred_.begin(queue);
        const auto as = [](const void* pointer) { return static_cast<const X*>(pointer); };
        GridBackwardArgs<X> args{};
        args.layout = layout_;
        args.steps = deferred_.steps(false);
        args.rows = s_.rows;
        args.hidden = s_.hidden;
        args.padded = padded_units(s_.hidden);
        for (int d = 0; d < s_.directions; ++d) {
            args.directions[d] = {as(p_.weights[d].w_hh), deferred_.d_gates_x(d, 0), deferred_.d_gates_h(d, 0)};
        }
        args.gates_stride = deferred_.gates_stride();
        args.h0 = as(p_.h0);
        args.c0 = as(p_.c0);
        args.y = as(p_.y);
        args.y_strides = deferred_.y_strides();
        args.reserve = static_cast<const float*>(p_.reserve);
        args.d_y = as(p_.d_y);
        args.d_y_strides = {p_.d_y_stride_time, p_.d_y_stride_batch, s_.packed};
        args.d_h_n = as(p_.d_h_n);
        args.d_c_n = as(p_.d_c_n);
        args.d_h0 = static_cast<X*>(p_.d_h0);
        args.d_c0 = static_cast<X*>(p_.d_c0);
        args.exchange = exchange_;
        args.flags = flags_;
        queue.zero(exchange_, exchange_size() * static_cast<int64_t>(sizeof(X)));
        const int64_t blocks = layout_.blocks_per_group * layout_.batch_parts * plan_.directions_at_once;
        for (int d = 0; d < s_.directions; d += plan_.directions_at_once) {
            args.first_direction = d;
            queue.zero(flags_, grid_flags(layout_, s_.directions) * static_cast<int64_t>(sizeof(unsigned)));
            queue.run(blocks, static_cast<size_t>(layout_.shared_bytes(sizeof(X) == 2)), true,
                      grid_backward_kernel<X, C, kUnits>, args);
        }
        deferred_.finish(queue, products);
        return queue.error();
    }

   private:
    int64_t exchange_size() const {
        return s_.directions * 2 * layout_.batch_padded() * kGates<C> * layout_.hidden_padded;
    }

    const BackwardParams& p_;
    const Shape& s_;
    const CudaPlan& plan_;
    const GridLayout layout_;
    Arena arena_;
    const Deferred<X, C> deferred_;
    unsigned* flags_;
    X* exchange_;
};

}  // namespace

size_t grid_backward_bytes(const BackwardParams& p, const CudaPlan& plan) {
    return visit_grid<GridBackward>(p.dtype, p.cell, p.functions, plan.units, Measure<BackwardParams>{p, plan});
}

cudaError_t grid_backward(const BackwardParams& p, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    return visit_grid<GridBackward>(p.dtype, p.cell, p.functions, plan.units,
                                    Run<BackwardParams>{p, plan, products, stream});
}

}  // namespace fastrnn
