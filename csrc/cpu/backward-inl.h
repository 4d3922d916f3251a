// The backward pass of a layer: against the order of the forward pass, the cell's gradients of one step and then their
// product with the recurrent weights, which gives the gradient of the state before it; after a chunk of steps, while
// their gradients are near, those of x and of the weights as products over all of the chunk at once.
//
// Cost: 2 N G H (I + R) for d_x and d_h, the same again for the weights; a barrier a step where units are split, two a
// chunk.
#pragma once

#include "gradient-inl.h"
#include "panels-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kChunkRows =
    512;  // about so many rows of the sequence make a chunk; what they are depends on sizes alone

template <class T, class C>
class BackwardPass {
    using V = Vec<T>;
    static constexpr int64_t kLanes = V::kLanes;
    static constexpr int64_t kTile = kLanes * kWide;  // units, and columns of a packed panel
    static constexpr int kSaved = C::kSaved > 0 ? C::kSaved : 1;
    static constexpr int kBarriers = C::kResetBefore ? 2 : 1;
    static constexpr int64_t kEdge = kRowBlock * kTile;
    static constexpr int64_t kScratch = gradient_scratch<T>() > kEdge ? gradient_scratch<T>() : kEdge;

    struct Buffers {
        T *packed_hh, *packed_candidate;  // panels over the columns of w_hh: rows of all recurrent slots; of slot 0
        T *packed_ih, *packed_hr;
        T* d_slots;        // [K, kSlots, Hp], K rows of a chunk
        T* d_h;            // [B, Rp]: on its way back through time
        T* d_c;            // [B, Hp]
        T* d_y;            // [K, Rp]: whole gradient of each projected h
        T* d_unprojected;  // [B, Hp]
        T* unprojected;    // [K, Hp]: o act(c), again
        T* d_reset_h;      // [B, Hp]
        T* reset_h;        // [K, Hp]: r h, again
        T* d_x;            // [N, I]: the second direction's part
    };

    // consecutive steps of one direction, and the rows that they cover
    struct Chunk {
        int64_t first_step, last_step, first_row, rows;
        bool is_first;  // in the order of this pass
    };

   public:
    static size_t workspace_bytes(const BackwardParams& params) {
        BackwardPass pass(params, nullptr);
        return pass.arena_.used();
    }

    static void run(const BackwardParams& params) {
        BackwardPass pass(params, params.workspace);
        fill_offsets(params.shape, pass.offsets_);
        __builtin_memset(pass.flags_, 0, sizeof(Flag) * 3 * static_cast<size_t>(pass.threads_));
        __builtin_memset(pass.zeros_, 0, sizeof(T) * static_cast<size_t>(pass.s_.hidden + pass.recurrent_));
        run_team(pass.threads_, [&pass](int thread, int threads) { pass.work(thread, threads); });
    }

