// How a layer's work is laid out in time, over threads and in memory; the same for the forward and the backward pass.
#pragma once

#include "../cells/rows.h"
#include "clock.h"
#include "fastrnn/kernels.h"
#include "float_mode.h"
#include "fork.h"
#include "team.h"
#include "team_report.h"
#include "vec.h"

namespace fastrnn {
namespace {

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Carves 64-byte aligned arrays out of the workspace; with a null base it only measures.
class Arena {
   public:
    explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
    template <class U>
    U* take(int64_t count) {
        const size_t at = used_;
        used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(U)), 64));
        return base_ ? reinterpret_cast<U*>(base_ + at) : nullptr;
    }
    size_t used() const { return used_; }

   private:
    char* base_;
    size_t used_ = 0;
};

// A sequence tensor with the addresses of its rows.
template <class T>
struct Rows {
    T* base;
    Strides strides;

    T* at(const Steps& steps, int64_t t, int64_t b) const { return base + strides.at(steps, t, b); }
    T* at(const Steps& steps, int64_t row) const { return base + strides.at(steps, row); }
};

// row b of direction d of a state [D, B, width], or zeros where there is none
template <class T>
const T* state_row(const void* state, const T* zeros, const Steps& steps, int d, int64_t b, int64_t width) {
    return state ? static_cast<const T*>(state) + (d * steps.batch + steps.row_of(b)) * width : zeros;
}

// the state of row b before a step, which carried() finds where a step made it
template <class T, class Carried>
const T* state_before(const Steps& steps, int64_t step, int64_t b, const void* initial, const T* zeros, int d,
                      int64_t width, const Carried& carried) {
    switch (steps.origin(step, b)) {
        case Origin::step_before: return carried();
        case Origin::initial: return state_row(initial, zeros, steps, d, b, width);
        default: return zeros;
    }
}

template <class T>
void copy_part(const T* from, T* to, Range part) {
    __builtin_memcpy(to + part.begin, from + part.begin, sizeof(T) * static_cast<size_t>(part.end - part.begin));
}
template <class T>
void clear_part(T* row, Range part) {
    __builtin_memset(row + part.begin, 0, sizeof(T) * static_cast<size_t>(part.end - part.begin));
}

// zero in `columns` of rows at times that they take no part in
template <class T>
void clear_rest(const Rows<T>& sequence, const Steps& steps, Range rows, Range columns) {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
        for (int64_t t = steps.length(b); t < steps.time; ++t) {
            clear_part(sequence.at(steps, t, b), columns);
        }
    }
}

inline constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

inline void fill_offsets(const Shape& shape, int64_t* offsets) {
    if (!shape.batch_sizes) return;
    offsets[0] = 0;
    for (int64_t t = 0; t < shape.time; ++t) offsets[t + 1] = offsets[t] + shape.batch_sizes[t];
}

// The blocks of a layer's recurrent weights.
struct Heads {
    int64_t count, units, length;  // units of a head, and features of h that they meet

    static Heads of(const Shape& shape) {
        return {shape.heads, shape.hidden / shape.heads,
                (shape.projection ? shape.projection : shape.hidden) / shape.heads};
    }
    // calls body(head, those of `range` that are its own) where a head has `width` of what range counts
    template <class Body>
    void for_each(Range range, int64_t width, const Body& body) const {
        if (count == 1) return body(int64_t{0}, range);
        for (int64_t at = range.begin; at < range.end;) {
            const int64_t head = at / width, end = min((head + 1) * width, range.end);
            body(head, Range{at, end});
            at = end;
        }
    }
    // Whether units may be split over `parts` threads that never wait for each other: each has heads of its own.
    bool part(const Shape& shape, int parts) const { return count > 1 && count >= parts && !shape.projection; }
};
inline Steps steps_of_direction(const Shape& shape, const int64_t* offsets, int d) {
    return {shape.time,
            shape.batch,
            offsets,
            shape.order,
            d == 1,
            shape.resets,
            {shape.resets_stride_time, shape.resets_stride_batch, shape.packed}};
}

// Seconds, roughly, on a present-day server core: only their ratios matter, and only to the choice of a schedule. A
// core multiplies and adds as many lanes a cycle as its vectors have, and half as many where that is not one
// instruction.
template <class T>
constexpr double kFlopSeconds =
    1.0 / 100e9 * (sizeof(T) / 4.0) * (64.0 / FASTRNN_VECTOR_BYTES) * (FASTRNN_VECTOR_BYTES == 16 ? 2 : 1);
