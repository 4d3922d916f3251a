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

#include "panels-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // preactivations of a chunk, a thread
constexpr int64_t kRowsInTurns = 16;
constexpr int64_t kUnpackedRows = 8;  // up to here reading the weights as they lie beats packing them
// and so does it for so few rows a step, below so many steps; many more where two copies crowd the caches
constexpr int64_t kUnpackedBatch = 2, kUnpackedSteps = 48, kUnpackedStepsFar = 256, kFarBytes = 6 << 20;

template <class T, class C>
class ForwardPass {
    using V = Vec<T>;
    static constexpr int64_t kLanes = V::kLanes;
    static constexpr int64_t kTile = GatePanels<T, C>::kTile;
    static constexpr int kStored = C::kSaved > C::kSlots ? C::kSaved : C::kSlots;
    static constexpr int kBarriers = C::kResetBefore ? 2 : 1;

    // a direction's arrays in the workspace
    struct Buffers {
        GateWeights<T> ih, hh, candidate;
        T* packed_hr;
        T* bias;         // [kSlots, Hp]
        T* h[2];         // [B, Rp] each: the state before and after a step take turns
        T* c;            // [B, Hp]
        T* unprojected;  // [B, Hp]
        T* reset_h;      // [B, Hp]
        T* slots;        // [chunk rows, kSlots, Hp], where the reserve does not hold them
    };

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

   private:
    ForwardPass(const ForwardParams& params, void* workspace)
        : p_(params),
          s_(params.shape),
          recurrent_(s_.projection ? s_.projection : s_.hidden),
          hidden_padded_(padded_units(s_.hidden)),
          recurrent_padded_(padded_units(recurrent_)),
          panels_(s_.hidden),
          keeps_slots_(params.reserve && C::kSaved >= C::kSlots),
          arena_(workspace) {
        threads_ = useful_threads(s_, C::kGates, 1, params.threads);
        const int64_t row_bytes = C::kSlots * hidden_padded_ * static_cast<int64_t>(sizeof(T));
        const int64_t step_bytes = row_bytes * s_.batch;
        const int64_t weight_bytes = C::kGates * s_.hidden * recurrent_ * static_cast<int64_t>(sizeof(T));
        const int64_t chunk_bytes =
            kChunkBytes * threads_ > weight_bytes / 4 ? kChunkBytes * threads_ : weight_bytes / 4;
        chunk_ = step_bytes ? chunk_bytes / step_bytes : 1;
        if (chunk_ * s_.batch < 24 * threads_) chunk_ = s_.batch ? 24 * threads_ / s_.batch : 1;
        if (chunk_ < 1) chunk_ = 1;
        if (chunk_ > s_.time) chunk_ = s_.time;
        flags_ = arena_.take<Flag>(3 * threads_);
        offsets_ = arena_.take<int64_t>(s_.batch_sizes ? s_.time : 0);
        zeros_ = arena_.take<T>(recurrent_);
        packs_tiles_ = s_.rows > kUnpackedRows && chunk_ == s_.time;
        tiles_ = arena_.take<T>(packs_tiles_ ? threads_ * tile_size() : 0);
        for (int d = 0; d < s_.directions; ++d) {
            Buffers& b = buffers_[d];
            const Weights& w = p_.weights[d];
            const bool packs_h =
                s_.rows > kUnpackedRows && (s_.batch > kUnpackedBatch ||
                                            s_.time >= (weight_bytes > kFarBytes ? kUnpackedStepsFar : kUnpackedSteps));
            const bool packs_x = s_.rows > kUnpackedRows && chunk_ < s_.time;
            const auto weights_of = [&](const void* rows, int64_t length, int begin, int count, bool packs) {
                T* packed = packs ? arena_.take<T>(length * count * hidden_padded_) : nullptr;
                return GateWeights<T>{weight(rows), packed, length, begin, count};
            };
            b.ih = weights_of(w.w_ih, s_.input, C::kInputBegin, C::kInputCount, packs_x);
            b.hh = weights_of(w.w_hh, recurrent_, C::kRecurrentBegin, C::kRecurrentCount, packs_h);
            b.candidate = weights_of(w.w_hh, recurrent_, 0, 1, packs_h && C::kResetBefore);
            b.packed_hr = arena_.take<T>(s_.projection ? s_.hidden * recurrent_padded_ : 0);
            b.bias = arena_.take<T>(C::kSlots * hidden_padded_);
            b.h[0] = arena_.take<T>(s_.batch * recurrent_padded_);
            b.h[1] = arena_.take<T>(s_.batch * recurrent_padded_);
            b.c = arena_.take<T>(C::kHasCellState ? s_.batch * hidden_padded_ : 0);
            b.unprojected = arena_.take<T>(s_.projection ? s_.batch * hidden_padded_ : 0);
            b.reset_h = arena_.take<T>(C::kResetBefore ? s_.batch * hidden_padded_ : 0);
            b.slots = arena_.take<T>(keeps_slots_ ? 0 : chunk_ * s_.batch * C::kSlots * hidden_padded_);
        }
    }

