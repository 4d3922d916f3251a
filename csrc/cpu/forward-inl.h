// The forward pass of a layer: one parallel region; in it, for each chunk of time steps, the product with x for all of
// the chunk at once, then step by step the stages of the cell, the first of which multiplies h.
//
// Weights are packed once a call, but for those of h where a step has too few rows, and those of x where one chunk
// holds all steps, which are then packed a tile at a time. A block of rows stays with a tile of units from the product
// to the cell, so that the gates are read back from the nearest cache.
//
// Cost: max(2 N G H (I + R) / peak, T x bytes of packed weights / bandwidth), plus a barrier a stage where units are
// split.
#pragma once

#include "forward-layout-inl.h"

namespace fastrnn {
namespace {

template <class T>
class ForwardPass : ForwardLayout<T> {
    using Layout = ForwardLayout<T>;
    using Layout::arena_, Layout::grain_, Layout::buffers_, Layout::by_tiles_, Layout::chunk_, Layout::flags_,
        Layout::cell_width_, Layout::hidden_padded_, Layout::k_;
    using Layout::barriers_, Layout::head_rows_, Layout::heads_, Layout::keeps_slots_, Layout::offsets_, Layout::p_;
    using Layout::masked_, Layout::masked_padded_, Layout::masked_rows_, Layout::packs_tiles_, Layout::prepared_;
    using Layout::prepared_rows_, Layout::prepared_size_, Layout::recurrent_, Layout::recurrent_padded_, Layout::s_;
    using Layout::stages_, Layout::storage_, Layout::threads_, Layout::tile_, Layout::tile_size_, Layout::tiles_;
    using Layout::unit_, Layout::zeros_, Layout::kLanes;
    using typename Layout::Buffers, typename Layout::Stage;

   public:
    static size_t workspace_bytes(const ForwardParams& params, const Bfloat16Unit* unit) {
        ForwardPass pass(params, unit, nullptr);
        return pass.arena_.used();
    }

    static void run(const ForwardParams& params, const Bfloat16Unit* unit) {
        ForwardPass pass(params, unit, params.workspace);
        fill_offsets(params.shape, pass.offsets_);
        __builtin_memset(pass.flags_, 0, sizeof(Flag) * 3 * static_cast<size_t>(pass.threads_));
        __builtin_memset(pass.zeros_, 0, sizeof(T) * static_cast<size_t>(max(pass.cell_width_, pass.recurrent_)));
        run_team(pass.threads_, [&pass](int thread, int threads) { pass.work(thread, threads); });
    }

    static Plan plan(const ForwardParams& params, const Bfloat16Unit* unit) {
        const ForwardPass pass(params, unit, nullptr);
        const auto schedule_of = [&](auto* choose, int threads) {
            return choose(params.shape, pass.k_.gates, pass.grain_, pass.storage_.arithmetic, pass.barriers_, threads);
        };
        const bool apart = schedule_of(runs_directions_apart, pass.threads_);
        const Schedule schedule = schedule_of(choose_schedule, threads_of_first(apart, pass.threads_));
        const int turns = apart ? 1 : params.shape.directions;
        return {pass.threads_, params.shape.directions / turns, schedule.batch_parts, schedule.unit_parts,
                turns * schedule.seconds};
    }

   private:
    using Layout::Layout;

    // what a thread works in beside the buffers that all share
    struct Scratch {
        T* tile;
        T* prepared;  // rows as weights of fewer bits meet them
        T* masked;    // rows times the mask
    };

    // a step, and where it stands
    struct Moment {
        int d;
        const Steps& steps;
        int64_t t, step, step_in_chunk;
    };

    void work(int thread, int threads) {
        Place place = find_place(s_, k_.gates, grain_, storage_.arithmetic, barriers_, flags_, threads, thread);
        if (unit_) unit_->begin();
        for (int d = place.first_direction; d <= place.last_direction; ++d) {
            prepare_weights(d, place);
            const Scratch scratch{tiles_ + thread * tile_size_, prepared_ + thread * prepared_rows_ * prepared_size_,
                                  masked_ + thread * masked_rows_ * masked_padded_};
            if (place.works) run_direction(d, place, scratch);
        }
        if (unit_) unit_->end();
    }