   private:
    BackwardPass(const BackwardParams& params, void* workspace)
        : p_(params),
          s_(params.shape),
          recurrent_(s_.projection ? s_.projection : s_.hidden),
          hidden_padded_(padded_units(s_.hidden)),
          recurrent_padded_(padded_units(recurrent_)),
          slots_stride_(C::kSlots * hidden_padded_),
          arena_(workspace) {
        threads_ = useful_threads(s_, C::kGates, 2, params.threads);
        chunk_ = s_.batch < kChunkRows ? kChunkRows / (s_.batch > 0 ? s_.batch : 1) : 1;
        if (chunk_ > s_.time) chunk_ = s_.time;
        chunk_rows_ = Steps::min(chunk_ * s_.batch, s_.rows);
        flags_ = arena_.take<Flag>(3 * threads_);
        offsets_ = arena_.take<int64_t>(s_.batch_sizes ? s_.time : 0);
        zeros_ = arena_.take<T>(s_.hidden + recurrent_);
        scratch_ = arena_.take<T>(threads_ * kScratch);
        row_addresses_ = arena_.take<const T*>(threads_ * chunk_rows_);
        for (int d = 0; d < s_.directions; ++d) {
            Buffers& b = buffers_[d];
            b.packed_hh = arena_.take<T>(C::kRecurrentCount * s_.hidden * recurrent_padded_);
            b.packed_candidate = arena_.take<T>(C::kResetBefore ? s_.hidden * recurrent_padded_ : 0);
            b.packed_ih = arena_.take<T>(p_.d_x ? C::kInputCount * s_.hidden * padded_units(s_.input) : 0);
            b.packed_hr = arena_.take<T>(s_.projection ? recurrent_ * hidden_padded_ : 0);
            b.d_slots = arena_.take<T>(chunk_rows_ * slots_stride_);
            b.d_h = arena_.take<T>(s_.batch * recurrent_padded_);
            b.d_c = arena_.take<T>(C::kHasCellState ? s_.batch * hidden_padded_ : 0);
            b.d_y = arena_.take<T>(s_.projection ? chunk_rows_ * recurrent_padded_ : 0);
            b.d_unprojected = arena_.take<T>(s_.projection ? s_.batch * hidden_padded_ : 0);
            b.unprojected = arena_.take<T>(s_.projection ? chunk_rows_ * hidden_padded_ : 0);
            b.d_reset_h = arena_.take<T>(C::kResetBefore ? s_.batch * hidden_padded_ : 0);
            b.reset_h = arena_.take<T>(C::kResetBefore ? chunk_rows_ * hidden_padded_ : 0);
            b.d_x = arena_.take<T>(p_.d_x && d == 1 ? s_.rows * s_.input : 0);
        }
    }

    void work(int thread, int threads) {
        Place place =
            find_place(s_, C::kGates, kTile, sizeof(T), kBarriers + (s_.projection ? 2 : 0), flags_, threads, thread);
        for (int d = place.first_direction; d <= place.last_direction; ++d) {
            pack_weights(d, place);
            run_direction(d, place, thread);
        }
        if (p_.d_x && s_.directions == 2) {
            place.world.wait();
            add_second_d_x(split(s_.rows, 1, thread, threads));
        }
    }

    T* scratch_of(int thread) const { return scratch_ + thread * kScratch; }
    static const T* as(const void* pointer) { return static_cast<const T*>(pointer); }
    static T* as(void* pointer) { return static_cast<T*>(pointer); }

    Steps steps_of(int d) const { return {s_.time, s_.batch, s_.batch_sizes, offsets_, d == 1}; }
    Range columns_of(const Place& place) const {  // this thread's part of the state's features
        return s_.projection ? split(recurrent_, kTile, place.rows.rank(), place.rows.size()) : place.units;
    }

    // -- weights ------------------------------------------------------------------------------------------------------

    // panels over the columns of w; rows in the order of the slots begin .. begin + count
    void pack_gates(const T* w, int64_t columns, int begin, int count, T* packed, Range range) const {
        for (int i = 0; i < count; ++i) {
            const T* rows = w + C::gate_of_slot(begin + i) * s_.hidden * columns;
            pack_wide(rows, s_.hidden, columns, i * s_.hidden, count * s_.hidden, packed, range);
        }
    }

    void pack_weights(int d, Place& place) {
        const Weights& w = p_.weights[d];
        Buffers& b = buffers_[d];
        const auto share = [&](int64_t columns) {
            return split(columns, kTile, place.direction.rank(), place.direction.size());
        };
        pack_gates(as(w.w_hh), recurrent_, C::kRecurrentBegin, C::kRecurrentCount, b.packed_hh, share(recurrent_));
        if (C::kResetBefore) pack_gates(as(w.w_hh), recurrent_, 0, 1, b.packed_candidate, share(recurrent_));
        if (p_.d_x) pack_gates(as(w.w_ih), s_.input, C::kInputBegin, C::kInputCount, b.packed_ih, share(s_.input));
        if (s_.projection) {
            pack_wide(as(w.w_hr), recurrent_, s_.hidden, 0, recurrent_, b.packed_hr, share(s_.hidden));
        }
        place.direction.wait();
    }