    void work(int thread, int threads) {
        Place place =
            find_place(s_, C::kGates, kTile, sizeof(T), kBarriers + (s_.projection ? 1 : 0), flags_, threads, thread);
        for (int d = place.first_direction; d <= place.last_direction; ++d) {
            prepare(d, place);
            if (place.works) run_direction(d, place, tiles_ + thread * tile_size());
        }
    }

    int64_t tile_size() const { return s_.input * C::kInputCount * round_up(kTile, kUnitAlignment); }

    // -- weights ------------------------------------------------------------------------------------------------------

    static const T* weight(const void* w) { return static_cast<const T*>(w); }

    void prepare(int d, Place& place) {
        const Weights& w = p_.weights[d];
        Buffers& b = buffers_[d];
        const Range share = split(s_.hidden, kTile, place.direction.rank(), place.direction.size());
        prepare_bias(w, b.bias, share);
        panels_.pack(b.ih, share);
        panels_.pack(b.hh, share);
        panels_.pack(b.candidate, share);
        if (s_.projection) {
            const Range columns = split(recurrent_, kLanes * kWide, place.direction.rank(), place.direction.size());
            pack_wide_transposed(weight(w.w_hr), s_.hidden, recurrent_, b.packed_hr + columns.begin * s_.hidden,
                                 columns);
        }
        place.direction.wait();
    }

    void prepare_bias(const Weights& w, T* bias, Range units) {
        const T *b_ih = weight(w.b_ih), *b_hh = weight(w.b_hh);
        for (int slot = 0; slot < C::kSlots; ++slot) {
            const bool from_x = slot >= C::kInputBegin && slot < C::kInputBegin + C::kInputCount;
            const bool from_h =
                C::kResetBefore || (slot >= C::kRecurrentBegin && slot < C::kRecurrentBegin + C::kRecurrentCount);
            const int64_t at = C::gate_of_slot(slot) * s_.hidden;
            for (int64_t u = units.begin; u < units.end; ++u) {
                bias[slot * hidden_padded_ + u] =
                    b_ih ? (from_x ? b_ih[at + u] : T(0)) + (from_h ? b_hh[at + u] : T(0)) : T(0);
            }
            if (units.begin < units.end && units.end == s_.hidden) {
                for (int64_t u = units.end; u < hidden_padded_; ++u) bias[slot * hidden_padded_ + u] = T(0);
            }
        }
    }

    // -- the loop over time -------------------------------------------------------------------------------------------

