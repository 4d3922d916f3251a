// What the grid engine's two kernels share: the place of a block, the barrier, and the product.
//
// A block keeps the weights of its columns in shared memory for the whole sequence. Each step it multiplies the rows
// that all blocks of its group have written, 16 at a time; its warps share the terms of each sum, and a warp waits only
// for the blocks that wrote its terms. The sums of the warps are added up in a fixed order.
#pragma once

#include "pass.cuh"

#include "grid_layout.h"

namespace fastrnn {
namespace {

constexpr int64_t kFlagStride = 32;  // a group's flags begin a line of their own

static_assert(kGridWarps * 32 == kThreads, "every thread is of a warp that shares the sums");
static_assert(kGridRows == 16 && kGridDepth == 32, "the fragments of GridProduct");

// a thread computes at most one value of each block of rows
template <int kUnits>
constexpr bool kFitsBlock = kThreads % kUnits == 0 && kThreads / kUnits >= kGridRows && kUnits % 8 == 0;

// c = a b for the block's columns: b in shared memory as `place` puts it, a in device memory, rows written by others.
// Half precision: b lies as a warp's lanes take it, 16 bytes each, and k is permuted so that a lane's part of a row of
// a is 16 bytes as well: lane l reads terms 8 (l % 4) .. + 8 of 32 for rows l / 4 and l / 4 + 8, and so does b's for
// column l / 4; as both are permuted alike, the sums are the same.
template <class X, int kColumns>
struct GridProduct {
    static constexpr int kTiles = kColumns / 8;
    static constexpr int kInFlight = 4;  // loads of a for so many groups of terms are under way together

    static __device__ __forceinline__ void place(unsigned char* weights, int64_t depth, int column, int64_t k,
                                                 X value) {
        (void)depth;
        const int64_t group = k / 32, lane = column % 8 * 4 + k % 32 / 8;
        reinterpret_cast<X*>(weights)[((group * kTiles + column / 8) * 32 + lane) * 8 + k % 8] = value;
    }

    // one warp's sums over groups of 32 terms begin .. end
    static __device__ __forceinline__ void run(const X* a, int64_t stride, const unsigned char* weights, int64_t begin,
                                               int64_t end, float* /*stage*/, float* partial) {
        const int lane = thread_index() % 32, row = lane / 4, part = lane % 4;
        const X* low = a + row * stride + part * 8;
        const X* high = low + 8 * stride;
        const unsigned char* own = weights + lane * 16;
        float c[kTiles][4] = {};
        for (int64_t group = begin; group < end; group += kInFlight) {
            Words a_low[kInFlight], a_high[kInFlight];
#pragma unroll
            for (int i = 0; i < kInFlight; ++i) {
                if (group + i >= end) continue;
                a_low[i] = load_fresh(low + (group + i) * 32);
                a_high[i] = load_fresh(high + (group + i) * 32);
            }
#pragma unroll
            for (int i = 0; i < kInFlight; ++i) {
                if (group + i >= end) continue;
                const uint32_t *l = a_low[i].word, *h = a_high[i].word;
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    const Words b = load_words(own + ((group + i) * kTiles + tile) * 512);
                    multiply_add(c[tile], l[0], h[0], l[1], h[1], b.word[0], b.word[1], X{});
                    multiply_add(c[tile], l[2], h[2], l[3], h[3], b.word[2], b.word[3], X{});
                }
            }
        }
        constexpr int64_t kStride = GridLayout::partial_stride(kColumns);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            float* to = partial + row * kStride + tile * 8 + part * 2;
            to[0] = c[tile][0];
            to[1] = c[tile][1];
            to[8 * kStride] = c[tile][2];
            to[8 * kStride + 1] = c[tile][3];
        }
    }
};

// Exact float32: rows of a go through shared memory, which each warp has a part of, and a lane makes the sums of
// columns l / 4 + 8 i for rows l % 4 + 4 j.
template <int kColumns>
struct GridProduct<float, kColumns> {
    static constexpr int kTiles = kColumns / 8;

