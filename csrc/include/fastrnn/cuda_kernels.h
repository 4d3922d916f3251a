// The contract of the CUDA kernels: the structs of kernels.h with pointers to device memory, and a stream. No torch,
// nothing but the CUDA toolkit. `shape.batch_sizes` stays on the host; `threads` says nothing.
//
// Types: x, y, h, the weights and every gradient are stored in `dtype`; sums, c and the reserve are float64 for float64
// and float32 for the others, but for c0, c_n and their gradients, which are stored in `dtype`.
//
// Not supported, and refused with that error: ragged sequences that are not packed, an order of rows, resets, the cell
// states of every step, cells with operands.
#pragma once

#include <cuda_runtime_api.h>

#include "fastrnn/cuda_plan.h"
#include "fastrnn/kernels.h"

namespace fastrnn {

struct Matrix {
    void* data;
    DType dtype;
    int64_t rows, columns;
    int64_t stride;  // elements from row to row
};

// Products of whole matrices, which the kernels leave to a library.
class Products {
   public:
    // c = op(a) op(b) on the kernels' stream, op(m) being m or its transpose; sums in float32, or float64 for float64.
    // a and b have one type, and c has it too or is the float32 of half-precision a and b. c is 0 where there are no
    // terms, and nothing may be assumed of its content before.
    virtual void multiply(const Matrix& a, bool transpose_a, const Matrix& b, bool transpose_b, const Matrix& c) = 0;

   protected:
    ~Products() = default;
};

// They launch on `stream` and return at once; the first error of a launch, if any, is returned.
size_t cuda_forward_workspace_bytes(const ForwardParams& params, const CudaPlan& plan);
size_t cuda_backward_workspace_bytes(const BackwardParams& params, const CudaPlan& plan);
cudaError_t cuda_forward(const ForwardParams& params, const CudaPlan& plan, Products& products, cudaStream_t stream);
cudaError_t cuda_backward(const BackwardParams& params, const CudaPlan& plan, Products& products, cudaStream_t stream);

cudaError_t cuda_use_device(int index);  // makes it current for these kernels
cudaError_t cuda_describe_device(int index, CudaDevice& device);

}  // namespace fastrnn
