#include "emulation.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr int kLanes = 32;
constexpr int64_t kPatience = 1000;  // turns of all threads without progress that make a deadlock

struct Barrier {
    int size = 0, arrived = 0;
    uint64_t generation = 0;
};

struct Warp {
    Barrier barrier;
    Fragments fragments[2][kLanes];
};

struct Block {
    Barrier barrier;
    std::vector<Warp> warps;
    std::unique_ptr<unsigned char[]> memory;
    unsigned char* shared;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int block, thread;
    unsigned exchanges;
    bool done;
};

std::vector<Block> blocks;
std::vector<std::unique_ptr<Fiber>> fibers;  // kept for the next launch
Fiber* current = nullptr;
ucontext_t scheduler;
const std::function<void()>* running = nullptr;
int current_block = 0, current_thread = 0, block_threads = 0;
int64_t idle_turns = 0;
uint64_t random_state = 1;

uint64_t random() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 33;
}

// the address sanitizer must be told of a change of stacks
#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack;
size_t scheduler_stack_size;
#endif

void enter() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    (*running)();
    current->done = true;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_stack_size);
#endif
    swapcontext(&current->context, &scheduler);
}

void resume(Fiber& fiber) {
    current = &fiber;
    current_block = fiber.block;
    current_thread = fiber.thread;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStackBytes);
#endif
    swapcontext(&scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    current = nullptr;
}

void wait(Barrier& barrier) {
    const uint64_t generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.generation;
        progress();
    }
    while (barrier.generation == generation) yield();
}

void run_fibers(int64_t count, int threads) {
    const auto total = static_cast<size_t>(count * threads);
    while (fibers.size() < total) {
        fibers.push_back(std::make_unique<Fiber>());
        fibers.back()->stack.reset(new char[kStackBytes]);  // not touched before it is used
    }
    for (size_t i = 0; i < total; ++i) {
        Fiber& fiber = *fibers[i];
        fiber.block = static_cast<int>(i) / threads;
        fiber.thread = static_cast<int>(i) % threads;
        fiber.exchanges = 0;
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    size_t done = 0;
    while (done < total) {
        if (++idle_turns > kPatience) {
            std::fprintf(stderr, "emulation: %zu of %zu threads wait for what never comes\n", total - done, total);
            std::abort();
        }
        // another order of blocks and of threads in every turn; now and then a block falls behind
        const uint64_t first_block = random(), flip = random();
        for (int64_t i = 0; i < count; ++i) {
            const auto block =
                static_cast<size_t>((first_block + static_cast<uint64_t>(i)) % static_cast<uint64_t>(count));
            if (count > 1 && random() % 4 == 0) continue;
            const auto rotate = static_cast<size_t>(random());
            for (size_t j = 0; j < static_cast<size_t>(threads); ++j) {
                size_t thread = (j + rotate) % static_cast<size_t>(threads);
                if (flip & 1) thread = static_cast<size_t>(threads) - 1 - thread;
                Fiber& fiber = *fibers[block * static_cast<size_t>(threads) + thread];
                if (fiber.done) continue;
                resume(fiber);
                if (fiber.done) ++done, progress();
            }
        }
    }
}

}  // namespace

void run(int64_t count, int threads, size_t shared_bytes, bool cooperative, const std::function<void()>& kernel) {
    running = &kernel;
    block_threads = threads;
    if (!cooperative) {
        for (int64_t i = 0; i < count * threads; ++i) {
            current_block = static_cast<int>(i / threads);
            current_thread = static_cast<int>(i % threads);
            kernel();
        }
        return;
    }
    blocks.clear();
    blocks.resize(static_cast<size_t>(count));
    for (Block& block : blocks) {
        block.barrier.size = threads;
        block.warps.resize(static_cast<size_t>(threads / kLanes));
        for (Warp& warp : block.warps) warp.barrier.size = kLanes;
        // its end is the allocation's, for the address sanitizer; full of NaN
        const size_t start = (16 - shared_bytes % 16) % 16;
        block.memory = std::make_unique<unsigned char[]>(start + shared_bytes);
        block.shared = block.memory.get() + start;
        std::memset(block.memory.get(), 0xff, start + shared_bytes);
        if (reinterpret_cast<uintptr_t>(block.shared) % 16 != 0) std::abort();
    }
    idle_turns = 0;
    run_fibers(count, threads);
    blocks.clear();
}

void set_seed(uint64_t seed) { random_state = seed; }
int thread_index() { return current_thread; }
int block_index() { return current_block; }
int threads_of_block() { return block_threads; }
unsigned char* shared_memory() { return blocks[static_cast<size_t>(current_block)].shared; }
void progress() { idle_turns = 0; }

void yield() {
    if (!current) {
        std::fprintf(stderr, "emulation: a thread waits in a launch that is not cooperative\n");
        std::abort();
    }
    Fiber& self = *current;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, scheduler_stack, scheduler_stack_size);
#endif
    swapcontext(&self.context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_stack_size);
#endif
}

void block_barrier() { wait(blocks[static_cast<size_t>(current_block)].barrier); }

void warp_barrier() {
    wait(blocks[static_cast<size_t>(current_block)].warps[static_cast<size_t>(current_thread / kLanes)].barrier);
}

const Fragments* exchange(const Fragments& own) {
    Warp& warp = blocks[static_cast<size_t>(current_block)].warps[static_cast<size_t>(current_thread / kLanes)];
    Fragments* slots = warp.fragments[current->exchanges++ & 1];
    slots[current_thread % kLanes] = own;
    wait(warp.barrier);
    return slots;
}

}  // namespace emulation
