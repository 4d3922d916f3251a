// The contract of the CUDA kernels: device pointers and a stream. No torch, nothing but the CUDA toolkit.
// Letters as in kernels.h; `rows` are the batch rows of one time step.
#pragma once

#include <cuda_runtime_api.h>

#include "fastrnn/kernels.h"

namespace fastrnn {

// The arithmetic of one time step, after both of its products. Gates are in torch's order, biases are in the products.
struct CellStepForward {
    DType dtype;
    Cell cell;
    Activation activation;
    int64_t rows, hidden;
    const void* gates_x;  // [rows, G*H]
    const void* gates_h;  // [rows, G*H]; gru_reset_before reads r and z in its first half and n in its second
    const void* h;        // [rows, H] before the step
    const void* c;        // [rows, H] before the step; LSTM only
    void* h_next;         // [rows, H]; may be h
    void* c_next;         // [rows, H]; LSTM only; may be c
    void* saved;          // [S, rows, H] for the backward pass, or null; gru_reset_before needs it always
    void* reset_h;        // [rows, H] r * h, gru_reset_before's first half only
    bool first_half;      // gru_reset_before: r, z and r * h; then, with W_n (r h) in gates_h, the rest
};

// Launches on `stream` and returns at once; the launch's own error, if any, is returned.
cudaError_t cell_step_forward(const CellStepForward& step, cudaStream_t stream);

}  // namespace fastrnn
