// Memory in large pages.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrnn {

inline constexpr size_t kHugePage = size_t{2} << 20;

// Asks for large pages in [data, data + bytes): a fresh page costs the system about a microsecond whatever its size.
inline void prefer_huge_pages(void* data, size_t bytes) {
#if defined(__linux__)
    const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
    const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: may be refused
#else
    (void)data, (void)bytes;
#endif
}

class Pages {
   public:
    Pages() = default;
    explicit Pages(size_t bytes) {
        const size_t alignment = bytes < kHugePage ? 4096 : kHugePage;
        size_ = (bytes + alignment - 1) / alignment * alignment;
        data_ = std::aligned_alloc(alignment, size_);
        if (!data_) {
            throw std::runtime_error("fastrnn: can't allocate memory: you tried to allocate " + std::to_string(size_) +
                                     " bytes");
        }
        prefer_huge_pages(data_, size_);
    }
    Pages(Pages&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Pages& operator=(Pages&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Pages() { std::free(data_); }

    void* data() const { return data_; }
    size_t size() const { return size_; }

    // Gives the memory, its contents lost, back at once: free() may keep it for the process.
    void discard() {
#if defined(__linux__)
        if (size_) madvise(data_, size_, MADV_DONTNEED);
#endif
        *this = Pages();
    }

    // Lets the system take the pages when it wants memory, their contents with them; false: it does not know how.
    bool offer_to_system() {
#if defined(__linux__) && defined(MADV_FREE)
        return madvise(data_, size_, MADV_FREE) == 0;
#else
        return false;
#endif
    }

   private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace fastrnn