    static __device__ __forceinline__ void place(unsigned char* weights, int64_t, int column, int64_t k, float value) {
        reinterpret_cast<float*>(weights)[(k / 4 * kColumns + column) * 4 + k % 4] = value;
    }

    static __device__ __forceinline__ float at(const Words& words, int i) { return from_bits(words.word[i]); }

    static __device__ __forceinline__ void run(const float* a, int64_t stride, const unsigned char* weights,
                                               int64_t begin, int64_t end, float* stage, float* partial) {
        const int lane = thread_index() % 32, column = lane / 4, row = lane % 4;
        float c[kTiles][4] = {};
        Words next[4];
        const auto load = [&](int64_t group) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                next[i] = load_fresh(a + (i * 4 + lane / 8) * stride + group * 32 + lane % 8 * 4);
        };
        if (begin < end) load(begin);
        for (int64_t group = begin; group < end; ++group) {
            warp_barrier();  // the group before has been read
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                *reinterpret_cast<Words*>(stage + (i * 4 + lane / 8) * kGridStage + lane % 8 * 4) = next[i];
            }
            warp_barrier();
            if (group + 1 < end) load(group + 1);
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                Words x[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) x[i] = load_words(stage + (row + 4 * i) * kGridStage + k * 4);
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    const Words w = load_words(weights + ((group * 8 + k) * kColumns + tile * 8 + column) * 16);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
#pragma unroll
                        for (int j = 0; j < 4; ++j) c[tile][i] = fma(at(x[i], j), at(w, j), c[tile][i]);
                    }
                }
            }
        }
        constexpr int64_t kStride = GridLayout::partial_stride(kColumns);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) partial[(row + 4 * i) * kStride + tile * 8 + column] = c[tile][i];
        }
    }
};

// Where a block works, and with whom.
struct GridPlace {
    int direction, warp;
    int64_t slice;                    // its units are slice * units .. + units
    int64_t first_row, rows;          // of its part
    int64_t begin, end;               // groups of terms of this thread's warp
    int64_t first_block, last_block;  // of the group: those that write them
    unsigned* flags;                  // [blocks of the group]

    __device__ GridPlace(const GridLayout& layout, int64_t batch, int first_direction, unsigned* all_flags) {
        const int64_t group = block_index() / layout.blocks_per_group;
        slice = block_index() % layout.blocks_per_group;
        direction = first_direction + static_cast<int>(group / layout.batch_parts);
        first_row = group % layout.batch_parts * layout.rows_per_part;
        rows = least(layout.rows_per_part, batch - first_row);
        warp = thread_index() / 32;
        const int64_t groups = layout.depth / kGridDepth, of_gate = layout.hidden_padded / kGridDepth;
        begin = groups * warp / kGridWarps;
        end = groups * (warp + 1) / kGridWarps;
        first_block = 0;
        last_block = begin < end ? layout.blocks_per_group : 0;
        if (begin < end && begin / of_gate == (end - 1) / of_gate) {  // terms of one gate
            first_block = begin % of_gate * kGridDepth / layout.units;
            last_block = least(last_block, ((end - 1) % of_gate + 1) * kGridDepth / layout.units);
        }
        flags = all_flags + group * round_up(layout.blocks_per_group, kFlagStride);
    }

    // Until those blocks have announced this generation. In the terms of PTX's memory model: a writer's stores, its
    // block_barrier with thread 0, thread 0's release, a lane's poll and fence, that lane's warp_barrier with the
    // others and their loads each come before the next in causality order, so the loads see the stores. Lanes poll
    // without order, for a load that acquires empties the first cache each time, and one fence follows.
    __device__ __forceinline__ void wait(unsigned generation) const {
        for (int64_t block = first_block + thread_index() % 32; block < last_block; block += 32) {
            while (poll(flags + block) < generation) {
            }
        }
        acquire();
        warp_barrier();
    }

