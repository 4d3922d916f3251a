// From a plan to its engine, and from a device to its properties.
#include "pass.cuh"

namespace fastrnn {
namespace {

// A row lies where its time and its place in the batch say, nothing cuts it, and the recurrent weights are one block
// that meets h as it is.
template <class Params>
bool is_taken(const Params& params) {
    const Shape& shape = params.shape;
    return !shape.order && !shape.resets && (shape.packed || !shape.batch_sizes) && shape.heads == 1 &&
           !params.weights[0].recurrent_mask;
}

}  // namespace

size_t cuda_forward_workspace_bytes(const ForwardParams& params, const CudaPlan& plan) {
    return plan.engine == CudaEngine::grid ? grid_forward_bytes(params, plan) : steps_forward_bytes(params, plan);
}

size_t cuda_backward_workspace_bytes(const BackwardParams& params, const CudaPlan& plan) {
    return plan.engine == CudaEngine::grid ? grid_backward_bytes(params, plan) : steps_backward_bytes(params, plan);
}

cudaError_t cuda_forward(const ForwardParams& params, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    if (!is_taken(params) || params.cell_states) return cudaErrorNotSupported;
    return plan.engine == CudaEngine::grid ? grid_forward(params, plan, products, stream)
                                           : steps_forward(params, plan, products, stream);
}

cudaError_t cuda_backward(const BackwardParams& params, const CudaPlan& plan, Products& products, cudaStream_t stream) {
    if (!is_taken(params) || params.d_cell_states) return cudaErrorNotSupported;
    return plan.engine == CudaEngine::grid ? grid_backward(params, plan, products, stream)
                                           : steps_backward(params, plan, products, stream);
}

cudaError_t cuda_use_device(int index) {
    const cudaError_t error = cudaSetDevice(index);
    if (error != cudaSuccess) cudaGetLastError();
    return error;
}

cudaError_t cuda_describe_device(int index, CudaDevice& device) {
    cudaError_t error = cudaSuccess;
    const auto ask = [&](cudaDeviceAttr attribute) {
        int value = 0;
        if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, index);
        return value;
    };
    device.capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
    device.processors = ask(cudaDevAttrMultiProcessorCount);
    device.shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    device.cache_bytes = ask(cudaDevAttrL2CacheSize);
    if (error != cudaSuccess) cudaGetLastError();
    return error;
}

}  // namespace fastrnn
