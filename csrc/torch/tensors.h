// Tensors that ops make, and their types.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <string>

#include "checks.h"
#include "fastrnn/kernels.h"
#include "pages.h"

namespace fastrnn {
namespace {

// x: a tensor on the device
inline Tensor empty(const Tensor& x, std::initializer_list<int64_t> sizes, int32_t dtype) {
    int64_t strides[4], stride = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
        strides[i] = stride;
        stride *= sizes.begin()[i] > 0 ? sizes.begin()[i] : 1;
    }
    AtenTensorHandle handle;
    const AOTITorchError error =
        aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides, dtype,
                                 x.is_cpu() ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(),
                                 x.is_cpu() ? 0 : x.get_device_index(), &handle);
    if (error != AOTI_TORCH_SUCCESS) {
        throw std::runtime_error("fastrnn: can't allocate memory: you tried to allocate a tensor of shape " +
                                 shape_text(sizes.begin(), sizes.size()));
    }
    return Tensor(handle);
}

// for what is new in every step and large
inline Tensor in_huge_pages(Tensor t) {
    if (t.is_cpu()) prefer_huge_pages(t.data_ptr(), static_cast<size_t>(t.numel()) * t.element_size());
    return t;
}

// sequences may have any strides but along their features
inline Tensor with_unit_stride(Tensor t) {
    const int64_t last = t.dim() - 1;
    return t.stride(last) == 1 || t.size(last) == 1 ? t : torch::stable::contiguous(t);
}

inline int32_t dtype_code_of(ScalarType type) {
    switch (type) {
        case ScalarType::Double: return aoti_torch_dtype_float64();
        case ScalarType::BFloat16: return aoti_torch_dtype_bfloat16();
        case ScalarType::Half: return aoti_torch_dtype_float16();
        default: return aoti_torch_dtype_float32();
    }
}

inline bool is_half(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

inline DType dtype_of(ScalarType type) {
    switch (type) {
        case ScalarType::Double: return DType::float64;
        case ScalarType::BFloat16: return DType::bfloat16;
        case ScalarType::Half: return DType::float16;
        default: return DType::float32;
    }
}

}  // namespace
}  // namespace fastrnn
