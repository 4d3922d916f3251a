// Every op's schema but for retired ones.
#include <torch/csrc/stable/library.h>

// Shapes and meanings: fastrnn/_ops.py.
STABLE_TORCH_LIBRARY(fastrnn, m) {
    m.def(
        "layer_forward(Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, Tensor[] operands, int spec, "
        "bool training) -> Tensor[]");
    m.def(
        "layer_backward(Tensor?[] d_outputs, Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, "
        "Tensor[] operands, Tensor y, Tensor reserve, int spec, int needs) -> Tensor[]");
    m.def("describe() -> str");
    m.def("active_isa() -> str");
    m.def("compiled_isas() -> str");
    m.def("supported_isas() -> str");
    m.def("force_isa(str name) -> ()");
    m.def("num_threads() -> int");
    m.def("calls_in_flight() -> int");      // on the CPU
    m.def("adapt_threads(bool on) -> ()");  // off: a call has as many threads as torch says, whatever else runs
    m.def(
        "plan(str cell, int time, int batch, int input, int hidden, bool bidirectional, int threads) "
        "-> (int threads, int directions, int batch_parts, int unit_parts, float seconds)");
    m.def("cuda_compiled() -> bool");
    m.def("cuda_capability() -> int");
    m.def(
        "cuda_plan(str cell, str dtype, int[] sizes, bool packed, bool backward, str wanted, str device, "
        "int[] properties) -> str");
    m.def(
        "torch_is_quicker(str cell, str dtype, int[] sizes, bool packed, bool training, str device, int[] properties) "
        "-> bool");
}
