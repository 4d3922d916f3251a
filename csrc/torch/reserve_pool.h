// Memory of finished training steps, for those to come.
//
// A step's reserve is as large as all its activations, and fresh pages can cost the system as long as the kernels need
// to fill them. What waits here is marked MADV_FREE: it counts as used until the system wants it, which then takes it.
#pragma once

#include <mutex>
#include <vector>

#include "workspace.h"

namespace fastrnn {
namespace {

class ReservePool {
   public:
    static constexpr size_t kLeastBytes = 2 * kHugePage;     // malloc keeps smaller ones itself
    static constexpr size_t kMostBytes = size_t{512} << 20;  // in all

    ReservePool() { kept_.reserve(kMostBytes / kLeastBytes); }

    // lives as long as the process, for tensors may outlast every static object
    static ReservePool& instance() {
        static ReservePool* const pool = new ReservePool;
        return *pool;
    }

    // the smallest block that fits and is not wasted on it, or a new one
    Pages take(size_t bytes) {
        if (const Lock lock{mutex_, std::try_to_lock}) {
            auto best = kept_.end();
            for (auto block = kept_.begin(); block != kept_.end(); ++block) {
                const bool fits = block->size() >= bytes && block->size() / 2 <= bytes;
                if (fits && (best == kept_.end() || block->size() < best->size())) best = block;
            }
            if (best != kept_.end()) return remove(best);
        }
        return Pages(bytes);
    }

    void give(Pages pages) {
        if (pages.size() > kMostBytes || !pages.offer_to_system()) return;
        // never waits: in a forked process the lock's holder may not exist
        const Lock lock{mutex_, std::try_to_lock};
        if (!lock) return;
        while (kept_bytes_ + pages.size() > kMostBytes) remove(kept_.begin());  // the oldest
        kept_bytes_ += pages.size();
        kept_.push_back(std::move(pages));  // within what the constructor reserved
    }

    size_t kept_bytes() const { return kept_bytes_; }

   private:
    using Lock = std::unique_lock<std::mutex>;

    Pages remove(std::vector<Pages>::iterator block) {
        Pages pages = std::move(*block);
        kept_.erase(block);
        kept_bytes_ -= pages.size();
        return pages;
    }

    std::mutex mutex_;
    std::vector<Pages> kept_;
    size_t kept_bytes_ = 0;
};

}  // namespace
}  // namespace fastrnn
