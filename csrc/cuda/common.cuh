// What every CUDA source shares: the value type of the cells on the device, a scalar; launches; memory carved out of a
// workspace. Included before the cells, which find fma, tanh and the others by it.
//
// tests/csrc/emulation compiles these sources for the CPU: what the compiler for CUDA alone understands is here and in
// device.cuh.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "fastrnn/kernels.h"
#include "types.cuh"

#if !defined(__CUDACC__)
#include "emulation.h"
#endif

namespace fastrnn {
namespace {

FASTRNN_INLINE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FASTRNN_INLINE double fma(double a, double b, double c) { return ::fma(a, b, c); }
FASTRNN_INLINE float tanh(float x) { return ::tanhf(x); }
FASTRNN_INLINE double tanh(double x) { return ::tanh(x); }
FASTRNN_INLINE float sigmoid(float x) { return 1.0f / (1.0f + ::expf(-x)); }
FASTRNN_INLINE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
FASTRNN_INLINE float absolute(float x) { return ::fabsf(x); }
FASTRNN_INLINE double absolute(double x) { return ::fabs(x); }
template <class T>
FASTRNN_INLINE T select(bool condition, T yes, T no) {
    return condition ? yes : no;
}

FASTRNN_INLINE constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}
FASTRNN_INLINE constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int kThreads = 256;             // of every block
constexpr size_t kParameterBytes = 4096;  // most of a kernel's parameters, on every device

// Launches in order on one stream until the first error, which it keeps.
class Queue {
   public:
    explicit Queue(cudaStream_t stream) : stream_(stream) {}

    // one thread for each of `items`
    template <class... Parameters, class... Arguments>
    void for_each(int64_t items, void (*kernel)(Parameters...), Arguments&&... arguments) {
        if (items > 0) run((items + kThreads - 1) / kThreads, 0, false, kernel, std::forward<Arguments>(arguments)...);
    }

    // cooperative: all blocks are on the device at once, or the launch is an error
    template <class... Parameters, class... Arguments>
    void run(int64_t blocks, size_t shared_bytes, bool cooperative, void (*kernel)(Parameters...),
             Arguments&&... arguments) {
        static_assert((size_t{0} + ... + sizeof(Parameters)) <= kParameterBytes, "a kernel's parameters do not fit");
        if (error_ != cudaSuccess || blocks == 0) return;
#if defined(__CUDACC__)
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(static_cast<unsigned>(blocks));
        config.blockDim = dim3(kThreads);
        config.dynamicSmemBytes = shared_bytes;
        config.stream = stream_;
        config.attrs = &attribute;
        config.numAttrs = cooperative ? 1 : 0;
        if (shared_bytes > 48 * 1024) {
            keep(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared_bytes)));
        }
        if (error_ == cudaSuccess) keep(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
#else
        emulation::run(blocks, kThreads, shared_bytes, cooperative, [=] { kernel(arguments...); });
#endif
    }

    void zero(void* data, int64_t bytes) {
        if (error_ == cudaSuccess && bytes > 0) keep(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream_));
    }

    void copy(void* to, const void* from, int64_t bytes) {
        if (error_ != cudaSuccess || bytes == 0 || to == from) return;
        keep(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_));
    }

    cudaError_t error() const { return error_; }

   private:
    void keep(cudaError_t error) {
        error_ = error;
        if (error != cudaSuccess) cudaGetLastError();  // reported once, by its return value
    }

    cudaStream_t stream_;
    cudaError_t error_ = cudaSuccess;
};

// Carves 256-byte aligned arrays out of the workspace; with a null base it only measures.
class Arena {
   public:
    explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
    template <class U>
    U* take(int64_t count) {
        const size_t at = used_;
        used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(U)), 256));
        return base_ ? reinterpret_cast<U*>(base_ + at) : nullptr;
    }
    size_t used() const { return used_; }

   private:
    char* base_;
    size_t used_ = 0;
};

}  // namespace
}  // namespace fastrnn
