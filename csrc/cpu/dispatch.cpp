// Which instruction set's kernels run. Compiled without architecture flags: it must run anywhere.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu_features.h"
#include "target.h"

namespace fastrnn {
namespace {

struct Target {
    const char* name;
    bool (*supported)();
    Kernels kernels;
};

#if defined(FASTRNN_X86)
// the runtime's cpuid test also asks the operating system whether it keeps the wide registers
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
#if defined(FASTRNN_AMX)
bool has_amx() { return has_avx512() && may_use_bfloat16_tiles(); }
#endif
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
bool always() { return true; }

// in order of preference
const Target kTargets[] = {
#if defined(FASTRNN_X86)
#if defined(FASTRNN_AMX)
    {"amx", has_amx, {&passes_avx512, &unit_amx}},
#endif
    {"avx512", has_avx512, {&passes_avx512, nullptr}},
    {"avx2", has_avx2, {&passes_avx2, nullptr}},
#endif
    {"generic", always, {&passes_generic, nullptr}},
};

const Target* find(const char* name) {
    for (const Target& target : kTargets) {
        if (std::strcmp(target.name, name) == 0) return &target;
    }
    return nullptr;
}

const Target* require(const char* name) {
    std::string names;
    for (const Target& target : kTargets) names += (names.empty() ? "" : ", ") + std::string(target.name);
    const Target* target = find(name);
    if (!target)
        throw std::runtime_error(std::string("unknown instruction set '") + name + "'; this build has " + names);
    if (!target->supported()) {
        throw std::runtime_error(std::string("this CPU does not support the instruction set '") + name + "'");
    }
    return target;
}

const Target* choose() {
    const char* forced = std::getenv("FASTRNN_FORCE_ISA");
    if (forced && *forced) {
        try {
            return require(forced);
        } catch (const std::runtime_error& error) {
            throw std::runtime_error(std::string("FASTRNN_FORCE_ISA: ") + error.what());
        }
    }
    for (const Target& target : kTargets) {
        if (target.supported()) return &target;
    }
    return &kTargets[sizeof(kTargets) / sizeof(kTargets[0]) - 1];
}

std::atomic<const Target*> active{nullptr};

const Target& active_target() {
    const Target* target = active.load(std::memory_order_acquire);
    if (!target) {
        target = choose();
        active.store(target, std::memory_order_release);
    }
    return *target;
}

template <class Params>
Params with_a_thread(Params params) {
    if (params.threads < 1) params.threads = 1;
    return params;
}

}  // namespace

const Kernels& active_kernels() { return active_target().kernels; }
const char* active_isa() { return active_target().name; }
bool isa_compiled(const char* name) { return find(name) != nullptr; }

bool isa_supported(const char* name) {
    const Target* target = find(name);
    return target && target->supported();
}

void force_isa(const char* name) { active.store(*name ? require(name) : choose(), std::memory_order_release); }

size_t forward_workspace_bytes(const ForwardParams& params, const Kernels& kernels) {
    return kernels.passes->forward_workspace_bytes(with_a_thread(params), kernels.unit);
}

size_t backward_workspace_bytes(const BackwardParams& params, const Kernels& kernels) {
    return kernels.passes->backward_workspace_bytes(with_a_thread(params));
}

Plan plan_forward(const ForwardParams& params, const Kernels& kernels) {
    return kernels.passes->plan_forward(with_a_thread(params), kernels.unit);
}

void forward(const ForwardParams& params, const Kernels& kernels) {
    kernels.passes->forward(with_a_thread(params), kernels.unit);
}

void backward(const BackwardParams& params, const Kernels& kernels) { kernels.passes->backward(with_a_thread(params)); }

}  // namespace fastrnn
