// The plan of the CUDA engines as text, for python -m fastrnn.info --explain; it needs no device.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "checks.h"
#include "fastrnn/cuda_plan.h"

namespace fastrnn {
namespace {

Cell parse_cell(const std::string& name) {
    if (name == "lstm") return Cell::lstm;
    if (name == "gru") return Cell::gru;
    if (name == "gru_reset_before") return Cell::gru_reset_before;
    std::string known;
    for (int cell = 0; cell < kCellCount; ++cell) {
        if (name == kCells[cell].name) return static_cast<Cell>(cell);
        known += (cell ? ", " : "") + std::string(kCells[cell].name);
    }
    fail("unknown cell '", name, "'; one of ", known);
}

DType parse_dtype(const std::string& name) {
    if (name == "float32") return DType::float32;
    if (name == "float64") return DType::float64;
    if (name == "bfloat16") return DType::bfloat16;
    if (name == "float16") return DType::float16;
    fail("unknown dtype '", name, "'; one of float32, float64, bfloat16, float16");
}

// sizes: T, B, I, H, P, D; device: capability, processors, shared bytes, cache bytes, or none for the name
std::string cuda_plan_op(std::string cell, std::string dtype, std::vector<int64_t> sizes, bool backward,
                         std::string wanted, std::string device_name, std::vector<int64_t> properties) {
    check(sizes.size() == 6, "sizes are T, B, I, H, P, D");
    CudaDevice device;
    if (properties.size() == 4) {
        device = {device_name, static_cast<int>(properties[0]), static_cast<int>(properties[1]), properties[2],
                  properties[3]};
    } else {
        check(cuda_device_named(device_name, device), "unknown device '", device_name, "'; one of h100, h200, a100");
    }
    const Shape shape{sizes[0], sizes[1], sizes[0] * sizes[1],        sizes[2],
                      sizes[3], sizes[4], static_cast<int>(sizes[5]), nullptr};
    const CudaPlan plan =
        cuda_plan({parse_dtype(dtype), parse_cell(cell), Activation::tanh, shape, backward}, device, wanted);
    std::string text = std::string("engine: ") + cuda_engine_name(plan.engine) + "\nwhy: " + plan.reason;
    if (plan.engine == CudaEngine::grid) {
        text += "\nblocks: " + std::to_string(plan.blocks) + " of " + std::to_string(device.processors) +
                "\nunits of a block: " + std::to_string(plan.units) +
                "\nparts of the rows: " + std::to_string(plan.batch_parts) +
                "\ndirections at once: " + std::to_string(plan.directions_at_once) +
                "\nshared memory of a block: " + std::to_string(plan.shared_bytes) + " bytes";
    }
    return text;
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
    m.impl("cuda_plan", TORCH_BOX(&fastrnn::cuda_plan_op));
}
