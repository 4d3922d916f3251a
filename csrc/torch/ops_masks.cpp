// The masks of dropout and zoneout.
#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "random_mask.h"

namespace fastrnn {
namespace {

void draw_mask_op(Tensor mask, Tensor seed, int64_t ones, double value) {
    const ScalarType type = mask.scalar_type();
    check(type == ScalarType::Float || type == ScalarType::Double, "fastrnn: a mask is float32 or float64");
    check(mask.is_cpu() && mask.is_contiguous(), "fastrnn: a mask is drawn on the CPU, and contiguous");
    check_shape("the seed", seed, {1});
    check(seed.is_cpu() && seed.scalar_type() == ScalarType::Long, "fastrnn: the seed must be int64, on the CPU");
    check(0 <= ones && ones <= kDraws, "fastrnn: ones are 0 to ", kDraws, ", got ", ones);
    const auto bits = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.const_data_ptr()));
    if (type == ScalarType::Double) {
        draw_mask(bits, ones, value, static_cast<double*>(mask.data_ptr()), mask.numel());
    } else {
        draw_mask(bits, ones, static_cast<float>(value), static_cast<float*>(mask.data_ptr()), mask.numel());
    }
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_FRAGMENT(fastrnn, m) {
    m.def("draw_mask_(Tensor(a!) mask, Tensor seed, int ones, float value) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("draw_mask_", TORCH_BOX(&fastrnn::draw_mask_op)); }
