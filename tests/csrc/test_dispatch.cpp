// The choice of an instruction set: names, preference, and the FASTRNN_FORCE_ISA variable.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "check.h"
#include "fastrnn/kernels.h"

namespace {

std::string error_of_force(const char* name) {
    try {
        fastrnn::force_isa(name);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

}  // namespace

int main() {
    unsetenv("FASTRNN_FORCE_ISA");
    fastrnn::force_isa("");
    const std::string chosen = fastrnn::active_isa();
    bool better = false;
    for (const char* name : {"avx512", "avx2", "generic"}) {
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
    return fastrnn_test::finish();
}