    // -- weights ------------------------------------------------------------------------------------------------------

    void prepare_weights(int d, Place& place) {
        Buffers& b = buffers_[d];
        const auto share = [&](int64_t units, int64_t tile) {
            return split(units, tile, place.direction.rank(), place.direction.size());
        };
        this->sum_biases(p_.weights[d], b.bias, share(s_.hidden, tile_));
        if (b.ih.packed) b.ih.form->pack(b.ih, share(s_.hidden, tile_));
        for (int i = 0; i < stages_; ++i) {
            const Product<T>& product = b.stages[i].product;
            if (product.packed) product.form->pack(product, share(product.units, b.stages[i].tile));
        }
        place.direction.wait();
    }

    // -- the loop over time -------------------------------------------------------------------------------------------

    void run_direction(int d, Place& place, const Scratch& scratch) {
        const Steps steps = steps_of_direction(s_, offsets_, d);
        const Range rows = rows_of_part(steps, s_.rows, place.batch_part, place.batch_parts);
        for (int64_t first = 0; first < s_.time; first += chunk_) {
            const int64_t last = min(first + chunk_, s_.time);
            multiply_input(d, steps, rows, place.units, first, last, scratch);
            for (int64_t step = first; step < last; ++step) {
                const Moment now{d, steps, steps.time_of(step), step, step - first};
                if (steps.count(now.t) == 0 && s_.batch > 0) continue;  // every row has ended
                const Range active{rows.begin, min(rows.end, steps.count(now.t))};
                for (int i = 0; i < stages_; ++i) {
                    run_stage(now, i, active, place, scratch);
                    place.rows.wait();
                }
            }
        }
        write_final_state(d, steps, rows, place);
        if (!offsets_ || s_.packed) return;
        p_.bfloat16_sequences ? clear_rest(this->template y<Bfloat16>(d), steps, rows, columns_of(place))
                              : clear_rest(this->template y<T>(d), steps, rows, columns_of(place));
        if (p_.cell_states) clear_rest(this->cell_states(d), steps, rows, place.units);
    }

    // where the slots of a row lie: in the reserve when they are kept, else in the chunk's buffer
    T* slots_of(const Moment& now, int64_t b) const {
        if (keeps_slots_) {
            const int64_t row = now.d * s_.rows + now.steps.first_row(now.t) + b;
            return static_cast<T*>(p_.reserve) + row * k_.saved * hidden_padded_;
        }
        return buffers_[now.d].slots + (now.step_in_chunk * s_.batch + b) * k_.slots * hidden_padded_;
    }

    // calls body(a, c, count) with the addresses of the rows of x and of their slots, a block of rows at a time
    template <class Body>
    void for_each_input_block(int d, const Steps& steps, Range rows, int64_t first, int64_t last, const Body& body) {
        const T* a[kRowBlock];
        T* c[kRowBlock];
        int64_t filled = 0;
        for (int64_t step = first; step < last; ++step) {
            const Moment now{d, steps, steps.time_of(step), step, step - first};
            const int64_t end = min(rows.end, steps.count(now.t));
            for (int64_t b = rows.begin; b < end; ++b) {
                a[filled] = this->row_of_x(steps, now.t, b);
                c[filled] = slots_of(now, b);
                if (++filled == kRowBlock) {
                    body(a, c, filled);
                    filled = 0;
                }
            }
        }
        if (filled) body(a, c, filled);
    }

    void prepare(const Product<T>& product, const T* const* rows, int64_t count, T* out) const {
        if (product.form->prepare) product.form->prepare(product, rows, count, out, prepared_size_);
    }

    // the rows of a block as its product's form takes them
    struct PreparedRows {
        const T* place[kRowBlock];
        const T* const* rows;
        PreparedRows(const ForwardPass& pass, const Product<T>& product, const T* const* given, int64_t count,
                     const T* prepared)
            : rows(product.form->prepare ? place : given) {
            for (int64_t r = 0; product.form->prepare && r < count; ++r) place[r] = prepared + r * pass.prepared_size_;
        }
    };

