// The backward pass of a layer: against the order of the forward pass, the stages of one step, each the cell's
// gradients and then their product with the transposed weights, the last of which gives the gradient of the state
// before the step; after a chunk of steps, while their gradients are near, those of x and of the weights as products
// over all of the chunk at once.
//
// Cost: 2 N G H (I + R) for d_x and d_h, the same again for the weights; a barrier a stage where units are split, two a
// chunk.
#pragma once

#include "backward-layout-inl.h"

namespace fastrnn {
namespace {

template <class T>
class BackwardPass : BackwardLayout<T> {
    using V = Vec<T>;
    using Layout = BackwardLayout<T>;
    using Layout::arena_, Layout::barriers_, Layout::buffers_, Layout::heads_, Layout::cell_, Layout::chunk_,
        Layout::cell_width_, Layout::chunk_rows_, Layout::flags_, Layout::grain_, Layout::hidden_padded_;
    using Layout::k_, Layout::kLanes, Layout::kScratch, Layout::kTile, Layout::offsets_, Layout::p_, Layout::recurrent_;
    using Layout::recurrent_padded_, Layout::row_addresses_, Layout::s_, Layout::scratch_, Layout::stages_;
    using Layout::threads_, Layout::values_stride_, Layout::zeros_;
    using typename Layout::Buffers, typename Layout::Stage;

   public:
    static size_t workspace_bytes(const BackwardParams& params) {
        BackwardPass pass(params, nullptr);
        return pass.arena_.used();
    }

    static void run(const BackwardParams& params) {
        BackwardPass pass(params, params.workspace);
        fill_offsets(params.shape, pass.offsets_);
        __builtin_memset(pass.flags_, 0, sizeof(Flag) * 3 * static_cast<size_t>(pass.threads_));
        __builtin_memset(pass.zeros_, 0, sizeof(T) * static_cast<size_t>(max(pass.cell_width_, pass.recurrent_)));
        run_team(pass.threads_, [&pass](int thread, int threads) { pass.work(thread, threads); });
    }

   private:
    using Layout::Layout;

    // consecutive steps of one direction, and the rows that they cover
    struct Chunk {
        int64_t first_row, rows;
        bool is_first;  // in the order of this pass
    };

    // a step, and where it stands
    struct Moment {
        int d;
        const Steps& steps;
        const Chunk& chunk;
        int64_t t, step;
    };

    void work(int thread, int threads) {
        Place place = find_place(s_, k_.gates, grain_, arithmetic_of<T>(), barriers_, flags_, threads, thread);
        for (int d = place.first_direction; d <= place.last_direction; ++d) {
            pack_weights(d, place);
            run_direction(d, place, thread);
        }
        if (!p_.d_x) return;
        if (offsets_ && !s_.packed) {
            clear_rest(d_x(), steps_of(0), split(s_.batch, 1, thread, threads), {0, s_.input});
        }
        if (s_.directions == 1) return;
        place.world.wait();
        add_second_d_x(split(s_.rows, 1, thread, threads));
    }

    T* scratch_of(int thread) const { return scratch_ + thread * kScratch; }
    static const T* as(const void* pointer) { return static_cast<const T*>(pointer); }
    static T* as(void* pointer) { return static_cast<T*>(pointer); }

    Steps steps_of(int d) const { return steps_of_direction(s_, offsets_, d); }
    Rows<T> d_x() const { return {as(p_.d_x), {p_.d_x_stride_time, p_.d_x_stride_batch, s_.packed}}; }
    Rows<const T> y(int d) const {
        return {as(p_.y) + d * recurrent_, {p_.y_stride_time, p_.y_stride_batch, s_.packed}};
    }
    // this thread's part of `units` features: of the projected state, or of the hidden units; where both are as many,
    // the parts are the same
    Range part_of(int64_t units, const Place& place) const {
        return s_.projection && units == recurrent_
                   ? split(units, Layout::grain_of(heads_.length), place.rows.rank(), place.rows.size())
                   : place.units;
    }

    // -- weights ------------------------------------------------------------------------------------------------------

