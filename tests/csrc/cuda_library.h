// The CUDA kernels behind the contract that Runner drives, with products as plain loops.
#pragma once

#include "cuda/types.cuh"
#include "fastrnn/cuda_kernels.h"
#include "runner.h"

namespace fastrnn {

inline void assign(bfloat16& to, double value) { to = narrow<bfloat16>(static_cast<float>(value)); }
inline void assign(float16& to, double value) { to = narrow<float16>(static_cast<float>(value)); }

}  // namespace fastrnn

namespace fastrnn_test {

using fastrnn::bfloat16;
using fastrnn::CudaPlan;
using fastrnn::DType;
using fastrnn::float16;
using fastrnn::Matrix;

class Loops : public fastrnn::Products {
   public:
    void multiply(const Matrix& a, bool transpose_a, const Matrix& b, bool transpose_b, const Matrix& c) override {
        const int64_t depth = transpose_a ? a.rows : a.columns;
        if ((transpose_a ? a.columns : a.rows) != c.rows || (transpose_b ? b.rows : b.columns) != c.columns ||
            (transpose_b ? b.columns : b.rows) != depth || a.dtype != b.dtype || !fits(a, c)) {
            std::abort();
        }
        for (int64_t i = 0; i < c.rows; ++i) {
            for (int64_t j = 0; j < c.columns; ++j) {
                double sum = 0;
                for (int64_t k = 0; k < depth; ++k) {
                    sum += at(a, transpose_a ? k : i, transpose_a ? i : k) *
                           at(b, transpose_b ? j : k, transpose_b ? k : j);
                }
                store(c, i, j, sum);
            }
        }
    }

   private:
    static bool fits(const Matrix& a, const Matrix& c) {
        const bool half = a.dtype == DType::bfloat16 || a.dtype == DType::float16;
        return c.dtype == a.dtype || (half && c.dtype == DType::float32);
    }
    template <class Visit>
    static void visit(const Matrix& m, int64_t row, int64_t column, const Visit& call) {
        const int64_t index = row * m.stride + column;
        switch (m.dtype) {
            case DType::float64: return call(static_cast<double*>(m.data)[index]);
            case DType::bfloat16: return call(static_cast<bfloat16*>(m.data)[index]);
            case DType::float16: return call(static_cast<float16*>(m.data)[index]);
            default: return call(static_cast<float*>(m.data)[index]);
        }
    }
    static double at(const Matrix& m, int64_t row, int64_t column) {
        double found = 0;
        visit(m, row, column, [&](auto value) { found = fastrnn::widen(value); });
        return found;
    }
    static void store(const Matrix& m, int64_t row, int64_t column, double value) {
        visit(m, row, column, [&](auto& place) { assign(place, value); });
    }
};

struct CudaLibrary {
    static inline CudaPlan forward_plan, backward_plan;

    template <class T>
    using Reserve = fastrnn::Wide<T>;
    template <class T>
    static constexpr DType dtype() {
        if (std::is_same_v<T, bfloat16>) return DType::bfloat16;
        return std::is_same_v<T, float16> ? DType::float16 : dtype_of<T>();
    }
    static void forward(fastrnn::ForwardParams& params) {
        const Bytes workspace(fastrnn::cuda_forward_workspace_bytes(params, forward_plan));
        params.workspace = workspace.get();
        Loops loops;
        if (fastrnn::cuda_forward(params, forward_plan, loops, nullptr) != cudaSuccess) std::abort();
    }
    static void backward(fastrnn::BackwardParams& params) {
        const Bytes workspace(fastrnn::cuda_backward_workspace_bytes(params, backward_plan));
        params.workspace = workspace.get();
        Loops loops;
        if (fastrnn::cuda_backward(params, backward_plan, loops, nullptr) != cudaSuccess) std::abort();
    }
};

}  // namespace fastrnn_test