    // the slots of rows of a chunk before any stage: biases, and the product with x
    void multiply_input(int d, const Steps& steps, Range rows, Range units, int64_t first, int64_t last,
                        const Scratch& scratch) {
        const T* bias = buffers_[d].bias;
        const Product<T>& ih = buffers_[d].ih;
        const auto for_each_block = [&](const auto& body) { for_each_input_block(d, steps, rows, first, last, body); };
        if (by_tiles_) {
            int64_t at = 0;
            for_each_block([&](const T* const* a, T* const*, int64_t count) {
                prepare(ih, a, count, scratch.prepared + at * prepared_size_);
                at += count;
            });
            Product<T> one = ih;
            for (int64_t u = units.begin; u < units.end; u += tile_) {
                const Range tile{u, min(u + tile_, units.end)};
                if (packs_tiles_) {
                    one.packed = scratch.tile;
                    one.first = u;
                    one.form->pack(one, tile);
                }
                at = 0;
                for_each_block([&](const T* const* a, T* const* c, int64_t count) {
                    const PreparedRows prepared(*this, ih, a, count, scratch.prepared + at * prepared_size_);
                    one.form->multiply(one, prepared.rows, count, tile, c, Init::bias, bias);
                    at += count;
                });
            }
        } else {
            for_each_block([&](const T* const* a, T* const* c, int64_t count) {
                prepare(ih, a, count, scratch.prepared);
                const PreparedRows prepared(*this, ih, a, count, scratch.prepared);
                ih.form->multiply(ih, prepared.rows, count, units, c, Init::bias, bias);
            });
        }
        for (int slot = 0; slot < k_.slots; ++slot) {
            if (k_.input.has(slot)) continue;  // others are fed by h alone
            const int64_t at = slot * hidden_padded_ + units.begin;
            for_each_input_block(d, steps, rows, first, last, [&](const T* const*, T* const* c, int64_t count) {
                for (int64_t r = 0; r < count; ++r) {
                    copy_part<T>(bias, c[r], {at, at + round_up(units.end - units.begin, kLanes)});
                }
            });
        }
    }

    // -- a stage of a step --------------------------------------------------------------------------------------------

    const T* previous_h(const Moment& now, int64_t b) const {
        return state_before(now.steps, now.step, b, p_.h0, zeros_, now.d, recurrent_,
                            [&] { return buffers_[now.d].h[now.step & 1] + b * recurrent_padded_; });
    }

    // what a stage's product multiplies
    const T* operand_row(const Moment& now, int stage, int64_t b) const {
        return stage == 0 ? previous_h(now, b) : buffers_[now.d].stages[stage - 1].handed_on + b * hidden_padded_;
    }

    // what a stage's product multiplies, as far as the heads of these units meet it, times the mask
    void mask_operands(const Moment& now, int stage, const T* mask, Range rows, Range units, T* masked) const {
        const int64_t length = buffers_[now.d].stages[stage].product.length, width = heads_.count * length;
        Range features{0, width};
        if (heads_.count > 1) {
            features = {units.begin / heads_.units * length, (units.end + heads_.units - 1) / heads_.units * length};
        }
        for (int64_t b = rows.begin; b < rows.end; ++b) {
            multiply_by_mask(operand_row(now, stage, b), mask + now.steps.row_of(b) * width, features, width,
                             Init::zero, masked + (b - rows.begin) * masked_padded_);
        }
    }

    // a block of rows, by their addresses
    struct Block {
        const T *operand[kRowBlock], *h[kRowBlock], *c[kMaxMemories][kRowBlock], *extra[kMaxOperands][kRowBlock];
        T *slots[kRowBlock], *c_next[kMaxMemories][kRowBlock], *out[kRowBlock], *y[kRowBlock];
        ForwardTile<T> tile;
    };

