// The choice of an instruction set: names, preference, the FASTRNN_FORCE_ISA variable, and a choice that changes during
// a call.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "check.h"
#include "runner.h"

namespace {

const char* const kNames[] = {"amx", "avx512", "avx2", "generic"};

std::string error_of_force(const char* name) {
    try {
        fastrnn::force_isa(name);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

// another choice is made between the question for a workspace and the call
struct Overtaken {
    template <class T>
    using Reserve = T;
    template <class T>
    static constexpr fastrnn::DType dtype() {
        return fastrnn_test::dtype_of<T>();
    }
    static inline const char* intruder = "";

    static void forward(fastrnn::ForwardParams& params) {
        const fastrnn::Kernels& kernels = fastrnn::active_kernels();
        const fastrnn_test::Bytes workspace(fastrnn::forward_workspace_bytes(params, kernels));
        fastrnn::force_isa(intruder);
        params.workspace = workspace.get();
        fastrnn::forward(params, kernels);
    }
    static void backward(fastrnn::BackwardParams& params) {
        const fastrnn::Kernels& kernels = fastrnn::active_kernels();
        const fastrnn_test::Bytes workspace(fastrnn::backward_workspace_bytes(params, kernels));
        fastrnn::force_isa(intruder);
        params.workspace = workspace.get();
        fastrnn::backward(params, kernels);
    }
};

template <class Library>
fastrnn_test::Results<float> run(const fastrnn_test::Problem& problem, const char* isa) {
    const fastrnn_test::Tensors given = fastrnn_test::random_tensors(problem);
    fastrnn_test::Runner<float, Library> runner(problem, given, fastrnn_test::Layout::time_major, 1);
    fastrnn_test::Results<float> results;
    fastrnn::force_isa(isa);
    runner.forward(true, results);
    fastrnn::force_isa(isa);
    runner.backward(given, {}, results);
    return results;
}

void test_choice_during_a_call() {
    const fastrnn_test::Problem problem{
        fastrnn::Cell::lstm, fastrnn::Activation::tanh, 3, 20, 7, 40, 0, 1, {}, true, true};
    for (const char* isa : kNames) {
        if (!fastrnn::isa_supported(isa)) continue;
        const auto expected = run<fastrnn_test::CpuLibrary>(problem, isa);
        for (const char* intruder : kNames) {
            if (!fastrnn::isa_supported(intruder)) continue;
            Overtaken::intruder = intruder;
            const auto found = run<Overtaken>(problem, isa);
            CHECK(found.y == expected.y && found.d_x == expected.d_x, isa);
        }
    }
}

}  // namespace

int main() {
    unsetenv("FASTRNN_FORCE_ISA");
    fastrnn::force_isa("");
    const std::string chosen = fastrnn::active_isa();
    bool better = false;
    for (const char* name : kNames) {
        if (chosen == name) better = true;
        CHECK(better || !fastrnn::isa_supported(name), name);
        if (!fastrnn::isa_supported(name)) {
            CHECK(!error_of_force(name).empty(), name);
            continue;
        }
        CHECK(error_of_force(name).empty(), name);
        CHECK(std::strcmp(fastrnn::active_isa(), name) == 0, name);
    }
    CHECK(fastrnn::isa_supported("generic"), "generic");
    CHECK(!fastrnn::isa_compiled("sse9"), "sse9");

    fastrnn::force_isa("generic");
    CHECK(error_of_force("sse9").find("sse9") != std::string::npos, error_of_force("sse9"));
    CHECK(std::strcmp(fastrnn::active_isa(), "generic") == 0, "a refused name leaves the choice as it was");

    setenv("FASTRNN_FORCE_ISA", "generic", 1);
    fastrnn::force_isa("");
    CHECK(std::strcmp(fastrnn::active_isa(), "generic") == 0, "FASTRNN_FORCE_ISA=generic");
    setenv("FASTRNN_FORCE_ISA", "sse9", 1);
    CHECK(error_of_force("").find("FASTRNN_FORCE_ISA") != std::string::npos, error_of_force(""));
    unsetenv("FASTRNN_FORCE_ISA");
    fastrnn::force_isa("");
    CHECK(chosen == fastrnn::active_isa(), chosen);
    test_choice_during_a_call();
    return fastrnn_test::finish();
}
