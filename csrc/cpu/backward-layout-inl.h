// What a backward pass works in: choices that follow from the sizes, and arrays in the workspace.
#pragma once

#include "functions-inl.h"
#include "gradient-inl.h"
#include "mask-inl.h"

namespace fastrnn {
namespace {

// up to so many steps read the weights as they lie: a step packs a panel of them at a time, near
constexpr int64_t kLyingSteps = 2;
// about so many rows of the sequence make a chunk; what they are depends on sizes alone
constexpr int64_t kChunkRows = 512;

// Columns of a state's rows [D, B, parts, width], or zeros where there is none, in rows of padded width: where the
// gradient of a final state waits until its row's last step comes.
template <class T>
void load_state(const void* state, const Steps& steps, int d, Range rows, Range columns, int64_t width, T* to,
                int parts = 1) {
    using V = Vec<T>;
    for (int64_t i = rows.begin * parts; i < rows.end * parts; ++i) {
        const int64_t row = (d * steps.batch + steps.row_of(i / parts)) * parts + i % parts;
        const T* const from = state ? static_cast<const T*>(state) + row * width : nullptr;
        for (int64_t u = columns.begin; u < columns.end; u += V::kLanes) {
            (from ? load_units(from, u, width) : V{T(0)}).store(to + i * padded_units(width) + u);
        }
    }
}

// and back
template <class T>
void store_state(const T* from, const Steps& steps, int d, Range rows, Range columns, int64_t width, void* state,
                 int parts = 1) {
    for (int64_t i = rows.begin * parts; i < rows.end * parts; ++i) {
        const int64_t row = (d * steps.batch + steps.row_of(i / parts)) * parts + i % parts;
        copy_part(from + i * padded_units(width), static_cast<T*>(state) + row * width, columns);
    }
}

template <class T>
struct BackwardLayout {
    static constexpr int64_t kLanes = Vec<T>::kLanes;
    static constexpr int64_t kTile = kLanes * kWide;  // units, and columns of a packed panel
    static constexpr int64_t kEdge = kRowBlock * kTile;
    static constexpr int64_t kNear = kProductChain * kTile;  // a chain of a panel
    static constexpr int64_t kScratch = max(gradient_scratch<T>(), kEdge + kNear);

    // A stage of the forward pass (cells/cell.h) backwards: its arithmetic gives the gradients of what its product
    // added to, and the product's transpose that of what it multiplied. The projection is the last one.
    struct Stage {
        BackwardFunction<T> arithmetic;
        int64_t units;  // H, or R of the projection
        int64_t heads, head_units, head_columns;
        T* d_values;          // [K, .., units padded] of K rows of a chunk: gradients of what the product added to
        int64_t stride;       // from row to row of them
        Reduction reduction;  // over those of a head
        bool has_product;
        T* packed;                     // panels over the columns of the weights, head by head; null: read as they lie
        const T* w[kMaxProductSlots];  // their rows for each segment of the reduction
        int64_t columns;               // that the product makes
        T* operand;                    // [K, Hp] what the product multiplied, again; null: h
        T* d_operand;                  // [B, columns padded]
        bool masked;                   // what was multiplied was h, or what the stage before handed on, times the mask
        Init init;                     // of d_operand

        int64_t packed_head() const { return reduction.segments * head_units * padded_units(head_columns); }
        // the rows of a head for each segment
        void find_head(int64_t head, const T** rows) const {
            for (int64_t i = 0; i < reduction.segments; ++i) rows[i] = w[i] + head * head_units * head_columns;
        }
    };

    struct Buffers {
        Stage stages[kMaxCellStages + 1];
        T* packed_ih;  // null: read as it lies
        const T* w_ih[kMaxProductSlots];
        T* d_values;  // [K, gradients, Hp]
        T* d_h;       // [B, Rp]: on its way back through time
        T* d_c;       // [B, M, Hp]
        T* d_x;       // [N, I]: the second direction's part
        T* masked_h;  // [K, Rp]: what the first product multiplied, with a mask
        T* d_masked;  // [B, padded]: gradients of what a product multiplied, with a mask
    };

    BackwardLayout(const BackwardParams& params, void* workspace)
        : p_(params),
          s_(params.shape),
          cell_(cell_functions<T>(params.cell, params.functions)),
          k_(traits_in_call(cell_.traits, params.weights[0])),
          stages_(k_.stages + (s_.projection ? 1 : 0)),
          heads_(Heads::of(s_)),
          recurrent_(s_.projection ? s_.projection : s_.hidden),
          cell_width_(k_.memories * s_.hidden),
          hidden_padded_(padded_units(s_.hidden)),
          recurrent_padded_(padded_units(recurrent_)),
          values_stride_(k_.gradients() * hidden_padded_),
          arena_(workspace) {
        threads_ = useful_threads(s_, k_.gates, arithmetic_of<T>(), 2, params.threads);
        const bool apart = !k_.whole_rows && heads_.part(s_, threads_of_first(s_.directions == 2, threads_));
        barriers_ = apart || k_.recurrent[0].count == 0 ? 0 : stages_;
        grain_ = k_.whole_rows ? round_up(max(s_.hidden, 1), kTile) : apart ? heads_.units : grain_of(heads_.units);
        chunk_ = min(s_.batch < kChunkRows ? kChunkRows / max(s_.batch, 1) : 1, s_.time);
        chunk_rows_ = min(chunk_ * s_.batch, s_.rows);
        flags_ = arena_.take<Flag>(3 * threads_);
        offsets_ = s_.batch_sizes ? arena_.take<int64_t>(s_.time + 1) : nullptr;
        zeros_ = arena_.take<T>(max(cell_width_, recurrent_));
        scratch_ = arena_.take<T>(threads_ * kScratch);
        row_addresses_ = arena_.take<const T*>(threads_ * chunk_rows_);
        for (int d = 0; d < s_.directions; ++d) lay_out(buffers_[d], d);
    }

