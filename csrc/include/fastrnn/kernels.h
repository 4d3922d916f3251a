// The contract between the kernels and everything else: plain structs of pointers, sizes and strides.
// No torch, no Python. A caller fills a struct, allocates the workspace that the kernel asks for, and calls.
//
// Letters: T time steps, B batch rows, N rows in all (T * B, or the sum of batch_sizes), I input features,
// H hidden units, P projection size, R = P or, without a projection, H (the width of h), D directions,
// G gates (LSTM 4: i f g o; GRU 3: r z n; RNN 1), S saved values a unit (saved_values()), M memories (an LSTM's one,
// c). Strides count elements. A tensor whose strides are not given is contiguous in the order of its shape. All index
// arithmetic is 64-bit; sizes are bounded only by memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrnn {

enum class DType { float32, float64, bfloat16, float16 };  // the CPU kernels take the first two

enum class Cell {
#define FASTRNN_CELL(name, ...) name,
#include "fastrnn/cells.def"
};

// leaky_relu has slope 0.01; hardsigmoid is relu6(x + 3) / 6, as in torch and Keras 3, onnx_hardsigmoid
// max(0, min(1, 0.2 x + 0.5)); half_linear is x + 1/2 for x >= 0, else sigmoid(x) (g of Feng et al. 2024).
enum class Activation {
    tanh,
    softsign,
    relu,
    hardtanh,
    sigmoid,
    identity,
    silu,
    leaky_relu,
    hardsigmoid,
    onnx_hardsigmoid,
    half_linear
};
inline constexpr const char* kActivations[] = {"tanh",        "softsign",         "relu",       "hardtanh",
                                               "sigmoid",     "identity",         "silu",       "leaky_relu",
                                               "hardsigmoid", "onnx_hardsigmoid", "half_linear"};
inline constexpr int kActivationCount = sizeof(kActivations) / sizeof(kActivations[0]);

struct Functions {
    Activation candidate;  // and of an LSTM's cell state at the output, and of an RNN's output
    Activation gate = Activation::sigmoid;
};

inline constexpr int kMaxOperands = 6, kMaxMemories = 3;

// What a caller of the kernels knows of a cell; csrc/cells/cell.h has what the engines know.
struct CellInfo {
    const char* name;
    int gates;            // G
    int saved;            // S: values of a unit that the forward pass keeps for the backward pass; 0: y is enough
    int states;           // 1: h; 2: h and c
    bool has_activation;  // takes functions other than tanh and sigmoid
    bool may_project;     // takes w_hr
    bool recurrent;       // takes w_hh and b_hh
    int operands;         // that it takes
    int learned = 0;      // the first of them are parameters, with strides of 0, and have gradients
    // the first of them are there in every call; the others may be null, parameters all or none, in both directions
    // alike. The first that is no parameter zones out h in cells that may project, and goes with no projection.
    int required = 0;
    // the first of those have a value for each gate of a unit, in the order of the weights' rows: [G*H]
    int gate_operands = 0;
    int memories = 1;  // M: what c consists of, each H wide and one after another in a row of c
};
inline constexpr CellInfo kCells[] = {
#define FASTRNN_CELL(name, type, ...) {#name, __VA_ARGS__},
#include "fastrnn/cells.def"
};
inline constexpr int kCellCount = sizeof(kCells) / sizeof(kCells[0]);

inline constexpr const CellInfo& cell_info(Cell cell) { return kCells[static_cast<int>(cell)]; }
inline constexpr int gate_count(Cell cell) { return cell_info(cell).gates; }
inline constexpr int saved_values(Cell cell) { return cell_info(cell).saved; }
inline constexpr bool has_cell_state(Cell cell) { return cell_info(cell).states == 2; }
inline constexpr int64_t cell_width(Cell cell, int64_t hidden) { return cell_info(cell).memories * hidden; }

// Hidden units are padded to a multiple of kUnitAlignment on every instruction set and for every type, and once more
// where that is a multiple of kStridePeriod: rows so far apart share few sets of the first-level cache, which cost a
// float32 LSTM of H 1024 15 per cent and one of H 512 5 per cent.
inline constexpr int64_t kUnitAlignment = 16, kStridePeriod = 256;