    // Of all that the block's threads have written. The release waits until it has arrived, so what no other block
    // reads is better written afterwards; the end of the launch brings that to whoever comes then.
    __device__ __forceinline__ void announce(unsigned generation) const {
        block_barrier();
        if (thread_index() == 0) release(flags + slice, generation);
    }
};

inline int64_t grid_flags(const GridLayout& layout, int directions) {
    return directions * layout.batch_parts * round_up(layout.blocks_per_group, kFlagStride);
}

// A block's shared memory.
struct GridMemory {
    unsigned char* weights;
    float* partial;   // [warps, 16, partial_stride]
    float* stage;     // of this thread's warp, float32 only
    float* state[2];  // [rows_per_part, units] each

    __device__ GridMemory(const GridLayout& layout, bool half) {
        unsigned char* at = shared_memory();
        weights = at;
        at += layout.weights_bytes(half);
        partial = reinterpret_cast<float*>(at);
        at += layout.partial_bytes();
        stage = reinterpret_cast<float*>(at) + thread_index() / 32 * kGridRows * kGridStage;
        at += layout.stage_bytes(half);
        state[0] = reinterpret_cast<float*>(at);
        state[1] = reinterpret_cast<float*>(at + layout.state_bytes());
    }

    template <int kColumns>
    __device__ __forceinline__ float* warp_partial(int warp) const {
        return partial + warp * kGridRows * GridLayout::partial_stride(kColumns);
    }
    // the sum of all warps
    template <int kColumns>
    __device__ __forceinline__ float sum(int64_t row, int column) const {
        constexpr int64_t kStride = GridLayout::partial_stride(kColumns);
        float total = 0;
#pragma unroll
        for (int warp = 0; warp < kGridWarps; ++warp) {
            total += partial[(warp * kGridRows + row) * kStride + column];
        }
        return total;
    }
};

// the grid engine's instantiations: what grid_has says, without float64
template <template <class, class, int> class Pass, class X, class C, Activation kActivation, class Visit>
auto visit_units(int units, const Visit& visit) {
    if constexpr (grid_has(C::traits(), kActivation)) {
        return units == 8 ? visit.template call<Pass<X, C, 8>>() : visit.template call<Pass<X, C, 16>>();
    } else {
        return visit.refuse();
    }
}
template <template <class, class, int> class Pass, class X, class Act, Activation kActivation, class Visit>
auto visit_grid_cell(Cell cell, int units, const Visit& visit) {
    switch (cell) {
#define FASTRNN_CELL(name, Template, ...) \
    case Cell::name: return visit_units<Pass, X, Template<Act>, kActivation>(units, visit);
#include "fastrnn/cells.def"
        default: return visit.refuse();
    }
}
template <template <class, class, int> class Pass, class X, class Visit>
auto visit_grid_functions(Cell cell, Functions functions, int units, const Visit& visit) {
    using Tanh = FixedFunctions<TanhActivation>;
    using Relu = FixedFunctions<ReluActivation>;
    if (functions.gate != Activation::sigmoid) return visit.refuse();
    switch (functions.candidate) {
        case Activation::tanh: return visit_grid_cell<Pass, X, Tanh, Activation::tanh>(cell, units, visit);
        case Activation::relu: return visit_grid_cell<Pass, X, Relu, Activation::relu>(cell, units, visit);
        default: return visit.refuse();
    }
}
template <template <class, class, int> class Pass, class Visit>
auto visit_grid(DType dtype, Cell cell, Functions functions, int units, const Visit& visit) {
    switch (dtype) {
        case DType::bfloat16: return visit_grid_functions<Pass, bfloat16>(cell, functions, units, visit);
        case DType::float16: return visit_grid_functions<Pass, float16>(cell, functions, units, visit);
        case DType::float32: return visit_grid_functions<Pass, float>(cell, functions, units, visit);
        default: return visit.refuse();
    }
}

}  // namespace
}  // namespace fastrnn