    void run_direction(int d, Place& place, T* tile) {
        const Steps steps{s_.time, s_.batch, s_.batch_sizes, offsets_, d == 1};
        const Range rows = rows_of_part(steps, s_.rows, place.batch_part, place.batch_parts);
        for (int64_t first = 0; first < s_.time; first += chunk_) {
            const int64_t last = first + chunk_ < s_.time ? first + chunk_ : s_.time;
            multiply_input(d, steps, rows, place.units, first, last, tile);
            for (int64_t step = first; step < last; ++step) {
                run_step(d, steps, rows, place, step, step - first);
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

    void multiply_input(int d, const Steps& steps, Range rows, Range units, int64_t first, int64_t last, T* tile) {
        const T* bias = buffers_[d].bias;
        GateWeights<T> ih = buffers_[d].ih;
        if (packs_tiles_) {
            ih.packed = tile;
            for (int64_t u = units.begin; u < units.end; u += kTile) {
                ih.first = u;
                panels_.pack(ih, {u, Steps::min(u + kTile, units.end)});
                for_each_input_block(d, steps, rows, first, last, [&](const T* const* a, T* const* c, int64_t count) {
                    panels_.multiply(ih, a, count, u, c, Init::bias, bias);
                });
            }
        }
        for_each_input_block(d, steps, rows, first, last, [&](const T* const* a, T* const* c, int64_t count) {
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

    void run_step(int d, const Steps& steps, Range rows, Place& place, int64_t step, int64_t step_in_chunk) {
        const int64_t t = steps.time_of(step), end = Steps::min(rows.end, steps.count(t)),
                      carried = steps.carried(step);
        Buffers& buffers = buffers_[d];
        // every other step of a few rows begins with the weights that the step before read last, which are still near
        const bool backwards = step % 2 == 1 && end - rows.begin <= kRowsInTurns;
        // a block of rows stays with a tile of units from the product to the cell
        const auto for_each_block = [&](const auto& body) {
            const Range units = place.units;
            const int64_t tiles = (units.end - units.begin + kTile - 1) / kTile;
            for (int64_t i = 0; i < tiles; ++i) {
                const int64_t u = units.begin + (backwards ? tiles - 1 - i : i) * kTile;
                for (int64_t b = rows.begin; b < end; b += kRowBlock) {
                    const int64_t count = end - b < kRowBlock ? end - b : kRowBlock;
                    const T* h[kRowBlock];
                    T* slots[kRowBlock];
                    for (int64_t r = 0; r < count; ++r) {
                        h[r] = previous_h(d, b + r, carried, step);
                        slots[r] = slots_of(d, steps, t, b + r, step_in_chunk);
                    }
                    body(u, b, count, h, slots);
                }
            }
        };
        if constexpr (C::kResetBefore) {
            for_each_block([&](int64_t u, int64_t b, int64_t count, const T* const* h, T* const* slots) {
                panels_.multiply(buffers.hh, h, count, u, slots, Init::accumulate, buffers.bias);
                reset_tile(d, u, b, count, carried, h, slots);
            });
            place.rows.wait();
        }
        for_each_block([&](int64_t u, int64_t b, int64_t count, const T* const* h, T* const* slots) {
            if constexpr (C::kResetBefore) {
                const T* reset_h[kRowBlock];
                for (int64_t r = 0; r < count; ++r) reset_h[r] = buffers.reset_h + (b + r) * hidden_padded_;
                panels_.multiply(buffers.candidate, reset_h, count, u, slots, Init::accumulate, buffers.bias);
            } else {
                panels_.multiply(buffers.hh, h, count, u, slots, Init::accumulate, buffers.bias);
            }
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

    const ForwardParams& p_;
    const Shape& s_;
    const int64_t recurrent_, hidden_padded_, recurrent_padded_;
    const GatePanels<T, C> panels_;
    const bool keeps_slots_;  // the reserve holds the slots
    Arena arena_;
    int threads_;
    int64_t chunk_;  // time steps whose product with x is made at once
    Flag* flags_;
    int64_t* offsets_;
    T* zeros_;  // [R]
    bool packs_tiles_;
    T* tiles_;  // a tile of packed w_ih for each thread
    Buffers buffers_[2];
};

}  // namespace
}  // namespace fastrnn
