// What a step of the CUDA engines cannot do without, measured: a barrier between blocks by generation flags, as in
// csrc/cuda/grid.cuh; the same by one atomic counter; and a launch on a stream. Prints one JSON object.
//   nvcc -std=c++17 -O3 -arch=native -Icsrc -Icsrc/include bench/gpu_probe.cu -o probe
#include <cstdio>
#include <cstdlib>

#include "cuda/device.cuh"

namespace {

using fastrnn::acquire;
using fastrnn::kThreads;
using fastrnn::release;

__global__ void flag_barriers(unsigned* flags, int blocks, int rounds) {
    for (int round = 1; round <= rounds; ++round) {
        __syncthreads();
        if (threadIdx.x == 0) release(flags + blockIdx.x, static_cast<unsigned>(round));
        if (threadIdx.x < 32) {
            for (int block = static_cast<int>(threadIdx.x); block < blocks; block += 32) {
                while (acquire(flags + block) < static_cast<unsigned>(round)) {
                }
            }
        }
        __syncthreads();
    }
}

__global__ void counter_barriers(unsigned* counter, int blocks, int rounds) {
    for (int round = 1; round <= rounds; ++round) {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(counter, 1u);
            while (acquire(counter) < static_cast<unsigned>(round * blocks)) {
            }
        }
        __syncthreads();
    }
}

__global__ void nothing() {}

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "gpu_probe: %s\n", cudaGetErrorString(error));
    std::exit(1);
}

template <class Body>
double microseconds(const Body& body) {
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin));
    check(cudaEventCreate(&end));
    body();
    check(cudaEventRecord(begin));
    body();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    return 1e3 * static_cast<double>(milliseconds);
}

double barrier(void (*kernel)(unsigned*, int, int), unsigned* flags, int blocks) {
    int rounds = 10000;
    void* arguments[] = {&flags, &blocks, &rounds};
    return microseconds([&] {
               check(cudaMemsetAsync(flags, 0, 4096));
               check(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                                                 dim3(kThreads), arguments, 0, nullptr));
           }) /
           rounds;
}

}  // namespace

int main() {
    int processors = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
    unsigned* flags = nullptr;
    check(cudaMalloc(&flags, 4096));
    std::printf("{");
    for (int blocks : {8, 16, 32, 64, 96, processors}) {
        std::printf("\"flags_%d_us\": %.4f, \"counter_%d_us\": %.4f, ", blocks, barrier(flag_barriers, flags, blocks),
                    blocks, barrier(counter_barriers, flags, blocks));
    }
    constexpr int kLaunches = 2000;
    std::printf("\"launch_us\": %.4f}\n", microseconds([] {
                                              for (int i = 0; i < kLaunches; ++i) nothing<<<1, kThreads>>>();
                                          }) / kLaunches);
    return 0;
}
