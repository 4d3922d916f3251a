// CHECK counts and prints failures and goes on; finish() turns them into the program's exit code.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace fastrnn_test {

inline long checks = 0, failures = 0;

inline void check(bool passed, const char* file, int line, const char* condition, const std::string& where) {
    ++checks;
    if (passed) return;
    if (++failures <= 50) std::printf("%s:%d: %s  [%s]\n", file, line, condition, where.c_str());
}

#define CHECK(condition, where) fastrnn_test::check((condition), __FILE__, __LINE__, #condition, (where))

inline int finish() {
    std::printf("%ld checks, %ld failures\n", checks, failures);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}

}  // namespace fastrnn_test