    // -- the loop over time -------------------------------------------------------------------------------------------

    void run_direction(int d, Place& place, int thread) {
        const Steps steps = steps_of(d);
        const Range rows =
            place.works ? rows_of_part(steps, s_.rows, place.batch_part, place.batch_parts) : Range{0, 0};
        Buffers& b = buffers_[d];
        const Range columns = columns_of(place);
        load_state(p_.d_h_n, d, rows, columns, recurrent_, recurrent_padded_, b.d_h);
        if (C::kHasCellState) load_state(p_.d_c_n, d, rows, place.units, s_.hidden, hidden_padded_, b.d_c);
        for (int64_t last = s_.time; last > 0; last -= chunk_) {
            const int64_t first = last > chunk_ ? last - chunk_ : 0;
            const int64_t t = Steps::min(steps.time_of(first), steps.time_of(last - 1)), end = t + last - first - 1;
            const int64_t first_row = steps.first_row(t);
            const Chunk chunk{first, last, first_row, steps.first_row(end) + steps.count(end) - first_row,
                              last == s_.time};
            for (int64_t step = last - 1; step >= first && place.works; --step) {
                const int64_t at = steps.time_of(step);
                const Range active{rows.begin, Steps::min(rows.end, steps.count(at))};
                run_step(d, steps, chunk, active, place, columns, at, step);
            }
            place.direction.wait();
            multiply_into_d_x(d, steps, chunk, place.direction, scratch_of(thread));
            sum_weight_gradients(d, steps, chunk, place.direction, thread);
            place.direction.wait();  // before the next chunk takes their place
        }
        if (p_.d_h0) store_state(b.d_h, d, rows, columns, recurrent_, recurrent_padded_, as(p_.d_h0));
        if (C::kHasCellState && p_.d_c0) {
            store_state(b.d_c, d, rows, place.units, s_.hidden, hidden_padded_, as(p_.d_c0));
        }
    }

    // a row waits here, at its gradient from h_n, until its last step comes
    void load_state(const void* from, int d, Range rows, Range columns, int64_t width, int64_t padded, T* to) const {
        for (int64_t b = rows.begin; b < rows.end; ++b) {
            for (int64_t u = columns.begin; u < columns.end; u += kLanes) {
                const V value = from ? load(as(from) + (d * s_.batch + b) * width, u, width) : V{T(0)};
                value.store(to + b * padded + u);
            }
        }
    }

    void store_state(const T* from, int d, Range rows, Range columns, int64_t width, int64_t padded, T* to) const {
        for (int64_t b = rows.begin; b < rows.end; ++b) {
            __builtin_memcpy(to + (d * s_.batch + b) * width + columns.begin, from + b * padded + columns.begin,
                             sizeof(T) * static_cast<size_t>(columns.end - columns.begin));
        }
    }

    static V load(const T* row, int64_t u, int64_t width) {
        return u + kLanes <= width ? V::load(row + u) : load_partial(row + u, width - u);
    }

    void run_step(int d, const Steps& steps, const Chunk& chunk, Range rows, Place& place, Range columns, int64_t t,
                  int64_t step) {
        Buffers& b = buffers_[d];
        const int64_t first_row = steps.first_row(t) - chunk.first_row;
        T* d_slots = b.d_slots + first_row * slots_stride_;
        if (s_.projection) {
            add_d_y(d, steps, chunk, rows, columns, t);
            place.rows.wait();
            multiply(b.d_y + first_row * recurrent_padded_, recurrent_padded_, {1, recurrent_, 0, 1}, b.packed_hr, rows,
                     place.units, s_.hidden, b.d_unprojected, hidden_padded_, Init::zero);
        }
        for (int64_t row = rows.begin; row < rows.end; ++row) cell_row(d, steps, chunk, place.units, t, step, row);
        place.rows.wait();
        constexpr Init kDirect = C::kDirectPath ? Init::accumulate : Init::zero;
        if constexpr (C::kResetBefore) {
            multiply(d_slots, slots_stride_, {1, s_.hidden, 0, 1}, b.packed_candidate, rows, columns, recurrent_,
                     b.d_reset_h, hidden_padded_, Init::zero);
            for (int64_t row = rows.begin; row < rows.end; ++row) reset_row(d, steps, chunk, place.units, t, step, row);
            place.rows.wait();
        }
        multiply(d_slots + C::kRecurrentBegin * hidden_padded_, slots_stride_,
                 {C::kRecurrentCount, s_.hidden, hidden_padded_, 1}, b.packed_hh, rows, columns, recurrent_, b.d_h,
                 recurrent_padded_, kDirect);
    }

