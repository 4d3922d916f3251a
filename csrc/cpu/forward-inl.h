// The forward pass of a layer: one parallel region; in it, for each chunk of time steps, the product with x for all of
// the chunk at once, then step by step the product with h and the cell.
//
// Weights are packed once a call, but for those of h where a step has too few rows, and those of x where one chunk
// holds all steps, which are then packed a tile at a time. A block of rows stays with a tile of units from the product
// to the cell, so that the gates are read back from the nearest cache.
//
// Cost: max(2 N G H (I + R) / peak, T x bytes of packed weights / bandwidth), plus a barrier a step where units are
// split.
#pragma once

#include "forward-layout-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kRowsInTurns = 16;
constexpr int64_t kRowsTogether = 4, kTilesTogether = 4;

template <class T, class C>
class ForwardPass : ForwardLayout<T, C> {
    using V = Vec<T>;
    using Layout = ForwardLayout<T, C>;
    using Layout::arena_, Layout::buffers_, Layout::chunk_, Layout::flags_, Layout::hidden_padded_;
    using Layout::keeps_slots_, Layout::kTile, Layout::offsets_, Layout::p_, Layout::packs_tiles_, Layout::prepared_;
    using Layout::prepared_rows_, Layout::prepared_size_, Layout::recurrent_, Layout::recurrent_padded_, Layout::s_;
    using Layout::threads_, Layout::tile_size, Layout::tiles_, Layout::weight_size_, Layout::zeros_;
    using typename Layout::Buffers;
    static constexpr int64_t kLanes = V::kLanes;
    static constexpr int kStored = C::kSaved > C::kSlots ? C::kSaved : C::kSlots;

   public:
    static size_t workspace_bytes(const ForwardParams& params) {
        ForwardPass pass(params, nullptr);
        return pass.arena_.used();
    }

    static void run(const ForwardParams& params) {
        ForwardPass pass(params, params.workspace);
        fill_offsets(params.shape, pass.offsets_);
        __builtin_memset(pass.flags_, 0, sizeof(Flag) * 3 * static_cast<size_t>(pass.threads_));
        __builtin_memset(pass.zeros_, 0, sizeof(T) * static_cast<size_t>(pass.recurrent_));
        run_team(pass.threads_, [&pass](int thread, int threads) { pass.work(thread, threads); });
    }

    static Plan plan(const ForwardParams& params) {
        const ForwardPass pass(params, nullptr);
        const int threads = threads_of_first(params.shape.directions, pass.threads_);
        const Schedule schedule =
            choose_schedule(params.shape, C::kGates, kTile, pass.weight_size_, pass.barriers(), threads);
        return {pass.threads_, schedule.batch_parts, schedule.unit_parts, schedule.seconds};
    }

   private:
    using Layout::Layout;

    // what a thread works in beside the buffers that all share
    struct Scratch {
        T* tile;
        T* prepared;  // rows of x or h as weights of fewer bits meet them
    };

    int barriers() const { return (C::kResetBefore ? 2 : 1) + (s_.projection ? 1 : 0); }  // a step

    void work(int thread, int threads) {
        Place place = find_place(s_, C::kGates, kTile, weight_size_, barriers(), flags_, threads, thread);
        for (int d = place.first_direction; d <= place.last_direction; ++d) {
            prepare(d, place);
            const Scratch scratch{tiles_ + thread * tile_size(), prepared_ + thread * prepared_rows_ * prepared_size_};
            if (place.works) run_direction(d, place, scratch);
        }
    }

    // -- weights ------------------------------------------------------------------------------------------------------

    void prepare(int d, Place& place) {
        const Weights& w = p_.weights[d];
        Buffers& b = buffers_[d];
        const Range share = split(s_.hidden, kTile, place.direction.rank(), place.direction.size());
        sum_biases<T, C>(w, s_.hidden, b.bias, share);
        panels_.pack(b.ih, share);
        panels_.pack(b.hh, share);
        panels_.pack(b.candidate, share);
        if (s_.projection) {
            const Range columns = split(recurrent_, kLanes * kWide, place.direction.rank(), place.direction.size());
            pack_wide_transposed(Matrix<T>{w.w_hr, s_.hidden, p_.format}, 0, recurrent_,
                                 b.packed_hr + columns.begin * s_.hidden, columns);
        }
        place.direction.wait();
    }

    // -- the loop over time -------------------------------------------------------------------------------------------

