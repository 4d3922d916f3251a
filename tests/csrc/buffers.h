// Arrays of exactly the size that the contract asks for, so that the address sanitizer sees the first byte beyond, and
// full of NaN, so that an element that was not written, or was read too early, shows.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "problem.h"

namespace fastrnn_test {

class Bytes {
   public:
    explicit Bytes(size_t bytes) : size_(bytes) {
        void* data = nullptr;
        if (posix_memalign(&data, 64, bytes) != 0) std::abort();
        data_.reset(static_cast<unsigned char*>(data));
        if (bytes) std::memset(data, 0xff, bytes);  // NaN in every floating-point type
    }
    unsigned char* get() const { return data_.get(); }
    size_t size() const { return size_; }

   private:
    struct Free {
        void operator()(unsigned char* data) const { std::free(data); }
    };
    std::unique_ptr<unsigned char, Free> data_;
    size_t size_;
};

// in another type; a type of a namespace of its own has its own function there
template <class T>
void assign(T& to, double value) {
    to = static_cast<T>(value);
}

template <class T>
class Array {
   public:
    explicit Array(int64_t count) : count_(count), bytes_(static_cast<size_t>(count) * sizeof(T)) {}
    explicit Array(const std::vector<double>& values) : Array(static_cast<int64_t>(values.size())) {
        for (size_t i = 0; i < values.size(); ++i) assign(data()[i], values[i]);
    }
    T* data() const { return reinterpret_cast<T*>(bytes_.get()); }
    T* data_or_null() const { return count_ ? data() : nullptr; }
    std::vector<T> values() const { return {data(), data() + count_}; }

   private:
    int64_t count_;
    Bytes bytes_;
};

// ragged: of packed input, with room for the rows that take no part in a step, and rows in another order
enum class Layout { time_major, batch_major, gapped, ragged };

// the row of states and sequences that row b of a step is
inline int64_t place_of(const Problem& p, Layout layout, int64_t b) {
    return layout == Layout::ragged ? (b + 1) % p.batch : b;
}

// A sequence in memory with the strides of a layout; packed input has one row after the other.
template <class T>
class Sequence {
   public:
    Sequence(const Problem& p, int64_t features, Layout layout)
        : p_(p), features_(features), layout_(layout), data_(place(p, features, layout)) {}
    Sequence(const Problem& p, int64_t features, Layout layout, const std::vector<double>& values)
        : Sequence(p, features, layout) {
        visit([&](int64_t at, int64_t index) { assign(data()[at], values[static_cast<size_t>(index)]); });
    }
    T* data() const { return data_.data(); }
    int64_t stride_time() const { return stride_time_; }
    int64_t stride_batch() const { return stride_batch_; }

    // [N, features]
    std::vector<T> values() const {
        std::vector<T> values(static_cast<size_t>(p_.rows() * features_));
        visit([&](int64_t at, int64_t index) { values[static_cast<size_t>(index)] = data()[at]; });
        return values;
    }

    // true while nothing was written between the rows, and zeros in those that take no part in a step
    bool gaps_untouched() const {
        std::vector<T> rest = data_.values();
        bool zeros = true;
        visit([&](int64_t at, int64_t) { std::memset(&rest[static_cast<size_t>(at)], 0xff, sizeof(T)); });
        visit_absent([&](int64_t at) {
            const T zero{};
            zeros &= std::memcmp(&rest[static_cast<size_t>(at)], &zero, sizeof(T)) == 0;
            std::memset(&rest[static_cast<size_t>(at)], 0xff, sizeof(T));
        });
        if (!zeros) return false;
        const auto* bytes = reinterpret_cast<const unsigned char*>(rest.data());
        for (size_t i = 0; i < rest.size() * sizeof(T); ++i) {
            if (bytes[i] != 0xff) return false;
        }
        return true;
    }

   private:
    int64_t place(const Problem& p, int64_t features, Layout layout) {
        const int64_t gap = layout == Layout::gapped ? 3 : 0;
        stride_batch_ = features + gap;
        stride_time_ = p.batch * stride_batch_ + gap;
        if (layout == Layout::batch_major) {
            stride_time_ = features;
            stride_batch_ = p.time * features;
        }
        const bool packed = is_packed();
        if (packed) {
            stride_time_ = 0;
            stride_batch_ = features + gap;
        }
        if (p.batch == 0 || features == 0 || (packed && p.rows() == 0)) return 0;
        return packed ? (p.rows() - 1) * stride_batch_ + features
                      : (p.time - 1) * stride_time_ + (p.batch - 1) * stride_batch_ + features;
    }

    bool is_packed() const { return !p_.batch_sizes.empty() && layout_ != Layout::ragged; }
    int64_t start_of(int64_t t, int64_t b) const {
        return is_packed() ? p_.row_of(t, b) * stride_batch_
                           : t * stride_time_ + place_of(p_, layout_, b) * stride_batch_;
    }

    template <class Visit>
    void visit_absent(const Visit& call) const {
        for (int64_t b = 0; b < p_.batch && layout_ == Layout::ragged; ++b) {
            for (int64_t t = p_.length(b); t < p_.time; ++t) {
                for (int64_t f = 0; f < features_; ++f) call(start_of(t, b) + f);
            }
        }
    }

    template <class Visit>
    void visit(const Visit& call) const {
        for (int64_t b = 0; b < p_.batch; ++b) {
            for (int64_t t = 0; t < p_.length(b); ++t) {
                const int64_t row = p_.row_of(t, b);
                const int64_t at = start_of(t, b);
                for (int64_t f = 0; f < features_; ++f) call(at + f, row * features_ + f);
            }
        }
    }

    const Problem& p_;
    int64_t features_, stride_time_ = 0, stride_batch_ = 0;
    Layout layout_;
    Array<T> data_;
};

}  // namespace fastrnn_test