    // c[b, columns] (+)= a[b, :] B for rows b; a and c hold one row for each b
    void multiply(const T* a, int64_t a_stride, const Reduction& reduction, const T* packed, Range rows, Range columns,
                  int64_t width, T* c, int64_t c_stride, Init init) const {
        multiply_wide(
            a + rows.begin * a_stride, a_stride, rows.end - rows.begin, reduction, packed, columns, width,
            [&](int64_t r) { return c + (rows.begin + r) * c_stride; }, init, static_cast<T*>(nullptr));
    }

    void add_d_y(int d, const Steps& steps, const Chunk& chunk, Range rows, Range columns, int64_t t) {
        const Rows<const T> d_y{as(p_.d_y), p_.d_y_stride_time, p_.d_y_stride_batch};
        for (int64_t b = rows.begin; b < rows.end; ++b) {
            const T* from = p_.d_y ? d_y.at(steps, t, b) + d * recurrent_ : zeros_;
            T* to = buffers_[d].d_y + (steps.first_row(t) - chunk.first_row + b) * recurrent_padded_;
            for (int64_t u = columns.begin; u < columns.end; u += kLanes) {
                (load(from, u, recurrent_) + V::load(buffers_[d].d_h + b * recurrent_padded_ + u)).store(to + u);
            }
        }
    }

    // the state h before a step of row b
    const T* previous_h(int d, const Steps& steps, int64_t step, int64_t b) const {
        if (b < steps.carried(step)) {
            const Rows<const T> y{as(p_.y), p_.y_stride_time, p_.y_stride_batch};
            return y.at(steps, steps.time_of(step - 1), b) + d * recurrent_;
        }
        return p_.h0 ? as(p_.h0) + (d * s_.batch + b) * recurrent_ : zeros_;
    }

    const T* saved_row(int d, int64_t row) const {
        return as(p_.reserve) + (d * s_.rows + row) * C::kSaved * hidden_padded_;
    }

    const T* previous_c(int d, const Steps& steps, int64_t step, int64_t b) const {
        if (b < steps.carried(step)) {
            const int64_t row = steps.first_row(steps.time_of(step - 1)) + b;
            return saved_row(d, row) + (C::kSaved - 1) * hidden_padded_;
        }
        return p_.c0 ? as(p_.c0) + (d * s_.batch + b) * s_.hidden : zeros_;
    }

