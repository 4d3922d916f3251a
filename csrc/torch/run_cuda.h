// Runs a filled struct on torch's current stream of the device that x is on; ops_cuda.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "fastrnn/kernels.h"

namespace fastrnn {

void run_on_cuda(ForwardParams& params, const torch::stable::Tensor& x);
void run_on_cuda(BackwardParams& params, const torch::stable::Tensor& x);

}  // namespace fastrnn
