// Checks of the ops' arguments, written as shapes. The modules check first, with torch.nn's messages; these guard
// direct calls of the ops.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>

namespace fastrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(const int64_t* sizes, size_t count) {
    std::string text = "[";
    for (size_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
    return text + "]";
}

inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
    const auto sizes = tensor.sizes();
    bool same = sizes.size() == expected.size();
    for (size_t i = 0; same && i < expected.size(); ++i) same = sizes[i] == expected.begin()[i];
    STD_TORCH_CHECK(same, "fastrnn: ", name, " must have shape ", shape_text(expected.begin(), expected.size()),
                    ", got ", shape_text(sizes.data(), sizes.size()));
}

inline void check_dtype(const char* name, const Tensor& tensor, const Tensor& x) {
    STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "fastrnn: ", name, " and x must have the same dtype");
    STD_TORCH_CHECK(tensor.is_cpu(), "fastrnn: ", name, " and x must be on the same device");
}

}  // namespace fastrnn
