// How the grid engine lays a layer out over blocks and a block's shared memory: for the plan, and for the kernels.
#pragma once

#include "../cells/cell.h"
#include "fastrnn/cuda_plan.h"

namespace fastrnn {

inline constexpr int64_t kGridRows = 16;   // rows that a block multiplies at once: a matrix of the tensor cores
inline constexpr int64_t kGridDepth = 32;  // terms of a sum that are one load of 16 bytes in each of four lanes
inline constexpr int64_t kGridWarps = 8;   // of a block; they share the terms of each sum
inline constexpr int64_t kGridStage = 36;  // floats of a staged row in float32: 32, and 4 against bank conflicts

FASTRNN_INLINE constexpr int64_t grid_ceil(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Whether the grid engine has been compiled for a cell: one stage whose product has all rows of w_hh; tanh, and relu
// without gates beside the candidate.
FASTRNN_INLINE constexpr bool grid_has(const CellTraits& cell, Activation activation) {
    const bool one_product = cell.stages == 1 && cell.recurrent[0].count == cell.gates;
    if (cell.operands || cell.memories > 1) return false;
    return one_product && (activation == Activation::tanh || (activation == Activation::relu && cell.gates == 1));
}

struct GridLayout {
    int64_t units;             // of a block
    int64_t columns;           // of its product: forward its units' gates, backward its units
    int64_t hidden_padded;     // H up to kGridDepth
    int64_t depth;             // terms of a sum: hidden_padded, backward for each gate
    int64_t blocks_per_group;  // blocks that exchange h: those of one direction and part of the rows
    int64_t batch_parts;
    int64_t rows_per_part;  // a multiple of kGridRows

    FASTRNN_INLINE int64_t batch_padded() const { return batch_parts * rows_per_part; }
    // floats from row to row of a warp's sums: rows 8 banks apart
    FASTRNN_INLINE int64_t partial_stride() const { return partial_stride(columns); }
    static FASTRNN_INLINE constexpr int64_t partial_stride(int64_t columns) {
        return columns % 16 == 8 ? columns : columns + 8;
    }

    // a block's shared memory, in bytes from its start
    FASTRNN_INLINE int64_t weights_bytes(bool half) const { return columns * depth * (half ? 2 : 4); }
    FASTRNN_INLINE int64_t partial_bytes() const { return kGridWarps * kGridRows * partial_stride() * 4; }
    FASTRNN_INLINE int64_t stage_bytes(bool half) const { return half ? 0 : kGridWarps * kGridRows * kGridStage * 4; }
    FASTRNN_INLINE int64_t state_bytes() const { return rows_per_part * units * 4; }  // one of the two states
    FASTRNN_INLINE int64_t shared_bytes(bool half) const {
        return weights_bytes(half) + partial_bytes() + stage_bytes(half) + 2 * state_bytes();
    }
};

inline GridLayout grid_layout(Cell cell, const Shape& shape, bool backward, int64_t units, int64_t batch_parts) {
    GridLayout layout{};
    const int64_t gates = gate_count(cell);
    layout.units = units;
    layout.columns = backward ? units : gates * units;
    layout.hidden_padded = grid_ceil(shape.hidden, kGridDepth) * kGridDepth;
    layout.depth = layout.hidden_padded * (backward ? gates : 1);
    layout.blocks_per_group = grid_ceil(shape.hidden, units);
    layout.rows_per_part = grid_ceil(grid_ceil(shape.batch, batch_parts), kGridRows) * kGridRows;
    layout.batch_parts = grid_ceil(shape.batch, layout.rows_per_part);
    return layout;
}

}  // namespace fastrnn