    // calls body(head, its weights, its columns of those in `range`, from its first)
    template <class Body>
    void for_each_head(const Stage& stage, Range range, const Body& body) const {
        if (stage.heads == 1) return body(int64_t{0}, stage.w, range);
        heads_.for_each(range, stage.head_columns, [&](int64_t head, Range own) {
            const T* w[kMaxProductSlots];
            stage.find_head(head, w);
            const int64_t first = head * stage.head_columns;
            body(head, w, Range{own.begin - first, own.end - first});
        });
    }

    void pack_weights(int d, Place& place) {
        Buffers& b = buffers_[d];
        const auto share = [&](int64_t columns, int64_t grain) {
            return split(columns, grain, place.direction.rank(), place.direction.size());
        };
        for (int i = 0; i < stages_; ++i) {
            const Stage& s = b.stages[i];
            if (!s.packed) continue;
            for_each_head(s, share(s.columns, s.heads > 1 ? Layout::grain_of(s.head_columns) : kTile),
                          [&](int64_t head, const T* const* w, Range columns) {
                              pack_segments(w, s.reduction.segments, s.head_units, s.head_columns,
                                            s.packed + head * s.packed_head(), columns);
                          });
        }
        if (b.packed_ih)
            pack_segments(b.w_ih, k_.input.count, s_.hidden, s_.input, b.packed_ih, share(s_.input, kTile));
        place.direction.wait();
    }

    // -- the loop over time -------------------------------------------------------------------------------------------

    void run_direction(int d, Place& place, int thread) {
        const Steps steps = steps_of(d);
        const Range rows =
            place.works ? rows_of_part(steps, s_.rows, place.batch_part, place.batch_parts) : Range{0, 0};
        Buffers& b = buffers_[d];
        const Range columns = part_of(recurrent_, place);
        const bool has_c = k_.c_saved >= 0;
        load_state(p_.d_h_n, steps, d, rows, columns, recurrent_, b.d_h);
        if (has_c) load_state(p_.d_c_n, steps, d, rows, place.units, s_.hidden, b.d_c, k_.memories);
        for (int64_t last = s_.time; last > 0; last -= chunk_) {
            const int64_t first = last > chunk_ ? last - chunk_ : 0;
            const int64_t t = min(steps.time_of(first), steps.time_of(last - 1)), end = t + last - first - 1;
            const int64_t first_row = steps.first_row(t);
            const Chunk chunk{first_row, steps.first_row(end) + steps.count(end) - first_row, last == s_.time};
            for (int64_t step = last - 1; step >= first && place.works; --step) {
                const Moment now{d, steps, chunk, steps.time_of(step), step};
                const Range active{rows.begin, min(rows.end, steps.count(now.t))};
                for (int i = stages_ - 1; i >= 0; --i) run_stage(now, i, active, place, scratch_of(thread));
                if (steps.resets) cut_gradients(now, active, columns, place.units);
            }
            place.direction.wait();
            multiply_into_d_x(d, steps, chunk, place.direction, scratch_of(thread));
            sum_weight_gradients(d, steps, chunk, place.direction, thread);
            place.direction.wait();  // before the next chunk takes their place
        }
        if (p_.d_h0) store_state(b.d_h, steps, d, rows, columns, recurrent_, p_.d_h0);
        if (has_c && p_.d_c0) store_state(b.d_c, steps, d, rows, place.units, s_.hidden, p_.d_c0, k_.memories);
    }

    // Nothing goes back from a state of zeros. The columns and units are those that this thread makes and reads.
    void cut_gradients(const Moment& now, Range rows, Range columns, Range units) {
        const Buffers& buffers = buffers_[now.d];
        for (int64_t b = rows.begin; b < rows.end; ++b) {
            if (now.steps.origin(now.step, b) != Origin::zero) continue;
            clear_part(buffers.d_h + b * recurrent_padded_, columns);
            for (int m = 0; m < memories_of(k_); ++m) {
                clear_part(buffers.d_c + (b * k_.memories + m) * hidden_padded_, units);
            }
        }
    }

    // -- a stage of a step --------------------------------------------------------------------------------------------

    // the state h before a step of row b
    const T* previous_h(int d, const Steps& steps, int64_t step, int64_t b) const {
        return state_before(steps, step, b, p_.h0, zeros_, d, recurrent_,
                            [&] { return y(d).at(steps, steps.time_of(step - 1), b); });
    }

    const T* saved_row(int d, int64_t row) const {
        return as(p_.reserve) + (d * s_.rows + row) * k_.saved * hidden_padded_;
    }

