// What a forward pass works in: choices that follow from the sizes, and arrays in the workspace.
#pragma once

#include "functions-inl.h"
#include "mask-inl.h"
#include "storage-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // preactivations of a chunk, a thread
constexpr int64_t kUnpackedRows = 8;         // up to here reading the weights as they lie beats packing them
// and so does it for few rows a step (kUnpackedBatch), below so many steps; many more where two copies crowd the caches
constexpr int64_t kUnpackedSteps = 48, kUnpackedStepsFar = 256, kFarBytes = 6 << 20;

// What a vector of weights costs in multiply-adds of vectors, of which packed weights take one a row: to be packed, and
// to meet a vector of rows in their lanes.
constexpr double kPackingCost = 13, kLanesCost = 1.1;

// up to so many rows a step begins with the weights that the step before read last, which are still near
constexpr int64_t kRowsInTurns = 16;
// Few rows stay with several tiles from the product to the cell, about so many rows times tiles: the arithmetic of one
// cell is a long chain that leaves the core idle, and a call of a tile's functions takes its time too. With one row, 8
// tiles instead of 4 gained 3 per cent at H 128; with 8 rows, 4 instead of 1 gained 4.
constexpr int64_t kRowsTogether = 32, kTilesTogether = 8;

constexpr int kMaxStages = kMaxCellStages + 1;  // the projection is one more

template <class T>
struct ForwardLayout {
    static constexpr int64_t kLanes = Vec<T>::kLanes;

    // A stage of a step (cells/cell.h). The projection is the last one: its slots are h' itself, made anew.
    struct Stage {
        Product<T> product;
        ForwardFunction<T> arithmetic;
        int64_t units, tile;  // H, or R of the projection, and how many of them one tile has
        T* handed_on;         // [B, Hp]; null: h'
    };

    // a direction's arrays in the workspace
    struct Buffers {
        Product<T> ih;
        Stage stages[kMaxStages];
        T* bias;   // [slots, Hp]
        T* h[2];   // [B, Rp] each: the state before and after a step take turns
        T* c;      // [B, M, Hp]
        T* slots;  // [chunk rows, slots, Hp], where the reserve does not hold them
    };

    ForwardLayout(const ForwardParams& params, const Bfloat16Unit* unit, void* workspace)
        : p_(params),
          s_(params.shape),
          cell_(cell_functions<T>(params.cell, params.functions)),
          k_(traits_in_call(cell_.traits, params.weights[0])),
          unit_(params.bfloat16_sequences && params.rounds_operands ? unit : nullptr),
          storage_(params.bfloat16_sequences ? storage_of_bfloat16<T>(false, unit_) : storage_of<T>(params.format)),
          storage_of_x_(params.bfloat16_sequences ? storage_of_bfloat16<T>(true, unit_) : storage_),
          stages_(k_.stages + (s_.projection ? 1 : 0)),
          heads_(Heads::of(s_)),
          tile_(tile_units<T>(k_, heads_)),
          recurrent_(s_.projection ? s_.projection : s_.hidden),
          cell_width_(k_.memories * s_.hidden),
          hidden_padded_(padded_units(s_.hidden)),
          recurrent_padded_(padded_units(recurrent_)),
          masked_padded_(max(hidden_padded_, recurrent_padded_)),
          keeps_slots_(params.reserve && k_.saved > 0),
          arena_(workspace) {
        threads_ = useful_threads(s_, k_.gates, storage_.arithmetic, 1, params.threads);
        const bool apart = !k_.whole_rows && heads_.part(s_, threads_of_first(s_.directions == 2, threads_));
        barriers_ = apart || k_.recurrent[0].count == 0 ? 0 : stages_;
        grain_ = k_.whole_rows ? round_up(max(s_.hidden, 1), tile_)
                 : apart       ? heads_.units
                               : max(tile_, 64 / static_cast<int64_t>(sizeof(T)));
        const int64_t row_bytes = k_.slots * hidden_padded_ * static_cast<int64_t>(sizeof(T));
        const int64_t weight_bytes = k_.gates * s_.hidden * heads_.length * storage_.arithmetic.bytes;
        choose_chunk(row_bytes * s_.batch, weight_bytes);
        flags_ = arena_.take<Flag>(3 * threads_);
        offsets_ = s_.batch_sizes ? arena_.take<int64_t>(s_.time + 1) : nullptr;
        zeros_ = arena_.take<T>(max(cell_width_, recurrent_));
        const ProductForm<T>* const x_form = form_for(storage_of_x_, s_.rows, 1, s_.rows > kUnpackedRows);
        const ProductForm<T>* const h_form =
            form_for(storage_, s_.batch, s_.time, s_.rows > kUnpackedRows && packs_recurrent(weight_bytes));
        packs_tiles_ = x_form == storage_of_x_.packed && chunk_ == s_.time;
        by_tiles_ = packs_tiles_ || x_form == storage_of_x_.in_lanes;
        for (int d = 0; d < s_.directions; ++d) lay_out(buffers_[d], p_.weights[d], x_form, h_form);
        const Product<T>& ih = buffers_[0].ih;
        tile_size_ = packs_tiles_ && ih.form ? ih.form->packed_size(ih) * tile_ : 0;
        tiles_ = arena_.take<T>(threads_ * tile_size_);
        const auto prepared_size = [](const Product<T>& product) {
            const bool prepares = product.form && product.form->prepare;
            return prepares ? round_up(product.form->prepared_size(product.length), kUnitAlignment) : 0;
        };
        prepared_size_ = prepared_size(buffers_[0].ih);
        for (int i = 0; i < stages_; ++i) {
            prepared_size_ = max(prepared_size_, prepared_size(buffers_[0].stages[i].product));
        }
        const bool whole_chunk = by_tiles_ && buffers_[0].ih.form->prepare;
        const int64_t rows_of_x = round_up(min(s_.rows, whole_chunk ? chunk_ * s_.batch : kRowBlock), kLanes);
        head_rows_ = round_up(s_.batch, kLanes);
        prepared_rows_ = prepared_size_ ? max(rows_of_x, heads_.count * head_rows_) : 0;
        prepared_ = arena_.take<T>(threads_ * prepared_rows_ * prepared_size_);
        masked_rows_ = p_.weights[0].recurrent_mask ? s_.batch : 0;
        masked_ = arena_.take<T>(threads_ * masked_rows_ * masked_padded_);
    }

