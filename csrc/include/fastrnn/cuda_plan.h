// Which CUDA engine runs a layer, and how: decided on the host from sizes and the device's properties, so that it needs
// neither a device nor the CUDA toolkit.
#pragma once

#include <string>

#include "fastrnn/kernels.h"

namespace fastrnn {

inline constexpr int kCudaCapability = 80;  // the least that the kernels run on

struct CudaDevice {
    int capability = 0;        // 10 * major + minor
    int processors = 0;        // SMs
    int64_t shared_bytes = 0;  // most shared memory of a block
    int64_t cache_bytes = 0;   // L2
};

// "h100", "h200" or "a100": what the plan needs to know of them; false for another name
bool cuda_device_named(const std::string& name, CudaDevice& device);

// whether the engines have the arithmetic of a cell
inline constexpr bool cuda_runs(Cell cell) {
    return cell_info(cell).recurrent && cell_info(cell).operands == 0 && cell_info(cell).memories == 1;
}

enum class CudaEngine { steps, grid };
const char* cuda_engine_name(CudaEngine engine);

// automatic: the quicker engine by the cost model; grid: it wherever it can run
enum class CudaChoice { automatic, steps, grid };
CudaChoice cuda_choice(const std::string& name);  // "auto", "steps" or "grid"; throws std::runtime_error for another

// What the plan of a pass depends on.
struct CudaProblem {
    DType dtype;
    Cell cell;
    Activation activation;
    Shape shape;
    bool backward;
};

// steps: a product and a launch for each time step. grid: one launch for all steps, whose blocks keep the recurrent
// weights of `units` hidden units each; blocks that share a direction and a part of the rows exchange h.
struct CudaPlan {
    CudaEngine engine = CudaEngine::steps;
    int units = 0;                     // of a block
    int batch_parts = 0;               // parts of the rows
    int directions_at_once = 0;        // 1: one launch a direction
    int64_t blocks = 0;                // of a launch
    int64_t shared_bytes = 0;          // of a block
    double steps_seconds = 0;          // estimates of a time step
    double grid_seconds = 0;           // 0 where the grid engine cannot run it
    const char* grid_lacks = nullptr;  // why it cannot; null where it can

    double seconds() const { return engine == CudaEngine::grid ? grid_seconds : steps_seconds; }
};

CudaPlan cuda_plan(const CudaProblem& problem, const CudaDevice& device, CudaChoice wanted);

// What torch.nn's call makes of a layer: cuDNN chooses its kernel by the whole stack that the layer belongs to.
struct TorchCall {
    int layers = 1;
    bool packed = false;
};

// an estimate of a time step of torch's own kernels; infinite for a cell that torch lacks
double torch_seconds(const CudaProblem& problem, const TorchCall& call, const CudaDevice& device);

// whether they are as quick as what cuda_plan chooses by the cost model, in the forward pass or, in training, in both
bool torch_is_quicker(CudaProblem problem, const TorchCall& call, const CudaDevice& device, bool training);

}  // namespace fastrnn