    void run_direction(int d, Place& place, const Scratch& scratch) {
        const Steps steps{s_.time, s_.batch, s_.batch_sizes, offsets_, d == 1};
        const Range rows = rows_of_part(steps, s_.rows, place.batch_part, place.batch_parts);
        for (int64_t first = 0; first < s_.time; first += chunk_) {
            const int64_t last = first + chunk_ < s_.time ? first + chunk_ : s_.time;
            multiply_input(d, steps, rows, place.units, first, last, scratch);
            for (int64_t step = first; step < last; ++step) {
                run_step(d, steps, rows, place, step, step - first, scratch);
                place.rows.wait();
            }
        }
        write_final_state(d, steps, rows, place);
    }

    // where the slots of a row lie: in the reserve when they are kept, else in the chunk's buffer
    T* slots_of(int d, const Steps& steps, int64_t t, int64_t b, int64_t step_in_chunk) const {
        if (keeps_slots_) {
            const int64_t row = d * s_.rows + steps.first_row(t) + b;
            return static_cast<T*>(p_.reserve) + row * C::kSaved * hidden_padded_;
        }
        return buffers_[d].slots + (step_in_chunk * s_.batch + b) * C::kSlots * hidden_padded_;
    }

    // calls body(a, c, count) with the addresses of the rows of x and of their slots, a block of rows at a time
    template <class Body>
    void for_each_input_block(int d, const Steps& steps, Range rows, int64_t first, int64_t last, const Body& body) {
        const Rows<const T> x{static_cast<const T*>(p_.x), p_.x_stride_time, p_.x_stride_batch};
        const T* a[kRowBlock];
        T* c[kRowBlock];
        int64_t filled = 0;
        for (int64_t step = first; step < last; ++step) {
            const int64_t t = steps.time_of(step);
            const int64_t end = Steps::min(rows.end, steps.count(t));
            for (int64_t b = rows.begin; b < end; ++b) {
                a[filled] = x.at(steps, t, b);
                c[filled] = slots_of(d, steps, t, b, step - first);
                if (++filled == kRowBlock) {
                    body(a, c, filled);
                    filled = 0;
                }
            }
        }
        if (filled) body(a, c, filled);
    }

    void multiply_input(int d, const Steps& steps, Range rows, Range units, int64_t first, int64_t last,
                        const Scratch& scratch) {
        const T* bias = buffers_[d].bias;
        GateWeights<T> ih = buffers_[d].ih;
        if (packs_tiles_) {
            ih.packed = scratch.tile;
            for (int64_t u = units.begin; u < units.end; u += kTile) {
                ih.first = u;
                panels_.pack(ih, {u, Steps::min(u + kTile, units.end)});
                for_each_input_block(d, steps, rows, first, last, [&](const T* const* a, T* const* c, int64_t count) {
                    panels_.multiply(ih, a, count, u, c, Init::bias, bias);
                });
            }
        }
        for_each_input_block(d, steps, rows, first, last, [&](const T* const* a, T* const* c, int64_t count) {
            const T* prepared[kRowBlock];
            for (int64_t r = 0; ih.prepares() && r < count; ++r) {
                T* row = scratch.prepared + r * prepared_size_;
                ih.prepare(a[r], row);
                prepared[r] = row;
            }
            if (ih.prepares()) a = prepared;
            for (int64_t u = units.begin; u < units.end && !packs_tiles_; u += kTile) {
                panels_.multiply(ih, a, count, u, c, Init::bias, bias);
            }
            for (int slot = C::kInputBegin + C::kInputCount; slot < C::kSlots; ++slot) {  // fed by h alone
                const int64_t at = slot * hidden_padded_ + units.begin;
                for (int64_t r = 0; r < count; ++r) {
                    copy(bias + at, c[r] + at, round_up(units.end - units.begin, kLanes));
                }
            }
        });
    }

    // the state of row b before a step, contiguous; padded to whole vectors only where it was carried over
    const T* previous_h(int d, int64_t b, int64_t carried, int64_t step) const {
        if (b < carried) return buffers_[d].h[step & 1] + b * recurrent_padded_;
        return p_.h0 ? static_cast<const T*>(p_.h0) + (d * s_.batch + b) * recurrent_ : zeros_;
    }

    V load_units(const T* row, int64_t u, bool padded) const {
        return padded || u + kLanes <= s_.hidden ? V::load(row + u) : load_partial(row + u, s_.hidden - u);
    }