inline constexpr int64_t aligned_units(int64_t hidden) {
    return (hidden + kUnitAlignment - 1) / kUnitAlignment * kUnitAlignment;
}
inline constexpr int64_t padded_units(int64_t hidden) {
    const int64_t aligned = aligned_units(hidden);
    return aligned > 0 && aligned % kStridePeriod == 0 ? aligned + kUnitAlignment : aligned;
}

// How the matrices of weights are stored. Both of the smaller formats go with float32 and the forward pass alone.
enum class WeightFormat {
    plain,     // of the layer's dtype
    bfloat16,  // the upper half of a float32
    int8,      // row r stands for scale[r] times its values; w_ih and w_hh are packed, see packed_int8(), w_hr is plain
};

// bytes of an int8 matrix [G*H, length]: [blocks of kUnitAlignment units, length / 4 rounded up, G, units, 4], zero
// beyond the last unit and the last column; row g * H + u is gate g's of unit u
inline constexpr int64_t packed_int8(int64_t gates, int64_t hidden, int64_t length) {
    return gates * aligned_units(hidden) * ((length + 3) / 4 * 4);
}

struct Shape {
    int64_t time;                    // T >= 1
    int64_t batch;                   // B >= 0; for packed input the batch size of the first step
    int64_t rows;                    // N
    int64_t input;                   // I
    int64_t hidden;                  // H
    int64_t projection;              // P, or 0 for none; LSTM only
    int directions;                  // D: 1, or 2 (the second runs backwards in time)
    const int64_t* batch_sizes;      // [T], never rising: rows that take part in each step, the first ones of its B;
                                     // of packed input B to begin with. Null when all B do
    bool packed = false;             // rows of x and y lie one after another, a step's after those of the step before
    const int64_t* order = nullptr;  // [B]: row b of a step is row order[b] of states and of unpacked x and y; null: b
    // Of the recurrent weights, which are block-diagonal: the units of head k meet head k's part of h alone. Divides H
    // and R, into multiples of kUnitAlignment where it is not 1.
    int64_t heads = 1;
    // [T, B], or [N] of packed rows: a mark cuts its row before that step. The piece after it begins with a state of
    // zeros, h0 at the first step too; in the reverse direction it is the piece before it that does. Null: no cuts
    const bool* resets = nullptr;
    int64_t resets_stride_time = 0, resets_stride_batch = 0;
};

// Values that a cell takes beside its gates, a value a unit: [T, B, H], or with a stride of 0 the same for all steps or
// for all rows. Rows are those of the states. Null where the cell may do without.
struct Operand {
    const void* data = nullptr;
    int64_t stride_time = 0, stride_batch = 0;
};

// One direction's parameters in the layout of torch.nn; all contiguous.
struct Weights {
    const void* w_ih;  // [G*H, I]
    const void* w_hh;  // [G*H, R / heads], of a recurrent cell: row g * H + u is gate g's of unit u, whatever its head
    const void* b_ih;  // [G*H], or null with b_hh
    const void* b_hh;  // [G*H], of a recurrent cell
    const void* w_hr;  // [P, H], or null
    // the rows' scales in float32; int8 only
    const float* scale_ih = nullptr;  // [G*H]
    const float* scale_hh = nullptr;  // [G*H]
    Operand operands[kMaxOperands] = {};
    // [B, R], in the rows of the states, or null: what w_hh multiplies is h times it, and in a second product of the
    // cell what that multiplies
    const void* recurrent_mask = nullptr;
};

struct WeightGradients {
    void* d_w_ih;  // each as in Weights; null when that gradient is not wanted
    void* d_w_hh;
    void* d_b_ih;
    void* d_b_hh;
    void* d_w_hr;
    void* d_operands[kMaxOperands] = {};  // [H] or [G*H], of the learned ones
};