    void lay_out(Buffers& b, int d) {
        b.d_values = arena_.take<T>(chunk_rows_ * values_stride_);
        b.d_h = arena_.take<T>(s_.batch * recurrent_padded_);
        b.d_c = arena_.take<T>(s_.batch * memories_of(k_) * hidden_padded_);
        const Weights& w = p_.weights[d];
        // where all is one chunk w_ih is read as it lies, by columns, if there are enough of them for all threads
        const bool lies = chunk_ == s_.time && (threads_ == 1 || s_.input >= kTile * threads_);
        const bool packs_x = p_.d_x && !lies;
        b.packed_ih = packs_x ? arena_.take<T>(k_.input.count * s_.hidden * padded_units(s_.input)) : nullptr;
        find_rows(w.w_ih, s_.input, k_.input, b.w_ih);
        b.d_x = arena_.take<T>(p_.d_x && d == 1 ? s_.rows * s_.input : 0);
        const bool masked = w.recurrent_mask != nullptr;
        b.masked_h = arena_.take<T>(masked ? chunk_rows_ * recurrent_padded_ : 0);
        b.d_masked = arena_.take<T>(masked ? s_.batch * max(hidden_padded_, recurrent_padded_) : 0);
        for (int i = 0; i < stages_; ++i) {
            const bool projects = i == k_.stages;
            const SlotRange slots = projects ? SlotRange{0, 1} : k_.recurrent[i];
            Stage& stage = b.stages[i];
            stage.arithmetic = projects ? add_output_gradients : cell_.backward[i];
            stage.units = projects ? recurrent_ : s_.hidden;
            const int64_t padded = padded_units(stage.units);
            stage.columns = i == 0 ? recurrent_ : s_.hidden;
            stage.heads = projects ? 1 : heads_.count;
            stage.head_units = stage.units / stage.heads;
            stage.head_columns = stage.columns / stage.heads;
            stage.stride = projects ? padded : values_stride_;
            stage.d_values = projects ? arena_.take<T>(chunk_rows_ * padded) : b.d_values;
            stage.reduction = {slots.count, stage.head_units, padded, 1};
            stage.has_product = slots.count > 0;
            stage.masked = masked && !projects;
            stage.packed = stage.has_product && s_.time > kLyingSteps
                               ? arena_.take<T>(stage.heads * stage.packed_head())
                               : nullptr;
            projects ? void(stage.w[0] = static_cast<const T*>(w.w_hr))
                     : find_rows(w.w_hh, stage.head_columns, slots, stage.w);
            stage.operand = i == 0 ? nullptr : arena_.take<T>(chunk_rows_ * hidden_padded_);
            stage.d_operand = i == 0 ? b.d_h : arena_.take<T>(s_.batch * hidden_padded_);
            stage.init = i == 0 && k_.reads_h ? Init::accumulate : Init::zero;
        }
    }

    // what units, or features of h, are split by where a head has so many: panels begin anew with each head
    int64_t grain_of(int64_t width) const { return heads_.count > 1 && width % kTile ? width : kTile; }

    // the rows of a matrix [G*H, columns] for each slot
    void find_rows(const void* w, int64_t columns, SlotRange slots, const T** rows) const {
        for (int i = 0; i < slots.count; ++i) {
            rows[i] = static_cast<const T*>(w) + k_.gate_of_slot[slots.begin + i] * s_.hidden * columns;
        }
    }

    // the whole gradient of h', for the transpose of the projection
    static void add_output_gradients(const BackwardTile<T>& tile) {
        for (int64_t r = 0; r < tile.rows; ++r) {
            for (int64_t u = tile.begin; u < tile.end; u += kLanes) {
                (load_units(tile.d_y[r], u, tile.hidden) + Vec<T>::load(tile.d_out[r] + u)).store(tile.d_values[r] + u);
            }
        }
    }

    const BackwardParams& p_;
    const Shape& s_;
    const CellFunctions<T>& cell_;
    const CellTraits k_;
    const int stages_;
    const Heads heads_;
    const int64_t recurrent_, cell_width_, hidden_padded_, recurrent_padded_;
    const int64_t values_stride_;  // from row to row of d_values
    Arena arena_;
    int threads_, barriers_;      // of a step, where units are split
    int64_t grain_;               // units that go to one thread
    int64_t chunk_, chunk_rows_;  // steps of a chunk, and the most rows that they have
    Flag* flags_;
    int64_t* offsets_;         // [T + 1], ragged only
    T* zeros_;                 // [max(M*H, R)]
    T* scratch_;               // [threads, kScratch]
    const T** row_addresses_;  // [threads, chunk_rows_]
    Buffers buffers_[2];
};

}  // namespace
}  // namespace fastrnn