    void place_previous_c(int d, const Steps& steps, int64_t step, int64_t b, int64_t r,
                          const T* (*to)[kRowBlock]) const {
        int64_t apart = s_.hidden;
        const T* const row = state_before(steps, step, b, p_.c0, zeros_, d, cell_width_, [&] {
            apart = hidden_padded_;
            return saved_row(d, steps.first_row(steps.time_of(step - 1)) + b) + k_.c_saved * hidden_padded_;
        });
        place_memories(row, apart, k_.memories, r, to);
    }

    // a block of rows, by their addresses
    struct Block {
        const T *saved[kRowBlock], *h[kRowBlock], *y[kRowBlock], *d_out[kRowBlock], *d_y[kRowBlock];
        const T *c[kMaxMemories][kRowBlock], *extra[kMaxOperands][kRowBlock];
        T *d_h[kRowBlock], *d_c[kMaxMemories][kRowBlock], *d_values[kRowBlock], *handed_on[kRowBlock];
        BackwardTile<T> tile;
    };

    void fill(Block& block, const Moment& now, int stage, int64_t first, int64_t count, Range units) {
        const int d = now.d;
        Buffers& buffers = buffers_[d];
        const Stage& current = buffers.stages[stage];
        const bool last = stage + 1 == stages_;
        const Rows<const T> d_y{as(p_.d_y) + d * recurrent_, {p_.d_y_stride_time, p_.d_y_stride_batch, s_.packed}};
        const T* const d_out = last ? buffers.d_h : buffers.stages[stage + 1].d_operand;
        T* const handed_on = last ? nullptr : buffers.stages[stage + 1].operand;
        for (int64_t r = 0; r < count; ++r) {
            const int64_t b = first + r, row = now.steps.first_row(now.t) + b, in_chunk = row - now.chunk.first_row;
            block.saved[r] = k_.saved ? saved_row(d, row) : nullptr;
            block.h[r] = k_.reads_h ? previous_h(d, now.steps, now.step, b) : nullptr;
            block.y[r] = y(d).at(now.steps, now.t, b);
            block.d_out[r] = d_out + b * (last ? recurrent_padded_ : hidden_padded_);
            block.d_y[r] = p_.d_y ? d_y.at(now.steps, now.t, b) : zeros_;
            block.d_h[r] = buffers.d_h + b * recurrent_padded_;
            if (k_.c_saved >= 0) {
                place_previous_c(d, now.steps, now.step, b, r, block.c);
                place_memories(buffers.d_c + b * k_.memories * hidden_padded_, hidden_padded_, k_.memories, r,
                               block.d_c);
            }
            block.d_values[r] = current.d_values + in_chunk * current.stride;
            block.handed_on[r] = handed_on ? handed_on + in_chunk * hidden_padded_ : nullptr;
        }
        BackwardTile<T>& tile = block.tile;
        tile.rows = count;
        tile.begin = units.begin;
        tile.end = units.end;
        tile.hidden = current.units;
        tile.padded = hidden_padded_;
        tile.saved = block.saved;
        tile.h = k_.reads_h ? block.h : nullptr;
        tile.y = block.y;
        tile.d_out = block.d_out;
        tile.d_y = last ? block.d_y : nullptr;
        tile.d_h = k_.reads_h ? block.d_h : nullptr;
        tile.c = block.c;
        tile.d_c = block.d_c;
        tile.d_values = block.d_values;
        tile.handed_on = handed_on ? block.handed_on : nullptr;
        fill_operands(p_.weights[d], p_.functions, k_.operands, now.steps, now.t, first, count, block.extra, tile);
    }

