// The choice of an engine: a cost model over the plans that fit the device. Its constants are estimates of an H100's
// times that no device has confirmed, and matter by their ratios; python -m bench.gpu measures the barrier among them.
#include <limits>
#include <stdexcept>

#include "../cells/all.h"
#include "grid_layout.h"

namespace fastrnn {
namespace {

constexpr double kLaunchSeconds = 2.5e-6;      // from one small kernel to the next on a stream
constexpr double kProductSeconds = 10e-6;      // of a small product through torch: its way on the host takes longest
constexpr double kBarrierSeconds = 1.2e-6;     // until all blocks have seen what all have written
constexpr double kSharedBytesASecond = 200e9;  // of one SM, from shared memory
constexpr double kFreshBytesASecond = 50e9;    // of one SM, from the second-level cache
constexpr double kCacheBytesASecond = 4e12;    // of all SMs, from the second-level cache
constexpr double kMemoryBytesASecond = 2.5e12;
constexpr double kFloatFlopsASecond = 350e9;          // of one SM, exact float32
constexpr double kSharedFloatFlopsASecond = 200e9;    // the same with both operands from shared memory
constexpr double kCellSeconds = 0.4e-6;               // sums over warps, the cell, stores, for one block of rows
constexpr int64_t kMostGateBytes = int64_t{2} << 30;  // of preactivations from x, which the grid engine keeps whole

// torch's kernels. The persistent one is as published for H 768 and B 16 (docs/design.md, "The physics"), and taken to
// grow with H and, in blocks of 16 rows, with B; the one for small H needs no barrier across the device and is put at
// half of it. Of the launches that every other call makes for each step there is no figure that we know of: two of
// them, as close as a library can put them.
constexpr double kPersistentSeconds = 1.96e-6, kPersistentBackwardSeconds = 5.1e-6 - 1.96e-6;
constexpr double kSmallSeconds = 1e-6, kSmallBackwardSeconds = 1.5e-6;
constexpr double kTorchStepSeconds = 8e-6;

bool is_half(DType dtype) { return dtype == DType::bfloat16 || dtype == DType::float16; }

CellTraits traits_of(Cell cell) {
    switch (cell) {
#define FASTRNN_CELL(name, Template, ...) \
    case Cell::name: return Template<FixedFunctions<TanhActivation>>::traits();
#include "fastrnn/cells.def"
    }
    return {};
}

// of one direction's recurrent product by a library, whose float32 is `float_rate` times the exact one's speed
double product_seconds(const CudaProblem& p, const CudaDevice& device, double float_rate) {
    const Shape& s = p.shape;
    const double recurrent = static_cast<double>(s.projection ? s.projection : s.hidden);
    const double size = is_half(p.dtype) ? 2 : p.dtype == DType::float64 ? 8 : 4;
    const double weights = gate_count(p.cell) * static_cast<double>(s.hidden) * recurrent;
    const double bytes = weights * size;
    const double flops = 2 * weights * static_cast<double>(s.batch);
    const double times = is_half(p.dtype) ? 8 : p.dtype == DType::float64 ? 1 : float_rate;
    const double rate = times * kFloatFlopsASecond * device.processors;
    const double reading =
        bytes / (bytes * 2 < static_cast<double>(device.cache_bytes) ? kCacheBytesASecond : kMemoryBytesASecond);
    return reading > flops / rate ? reading : flops / rate;
}

double steps_seconds(const CudaProblem& p, const CudaDevice& device) {
    const int products = traits_of(p.cell).stages + (p.shape.projection ? 1 : 0);
    return p.shape.directions * (products * (kProductSeconds + kLaunchSeconds) + product_seconds(p, device, 1));
}

double grid_seconds(const CudaProblem& p, const GridLayout& layout, int directions_at_once) {
    const bool half = is_half(p.dtype);
    const double row_blocks = static_cast<double>(layout.rows_per_part) / kGridRows;
    const double fresh = static_cast<double>(kGridRows * layout.depth) * (half ? 2 : 4) / kFreshBytesASecond;
    const double weights = static_cast<double>(layout.weights_bytes(half)) / kSharedBytesASecond;
    const double flops = half ? 0 : 2.0 * static_cast<double>(kGridRows * layout.columns * layout.depth);
    const double arithmetic = flops / kSharedFloatFlopsASecond;
    const double product = fresh + (weights > arithmetic ? weights : arithmetic);
    const double turns = static_cast<double>(p.shape.directions) / directions_at_once;
    return turns * (kBarrierSeconds + row_blocks * (product + kCellSeconds));
}

// null where the grid engine can run the problem, if it fits
const char* grid_lacks(const CudaProblem& p) {
    if (p.dtype == DType::float64) return "the grid engine has no float64";
    if (p.shape.projection) return "the grid engine has no projection";
    const CellTraits cell = traits_of(p.cell);
    if (cell.stages > 1) return "the grid engine has no second product in a step";
    if (!grid_has(cell, p.activation)) return "the grid engine has tanh alone, and relu for an RNN";
    if (p.shape.batch == 0 || p.shape.hidden == 0) return "there is nothing to compute";
    const int64_t gate_bytes = p.shape.rows * gate_count(p.cell) * p.shape.hidden * 4;
    if (!p.backward && gate_bytes > kMostGateBytes) return "the products with x would take too much memory at once";
    return nullptr;
}

// The conditions are those of torch's choice of a cuDNN algorithm (get_algo in its RNN.cpp).
bool takes_small_kernel(const CudaProblem& p, const TorchCall& call) {
    const int64_t most = (p.cell == Cell::rnn ? 384 : 192) * (p.backward ? 2 : 3) / 3;
    return !call.packed && !p.shape.projection && p.shape.hidden <= most;
}
bool takes_persistent_kernel(const CudaProblem& p, const TorchCall& call) {
    const Shape& s = p.shape;
    const bool alone = !call.packed && !s.projection && call.layers == 1 && s.directions == 1;
    const bool sizes =
        s.hidden <= 1024 && s.hidden % 128 == 0 && s.input % 128 == 0 && s.batch <= 128 && s.batch % 8 == 0;
    const bool cell = p.cell == Cell::lstm || (p.cell == Cell::rnn && (s.batch < 96 || s.hidden < 896));
    return p.dtype == DType::float16 && alone && sizes && cell;
}

}  // namespace

bool cuda_device_named(const std::string& name, CudaDevice& device) {
    constexpr int64_t kKilobyte = 1024, kMegabyte = kKilobyte * kKilobyte;
    if (name == "h100") {
        device = {90, 132, 227 * kKilobyte, 50 * kMegabyte};
    } else if (name == "h200") {
        device = {90, 132, 227 * kKilobyte, 60 * kMegabyte};
    } else if (name == "a100") {
        device = {80, 108, 163 * kKilobyte, 40 * kMegabyte};
    } else {
        return false;
    }
    return true;
}

const char* cuda_engine_name(CudaEngine engine) { return engine == CudaEngine::grid ? "grid" : "steps"; }

CudaChoice cuda_choice(const std::string& name) {
    if (name == "auto") return CudaChoice::automatic;
    if (name == "steps") return CudaChoice::steps;
    if (name == "grid") return CudaChoice::grid;
    throw std::runtime_error("unknown CUDA engine '" + name + "'; there are auto, steps, grid");
}

CudaPlan cuda_plan(const CudaProblem& problem, const CudaDevice& device, CudaChoice wanted) {
    CudaPlan plan;
    plan.steps_seconds = steps_seconds(problem, device);
    plan.grid_lacks = grid_lacks(problem);
    const Shape& s = problem.shape;
    for (int units : {8, 16}) {
        for (int directions = s.directions; !plan.grid_lacks && directions >= 1; --directions) {
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
    if (!plan.grid_lacks && plan.grid_seconds == 0) {
        plan.grid_lacks = "the weights do not fit the device's shared memory";
    }
    const bool quicker = wanted == CudaChoice::grid || plan.grid_seconds < plan.steps_seconds;
    if (!plan.grid_lacks && wanted != CudaChoice::steps && quicker) plan.engine = CudaEngine::grid;
    return plan;
}

double torch_seconds(const CudaProblem& problem, const TorchCall& call, const CudaDevice& device) {
    const Shape& s = problem.shape;
    const bool has_cell = problem.cell == Cell::lstm || problem.cell == Cell::gru || problem.cell == Cell::rnn;
    if (!has_cell) return std::numeric_limits<double>::infinity();
    if (takes_small_kernel(problem, call)) return problem.backward ? kSmallBackwardSeconds : kSmallSeconds;
    if (takes_persistent_kernel(problem, call)) {
        const double rows = static_cast<double>(grid_ceil(s.batch, kGridRows));
        const double size = static_cast<double>(s.hidden) / 768 * rows;
        return size * (problem.backward ? kPersistentBackwardSeconds : kPersistentSeconds);
    }
    // directions run side by side; float32 by TF32, at half of half precision's speed
    return kTorchStepSeconds + s.directions * product_seconds(problem, device, 4);
}

bool torch_is_quicker(CudaProblem problem, const TorchCall& call, const CudaDevice& device, bool training) {
    double own = 0, of_torch = 0;
    for (int pass = 0; pass < (training ? 2 : 1); ++pass) {
        problem.backward = pass == 1;
        own += cuda_plan(problem, device, CudaChoice::automatic).seconds();
        of_torch += torch_seconds(problem, call, device);
    }
    return of_torch <= own;
}

}  // namespace fastrnn
