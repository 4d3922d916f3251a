// Checks of the ops' arguments, written as shapes. The modules check first, with torch.nn's messages; these guard
// direct calls of the ops.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace fastrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An argument that an op does not take.
class Refusal : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw Refusal(message.str());
}

template <class... Parts>
void check(bool holds, const Parts&... parts) {
    if (!holds) fail(parts...);
}

inline std::string shape_text(const int64_t* sizes, size_t count) {
    std::string text = "[";
    for (size_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
    return text + "]";
}

inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
    const auto sizes = tensor.sizes();
    bool same = sizes.size() == expected.size();
    for (size_t i = 0; same && i < expected.size(); ++i) same = sizes[i] == expected.begin()[i];
    if (!same) {
        fail("fastrnn: ", name, " must have shape ", shape_text(expected.begin(), expected.size()), ", got ",
             shape_text(sizes.data(), sizes.size()));
    }
}

inline bool on_one_device(const Tensor& a, const Tensor& b) {
    return a.is_cpu() == b.is_cpu() && (a.is_cpu() || a.get_device_index() == b.get_device_index());
}

inline void check_dtype(const char* name, const Tensor& tensor, const Tensor& x) {
    check(tensor.scalar_type() == x.scalar_type(), "fastrnn: ", name, " and x must have the same dtype");
    check(on_one_device(tensor, x), "fastrnn: ", name, " and x must be on the same device");
}

}  // namespace fastrnn