    void choose_chunk(int64_t step_bytes, int64_t weight_bytes) {
        const int64_t chunk_bytes = max(kChunkBytes * threads_, weight_bytes / 4);
        chunk_ = step_bytes ? chunk_bytes / step_bytes : 1;
        if (chunk_ * s_.batch < 24 * threads_) chunk_ = s_.batch ? 24 * threads_ / s_.batch : 1;
        chunk_ = min(max(chunk_, 1), s_.time);
    }

    bool packs_recurrent(int64_t weight_bytes) const {
        const int64_t steps = weight_bytes > kFarBytes ? kUnpackedStepsFar : kUnpackedSteps;
        return s_.batch > storage_.unpacked_batch || (!storage_.widens && s_.time >= steps);
    }

    // for so many products of `rows` rows each with the same weights
    const ProductForm<T>* form_for(const Storage<T>& storage, int64_t rows, int64_t products, bool packs) const {
        if (!packs || !storage.packed) return storage.as_it_lies;
        const auto cost = static_cast<double>(products * round_up(rows, kLanes)) * kLanesCost;
        const auto packed = kPackingCost + static_cast<double>(products * rows);
        return storage.in_lanes && cost < packed ? storage.in_lanes : storage.packed;
    }

    void lay_out(Buffers& b, const Weights& w, const ProductForm<T>* x_form, const ProductForm<T>* h_form) {
        b.ih = product(w.w_ih, w.scale_ih, s_.input, k_.input, x_form);
        if (x_form == storage_of_x_.packed && !packs_tiles_) take_panels(b.ih);
        for (int i = 0; i < k_.stages; ++i) {
            const bool last = i + 1 == stages_;
            const int64_t length = i == 0 ? heads_.length : heads_.units;
            b.stages[i] = {product(w.w_hh, w.scale_hh, length, k_.recurrent[i], h_form), cell_.forward[i], s_.hidden,
                           tile_, last ? nullptr : arena_.take<T>(s_.batch * hidden_padded_)};
            if (h_form == storage_.packed) take_panels(b.stages[i].product);
        }
        if (s_.projection) {
            // int8 stands for the other two matrices alone; of few rows nothing is rounded
            const WeightFormat format = p_.format == WeightFormat::int8 ? WeightFormat::plain : p_.format;
            const bool few = s_.batch <= storage_.unpacked_batch;
            const Storage<T> storage = unit_ && !few ? storage_ : storage_of<T>(format);
            Product<T> product{storage.packed,    w.w_hr, nullptr, 1, recurrent_, s_.hidden, {0, 1}, k_.gate_of_slot,
                               recurrent_padded_, kWide,  nullptr, 0, unit_};
            take_panels(product);
            b.stages[k_.stages] = {product, copy_to_output, recurrent_, kLanes * kWide, nullptr};
        }
        b.bias = arena_.take<T>(k_.slots * hidden_padded_);
        b.h[0] = arena_.take<T>(s_.batch * recurrent_padded_);
        b.h[1] = arena_.take<T>(s_.batch * recurrent_padded_);
        b.c = arena_.take<T>(s_.batch * memories_of(k_) * hidden_padded_);
        b.slots = arena_.take<T>(keeps_slots_ ? 0 : chunk_ * s_.batch * k_.slots * hidden_padded_);
    }

