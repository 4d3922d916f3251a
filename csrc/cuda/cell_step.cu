// One time step's arithmetic as one launch, for the engine that runs its products through a GEMM library: every size,
// every cell, float32 and float64. Cost: each gate and state read or written once, (2 G + 2 .. 4 + S) H values a row.
#include "common.cuh"

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "fastrnn/cuda_kernels.h"

namespace fastrnn {
namespace {

constexpr int kThreads = 256;

template <class T, class C>
__global__ void cell_step_kernel(CellStepForward step) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t values = step.rows * step.hidden;
    if (index >= values) return;
    const int64_t row = index / step.hidden, unit = index % step.hidden;
    const T* gates_x = static_cast<const T*>(step.gates_x) + row * C::kGates * step.hidden + unit;
    const T* gates_h = static_cast<const T*>(step.gates_h) + row * C::kGates * step.hidden + unit;
    T* saved = static_cast<T*>(step.saved) + index;
    constexpr int kStored = C::kSaved > C::kSlots ? C::kSaved : C::kSlots;
    T slots[kStored] = {};
#pragma unroll
    for (int slot = 0; slot < C::kSlots; ++slot) {
        const int64_t at = C::gate_of_slot(slot) * step.hidden;
        const bool from_x = slot >= C::kInputBegin && slot < C::kInputBegin + C::kInputCount;
        const bool from_h =
            C::kResetBefore || (slot >= C::kRecurrentBegin && slot < C::kRecurrentBegin + C::kRecurrentCount);
        slots[slot] = (from_x ? gates_x[at] : T(0)) + (from_h ? gates_h[at] : T(0));
    }
    const T h = static_cast<const T*>(step.h)[index];
    T c = T(0), h_next = T(0);
    if constexpr (C::kHasCellState) c = static_cast<const T*>(step.c)[index];
    if constexpr (C::kResetBefore) {
        if (step.first_half) {
            static_cast<T*>(step.reset_h)[index] = C::reset(slots, h);
            saved[values] = slots[1];
            saved[2 * values] = slots[2];
            return;
        }
        slots[1] = saved[values];
        slots[2] = saved[2 * values];
    }
    C::forward(slots, h, c, h_next);
    static_cast<T*>(step.h_next)[index] = h_next;
    if constexpr (C::kHasCellState) static_cast<T*>(step.c_next)[index] = c;
    if (step.saved) {
#pragma unroll
        for (int i = 0; i < C::kSaved; ++i) saved[i * values] = slots[i];
    }
}

template <class T, class C>
cudaError_t launch(const CellStepForward& step, cudaStream_t stream) {
    const int64_t blocks = (step.rows * step.hidden + kThreads - 1) / kThreads;
    if (blocks == 0) return cudaSuccess;
    cell_step_kernel<T, C><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(step);
    return cudaGetLastError();
}

template <class T, class Act>
cudaError_t launch_gated(const CellStepForward& step, cudaStream_t stream) {
    switch (step.cell) {
        case Cell::gru: return launch<T, GruCell<Act>>(step, stream);
        case Cell::gru_reset_before: return launch<T, GruResetBeforeCell<Act>>(step, stream);
        default: return launch<T, LstmCell<Act>>(step, stream);
    }
}

template <class T>
cudaError_t launch_cell(const CellStepForward& step, cudaStream_t stream) {
    if (step.cell == Cell::rnn_tanh) return launch<T, RnnCell<TanhActivation>>(step, stream);
    if (step.cell == Cell::rnn_relu) return launch<T, RnnCell<ReluActivation>>(step, stream);
    switch (step.activation) {
        case Activation::softsign: return launch_gated<T, SoftsignActivation>(step, stream);
        case Activation::relu: return launch_gated<T, ReluActivation>(step, stream);
        case Activation::hardtanh: return launch_gated<T, HardtanhActivation>(step, stream);
        default: return launch_gated<T, TanhActivation>(step, stream);
    }
}

}  // namespace

cudaError_t cell_step_forward(const CellStepForward& step, cudaStream_t stream) {
    return step.dtype == DType::float64 ? launch_cell<double>(step, stream) : launch_cell<float>(step, stream);
}

}  // namespace fastrnn