    void cell_row(int d, const Steps& steps, const Chunk& chunk, Range units, int64_t t, int64_t step, int64_t b) {
        Buffers& buffers = buffers_[d];
        const int64_t row = steps.first_row(t) + b, row_in_chunk = row - chunk.first_row;
        const Rows<const T> d_y{as(p_.d_y), p_.d_y_stride_time, p_.d_y_stride_batch};
        const Rows<const T> y{as(p_.y), p_.y_stride_time, p_.y_stride_batch};
        const T* d_y_row = p_.d_y ? d_y.at(steps, t, b) + d * recurrent_ : zeros_;
        const T* y_row = y.at(steps, t, b) + d * recurrent_;
        const T* saved = C::kSaved ? saved_row(d, row) : nullptr;
        const T* h_row = C::kDirectPath ? previous_h(d, steps, step, b) : nullptr;
        const T* c_row = C::kHasCellState ? previous_c(d, steps, step, b) : nullptr;
        T* d_h_row = buffers.d_h + b * recurrent_padded_;
        T* d_slots = buffers.d_slots + row_in_chunk * slots_stride_;
        for (int64_t u = units.begin; u < units.end; u += kLanes) {
            V kept[kSaved], d_slot[C::kSlots], h{T(0)}, h_next{T(0)}, c{T(0)}, d_c{T(0)}, direct{T(0)};
            for (int i = 0; i < C::kSaved; ++i) kept[i] = V::load(saved + i * hidden_padded_ + u);
            if constexpr (C::kDirectPath) h = load(h_row, u, s_.hidden);
            if constexpr (C::kSaved == 0) h_next = load(y_row, u, s_.hidden);
            if constexpr (C::kHasCellState) {
                c = load(c_row, u, s_.hidden);
                d_c = V::load(buffers.d_c + b * hidden_padded_ + u);
            }
            const V d_h = s_.projection ? V::load(buffers.d_unprojected + b * hidden_padded_ + u)
                                        : V::load(d_h_row + u) + load(d_y_row, u, s_.hidden);
            C::backward(kept, h, h_next, c, d_h, d_c, d_slot, direct);
            for (int i = 0; i < C::kSlots; ++i) {
                if (!(C::kResetBefore && i == 1)) d_slot[i].store(d_slots + i * hidden_padded_ + u);
            }
            if constexpr (C::kHasCellState) {
                d_c.store(buffers.d_c + b * hidden_padded_ + u);
                if (s_.projection) C::output(kept).store(buffers.unprojected + row_in_chunk * hidden_padded_ + u);
            }
            if constexpr (C::kDirectPath) direct.store(d_h_row + u);
            if constexpr (C::kResetBefore) (kept[1] * h).store(buffers.reset_h + row_in_chunk * hidden_padded_ + u);
        }
    }

    void reset_row(int d, const Steps& steps, const Chunk& chunk, Range units, int64_t t, int64_t step, int64_t b) {
        Buffers& buffers = buffers_[d];
        const int64_t row = steps.first_row(t) + b, row_in_chunk = row - chunk.first_row;
        const T* saved = saved_row(d, row);
        const T* h_row = previous_h(d, steps, step, b);
        T* d_h_row = buffers.d_h + b * recurrent_padded_;
        for (int64_t u = units.begin; u < units.end; u += kLanes) {
            V kept[kSaved], d_slot[C::kSlots];
            for (int i = 0; i < C::kSaved; ++i) kept[i] = V::load(saved + i * hidden_padded_ + u);
            V direct = V::load(d_h_row + u);
            if constexpr (C::kResetBefore) {
                C::backward_reset(kept, load(h_row, u, s_.hidden), V::load(buffers.d_reset_h + b * hidden_padded_ + u),
                                  d_slot, direct);
                d_slot[1].store(buffers.d_slots + row_in_chunk * slots_stride_ + hidden_padded_ + u);
            }
            direct.store(d_h_row + u);
        }
    }

    // -- after a chunk ------------------------------------------------------------------------------------------------

    // Each member of the team makes its share of the rows.
    void multiply_into_d_x(int d, const Steps& steps, const Chunk& chunk, const Team& team, T* edge) {
        if (!p_.d_x) return;
        const Range rows = split(chunk.rows, 1, team.rank(), team.size());
        const Rows<T> d_x{as(p_.d_x), p_.d_x_stride_time, p_.d_x_stride_batch};
        const T* d_slots = buffers_[d].d_slots + C::kInputBegin * hidden_padded_;
        const auto x_row = [&](int64_t r) {
            const int64_t row = chunk.first_row + rows.begin + r;
            return d == 0 ? d_x.at(steps, row) : buffers_[1].d_x + row * s_.input;
        };
        multiply_wide(d_slots + rows.begin * slots_stride_, slots_stride_, rows.end - rows.begin,
                      {C::kInputCount, s_.hidden, hidden_padded_, 1}, buffers_[d].packed_ih, {0, s_.input}, s_.input,
                      x_row, Init::zero, edge);
    }

