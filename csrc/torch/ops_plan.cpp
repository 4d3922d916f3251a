// The plan of the CUDA engines as text, for python -m fastrnn.info --explain, and whether it leaves a call to torch;
// they need no device.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "checks.h"
#include "fastrnn/cuda_plan.h"
#include "spec.h"

namespace fastrnn {
namespace {

DType parse_dtype(const std::string& name) {
    if (name == "float32") return DType::float32;
    if (name == "float64") return DType::float64;
    if (name == "bfloat16") return DType::bfloat16;
    if (name == "float16") return DType::float16;
    fail("unknown dtype '", name, "'; one of float32, float64, bfloat16, float16");
}

// sizes: T, B, I, H, P, D, and L of the stack
CudaProblem problem_of(const std::string& cell, const std::string& dtype, const std::vector<int64_t>& sizes,
                       bool backward) {
    check(sizes.size() == 7, "sizes are T, B, I, H, P, D, L");
    const Shape shape{sizes[0], sizes[1], sizes[0] * sizes[1],        sizes[2],
                      sizes[3], sizes[4], static_cast<int>(sizes[5]), nullptr};
    return {parse_dtype(dtype), find_cell(cell), Activation::tanh, shape, backward};
}

// properties: capability, processors, shared bytes, cache bytes, or none for the name
CudaDevice device_of(const std::string& name, const std::vector<int64_t>& properties) {
    CudaDevice device;
    if (properties.size() == 4) {
        return {static_cast<int>(properties[0]), static_cast<int>(properties[1]), properties[2], properties[3]};
    }
    check(cuda_device_named(name, device), "unknown device '", name, "'; one of h100, h200, a100");
    return device;
}

std::string microseconds(double seconds) {
    char buffer[32];
    std::snprintf(buffer, sizeof(buffer), "%.2f us", 1e6 * seconds);
    return buffer;
}

std::string reason(const CudaPlan& plan, CudaChoice wanted) {
    if (plan.grid_lacks) return plan.grid_lacks;
    return wanted == CudaChoice::automatic ? "the quicker by the estimates" : "asked for";
}

std::string cuda_plan_op(std::string cell, std::string dtype, std::vector<int64_t> sizes, bool packed, bool backward,
                         std::string wanted, std::string device_name, std::vector<int64_t> properties) {
    const CudaDevice device = device_of(device_name, properties);
    const CudaProblem problem = problem_of(cell, dtype, sizes, backward);
    const CudaChoice choice = cuda_choice(wanted);
    const CudaPlan plan = cuda_plan(problem, device, choice);
    std::string text = std::string("engine: ") + cuda_engine_name(plan.engine) + "\nwhy: " + reason(plan, choice);
    text += "\nestimates of a step: " + microseconds(plan.steps_seconds) + " by launches for each step";
    if (!plan.grid_lacks) text += ", " + microseconds(plan.grid_seconds) + " by persistent blocks";
    const double of_torch = torch_seconds(problem, {static_cast<int>(sizes[6]), packed}, device);
    if (std::isfinite(of_torch)) text += ", " + microseconds(of_torch) + " by torch's kernels";
    if (plan.engine == CudaEngine::grid) {
        text += "\nblocks: " + std::to_string(plan.blocks) + " of " + std::to_string(device.processors) +
                "\nunits of a block: " + std::to_string(plan.units) +
                "\nparts of the rows: " + std::to_string(plan.batch_parts) +
                "\ndirections at once: " + std::to_string(plan.directions_at_once) +
                "\nshared memory of a block: " + std::to_string(plan.shared_bytes) + " bytes";
    }
    return text;
}

int64_t cuda_capability() { return kCudaCapability; }

bool torch_is_quicker_op(std::string cell, std::string dtype, std::vector<int64_t> sizes, bool packed, bool training,
                         std::string device_name, std::vector<int64_t> properties) {
    const CudaProblem problem = problem_of(cell, dtype, sizes, false);
    const TorchCall call{static_cast<int>(sizes[6]), packed};
    return torch_is_quicker(problem, call, device_of(device_name, properties), training);
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
    m.impl("cuda_plan", TORCH_BOX(&fastrnn::cuda_plan_op));
    m.impl("cuda_capability", TORCH_BOX(&fastrnn::cuda_capability));
    m.impl("torch_is_quicker", TORCH_BOX(&fastrnn::torch_is_quicker_op));
}
