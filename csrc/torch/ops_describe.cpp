// What the library is made of and runs with: the ops that take no tensors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "fastrnn/cores.h"
#include "fastrnn/kernels.h"
#include "spec.h"

namespace fastrnn {
namespace {

constexpr const char* kIsas[] = {"amx", "avx512", "avx2", "generic"};  // best first

std::string quoted(const char* text) { return '"' + std::string(text) + '"'; }
std::string member(const char* name, const std::string& value) { return quoted(name) + ": " + value; }
std::string member(const char* name, int64_t value) { return member(name, std::to_string(value)); }
std::string member(const char* name, bool value) { return member(name, std::string(value ? "true" : "false")); }

template <class Range, class Text>
std::string listed(const char* brackets, const Range& range, Text text) {
    std::string out(1, brackets[0]);
    for (const auto& element : range) out += (out.size() > 1 ? ", " : "") + text(element);
    return out + brackets[1];
}

std::string cell_text(const CellInfo& cell) {
    return "{" + member("name", quoted(cell.name)) + ", " + member("gates", int64_t{cell.gates}) + ", " +
           member("saved", int64_t{cell.saved}) + ", " + member("states", int64_t{cell.states}) + ", " +
           member("has_activation", cell.has_activation) + ", " + member("may_project", cell.may_project) + ", " +
           member("recurrent", cell.recurrent) + ", " + member("operands", int64_t{cell.operands}) + ", " +
           member("learned", int64_t{cell.learned}) + ", " + member("required", int64_t{cell.required}) + ", " +
           member("memories", int64_t{cell.memories}) + "}";
}

std::string field_text(const BitField& field) {
    return member(field.name, "[" + std::to_string(field.first) + ", " + std::to_string(field.count) + "]");
}

// JSON; fastrnn/_spec.py reads it
std::string describe() {
    const char* const formats[] = {"plain", "bfloat16", "int8"};  // in the order of WeightFormat
    return "{" + member("cells", listed("[]", kCells, cell_text)) + ", " +
           member("activations", listed("[]", kActivations, quoted)) + ", " +
           member("spec", listed("{}", spec_fields::kAll, field_text)) + ", " +
           member("needs", listed("{}", needs_fields::kAll, field_text)) + ", " +
           member("weight_formats", listed("[]", formats, quoted)) + ", " +
           member("isas", listed("[]", kIsas, quoted)) + ", " + member("unit_alignment", kUnitAlignment) + ", " +
           member("stride_period", kStridePeriod) + "}";
}

std::string isas(bool (*wanted)(const char*)) {
    std::string names;
    for (const char* name : kIsas) {
        if (wanted(name)) names += (names.empty() ? "" : ",") + std::string(name);
    }
    return names;
}

std::string active_isa_op() { return active_isa(); }
std::string compiled_isas() { return isas(isa_compiled); }
std::string supported_isas() { return isas(isa_supported); }
void force_isa_op(std::string name) { force_isa(name.c_str()); }
int64_t num_threads() { return torch::stable::get_num_threads(); }
int64_t calls_in_flight() { return leases_in_flight(); }

std::tuple<int64_t, int64_t, int64_t, int64_t, double> plan(std::string cell, int64_t time, int64_t batch,
                                                            int64_t input, int64_t hidden, bool bidirectional,
                                                            int64_t threads) {
    check(time > 0 && batch >= 0 && input >= 0 && hidden >= 0 && threads > 0,
          "fastrnn: time and threads must be positive, the other sizes not negative");
    ForwardParams p{};
    p.cell = find_cell(cell);
    p.shape.time = time;
    p.shape.batch = batch;
    p.shape.rows = time * batch;
    p.shape.input = input;
    p.shape.hidden = hidden;
    p.shape.directions = bidirectional ? 2 : 1;
    p.threads = static_cast<int>(threads);
    const Plan found = plan_forward(p);
    return {found.threads, found.directions, found.batch_parts, found.unit_parts, found.seconds};
}

bool cuda_compiled() {
#if defined(FASTRNN_WITH_CUDA)
    return true;
#else
    return false;
#endif
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
    m.impl("describe", TORCH_BOX(&fastrnn::describe));
    m.impl("active_isa", TORCH_BOX(&fastrnn::active_isa_op));
    m.impl("compiled_isas", TORCH_BOX(&fastrnn::compiled_isas));
    m.impl("supported_isas", TORCH_BOX(&fastrnn::supported_isas));
    m.impl("force_isa", TORCH_BOX(&fastrnn::force_isa_op));
    m.impl("plan", TORCH_BOX(&fastrnn::plan));
    m.impl("num_threads", TORCH_BOX(&fastrnn::num_threads));
    m.impl("calls_in_flight", TORCH_BOX(&fastrnn::calls_in_flight));
    m.impl("adapt_threads", TORCH_BOX(&fastrnn::adapt_leases));
    m.impl("cuda_compiled", TORCH_BOX(&fastrnn::cuda_compiled));
}
