// The product of bfloat16 rows and panels on matrix tiles of 16 rows of 64 bytes, written over a namespace `tile` of
// the instructions: target_amx.cpp has the CPU's, tests/csrc/emulation/tile.h has them in plain C++.
//
// A sum begins with what c or the bias holds, and 32 products at a time join it in the order of k.
//
// Cost: two tiles of rows meet two of weights, so that a tile is loaded for each that is multiplied: 16 cycles each,
// and half of what the second-level cache can send. One tile of rows meets all vectors of a panel, which then is what
// is waited for.
#pragma once

#include "../cells/inline.h"
#include "bfloat16.h"

namespace fastrnn {
namespace {

constexpr int64_t kTileBytes = 64, kTileValues = kBfloat16Units * kBfloat16Depth;
static_assert(kBfloat16Rows * kTileBytes == kTileValues * sizeof(uint16_t), "a tile of weights is a whole tile");

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

void begin_tiles() {
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
        config.row_bytes[i] = kTileBytes;
        config.rows[i] = kBfloat16Rows;
    }
    tile::configure(config);
}

// Where a tile of sums lies: in place, where its rows are evenly spaced and all there; else in a copy.
struct Sums {
    float* const* rows;     // [count]
    int64_t count, stride;  // from row to row; 0: not evenly spaced

