// Memory that a kernel works in for the length of a call.
#pragma once

#include "kept_memory.h"

namespace fastrnn {

class Workspace {
   public:
    explicit Workspace(size_t bytes) {
        KeptWorkspace& kept = KeptWorkspace::of_this_thread();
        data_ = kept.find(bytes);
        if (data_) return;
        if (bytes > KeptWorkspace::kMostBytes) {
            own_ = kept_memory().take_block(bytes);
            data_ = own_.data();
            return;
        }
        kept.release();
        Pages pages(bytes);
        data_ = pages.data();
        if (!kept.keep(pages)) own_ = std::move(pages);
    }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() {
        if (own_.size() > KeptWorkspace::kMostBytes) kept_memory().give_block(std::move(own_));
    }
    void* data() const { return data_; }

   private:
    Pages own_;
    void* data_;
};

}  // namespace fastrnn
