// A part of the CPU that multiplies bfloat16 and sums in float32, behind pointers to functions: its instructions are
// compiled in a file of their own, and the engine once for CPUs with and without it.
//
// Weights come in panels of up to four vectors of kBfloat16Units units: [K/32][vectors][16 pairs of k][units][2], zero
// beyond the last unit and the last k. Rows are bfloat16, one `stride` after another, zero up to a multiple of 32.
#pragma once

#include <cstdint>

namespace fastrnn {

constexpr int64_t kBfloat16Units = 16, kBfloat16Depth = 32, kBfloat16Rows = 16;

struct Bfloat16Block {
    const uint16_t*
        a;  // [rows][stride]; may be read up to a multiple of kBfloat16Rows rows, whose values do not matter
    int64_t stride, rows;
    const uint16_t* panel;
    int64_t depth;    // K/32
    int vectors;      // of the panel, 1 to 4
    float* const* c;  // rows of sums, a vector every `vector_stride`
    int64_t vector_stride;
    const float* bias;  // [vectors], as far apart; null: sums join what is there, or with `zero` nothing
    bool zero;
};

// Each sum is made in an order that K alone decides.
struct Bfloat16Unit {
    // around the work of a thread
    void (*begin)();
    void (*end)();
    // rows of float32, rounded; `out` [count][stride]
    void (*round)(const float* const* rows, int64_t count, int64_t length, uint16_t* out, int64_t stride);
    void (*multiply)(const Bfloat16Block& block);
};

#if defined(FASTRNN_AMX)
extern const Bfloat16Unit unit_amx;
#endif

}  // namespace fastrnn