// Sequences x, y, d_y and d_x have unit stride along features. Row (t, b) of an unpacked sequence is at
// t * stride_time + b * stride_batch; row r of a packed one (torch's PackedSequence.data) at r * stride_batch. Rows of
// an unpacked sequence that take no part in a step are zero in y and d_x, and are not read in x and d_y.
struct ForwardParams {
    DType dtype;
    WeightFormat format;
    Cell cell;
    Functions functions;
    Shape shape;
    Weights weights[2];
    const void* x;  // [T, B, I] or [N, I]
    int64_t x_stride_time, x_stride_batch;
    const void* h0;  // [D, B, R], or null for zeros
    const void* c0;  // [D, B, M*H], or null for zeros; LSTM only
    void* y;         // [T, B, D*R] or [N, D*R]; direction d writes features d*R .. (d+1)*R; shares no memory with x
    int64_t y_stride_time, y_stride_batch;
    void* h_n;          // [D, B, R]; may be h0, or y, where T = 1
    void* c_n;          // [D, B, M*H]; LSTM only; may be c0 where T = 1
    void* cell_states;  // [T, B, D*H] or [N, D*H], c after every step, zero like y; or null; LSTM only, where M = 1
    int64_t cell_states_stride_time, cell_states_stride_batch;
    void* reserve;    // [D, N, S, padded_units(H)], or null when no backward pass follows
    void* workspace;  // as many bytes as asked for with the same null pointers, 64-byte aligned, no content
                      // expected or left
    int threads;      // at most this many threads work; the result does not depend on it
    bool bfloat16_sequences = false;  // x and y are bfloat16, which goes with matrices in bfloat16
    // With these: what meets the matrices may be rounded to bfloat16 too where the CPU multiplies such numbers, but for
    // few rows; sums and states are float32 even so.
    bool rounds_operands = false;
};

struct BackwardParams {
    DType dtype;
    Cell cell;
    Functions functions;
    Shape shape;
    Weights weights[2];
    const void* x;
    int64_t x_stride_time, x_stride_batch;
    const void* h0;
    const void* c0;
    const void* y;
    int64_t y_stride_time, y_stride_batch;
    const void* reserve;  // as the forward pass left it; not changed
    const void* d_y;      // like y, or null for zeros
    int64_t d_y_stride_time, d_y_stride_batch;
    const void* d_h_n;          // [D, B, R], or null for zeros
    const void* d_c_n;          // [D, B, M*H], or null for zeros
    const void* d_cell_states;  // [T, B, D*H] or [N, D*H], or null for zeros
    int64_t d_cell_states_stride_time, d_cell_states_stride_batch;
    void* d_x;  // like x, or null when not wanted
    int64_t d_x_stride_time, d_x_stride_batch;
    void* d_h0;  // [D, B, R], or null when not wanted
    void* d_c0;  // [D, B, M*H], or null when not wanted
    WeightGradients d_weights[2];
    void* workspace;  // as many bytes as asked for with the same null pointers, 64-byte aligned
    int threads;
};

// How forward() spreads a layer over threads; the pointers in its params are not looked at.
struct Plan {
    int threads;      // that work at once
    int directions;   // that run at once
    int batch_parts;  // of one direction: parts of the rows, and
    int unit_parts;   // of the hidden units, where each step ends with a barrier
    double seconds;   // of all steps, by the cost model that chose them
};

struct Kernels;  // of one instruction set

// Where force_isa() may be called at the same time, ask once: a workspace is for the kernels that gave its size.
const Kernels& active_kernels();

size_t forward_workspace_bytes(const ForwardParams& params, const Kernels& kernels = active_kernels());
size_t backward_workspace_bytes(const BackwardParams& params, const Kernels& kernels = active_kernels());
Plan plan_forward(const ForwardParams& params, const Kernels& kernels = active_kernels());
void forward(const ForwardParams& params, const Kernels& kernels = active_kernels());
void backward(const BackwardParams& params, const Kernels& kernels = active_kernels());

// Instruction sets in order of preference: "amx", "avx512", "avx2", "generic". "amx" is "avx512" with products of
// bfloat16 on tiles, where the system lets the process use them.
const char* active_isa();              // FASTRNN_FORCE_ISA, else the first that the CPU has
bool isa_compiled(const char* name);   // in this build
bool isa_supported(const char* name);  // compiled, and this CPU has it
void force_isa(const char* name);      // "" goes back to the choice above; throws std::runtime_error for a
                                       // name that is unknown or that the CPU lacks
}  // namespace fastrnn