    bool in_place() const { return count == kBfloat16Rows && stride != 0; }
};

inline Sums sums_at(float* const* rows, int64_t left) {
    const int64_t count = left < kBfloat16Rows ? left : kBfloat16Rows;
    int64_t stride = count > 1 ? rows[1] - rows[0] : 0;
    for (int64_t r = 2; r < count; ++r) {
        if (rows[r] - rows[r - 1] != stride) stride = 0;
    }
    return {rows, count, stride};
}

template <int Tile>
FASTRNN_INLINE void begin_sums(const Bfloat16Block& block, const Sums& sums, int64_t at) {
    if (block.bias) return tile::load<Tile>(block.bias + at, 0);
    if (block.zero) return tile::zero<Tile>();
    if (sums.in_place()) {
        return tile::load<Tile>(sums.rows[0] + at, sums.stride * static_cast<int64_t>(sizeof(float)));
    }
    alignas(64) float copy[kBfloat16Rows * kBfloat16Units] = {};
    for (int64_t r = 0; r < sums.count; ++r) {
        __builtin_memcpy(copy + r * kBfloat16Units, sums.rows[r] + at, kTileBytes);
    }
    tile::load<Tile>(copy, kTileBytes);
}

template <int Tile>
FASTRNN_INLINE void end_sums(const Sums& sums, int64_t at) {
    if (sums.in_place()) {
        return tile::store<Tile>(sums.rows[0] + at, sums.stride * static_cast<int64_t>(sizeof(float)));
    }
    alignas(64) float copy[kBfloat16Rows * kBfloat16Units];
    tile::store<Tile>(copy, kTileBytes);
    for (int64_t r = 0; r < sums.count; ++r) {
        __builtin_memcpy(sums.rows[r] + at, copy + r * kBfloat16Units, kTileBytes);
    }
}

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights.
template <int Vectors>
FASTRNN_NOINLINE void multiply_two(const Bfloat16Block& block, const Sums* sums, const uint16_t* a, int first) {
    const int64_t at = first * block.vector_stride, row_bytes = block.stride * static_cast<int64_t>(sizeof(uint16_t));
    const uint16_t *const below = a + kBfloat16Rows * block.stride, *panel = block.panel + first * kTileValues;
    begin_sums<0>(block, sums[0], at);
    begin_sums<2>(block, sums[1], at);
    if constexpr (Vectors == 2) begin_sums<1>(block, sums[0], at + block.vector_stride);
    if constexpr (Vectors == 2) begin_sums<3>(block, sums[1], at + block.vector_stride);
    for (int64_t k = 0; k < block.depth; ++k, panel += block.vectors * kTileValues) {
        tile::load_once<6>(panel, kTileBytes);
        tile::load<4>(a + k * kBfloat16Depth, row_bytes);
        tile::multiply<0, 4, 6>();
        if constexpr (Vectors == 2) tile::load_once<7>(panel + kTileValues, kTileBytes);
        if constexpr (Vectors == 2) tile::multiply<1, 4, 7>();
        tile::load<5>(below + k * kBfloat16Depth, row_bytes);
        tile::multiply<2, 5, 6>();
        if constexpr (Vectors == 2) tile::multiply<3, 5, 7>();
    }
    end_sums<0>(sums[0], at);
    end_sums<2>(sums[1], at);
    if constexpr (Vectors == 2) end_sums<1>(sums[0], at + block.vector_stride);
    if constexpr (Vectors == 2) end_sums<3>(sums[1], at + block.vector_stride);
}

// Tiles 0 to 3 are sums, 4 is rows, 5 to 7 weights.
template <int Vectors>
FASTRNN_NOINLINE void multiply_one(const Bfloat16Block& block, const Sums& sums, const uint16_t* a) {
    const int64_t next = block.vector_stride, row_bytes = block.stride * static_cast<int64_t>(sizeof(uint16_t));
    const uint16_t* panel = block.panel;
    begin_sums<0>(block, sums, 0);
    if constexpr (Vectors > 1) begin_sums<1>(block, sums, next);
    if constexpr (Vectors > 2) begin_sums<2>(block, sums, 2 * next);
    if constexpr (Vectors > 3) begin_sums<3>(block, sums, 3 * next);
    for (int64_t k = 0; k < block.depth; ++k, panel += Vectors * kTileValues) {
        tile::load<4>(a + k * kBfloat16Depth, row_bytes);
        tile::load_once<5>(panel, kTileBytes);
        tile::multiply<0, 4, 5>();
        if constexpr (Vectors > 1) tile::load_once<6>(panel + kTileValues, kTileBytes);
        if constexpr (Vectors > 1) tile::multiply<1, 4, 6>();
        if constexpr (Vectors > 2) tile::load_once<7>(panel + 2 * kTileValues, kTileBytes);
        if constexpr (Vectors > 2) tile::multiply<2, 4, 7>();
        if constexpr (Vectors > 3) tile::load_once<5>(panel + 3 * kTileValues, kTileBytes);
        if constexpr (Vectors > 3) tile::multiply<3, 4, 5>();
    }
    end_sums<0>(sums, 0);
    if constexpr (Vectors > 1) end_sums<1>(sums, next);
    if constexpr (Vectors > 2) end_sums<2>(sums, 2 * next);
    if constexpr (Vectors > 3) end_sums<3>(sums, 3 * next);
}

void multiply_tiles(const Bfloat16Block& block) {
    int64_t r = 0;
    for (; block.rows - r > kBfloat16Rows; r += 2 * kBfloat16Rows) {
        const Sums sums[] = {sums_at(block.c + r, block.rows - r),
                             sums_at(block.c + r + kBfloat16Rows, block.rows - r - kBfloat16Rows)};
        const uint16_t* const a = block.a + r * block.stride;
        for (int v = 0; v < block.vectors; v += 2) {
            v + 1 < block.vectors ? multiply_two<2>(block, sums, a, v) : multiply_two<1>(block, sums, a, v);
        }
    }
    if (r >= block.rows) return;
    const Sums sums = sums_at(block.c + r, block.rows - r);
    const uint16_t* const a = block.a + r * block.stride;
    switch (block.vectors) {
        case 1: return multiply_one<1>(block, sums, a);
        case 2: return multiply_one<2>(block, sums, a);
        case 3: return multiply_one<3>(block, sums, a);
        default: return multiply_one<4>(block, sums, a);
    }
}

void round_rows(const float* const* rows, int64_t count, int64_t length, uint16_t* out, int64_t stride) {
    for (int64_t r = 0; r < count; ++r, out += stride) {
        int64_t k = 0;
        for (; k + kBfloat16Depth <= length; k += kBfloat16Depth) tile::round(rows[r] + k, out + k);
        if (k == length) continue;
        float rest[kBfloat16Depth] = {};
        __builtin_memcpy(rest, rows[r] + k, static_cast<size_t>(length - k) * sizeof(float));
        tile::round(rest, out + k);
    }
}

constexpr Bfloat16Unit kTileUnit{begin_tiles, tile::release, round_rows, multiply_tiles};

}  // namespace
}  // namespace fastrnn