    void run_stage(const Moment& now, int stage, Range rows, Place& place, T* scratch) {
        const Stage& current = buffers_[now.d].stages[stage];
        const Range units = part_of(current.units, place), columns = part_of(current.columns, place);
        Block block;
        for (int64_t b = rows.begin; b < rows.end; b += kRowBlock) {
            fill(block, now, stage, b, min(rows.end - b, kRowBlock), units);
            if (p_.d_cell_states && stage + 1 == k_.stages) add_cell_state_gradients(now, b, block.tile);
            current.arithmetic(block.tile);
        }
        if (!current.has_product) return;
        if (current.masked) mask_operands(now, stage, rows, units, columns);
        // What a product makes, the gradient of what was multiplied, the next stage reads of its own units alone: there
        // is no barrier behind it.
        place.rows.wait();
        if (rows.begin >= rows.end) return;
        const int64_t first_row = now.steps.first_row(now.t) - now.chunk.first_row;
        const int64_t at = stage < k_.stages ? k_.recurrent[stage].begin * hidden_padded_ : 0;
        const int64_t stride = padded_units(current.columns);
        T* const target = current.masked ? buffers_[now.d].d_masked : current.d_operand;
        const Init init = current.masked ? Init::zero : current.init;
        const T* const d_values = current.d_values + at + (first_row + rows.begin) * current.stride;
        for_each_head(current, columns, [&](int64_t head, const T* const* w, Range own) {
            T* const d_operand = target + head * current.head_columns;
            multiply_by_weights(
                d_values + head * current.head_units, current.stride, rows.end - rows.begin, current.reduction,
                current.packed ? current.packed + head * current.packed_head() : nullptr, w, own, current.head_columns,
                [&](int64_t r) { return d_operand + (rows.begin + r) * stride; }, init, static_cast<T*>(nullptr),
                scratch);
        });
        for (int64_t b = rows.begin; current.masked && b < rows.end; ++b) {
            multiply_by_mask(target + b * stride, mask_row(now, b, current.columns), columns, current.columns,
                             current.init, current.d_operand + b * stride);
        }
    }

    const T* mask_row(const Moment& now, int64_t b, int64_t width) const {
        return as(p_.weights[now.d].recurrent_mask) + now.steps.row_of(b) * width;
    }

    // for the gradients of the weights what the products multiplied, of these columns of h and units of what the stage
    // handed on
    void mask_operands(const Moment& now, int stage, Range rows, Range units, Range columns) const {
        const Buffers& buffers = buffers_[now.d];
        if (!p_.d_weights[now.d].d_w_hh) return;
        for (int64_t b = rows.begin; b < rows.end; ++b) {
            const int64_t in_chunk = now.steps.first_row(now.t) + b - now.chunk.first_row;
            if (stage == 0) {
                multiply_by_mask(previous_h(now.d, now.steps, now.step, b), mask_row(now, b, recurrent_), columns,
                                 recurrent_, Init::zero, buffers.masked_h + in_chunk * recurrent_padded_);
            }
            if (stage + 1 < k_.stages) {
                T* const handed_on = buffers.stages[stage + 1].operand + in_chunk * hidden_padded_;
                multiply_by_mask(handed_on, mask_row(now, b, s_.hidden), units, s_.hidden, Init::zero, handed_on);
            }
        }
    }

    void add_cell_state_gradients(const Moment& now, int64_t first, const BackwardTile<T>& tile) const {
        const Rows<const T> d_cell_states{as(p_.d_cell_states) + now.d * s_.hidden,
                                          {p_.d_cell_states_stride_time, p_.d_cell_states_stride_batch, s_.packed}};
        for (int64_t r = 0; r < tile.rows; ++r) {
            const T* const from = d_cell_states.at(now.steps, now.t, first + r);
            T* const d_c = tile.d_c[0][r];
            for (int64_t u = tile.begin; u < tile.end; u += kLanes) {
                (V::load(d_c + u) + load_units(from, u, s_.hidden)).store(d_c + u);
            }
        }
    }

    // -- after a chunk ------------------------------------------------------------------------------------------------

    // Each member of the team makes its share of the rows, or of the columns where weights are read as they lie.
    void multiply_into_d_x(int d, const Steps& steps, const Chunk& chunk, const Team& team, T* scratch) {
        if (!p_.d_x) return;
        const bool lies = !buffers_[d].packed_ih;
        const auto share = [&](int64_t count, int64_t grain) { return split(count, grain, team.rank(), team.size()); };
        const Range rows = lies ? Range{0, chunk.rows} : share(chunk.rows, 1);
        const Range columns = lies ? share(s_.input, kTile) : Range{0, s_.input};
        const T* d_slots = buffers_[d].d_values + k_.input.begin * hidden_padded_;
        const auto x_row = [&](int64_t r) {
            const int64_t row = chunk.first_row + rows.begin + r;
            return d == 0 ? d_x().at(steps, row) : buffers_[1].d_x + row * s_.input;
        };
        multiply_by_weights(d_slots + rows.begin * values_stride_, values_stride_, rows.end - rows.begin,
                            {k_.input.count, s_.hidden, hidden_padded_, 1}, buffers_[d].packed_ih, buffers_[d].w_ih,
                            columns, s_.input, x_row, Init::zero, scratch, scratch + Layout::kEdge);
    }