    void fill(Block& block, const Moment& now, int stage, int64_t first, int64_t count) const {
        const Buffers& buffers = buffers_[now.d];
        const Stage& current = buffers.stages[stage];
        const bool last = stage + 1 == stages_, writes = last && !p_.bfloat16_sequences;
        const Rows<T> y = this->template y<T>(now.d);
        T* const out = last ? buffers.h[(now.step + 1) & 1] : current.handed_on;
        const int64_t out_stride = last ? recurrent_padded_ : hidden_padded_;
        for (int64_t r = 0; r < count; ++r) {
            const int64_t b = first + r;
            block.slots[r] = slots_of(now, b);
            if (k_.reads_h) block.h[r] = previous_h(now, b);
            block.out[r] = out + b * out_stride;
            if (writes) block.y[r] = y.at(now.steps, now.t, b);
            if (k_.c_saved < 0) continue;
            T* const kept = buffers.c + b * k_.memories * hidden_padded_;
            const T* const before =
                state_before<T>(now.steps, now.step, b, p_.c0, zeros_, now.d, cell_width_, [&] { return kept; });
            place_memories(kept, hidden_padded_, k_.memories, r, block.c_next);
            place_memories(before, before == kept ? hidden_padded_ : s_.hidden, k_.memories, r, block.c);
        }
        ForwardTile<T>& tile = block.tile;
        tile.rows = count;
        tile.hidden = current.units;
        tile.padded = hidden_padded_;
        tile.slots = block.slots;
        tile.h = k_.reads_h ? block.h : nullptr;
        tile.c = block.c;
        tile.c_next = block.c_next;
        tile.out = block.out;
        tile.y = writes ? block.y : nullptr;
        tile.keeps = keeps_slots_;
        fill_operands(p_.weights[now.d], p_.functions, k_.operands, now.steps, now.t, first, count, block.extra, tile);
    }

    void run_stage(const Moment& now, int stage, Range rows, const Place& place, const Scratch& scratch) {
        const Stage& current = buffers_[now.d].stages[stage];
        const Product<T>& product = current.product;
        const ProductForm<T>* form = product.form;
        const bool projects = stage == k_.stages, after_all = k_.whole_rows && !projects;
        const T* const mask = projects ? nullptr : static_cast<const T*>(p_.weights[now.d].recurrent_mask);
        const auto given_row = [&](int64_t head, int64_t b) {
            const T* row = mask ? scratch.masked + (b - rows.begin) * masked_padded_ : operand_row(now, stage, b);
            return row + head * product.length;
        };
        if (mask && form) mask_operands(now, stage, mask, rows, place.units, scratch.masked);
        const auto prepared_row = [&](int64_t head, int64_t b) {
            return scratch.prepared + (head * head_rows_ + b - rows.begin) * prepared_size_;
        };
        const bool prepares = form && form->prepare;
        const auto prepare_head = [&](int64_t head, Range) {
            for (int64_t b = rows.begin; b < rows.end; b += kRowBlock) {
                const int64_t count = min(rows.end - b, kRowBlock);
                const T* given[kRowBlock];
                for (int64_t r = 0; r < count; ++r) given[r] = given_row(head, b + r);
                prepare(product, given, count, prepared_row(head, b));
            }
        };
        if (prepares) projects ? prepare_head(0, {}) : heads_.for_each(place.units, heads_.units, prepare_head);
        const Range units =
            projects ? split(current.units, current.tile, place.rows.rank(), place.rows.size()) : place.units;
        const int64_t tile = current.tile, tiles = (units.end - units.begin + tile - 1) / tile;
        const int64_t group = min(max(kRowsTogether / max(rows.end - rows.begin, 1), 1), kTilesTogether);
        const bool backwards = now.step % 2 == 1 && rows.end - rows.begin <= kRowsInTurns;
        const auto unit = [&](int64_t i) { return units.begin + (backwards ? tiles - 1 - i : i) * tile; };
        Block block;
        int64_t filled = -1, met = -1;  // the first row of those that it holds, and the head whose operands it has
        for (int64_t first = 0; first < tiles; first += group) {
            const int64_t last = min(first + group, tiles);
            for (int64_t b = rows.begin; b < rows.end; b += kRowBlock) {
                const int64_t count = min(rows.end - b, kRowBlock);
                if (filled != b) {
                    fill(block, now, stage, b, count);
                    filled = b;
                    met = -1;
                }
                for (int64_t i = first; form && i < last; ++i) {
                    const Range one{unit(i), min(unit(i) + tile, units.end)};
                    const int64_t head = projects || heads_.count == 1 ? 0 : one.begin / heads_.units;
                    for (int64_t r = 0; head != met && r < count; ++r) {
                        block.operand[r] = prepares ? prepared_row(head, b + r) : given_row(head, b + r);
                    }
                    met = head;
                    form->multiply(product, block.operand, count, one, projects ? block.out : block.slots,
                                   projects ? Init::zero : Init::accumulate, nullptr);
                }
                if (after_all) continue;
                block.tile.begin = min(unit(first), unit(last - 1));
                block.tile.end = min(max(unit(first), unit(last - 1)) + tile, units.end);
                run_tile(now, stage, b, block.tile);
            }
        }
        for (int64_t b = rows.begin; after_all && b < rows.end; b += kRowBlock) {
            fill(block, now, stage, b, min(rows.end - b, kRowBlock));
            block.tile.begin = units.begin;
            block.tile.end = units.end;
            run_tile(now, stage, b, block.tile);
        }
    }