    // of the matrix's rows for `slots`
    Product<T> product(const void* w, const float* scales, int64_t length, SlotRange slots,
                       const ProductForm<T>* form) const {
        return {slots.count ? form : nullptr,
                w,
                scales,
                k_.gates,
                s_.hidden,
                length,
                slots,
                k_.gate_of_slot,
                hidden_padded_,
                tile_ < kLanes * kWide ? static_cast<int>(tile_ / kLanes) : kWide,
                nullptr,
                0,
                unit_};
    }

    void take_panels(Product<T>& product) {
        if (product.form)
            product.packed = arena_.take<T>(product.form->packed_size(product) * padded_units(product.units));
    }

    // [slots, Hp]: what is added to a cell's slots besides the products, for the units in `units`; a cell of whole rows
    // adds the biases itself
    void sum_biases(const Weights& w, T* bias, Range units) const {
        const T *b_ih = static_cast<const T*>(w.b_ih), *b_hh = static_cast<const T*>(w.b_hh);
        for (int slot = 0; slot < k_.slots; ++slot) {
            const bool from_x = k_.input.has(slot), from_h = k_.from_h(slot);
            const int64_t at = k_.gate_of_slot[slot] * s_.hidden;
            T* out = bias + slot * hidden_padded_;
            for (int64_t u = units.begin; u < units.end; ++u) {
                out[u] =
                    b_ih && !k_.whole_rows ? (from_x ? b_ih[at + u] : T(0)) + (from_h ? b_hh[at + u] : T(0)) : T(0);
            }
            if (units.begin < units.end && units.end == s_.hidden) {
                for (int64_t u = units.end; u < hidden_padded_; ++u) out[u] = T(0);
            }
        }
    }

    // h' is there: it goes to y
    static void copy_to_output(const ForwardTile<T>& tile) {
        if (!tile.y) return;
        for (int64_t r = 0; r < tile.rows; ++r) {
            __builtin_memcpy(tile.y[r] + tile.begin, tile.out[r] + tile.begin,
                             sizeof(T) * static_cast<size_t>(tile.end - tile.begin));
        }
    }

    // -- rows of what was given
    // -------------------------------------------------------------------------------------------

    // U: what it is stored as
    template <class U>
    Rows<U> y(int d) const {
        return {static_cast<U*>(p_.y) + d * recurrent_, {p_.y_stride_time, p_.y_stride_batch, s_.packed}};
    }
    Rows<T> cell_states(int d) const {
        return {static_cast<T*>(p_.cell_states) + d * s_.hidden,
                {p_.cell_states_stride_time, p_.cell_states_stride_batch, s_.packed}};
    }

    // of x, whatever its rows are stored as
    const T* row_of_x(const Steps& steps, int64_t t, int64_t b) const {
        const Strides strides{p_.x_stride_time, p_.x_stride_batch, s_.packed};
        if (!p_.bfloat16_sequences) return Rows<const T>{static_cast<const T*>(p_.x), strides}.at(steps, t, b);
        return reinterpret_cast<const T*>(
            Rows<const Bfloat16>{static_cast<const Bfloat16*>(p_.x), strides}.at(steps, t, b));
    }

    const ForwardParams& p_;
    const Shape& s_;
    const CellFunctions<T>& cell_;
    const CellTraits k_;
    const Bfloat16Unit* const unit_;  // null where products are not its own
    const Storage<T> storage_, storage_of_x_;
    const int stages_;
    const Heads heads_;
    const int64_t tile_;  // units
    const int64_t recurrent_, cell_width_, hidden_padded_, recurrent_padded_, masked_padded_;
    const bool keeps_slots_;  // the reserve holds the slots
    Arena arena_;
    int threads_, barriers_;  // of a step, where units are split
    int64_t grain_;           // units that go to one thread: whole tiles, and no cache line that two threads write
    int64_t chunk_;           // time steps whose product with x is made at once
    Flag* flags_;
    int64_t* offsets_;  // [T + 1], ragged only
    T* zeros_;          // [max(M*H, R)]
    bool packs_tiles_,
        by_tiles_;  // w_ih meets all rows of a chunk a tile of units at a time, packed for it alone or not
    int64_t tile_size_;
    T* tiles_;  // a tile of packed w_ih for each thread
    int64_t head_rows_, prepared_rows_, prepared_size_;
    T* prepared_;  // [threads][rows][size]; of h, [head_rows_] of each head one after another
    int64_t masked_rows_;
    T* masked_;  // [threads][rows][padded]: what a product multiplies, times the mask
    Buffers buffers_[2];
};

}  // namespace
}  // namespace fastrnn
