// What the ops need on a CUDA device: torch's current stream, memory and matrix products, and the plan.
//
// The runtime is linked in statically and shares the device's primary context with torch's own. Nothing here waits for
// the device. Built with FASTRNN_EMULATED, for tests, the device is the CPU.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdlib>
#include <string>

#include "checks.h"
#include "fastrnn/cuda_kernels.h"
#include "layer.h"
#include "run_cuda.h"

namespace fastrnn {
namespace {

using torch::headeronly::DeviceType;
using torch::stable::accelerator::DeviceGuard;
using torch::stable::detail::from;

void check_cuda(cudaError_t error) { check(error == cudaSuccess, "fastrnn: CUDA error: ", cudaGetErrorString(error)); }

ScalarType scalar_type(DType dtype) {
    switch (dtype) {
        case DType::float64: return ScalarType::Double;
        case DType::bfloat16: return ScalarType::BFloat16;
        case DType::float16: return ScalarType::Half;
        default: return ScalarType::Float;
    }
}

#if defined(FASTRNN_EMULATED)

constexpr DeviceType kDevice = DeviceType::CPU;

cudaStream_t current_stream(int32_t) { return nullptr; }

// the CPU's mm has no other type for its result
void multiply_to_float(const Tensor& a, const Tensor& b, Tensor& out) {
    torch::stable::copy_(
        out, torch::stable::matmul(torch::stable::to(a, ScalarType::Float), torch::stable::to(b, ScalarType::Float)));
}

#else

constexpr DeviceType kDevice = DeviceType::CUDA;

// Only a CUDA build of torch exports the function, from a library that _C does not link to.
cudaStream_t current_stream(int32_t device) {
    using Function = AOTITorchError (*)(int32_t, void**);
    static const auto function = [] {
        void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
        return reinterpret_cast<Function>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
    }();
    check(function != nullptr, "fastrnn: this torch does not tell its current CUDA stream; is it built with CUDA?");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(function(device, &stream));
    return static_cast<cudaStream_t>(stream);
}

void multiply_to_float(const Tensor& a, const Tensor& b, Tensor& out) {
    std::array<StableIValue, 4> stack{from(a), from(b), from(ScalarType::Float), from(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);
}

#endif

class TorchProducts final : public Products {
   public:
    explicit TorchProducts(int32_t device) : device_(kDevice, device) {}

    void multiply(const Matrix& a, bool transpose_a, const Matrix& b, bool transpose_b, const Matrix& c) override {
        if (c.rows == 0 || c.columns == 0) return;
        Tensor out = tensor(c, false);
        if ((transpose_a ? a.rows : a.columns) == 0) {
            torch::stable::zero_(out);
        } else if (a.dtype != c.dtype) {
            multiply_to_float(tensor(a, transpose_a), tensor(b, transpose_b), out);
        } else {
            std::array<StableIValue, 3> stack{from(tensor(a, transpose_a)), from(tensor(b, transpose_b)), from(out)};
            TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
            torch::stable::detail::to<Tensor>(stack[0]);
        }
    }

   private:
    Tensor tensor(const Matrix& m, bool transposed) const {
        const std::array<int64_t, 2> sizes{transposed ? m.columns : m.rows, transposed ? m.rows : m.columns};
        const std::array<int64_t, 2> strides{transposed ? 1 : m.stride, transposed ? m.stride : 1};
        return torch::stable::from_blob(m.data, {sizes.data(), 2}, {strides.data(), 2}, device_, scalar_type(m.dtype));
    }

    torch::stable::Device device_;
};

CudaChoice wanted_engine() {
    const char* named = std::getenv("FASTRNN_CUDA_ENGINE");
    const std::string wanted = named ? named : "";
    // "torch" has kept calls from coming here
    return wanted.empty() || wanted == "torch" ? CudaChoice::automatic : cuda_choice(wanted);
}

// its properties are asked for once in a thread
const CudaDevice& use_device(int32_t index) {
    thread_local std::array<CudaDevice, 32> known;
    check(index >= 0 && index < static_cast<int32_t>(known.size()), "fastrnn: CUDA device ", index, " is beyond 31");
    CudaDevice& device = known[static_cast<size_t>(index)];
    check_cuda(cuda_use_device(index));
    if (device.capability == 0) check_cuda(cuda_describe_device(index, device));
    check(device.capability >= kCudaCapability, "fastrnn: the CUDA kernels need compute capability ",
          kCudaCapability / 10, ".", kCudaCapability % 10, ", device ", index, " has ", device.capability / 10, ".",
          device.capability % 10);
    return device;
}

size_t workspace_bytes(const ForwardParams& p, const CudaPlan& plan) { return cuda_forward_workspace_bytes(p, plan); }
size_t workspace_bytes(const BackwardParams& p, const CudaPlan& plan) { return cuda_backward_workspace_bytes(p, plan); }
cudaError_t launch(const ForwardParams& p, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    return cuda_forward(p, plan, products, stream);
}
cudaError_t launch(const BackwardParams& p, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    return cuda_backward(p, plan, products, stream);
}

template <class Params>
void run(Params& params, const Tensor& x, bool backward) {
#if defined(FASTRNN_EMULATED)
    const int32_t index = 0;
#else
    const int32_t index = x.get_device_index();
    const DeviceGuard guard(index);
#endif
    const CudaPlan plan = cuda_plan({params.dtype, params.cell, params.functions.candidate, params.shape, backward},
                                    use_device(index), wanted_engine());
    const auto bytes = static_cast<int64_t>(workspace_bytes(params, plan));
    const Tensor workspace = empty(x, {bytes}, aoti_torch_dtype_uint8());
    params.workspace = workspace.data_ptr();
    TorchProducts products(index);
    check_cuda(launch(params, plan, products, current_stream(index)));
}

}  // namespace

void run_on_cuda(ForwardParams& params, const Tensor& x) { run(params, x, false); }
void run_on_cuda(BackwardParams& params, const Tensor& x) { run(params, x, true); }

}  // namespace fastrnn
