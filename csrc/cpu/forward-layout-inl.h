// What a forward pass works in: choices that follow from the sizes, and arrays in the workspace.
#pragma once

#include "panels-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // preactivations of a chunk, a thread
constexpr int64_t kUnpackedRows = 8;         // up to here reading the weights as they lie beats packing them
// and so does it for so few rows a step, below so many steps; many more where two copies crowd the caches
constexpr int64_t kUnpackedBatch = 2, kUnpackedSteps = 48, kUnpackedStepsFar = 256, kFarBytes = 6 << 20;
constexpr int64_t kUnpackedBfloat16 = 2;  // for weights that panels would widen, at any number of steps

template <class T, class C>
struct ForwardLayout {
    static constexpr int64_t kTile = GatePanels<T, C>::kTile;

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

    ForwardLayout(const ForwardParams& params, void* workspace)
        : p_(params),
          s_(params.shape),
          recurrent_(s_.projection ? s_.projection : s_.hidden),
          hidden_padded_(padded_units(s_.hidden)),
          recurrent_padded_(padded_units(recurrent_)),
          weight_size_(bytes_of(params.format, sizeof(T))),
          keeps_slots_(params.reserve && C::kSaved >= C::kSlots),
          arena_(workspace) {
        threads_ = useful_threads(s_, C::kGates, 1, params.threads);
        const int64_t row_bytes = C::kSlots * hidden_padded_ * static_cast<int64_t>(sizeof(T));
        const int64_t step_bytes = row_bytes * s_.batch;
        const int64_t weight_bytes = C::kGates * s_.hidden * recurrent_ * weight_size_;
        const int64_t chunk_bytes =
            kChunkBytes * threads_ > weight_bytes / 4 ? kChunkBytes * threads_ : weight_bytes / 4;
        chunk_ = step_bytes ? chunk_bytes / step_bytes : 1;
        if (chunk_ * s_.batch < 24 * threads_) chunk_ = s_.batch ? 24 * threads_ / s_.batch : 1;
        if (chunk_ < 1) chunk_ = 1;
        if (chunk_ > s_.time) chunk_ = s_.time;
        flags_ = arena_.take<Flag>(3 * threads_);
        offsets_ = arena_.take<int64_t>(s_.batch_sizes ? s_.time : 0);
        zeros_ = arena_.take<T>(recurrent_);
        const bool packs_any = s_.rows > kUnpackedRows && p_.format != WeightFormat::int8;
        packs_tiles_ = packs_any && chunk_ == s_.time;
        tiles_ = arena_.take<T>(packs_tiles_ ? threads_ * tile_size() : 0);
        const bool packs_h = packs_recurrent(weight_bytes), packs_x = packs_any && chunk_ < s_.time;
        for (int d = 0; d < s_.directions; ++d) {
            Buffers& b = buffers_[d];
            const Weights& w = p_.weights[d];
            const auto weights_of = [&](Matrix<T> matrix, const float* scales, int begin, int count, bool packs) {
                T* packed = packs ? arena_.take<T>(matrix.length * count * hidden_padded_) : nullptr;
                return GateWeights<T>{matrix, scales, packed, begin, count};
            };
            const Matrix<T> w_ih{w.w_ih, s_.input, p_.format};
            const Matrix<T> w_hh{w.w_hh, recurrent_, p_.format};
            b.ih = weights_of(w_ih, w.scale_ih, C::kInputBegin, C::kInputCount, packs_x);
            b.hh = weights_of(w_hh, w.scale_hh, C::kRecurrentBegin, C::kRecurrentCount, packs_h);
            b.candidate = weights_of(w_hh, w.scale_hh, 0, 1, packs_h && C::kResetBefore);
            b.packed_hr = arena_.take<T>(s_.projection ? s_.hidden * recurrent_padded_ : 0);
            b.bias = arena_.take<T>(C::kSlots * hidden_padded_);
            b.h[0] = arena_.take<T>(s_.batch * recurrent_padded_);
            b.h[1] = arena_.take<T>(s_.batch * recurrent_padded_);
            b.c = arena_.take<T>(C::kHasCellState ? s_.batch * hidden_padded_ : 0);
            b.unprojected = arena_.take<T>(s_.projection ? s_.batch * hidden_padded_ : 0);
            b.reset_h = arena_.take<T>(C::kResetBefore ? s_.batch * hidden_padded_ : 0);
            b.slots = arena_.take<T>(keeps_slots_ ? 0 : chunk_ * s_.batch * C::kSlots * hidden_padded_);
        }
        const bool prepares = p_.format != WeightFormat::plain && (!packs_h || !(packs_x || packs_tiles_));
        const int64_t block = s_.rows < kRowBlock ? s_.rows : kRowBlock;
        prepared_rows_ = !prepares ? 0 : s_.batch > block ? s_.batch : block;
        prepared_size_ =
            RoundedRow::bytes(s_.input > s_.hidden ? s_.input : s_.hidden) / static_cast<int64_t>(sizeof(T));
        prepared_ = arena_.take<T>(threads_ * prepared_rows_ * prepared_size_);
    }

    bool packs_recurrent(int64_t weight_bytes) const {
        if (s_.rows <= kUnpackedRows) return false;
        if (p_.format == WeightFormat::int8) return false;
        if (p_.format == WeightFormat::bfloat16) return s_.batch > kUnpackedBfloat16;
        return s_.batch > kUnpackedBatch || s_.time >= (weight_bytes > kFarBytes ? kUnpackedStepsFar : kUnpackedSteps);
    }

    int64_t tile_size() const { return s_.input * C::kInputCount * round_up(kTile, kUnitAlignment); }

    const ForwardParams& p_;
    const Shape& s_;
    const int64_t recurrent_, hidden_padded_, recurrent_padded_;
    const int64_t weight_size_;  // bytes of a weight
    const bool keeps_slots_;     // the reserve holds the slots
    Arena arena_;
    int threads_;
    int64_t chunk_;  // time steps whose product with x is made at once
    Flag* flags_;
    int64_t* offsets_;
    T* zeros_;  // [R]
    bool packs_tiles_;
    T* tiles_;  // a tile of packed w_ih for each thread
    int64_t prepared_rows_, prepared_size_;
    T* prepared_;  // [threads][rows][size]
    Buffers buffers_[2];
};

}  // namespace
}  // namespace fastrnn