constexpr double kByteSecondsNear = 1.0 / 90e9, kByteSecondsFar = 1.0 / 50e9;
constexpr double kNearBytes = 700e3, kWorthAThread = 8e-6;
constexpr double kBarrierSeconds = 0.4e-6, kBarrierSecondsAThread = 0.1e-6;  // each thread reads the flags of all
constexpr double kExposed = 0.25;                                            // of the shorter of two times that overlap

// what the weights of a product cost
struct Arithmetic {
    int64_t bytes;  // of a weight as it is read in each step
    double flop_seconds;
    int64_t rows = 1;         // that take as long as one
    double gate_seconds = 0;  // of a cell's arithmetic, where it counts beside the products

    double round_up_rows(double count) const {
        const auto whole = static_cast<int64_t>(count);
        const int64_t least = whole + (static_cast<double>(whole) < count ? 1 : 0);
        return rows == 1 ? count : static_cast<double>(round_up(least, rows));
    }
};
template <class T>
constexpr Arithmetic arithmetic_of(int64_t bytes = sizeof(T)) {
    return {bytes, kFlopSeconds<T>};
}

struct Schedule {
    int batch_parts = 1, unit_parts = 1;
    double seconds = 0;
};

// The quickest way for `threads` threads to run one direction: rows are split without any barrier, units with
// `barriers` a step, in which case each thread keeps only its own part of the weights near.
inline Schedule choose_schedule(const Shape& shape, int gates, int64_t tile, const Arithmetic& arithmetic, int barriers,
                                int threads) {
    const int64_t recurrent = Heads::of(shape).length;
    const double mean_batch = shape.time ? static_cast<double>(shape.rows) / static_cast<double>(shape.time) : 0;
    const int64_t tiles = (shape.hidden + tile - 1) / tile;
    Schedule best;
    for (int unit_parts = 1; unit_parts <= threads && unit_parts <= tiles; ++unit_parts) {
        const int batch_parts = threads / unit_parts;
        const double rows = mean_batch / batch_parts < 1 ? 1 : mean_batch / batch_parts;
        const double units = static_cast<double>((tiles + unit_parts - 1) / unit_parts * tile);
        const double weights = units * gates * static_cast<double>(recurrent);
        const double bytes = weights * static_cast<double>(arithmetic.bytes);
        const double flop_seconds = 2 * arithmetic.round_up_rows(rows) * arithmetic.flop_seconds;
        const double input = units * gates * static_cast<double>(shape.input) * flop_seconds;
        const double cell = units * gates * rows * arithmetic.gate_seconds;
        const double compute = weights * flop_seconds;
        const double near = bytes < kNearBytes ? bytes : kNearBytes;
        const double memory = near * kByteSecondsNear + (bytes - near) * kByteSecondsFar;
        const double longer = compute > memory ? compute : memory;
        const double step = longer + kExposed * (compute + memory - longer) + input + cell +
                            (unit_parts > 1 ? barriers * (kBarrierSeconds + unit_parts * kBarrierSecondsAThread) : 0);
        const double seconds = step * static_cast<double>(shape.time);
        if (unit_parts == 1 || seconds < best.seconds) best = {batch_parts, unit_parts, seconds};
    }
    if (best.batch_parts > shape.batch) best.batch_parts = shape.batch > 1 ? static_cast<int>(shape.batch) : 1;
    return best;
}

// Whether two directions run at once, each on half of the threads; one after the other, each on all of them, a thread
// has half as many weights to keep near, and more barriers.
inline bool runs_directions_apart(const Shape& shape, int gates, int64_t tile, const Arithmetic& arithmetic,
                                  int barriers, int threads) {
    if (shape.directions == 1 || threads == 1) return false;
    const auto seconds = [&](int size) {
        return choose_schedule(shape, gates, tile, arithmetic, barriers, size).seconds;
    };
    return seconds(threads / 2) <= 2 * seconds(threads);
}

// of those that work on the first direction at a time
inline int threads_of_first(bool apart, int threads) { return apart ? (threads + 1) / 2 : threads; }

