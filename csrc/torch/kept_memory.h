// Memory that waits for later calls: a workspace for each thread, and the blocks of all: reserves of finished training
// steps, and workspaces too large for every thread to keep.
//
// A step's reserve is as large as all its activations, and fresh pages can cost the system as long as the kernels need
// to fill them. A block that waits here is marked MADV_FREE: it counts as used until the system wants it, which then
// takes it.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cctype>
#include <mutex>
#include <vector>

#include "pages.h"

namespace fastrnn {

class KeptMemory {
   public:
    static constexpr size_t kLeastBlock = 2 * kHugePage;  // malloc keeps smaller ones itself

    // limit: bytes in all
    explicit KeptMemory(size_t limit) : limit_(limit) { blocks_.reserve(kMostBlocks); }

    // the smallest block that fits and is not wasted on it, or a new one
    Pages take_block(size_t bytes) {
        if (const Lock lock{mutex_}; true) {
            auto best = blocks_.end();
            for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
                const bool fits = block->size() >= bytes && block->size() / 2 <= bytes;
                if (fits && (best == blocks_.end() || block->size() < best->size())) best = block;
            }
            if (best != blocks_.end()) return remove(best);
        }
        return Pages(bytes);
    }

    void give_block(Pages pages) {
        if (pages.size() > limit_ || !pages.offer_to_system()) return;
        const Lock lock{mutex_};
        if (!make_room(pages.size())) return;
        if (blocks_.size() == kMostBlocks) remove(blocks_.begin());
        block_bytes_ += pages.size();
        blocks_.push_back(std::move(pages));  // within what the constructor reserved
    }

    // Whether a thread's workspace may grow, or shrink, from one size to another.
    bool resize_workspace(size_t from, size_t to) {
        const Lock lock{mutex_};
        workspace_bytes_ -= from;
        const bool fits = make_room(to);
        workspace_bytes_ += fits ? to : from;
        return fits;
    }

    // The blocks at once. A thread lets go of its workspace where the number of releases is not what it knows.
    void release() {
        const Lock lock{mutex_};
        for (Pages& pages : blocks_) pages.discard();
        blocks_.clear();
        block_bytes_ = 0;
        ++releases_;
    }
    uint32_t releases() const { return releases_.load(std::memory_order_relaxed); }

    size_t bytes() const {
        const Lock lock{mutex_};
        return block_bytes_ + workspace_bytes_;
    }
    size_t limit() const { return limit_; }

    // around fork(): the child has the one workspace of its one thread
    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }
    void unlock_in_child(size_t workspace_bytes) {
        workspace_bytes_ = workspace_bytes;
        mutex_.unlock();
    }

   private:
    static constexpr size_t kMostBlocks = 1024;
    using Lock = std::lock_guard<std::mutex>;

    // drops the oldest blocks until so many bytes more are within the limit; false: they are too many
    bool make_room(size_t bytes) {
        if (workspace_bytes_ + bytes > limit_) return false;
        while (block_bytes_ > limit_ - workspace_bytes_ - bytes) remove(blocks_.begin());
        return true;
    }

    Pages remove(std::vector<Pages>::iterator block) {
        Pages pages = std::move(*block);
        blocks_.erase(block);
        block_bytes_ -= pages.size();
        return pages;
    }

    const size_t limit_;
    mutable std::mutex mutex_;
    std::vector<Pages> blocks_;
    size_t block_bytes_ = 0, workspace_bytes_ = 0;
    std::atomic<uint32_t> releases_{0};
};

// The process's. Throws std::runtime_error where FASTRNN_KEEP_MB is not a number.
KeptMemory& kept_memory();

// What a thread keeps for its next call: the largest workspace that it had, up to a size.
class KeptWorkspace {
   public:
    static constexpr size_t kMostBytes = size_t{64} << 20;

    static KeptWorkspace& of_this_thread() {
        thread_local KeptWorkspace workspace;
        return workspace;
    }
    ~KeptWorkspace() { release(); }

    // null: it is smaller
    void* find(size_t bytes) {
        const uint32_t releases = kept_memory().releases();
        if (releases != std::exchange(releases_, releases)) release();
        return bytes <= pages_.size() ? pages_.data() : nullptr;
    }

    // false: they are too many
    bool keep(Pages& pages) {
        if (pages.size() > kMostBytes || !kept_memory().resize_workspace(pages_.size(), pages.size())) return false;
        std::swap(pages_, pages);
        pages = Pages();
        return true;
    }

    void release() {
        if (!pages_.size()) return;
        kept_memory().resize_workspace(pages_.size(), 0);
        pages_.discard();
    }

    size_t size() const { return pages_.size(); }

   private:
    Pages pages_;
    uint32_t releases_ = 0;
};

// FASTRNN_KEEP_MB in bytes
inline size_t keep_limit() {
    const char* const text = std::getenv("FASTRNN_KEEP_MB");
    if (!text || !*text) return size_t{512} << 20;
    const std::string digits = text;
    bool valid = digits.size() <= 9;
    for (const char c : digits) valid = valid && std::isdigit(static_cast<unsigned char>(c));
    if (!valid) throw std::runtime_error("FASTRNN_KEEP_MB: '" + digits + "' is not a whole number of MiB");
    return static_cast<size_t>(std::stoul(digits)) << 20;
}

inline KeptMemory& kept_memory() {
    // lives as long as the process, for tensors may outlast every static object
    static KeptMemory& memory = *[] {
        const size_t limit = keep_limit();
        pthread_atfork([] { kept_memory().lock(); }, [] { kept_memory().unlock(); },
                       [] { kept_memory().unlock_in_child(KeptWorkspace::of_this_thread().size()); });
        return new KeptMemory(limit);
    }();
    return memory;
}

// What waits for later calls of this thread, the blocks of all, and at their next call the other threads' workspaces.
inline void release_memory() {
    kept_memory().release();
    KeptWorkspace::of_this_thread().release();
}

}  // namespace fastrnn