    // the cell's arithmetic on rows from `first` on
    void run_tile(const Moment& now, int stage, int64_t first, const ForwardTile<T>& tile) const {
        buffers_[now.d].stages[stage].arithmetic(tile);
        if (stage + 1 == stages_ && p_.bfloat16_sequences) round_output(now, first, tile);
        if (!p_.cell_states || stage + 1 != k_.stages) return;
        const Rows<T> to = this->cell_states(now.d);
        for (int64_t r = 0; r < tile.rows; ++r) {
            copy_part<T>(tile.c_next[0][r], to.at(now.steps, now.t, first + r), {tile.begin, tile.end});
        }
    }

    // h' to y
    void round_output(const Moment& now, int64_t first, const ForwardTile<T>& tile) const {
        if constexpr (sizeof(T) == sizeof(float)) {
            const Rows<Bfloat16> y = this->template y<Bfloat16>(now.d);
            for (int64_t r = 0; r < tile.rows; ++r) {
                round_to_stored(tile.out[r] + tile.begin, y.at(now.steps, now.t, first + r) + tile.begin,
                                tile.end - tile.begin);
            }
        }
    }

    // -- the end ------------------------------------------------------------------------------------------------------

    // this thread's part of the features of h
    Range columns_of(const Place& place) const {
        return s_.projection ? split(recurrent_, kLanes * kWide, place.rows.rank(), place.rows.size()) : place.units;
    }

    void write_final_state(int d, const Steps& steps, Range rows, const Place& place) {
        const Range columns = columns_of(place), units = place.units;
        for (int64_t b = rows.begin; b < rows.end; ++b) {
            const int64_t length = steps.length(b), taken = steps.reverse ? s_.time : length;
            const int64_t row = d * s_.batch + steps.row_of(b);
            const T* const h = length > 0 ? buffers_[d].h[taken & 1] + b * recurrent_padded_
                                          : state_row(p_.h0, zeros_, steps, d, b, recurrent_);
            copy_part(h, static_cast<T*>(p_.h_n) + row * recurrent_, columns);
            if (k_.c_saved < 0) continue;
            const T* const c = length > 0 ? buffers_[d].c + b * k_.memories * hidden_padded_
                                          : state_row(p_.c0, zeros_, steps, d, b, cell_width_);
            for (int m = 0; m < k_.memories; ++m) {
                copy_part(c + m * (length > 0 ? hidden_padded_ : s_.hidden),
                          static_cast<T*>(p_.c_n) + row * cell_width_ + m * s_.hidden, units);
            }
        }
    }
};

}  // namespace
}  // namespace fastrnn
