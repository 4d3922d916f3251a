#pragma once

#include <time.h>

#include <cstdint>

namespace fastrnn {
namespace {

inline int64_t nanoseconds() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
}

}  // namespace
}  // namespace fastrnn