    void run_step(int d, const Steps& steps, Range rows, Place& place, int64_t step, int64_t step_in_chunk,
                  const Scratch& scratch) {
        const int64_t t = steps.time_of(step), end = Steps::min(rows.end, steps.count(t)),
                      carried = steps.carried(step);
        Buffers& buffers = buffers_[d];
        // every other step of a few rows begins with the weights that the step before read last, which are still near
        const bool backwards = step % 2 == 1 && end - rows.begin <= kRowsInTurns;
        // a block of rows stays with a tile of units from the product to the cell; few rows stay with a few tiles, for
        // the arithmetic of one cell is a long chain that leaves the core idle
        const auto for_each_tile = [&](const auto& multiply, const auto& finish) {
            const Range units = place.units;
            const int64_t tiles = (units.end - units.begin + kTile - 1) / kTile;
            const int64_t group = end - rows.begin <= kRowsTogether ? kTilesTogether : 1;
            const auto unit = [&](int64_t i) { return units.begin + (backwards ? tiles - 1 - i : i) * kTile; };
            const T* h[kRowBlock];
            T* slots[kRowBlock];
            int64_t filled = -1;  // the block of rows whose addresses they hold
            for (int64_t first = 0; first < tiles; first += group) {
                const int64_t last = Steps::min(first + group, tiles);
                for (int64_t b = rows.begin; b < end; b += kRowBlock) {
                    const int64_t count = end - b < kRowBlock ? end - b : kRowBlock;
                    for (int64_t r = 0; filled != b && r < count; ++r) {
                        h[r] = previous_h(d, b + r, carried, step);
                        slots[r] = slots_of(d, steps, t, b + r, step_in_chunk);
                    }
                    filled = b;
                    for (int64_t i = first; i < last; ++i) multiply(unit(i), b, count, h, slots);
                    for (int64_t i = first; i < last; ++i) finish(unit(i), b, count, h, slots);
                }
            }
        };
        const bool prepares = buffers.hh.prepares();
        const auto prepared_row = [&](int64_t b) { return scratch.prepared + (b - rows.begin) * prepared_size_; };
        const auto add_product = [&](const GateWeights<T>& weights, const T* const* a, int64_t b, int64_t count,
                                     int64_t u, T* const* slots) {
            const T* prepared[kRowBlock];
            for (int64_t r = 0; prepares && r < count; ++r) prepared[r] = prepared_row(b + r);
            panels_.multiply(weights, prepares ? prepared : a, count, u, slots, Init::accumulate, buffers.bias);
        };
        for (int64_t b = rows.begin; prepares && b < end; ++b) {
            buffers.hh.prepare(previous_h(d, b, carried, step), prepared_row(b));
        }
        if constexpr (C::kResetBefore) {
            for_each_tile([&](int64_t u, int64_t b, int64_t count, const T* const* h,
                              T* const* slots) { add_product(buffers.hh, h, b, count, u, slots); },
                          [&](int64_t u, int64_t b, int64_t count, const T* const* h, T* const* slots) {
                              reset_tile(d, u, b, count, carried, h, slots);
                          });
            place.rows.wait();
            for (int64_t b = rows.begin; prepares && b < end; ++b) {
                buffers.candidate.prepare(buffers.reset_h + b * hidden_padded_, prepared_row(b));
            }
        }
        for_each_tile(
            [&](int64_t u, int64_t b, int64_t count, const T* const* h, T* const* slots) {
                if constexpr (C::kResetBefore) {
                    const T* reset_h[kRowBlock];
                    for (int64_t r = 0; r < count; ++r) reset_h[r] = buffers.reset_h + (b + r) * hidden_padded_;
                    add_product(buffers.candidate, reset_h, b, count, u, slots);
                } else {
                    add_product(buffers.hh, h, b, count, u, slots);
                }
            },
            [&](int64_t u, int64_t b, int64_t count, const T* const* h, T* const* slots) {
                cell_tile(d, steps, t, step, u, b, count, carried, h, slots);
            });
        if (s_.projection) {
            place.rows.wait();
            project(d, steps, {rows.begin, end}, place, t, step);
        }
    }

    void reset_tile(int d, int64_t u, int64_t b, int64_t count, int64_t carried, const T* const* h, T* const* slots) {
        for (int64_t v = u; v < u + kTile && v < s_.hidden; v += kLanes) {
            for (int64_t r = 0; r < count; ++r) {
                V slot[kStored];
                for (int i = 0; i < C::kSlots; ++i) slot[i] = V::load(slots[r] + i * hidden_padded_ + v);
                if constexpr (C::kResetBefore) {
                    C::reset(slot, load_units(h[r], v, b + r < carried))
                        .store(buffers_[d].reset_h + (b + r) * hidden_padded_ + v);
                }
                for (int i = 1; i < C::kSlots; ++i) slot[i].store(slots[r] + i * hidden_padded_ + v);
            }
        }
    }