    void add_second_d_x(Range rows) {
        const Steps steps = steps_of(0);
        const Rows<T> d_x{as(p_.d_x), p_.d_x_stride_time, p_.d_x_stride_batch};
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            T* to = d_x.at(steps, row);
            const T* from = buffers_[1].d_x + row * s_.input;
            for (int64_t i = 0; i < s_.input; ++i) to[i] += from[i];
        }
    }

    // Each member of the team makes the same share of the rows of every gradient.
    void sum_weight_gradients(int d, const Steps& steps, const Chunk& chunk, const Team& team, int thread) {
        T* scratch = scratch_of(thread);
        const WeightGradients& out = p_.d_weights[d];
        Buffers& b = buffers_[d];
        const Range units = split(s_.hidden, kLanes, team.rank(), team.size());
        OuterProducts<T> of_x, of_h, of_reset_h, of_unprojected;
        for (int slot = 0; slot < C::kSlots; ++slot) {
            const T* d_slot = b.d_slots + slot * hidden_padded_;
            const int64_t at = C::gate_of_slot(slot) * s_.hidden;
            const bool from_x = slot >= C::kInputBegin && slot < C::kInputBegin + C::kInputCount;
            const bool from_h = slot >= C::kRecurrentBegin && slot < C::kRecurrentBegin + C::kRecurrentCount;
            if (from_x && out.d_w_ih) of_x.add(d_slot, as(out.d_w_ih) + at * s_.input);
            if (from_h && out.d_w_hh) of_h.add(d_slot, as(out.d_w_hh) + at * recurrent_);
            if (C::kResetBefore && !from_h && out.d_w_hh) of_reset_h.add(d_slot, as(out.d_w_hh) + at * recurrent_);
            if (from_x && out.d_b_ih)
                sum_rows(d_slot, slots_stride_, chunk.rows, chunk.is_first, units, as(out.d_b_ih) + at);
            if ((from_h || C::kResetBefore) && out.d_b_hh) {
                sum_rows(d_slot, slots_stride_, chunk.rows, chunk.is_first, units, as(out.d_b_hh) + at);
            }
        }
        if (s_.projection && out.d_w_hr) of_unprojected.add(b.d_y, as(out.d_w_hr));
        const T** rows = row_addresses_ + thread * chunk_rows_;
        const auto sum = [&](const OuterProducts<T>& products, int64_t stride, Range range, int64_t columns,
                             const auto& row_at) {
            for (int64_t r = 0; r < chunk.rows && products.count > 0; ++r) rows[r] = row_at(r);
            sum_outer_products(products, stride, rows, chunk.rows, chunk.is_first, range, columns, scratch);
        };
        const Rows<const T> x{as(p_.x), p_.x_stride_time, p_.x_stride_batch};
        sum(of_x, slots_stride_, units, s_.input, [&](int64_t r) { return x.at(steps, chunk.first_row + r); });
        sum(of_h, slots_stride_, units, recurrent_, [&](int64_t r) {
            const int64_t t = steps.time_of_row(chunk.first_row + r);
            return previous_h(d, steps, steps.time_of(t), chunk.first_row + r - steps.first_row(t));
        });
        sum(of_reset_h, slots_stride_, units, recurrent_, [&](int64_t r) { return b.reset_h + r * hidden_padded_; });
        sum(of_unprojected, recurrent_padded_, split(recurrent_, kLanes, team.rank(), team.size()), s_.hidden,
            [&](int64_t r) { return b.unprojected + r * hidden_padded_; });
    }

    const BackwardParams& p_;
    const Shape& s_;
    const int64_t recurrent_, hidden_padded_, recurrent_padded_, slots_stride_;
    Arena arena_;
    int threads_;
    int64_t chunk_, chunk_rows_;  // steps of a chunk, and the most rows that they have
    Flag* flags_;
    int64_t* offsets_;
    T* zeros_;                 // [H + R]
    T* scratch_;               // [threads, kScratch]
    const T** row_addresses_;  // [threads, chunk_rows_]
    Buffers buffers_[2];
};

}  // namespace
}  // namespace fastrnn