    void add_second_d_x(Range rows) {
        const Steps steps = steps_of(0);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            T* to = d_x().at(steps, row);
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
        if (cell_.sums) {
            const bool zones_c = k_.zone_c >= 0 && p_.weights[d].operands[k_.zone_c].data;
            SumTile<T> tile{chunk.rows, units,          s_.hidden, hidden_padded_, saved_row(d, chunk.first_row),
                            b.d_values, chunk.is_first, zones_c,   as(out.d_b_ih), as(out.d_b_hh),
                            {}};
            for (int i = 0; i < k_.learned; ++i) tile.d_operands[i] = as(out.d_operands[i]);
            cell_.sums(tile);
        }
        const auto sum_values = [&](int value, void* to, int64_t at) {
            if (!to) return;
            sum_rows(b.d_values + value * hidden_padded_, values_stride_, chunk.rows, chunk.is_first, units,
                     as(to) + at);
        };
        for (int slot = 0; slot < k_.slots && !cell_.sums; ++slot) {
            const int64_t at = k_.gate_of_slot[slot] * s_.hidden;
            if (k_.input.has(slot)) sum_values(slot, out.d_b_ih, at);
            if (k_.from_h(slot)) sum_values(slot, out.d_b_hh, at);
        }
        for (int i = 0; i < k_.learned && !cell_.sums; ++i) sum_values(k_.slots + i, out.d_operands[i], 0);

        const T** rows = row_addresses_ + thread * chunk_rows_;
        // of the matrix whose rows for `slots` met the row of the sequence at row_at(r), or a head's part of it
        const auto sum_products = [&](SlotRange slots, void* to, const Heads& heads, const auto& row_at) {
            if (!to || slots.count == 0) return;
            OuterProducts<T> products(s_.rows);
            for (int slot = slots.begin; slot < slots.end(); ++slot) {
                products.add(b.d_values + slot * hidden_padded_,
                             as(to) + k_.gate_of_slot[slot] * s_.hidden * heads.length);
            }
            heads.for_each(units, heads.units, [&](int64_t head, Range own) {
                for (int64_t r = 0; r < chunk.rows; ++r) rows[r] = row_at(r) + head * heads.length;
                sum_outer_products(products, values_stride_, rows, chunk.rows, chunk.is_first, own, heads.length,
                                   scratch);
            });
        };
        const Rows<const T> x{as(p_.x), {p_.x_stride_time, p_.x_stride_batch, s_.packed}};
        sum_products(k_.input, out.d_w_ih, Heads{1, s_.hidden, s_.input},
                     [&](int64_t r) { return x.at(steps, chunk.first_row + r); });
        sum_products(k_.recurrent[0], out.d_w_hh, heads_, [&](int64_t r) {
            if (b.stages[0].masked) return static_cast<const T*>(b.masked_h + r * recurrent_padded_);
            const int64_t t = steps.time_of_row(chunk.first_row + r);
            return previous_h(d, steps, steps.time_of(t), chunk.first_row + r - steps.first_row(t));
        });
        for (int i = 1; i < k_.stages; ++i) {
            sum_products(k_.recurrent[i], out.d_w_hh, Heads{heads_.count, heads_.units, heads_.units},
                         [&](int64_t r) { return b.stages[i].operand + r * hidden_padded_; });
        }
        if (!s_.projection || !out.d_w_hr) return;
        const Stage& projection = b.stages[k_.stages];
        OuterProducts<T> products(s_.rows);
        products.add(projection.d_values, as(out.d_w_hr));
        for (int64_t r = 0; r < chunk.rows; ++r) rows[r] = projection.operand + r * hidden_padded_;
        sum_outer_products(products, projection.stride, rows, chunk.rows, chunk.is_first,
                           split(recurrent_, kLanes, team.rank(), team.size()), s_.hidden, scratch);
    }
};

}  // namespace
}  // namespace fastrnn