// A thread's place: the directions it works on, and its rows and units in them.
struct Place {
    Team world;      // all threads of the call
    Team direction;  // those that share a direction
    Team rows;       // those that share rows, where they wait for each other in each step
    int first_direction, last_direction;
    bool works;  // false: only packs and shares the work after the loop
    int batch_part, batch_parts;
    Range units;
};

// flags: [3][threads]
inline Place find_place(const Shape& shape, int gates, int64_t tile, const Arithmetic& arithmetic, int barriers,
                        Flag* flags, int threads, int thread) {
    Place place;
    place.world = Team(flags, thread, threads);
    const bool apart = runs_directions_apart(shape, gates, tile, arithmetic, barriers, threads);
    const int head = threads_of_first(apart, threads);
    const bool second = thread >= head;
    const int rank = second ? thread - head : thread, size = second ? threads - head : head;
    place.first_direction = second ? 1 : 0;
    place.last_direction = apart ? place.first_direction : shape.directions - 1;
    place.direction = Team(flags + threads + (second ? head : 0), rank, size);
    const Schedule schedule = choose_schedule(shape, gates, tile, arithmetic, barriers, size);
    place.works = rank < schedule.batch_parts * schedule.unit_parts;
    const int part = place.works ? rank / schedule.unit_parts : 0, within = rank % schedule.unit_parts;
    const bool waits = place.works && barriers > 0;
    place.rows = Team(flags + 2 * threads + (second ? head : 0) + part * schedule.unit_parts, waits ? within : 0,
                      waits ? schedule.unit_parts : 1);
    place.batch_part = part;
    place.batch_parts = schedule.batch_parts;
    place.units = split(shape.hidden, tile, within, schedule.unit_parts);
    return place;
}

// Rows of one part, so that each part has about the same number of (row, step) pairs.
inline Range rows_of_part(const Steps& steps, int64_t total_rows, int part, int parts) {
    if (!steps.offsets) return split(steps.batch, 1, part, parts);
    Range range{0, steps.batch};
    int64_t done = 0;
    for (int64_t b = 0; b < steps.batch; ++b) {
        if (part > 0 && done <= total_rows * part / parts) range.begin = b;
        if (part + 1 < parts && done <= total_rows * (part + 1) / parts) range.end = b;
        done += steps.length(b);
    }
    return range;
}

// How many of `wanted` threads are worth waking.
inline int useful_threads(const Shape& shape, int gates, const Arithmetic& arithmetic, double passes, int wanted) {
    const double weights = static_cast<double>(shape.directions * gates) * static_cast<double>(shape.hidden) *
                           static_cast<double>(shape.input + Heads::of(shape).length);
    const double seconds =
        passes *
        (weights * 2 * static_cast<double>(shape.rows) * arithmetic.flop_seconds + weights * 4 * kByteSecondsNear +
         static_cast<double>(shape.directions * gates * shape.hidden * shape.rows) * arithmetic.gate_seconds);
    const double useful = seconds / kWorthAThread;
    return useful < 2 ? 1 : useful < wanted ? static_cast<int>(useful) : wanted;
}

// Runs body(thread, threads) on at most `wanted` threads at once, fewer where there are fewer. All of them round and
// flush denormals as the calling thread does, or results would depend on which of them made what.
template <class Body>
void run_team(int wanted, const Body& body) {
    if (wanted <= 1 || omp_in_parallel()) {
        body(0, 1);
        return;
    }
    struct Region {
        const Body& body;
        int wanted;
        FloatMode mode;
        static void begin(const void* argument) {
            const Region& region = *static_cast<const Region*>(argument);
            int threads = 1;
            slept = 0;
            const int64_t began = nanoseconds();
            int64_t done = began;
#pragma omp parallel num_threads(region.wanted)
            {
                const FloatMode own = float_mode();
                set_float_mode(region.mode);
                region.body(omp_get_thread_num(), omp_get_num_threads());
                set_float_mode(own);
                if (omp_get_thread_num() == 0) {
                    threads = omp_get_num_threads();
                    done = nanoseconds();
                }
            }
            const int64_t ended = nanoseconds();
            if (threads > 1) report_team(threads, ended - began, slept + ended - done);
        }
    };
    const Region region{body, wanted, float_mode()};
    if (!call_where_regions_begin(Region::begin, &region)) body(0, 1);
}

}  // namespace
}  // namespace fastrnn