    void cell_tile(int d, const Steps& steps, int64_t t, int64_t step, int64_t u, int64_t b, int64_t count,
                   int64_t carried, const T* const* h, T* const* slots) {
        Buffers& buffers = buffers_[d];
        const Rows<T> y{static_cast<T*>(p_.y) + d * recurrent_, p_.y_stride_time, p_.y_stride_batch};
        const T* c0 = C::kHasCellState && p_.c0 ? static_cast<const T*>(p_.c0) + d * s_.batch * s_.hidden : nullptr;
        for (int64_t r = 0; r < count; ++r) {
            const int64_t row = b + r;
            T* y_row = y.at(steps, t, row);
            for (int64_t v = u; v < u + kTile && v < s_.hidden; v += kLanes) {
                V slot[kStored], h_next, h_previous{T(0)}, c{T(0)};
                for (int i = 0; i < C::kSlots; ++i) slot[i] = V::load(slots[r] + i * hidden_padded_ + v);
                if constexpr (C::kDirectPath) h_previous = load_units(h[r], v, row < carried);
                T* c_row = buffers.c + row * hidden_padded_ + v;
                if constexpr (C::kHasCellState) {
                    if (row < carried) {
                        c = V::load(c_row);
                    } else if (c0) {
                        c = load_units(c0 + row * s_.hidden, v, false);
                    }
                }
                C::forward(slot, h_previous, c, h_next);
                if constexpr (C::kHasCellState) c.store(c_row);
                if (keeps_slots_) {
                    for (int i = 0; i < C::kSaved; ++i) slot[i].store(slots[r] + i * hidden_padded_ + v);
                }
                if (s_.projection) {
                    h_next.store(buffers.unprojected + row * hidden_padded_ + v);
                    continue;
                }
                h_next.store(buffers.h[(step + 1) & 1] + row * recurrent_padded_ + v);
                if (v + kLanes <= s_.hidden) {
                    h_next.store(y_row + v);
                } else {
                    store_partial(h_next, y_row + v, s_.hidden - v);
                }
            }
        }
    }

    // h = W_hr (o act(c)) for this thread's part of the projected features
    void project(int d, const Steps& steps, Range rows, const Place& place, int64_t t, int64_t step) {
        Buffers& buffers = buffers_[d];
        const Rows<T> y{static_cast<T*>(p_.y) + d * recurrent_, p_.y_stride_time, p_.y_stride_batch};
        const Range columns = split(recurrent_, kLanes * kWide, place.rows.rank(), place.rows.size());
        T* next = buffers.h[(step + 1) & 1];
        const T* a[kRowBlock];
        T* c[kRowBlock];
        for (int64_t b = rows.begin; b < rows.end; b += kRowBlock) {
            const int64_t count = rows.end - b < kRowBlock ? rows.end - b : kRowBlock;
            for (int64_t u = columns.begin; u < columns.end; u += kLanes * kWide) {
                for (int64_t r = 0; r < count; ++r) {
                    a[r] = buffers.unprojected + (b + r) * hidden_padded_;
                    c[r] = next + (b + r) * recurrent_padded_ + u;
                }
                multiply_panel(wide_vectors<T>(recurrent_ - u), a, count, panels_.along(s_.hidden),
                               buffers.packed_hr + u * s_.hidden, c, kLanes, Init::zero,
                               static_cast<const T*>(nullptr));
                for (int64_t r = 0; r < count; ++r) {
                    copy(c[r], y.at(steps, t, b + r) + u, Steps::min(kLanes * kWide, recurrent_ - u));
                }
            }
        }
    }

    static void copy(const T* from, T* to, int64_t count) {
        __builtin_memcpy(to, from, sizeof(T) * static_cast<size_t>(count));
    }

    void write_final_state(int d, const Steps& steps, Range rows, const Place& place) {
        const Range columns =
            s_.projection ? split(recurrent_, kLanes * kWide, place.rows.rank(), place.rows.size()) : place.units;
        for (int64_t b = rows.begin; b < rows.end; ++b) {
            const int64_t taken = steps.reverse ? s_.time : steps.length(b);
            T* h_n = static_cast<T*>(p_.h_n) + (d * s_.batch + b) * recurrent_;
            copy(buffers_[d].h[taken & 1] + b * recurrent_padded_ + columns.begin, h_n + columns.begin,
                 columns.end - columns.begin);
            if constexpr (C::kHasCellState) {
                T* c_n = static_cast<T*>(p_.c_n) + (d * s_.batch + b) * s_.hidden;
                copy(buffers_[d].c + b * hidden_padded_ + place.units.begin, c_n + place.units.begin,
                     place.units.end - place.units.begin);
            }
        }
    }

    const GatePanels<T, C> panels_{s_.hidden};
};

}  // namespace
}  // namespace fastrnn
