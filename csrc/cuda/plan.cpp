// The choice of an engine: a cost model over the plans that fit the device. Its constants are estimates of an H100's
// times, and matter by their ratios; python -m bench.gpu measures the barrier among them.
#include <cstdio>
#include <stdexcept>

#include "grid_layout.h"

namespace fastrnn {
namespace {

constexpr double kLaunchSeconds = 2.5e-6;      // from one small kernel or product to the next on a stream
constexpr double kBarrierSeconds = 0.9e-6;     // until all blocks have seen what all have written
constexpr double kSharedBytesASecond = 200e9;  // of one SM, from shared memory
constexpr double kFreshBytesASecond = 90e9;    // of one SM, from the second-level cache
constexpr double kCacheBytesASecond = 4e12;    // of all SMs, from the second-level cache
constexpr double kMemoryBytesASecond = 2.5e12;
constexpr double kFloatFlopsASecond = 350e9;          // of one SM, exact float32
constexpr double kCellSeconds = 0.25e-6;              // sums over warps, the cell, stores, for one block of rows
constexpr int64_t kMostGateBytes = int64_t{2} << 30;  // of preactivations from x, which the grid engine keeps whole

bool is_half(DType dtype) { return dtype == DType::bfloat16 || dtype == DType::float16; }

double steps_seconds(const CudaProblem& p, const CudaDevice& device) {
    const Shape& s = p.shape;
    const double recurrent = static_cast<double>(s.projection ? s.projection : s.hidden);
    const double size = is_half(p.dtype) ? 2 : p.dtype == DType::float64 ? 8 : 4;
    const double weights = gate_count(p.cell) * static_cast<double>(s.hidden) * recurrent;
    const double bytes = weights * size;
    const double flops = 2 * weights * static_cast<double>(s.batch);
    const double rate = (is_half(p.dtype) ? 8 : 1) * kFloatFlopsASecond * device.processors;
    const double reading =
        bytes / (bytes * 2 < static_cast<double>(device.cache_bytes) ? kCacheBytesASecond : kMemoryBytesASecond);
    const int launches = 2 + (s.projection ? 2 : 0) + (p.cell == Cell::gru_reset_before ? 2 : 0);
    const double work = reading > flops / rate ? reading : flops / rate;
    return s.directions * (launches * kLaunchSeconds + work);
}

double grid_seconds(const CudaProblem& p, const GridLayout& layout, int directions_at_once) {
    const bool half = is_half(p.dtype);
    const double row_blocks = static_cast<double>(layout.rows_per_part) / kGridRows;
    const double fresh = static_cast<double>(kGridRows * layout.depth) * (half ? 2 : 4) / kFreshBytesASecond;
    const double weights = static_cast<double>(layout.weights_bytes(half)) / kSharedBytesASecond;
    const double flops = half ? 0 : 2.0 * static_cast<double>(kGridRows * layout.columns * layout.depth);
    const double product = fresh + (weights > flops / kFloatFlopsASecond ? weights : flops / kFloatFlopsASecond);
    const double turns = static_cast<double>(p.shape.directions) / directions_at_once;
    return turns * (kBarrierSeconds + row_blocks * (product + kCellSeconds));
}

// empty where the grid engine can run the problem, if it fits
std::string grid_lacks(const CudaProblem& p) {
    if (p.dtype == DType::float64) return "the grid engine has no float64";
    if (p.shape.projection) return "the grid engine has no projection";
    if (p.cell == Cell::gru_reset_before) return "the grid engine has no reset before the product";
    const bool known = p.activation == Activation::tanh || (p.cell == Cell::rnn && p.activation == Activation::relu);
    if (!known) return "the grid engine has tanh alone, and relu for an RNN";
    if (p.shape.batch == 0 || p.shape.hidden == 0) return "there is nothing to compute";
    const int64_t gate_bytes = p.shape.rows * gate_count(p.cell) * p.shape.hidden * 4;
    if (!p.backward && gate_bytes > kMostGateBytes) return "the products with x would take too much memory at once";
    return "";
}

std::string text(const char* format, double value) {
    char buffer[64];
    std::snprintf(buffer, sizeof(buffer), format, value);
    return buffer;
}

}  // namespace

bool cuda_device_named(const std::string& name, CudaDevice& device) {
    constexpr int64_t kKilobyte = 1024, kMegabyte = kKilobyte * kKilobyte;
    if (name == "h100") {
        device = {name, 90, 132, 227 * kKilobyte, 50 * kMegabyte};
    } else if (name == "h200") {
        device = {name, 90, 132, 227 * kKilobyte, 60 * kMegabyte};
    } else if (name == "a100") {
        device = {name, 80, 108, 163 * kKilobyte, 40 * kMegabyte};
    } else {
        return false;
    }
    return true;
}

const char* cuda_engine_name(CudaEngine engine) { return engine == CudaEngine::grid ? "grid" : "steps"; }

CudaPlan cuda_plan(const CudaProblem& problem, const CudaDevice& device, const std::string& wanted) {
    if (wanted != "auto" && wanted != "steps" && wanted != "grid") {
        throw std::runtime_error("unknown CUDA engine '" + wanted + "'; there are auto, steps, grid");
    }
    CudaPlan plan;
    plan.steps_seconds = steps_seconds(problem, device);
    std::string lack = grid_lacks(problem);
    const Shape& s = problem.shape;
    for (int units : {8, 16}) {
        for (int directions = s.directions; lack.empty() && directions >= 1; --directions) {
            const int64_t groups = device.processors / (grid_ceil(s.hidden, units) * directions);
            if (groups < 1) continue;
            const int64_t most = grid_ceil(s.batch, kGridRows);
            const GridLayout layout =
                grid_layout(problem.cell, s, problem.backward, units, groups < most ? groups : most);
            const int64_t bytes = layout.shared_bytes(is_half(problem.dtype));
            if (bytes > device.shared_bytes) continue;
            const double seconds = grid_seconds(problem, layout, directions);
            if (plan.grid_seconds > 0 && seconds >= plan.grid_seconds) continue;
            plan.grid_seconds = seconds;
            plan.units = units;
            plan.directions_at_once = directions;
            plan.batch_parts = static_cast<int>(layout.batch_parts);
            plan.blocks = layout.blocks_per_group * layout.batch_parts * directions;
            plan.shared_bytes = bytes;
        }
    }
    if (lack.empty() && plan.grid_seconds == 0) lack = "the weights do not fit the device's shared memory";
    const std::string estimates = text("%.2f us a step by the cost model", 1e6 * plan.grid_seconds) +
                                  text(", against %.2f by launches for each step", 1e6 * plan.steps_seconds);
    if (!lack.empty()) {
        plan.reason = lack;
    } else if (wanted == "steps") {
        plan.reason = "asked for";
    } else if (wanted == "grid" || plan.grid_seconds < plan.steps_seconds) {
        plan.engine = CudaEngine::grid;
        plan.reason = wanted == "grid" ? "asked for; " + estimates : estimates;
    } else {
        plan.reason = "persistent blocks would take " + estimates;
    }
    return plan;
}

}  // namespace fastrnn
