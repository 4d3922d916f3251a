// Layer normalisation of a row: the arithmetic of the cells of cells/norm.h, which takes all units of a row at once.
//
// Sums over a row are made in one order, lanes side by side and then over the lanes, whatever the number of threads;
// sums over rows as those of other gradients are. The backward pass makes the gates and the rows' moments again from
// the products: that costs less than to keep and to read four values a unit more.
//
// Cost beside the plain cell: some 12 passes over the 2G values of a row in the nearest caches, forward and backward.
#pragma once

#include "plan-inl.h"
#include "tile-inl.h"

namespace fastrnn {
namespace {

template <class T>
T sum_of_lanes(Vec<T> v) {
    constexpr int kLanes = Vec<T>::kLanes;
    T lanes[kLanes];
    v.store(lanes);
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0];
}

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

// sum over `Count` values of all units of load(value, u), whose lanes beyond the last unit count too
template <int Count, class T, class Load>
FASTRNN_INLINE T sum_over_units(int64_t hidden, const Load& load) {
    using V = Vec<T>;
    V sums[Count];  // apart, for their additions wait for each other
    for (V& sum : sums) sum = V{T(0)};
    for (int64_t u = 0; u < hidden; u += V::kLanes) {
        for (int i = 0; i < Count; ++i) sums[i] = sums[i] + load(i, u);
    }
    for (int i = 1; i < Count; ++i) sums[0] = sums[0] + sums[i];
    return sum_of_lanes(sums[0]);
}

// LN of `Count` values a unit: (v - mean) * scale
template <class T>
struct Moments {
    T mean, scale;
};

template <int Count, class T>
FASTRNN_INLINE Moments<T> moments_of(const T* values, int64_t padded, int64_t hidden) {
    using V = Vec<T>;
    const T terms = static_cast<T>(Count * hidden);
    const auto load = [&](int i, int64_t u) { return load_units(values + i * padded, u, hidden); };
    const T mean = sum_over_units<Count, T>(hidden, load) / terms;
    const T squares = sum_over_units<Count, T>(hidden, [&](int i, int64_t u) {
        V deviation = load(i, u) - V{mean};
        if (u + V::kLanes > hidden) {
            T inside[V::kLanes];
            deviation.store(inside);
            deviation = load_partial(inside, hidden - u);
        }
        return deviation * deviation;
    });
    return {mean, T(1) / square_root(squares / terms + static_cast<T>(kLayerNormEps))};
}

// One product of a row: `Count` values a unit, their gains and the biases that are added to them.
template <int Count, class T>
struct NormalisedProduct {
    using V = Vec<T>;

    const T* values;   // [Count][padded]
    const T* gains;    // [G*H]
    const T* biases;   // [G*H], or null
    const int* gates;  // [Count]
    int64_t padded, hidden;
    Moments<T> moments;

    NormalisedProduct(const T* values_, const T* gains_, const T* biases_, const int* gates_, int64_t padded_,
                      int64_t hidden_)
        : values(values_),
          gains(gains_),
          biases(biases_),
          gates(gates_),
          padded(padded_),
          hidden(hidden_),
          moments(moments_of<Count>(values_, padded_, hidden_)) {}

    FASTRNN_INLINE V normalised(int i, int64_t u) const {
        return (load_units(values + i * padded, u, hidden) - V{moments.mean}) * V{moments.scale};
    }
    FASTRNN_INLINE V gain(int i, int64_t u) const { return load_units(gains + gates[i] * hidden, u, hidden); }
    FASTRNN_INLINE V scaled(int i, int64_t u) const {
        const V bias = biases ? load_units(biases + gates[i] * hidden, u, hidden) : V{T(0)};
        return fma(normalised(i, u), gain(i, u), bias);
    }

    // The gradients of the values, d_values[Count][padded], from those of what `scaled` made, d(i, u).
    template <class Gradient>
    FASTRNN_INLINE void backward(const Gradient& d, T* d_values) const {
        V sums[Count], products[Count];
        for (int i = 0; i < Count; ++i) sums[i] = products[i] = V{T(0)};
        for (int64_t u = 0; u < hidden; u += V::kLanes) {
            for (int i = 0; i < Count; ++i) {
                const V d_normalised = d(i, u) * gain(i, u);
                sums[i] = sums[i] + d_normalised;
                products[i] = fma(d_normalised, normalised(i, u), products[i]);
            }
        }
        for (int i = 1; i < Count; ++i) {
            sums[0] = sums[0] + sums[i];
            products[0] = products[0] + products[i];
        }
        const T terms = static_cast<T>(Count * hidden);
        const V mean{sum_of_lanes(sums[0]) / terms}, slope{sum_of_lanes(products[0]) / terms}, scale{moments.scale};
        for (int64_t u = 0; u < hidden; u += V::kLanes) {
            for (int i = 0; i < Count; ++i) {
                const V rest = fma(normalised(i, u), slope, mean);
                (scale * (d(i, u) * gain(i, u) - rest)).store(d_values + i * padded + u);
            }
        }
    }
};

// What the row values of a cell are (cells/norm.h): the gradients of the plain cell's slots, that of LN(c') gain_c +
// bias_c where there is one, then c' before it was zoned out, where it is, and last the moments of the row.
template <class C>
struct RowValues {
    static constexpr int kD = C::traits().slots, kDCell = kD + C::kPlain.slots, kMade = kDCell + 1;
    static constexpr int kMoments = kD + C::traits().row_values - 1;
    static constexpr int kMomentsOfX = 0, kMomentsOfH = 2, kMomentsOfC = 4;  // in their place
};

// The products of a row, and the plain cell's slots made of them.
template <class T, class C>
struct NormalisedRow {
    using V = Vec<T>;
    static constexpr CellTraits k = C::traits(), kPlain = C::kPlain;
    static constexpr int kX = k.input.count, kH = k.recurrent[0].count;

    const CellTraits traits = k;
    NormalisedProduct<kX, T> x;
    NormalisedProduct<kH, T> h;

    template <class Tile>
    NormalisedRow(const Tile& tile, int64_t r, const T* slots)
        : x(slots, tile.operands[0][r], tile.b_ih, traits.gate_of_slot, tile.padded, tile.hidden),
          h(slots + kX * tile.padded, tile.operands[1][r], tile.b_hh, traits.gate_of_slot + kX, tile.padded,
            tile.hidden) {}

    FASTRNN_INLINE void fill(V* slots, int64_t u) const {
        for (int i = 0; i < kPlain.slots; ++i) {
            const int from_x = i - kPlain.input.begin, from_h = i - kPlain.recurrent[0].begin;
            if (!kPlain.from_h(i)) {
                slots[i] = x.scaled(from_x, u);
            } else if (!kPlain.input.has(i)) {
                slots[i] = h.scaled(from_h, u);
            } else {
                slots[i] = x.scaled(from_x, u) + h.scaled(from_h, u);
            }
        }
    }
};

// LN(c') gain_c + bias_c
template <class T, class Tile>
NormalisedProduct<1, T> normalised_c(const Tile& tile, int64_t r, const T* c) {
    static constexpr int kOnly[] = {0};
    return {c, tile.operands[2][r], tile.operands[3][r], kOnly, tile.padded, tile.hidden};
}

template <class V>
FASTRNN_INLINE BackwardUnit<V> plain_unit(const V* saved, V* d_slots, Functions functions) {
    const V zero{0};
    return {saved, zero, zero, zero, zero, nullptr, zero, zero, d_slots, nullptr, functions};
}

template <class T, class C>
FASTRNN_NOINLINE void forward_rows(const ForwardTile<T>& tile) {
    using V = Vec<T>;
    using Plain = typename C::Plain;
    constexpr CellTraits k = C::traits(), kPlain = C::kPlain;
    const int64_t padded = tile.padded, hidden = tile.hidden;
    const V zero{T(0)};
    for (int64_t r = 0; r < tile.rows; ++r) {
        const NormalisedRow<T, C> row(tile, r, tile.slots[r]);
        T *const out = tile.out[r], *const y = tile.y ? tile.y[r] : nullptr;
        const T *const zone_h = zone_row<T, k.zone_h>(tile, r), *const zone_c = zone_row<T, k.zone_c>(tile, r);
        const auto hand_on = [&](V value, int64_t u) {
            if (zone_h) value = zone_out(value, load_units(tile.h[r], u, hidden), load_units(zone_h, u, hidden));
            value.store(out + u);
            if (y) store_units(value, y, u, hidden);
        };
        // c' as it was made: where it is zoned out, not yet in the place of that which is carried on
        T* const made = !zone_c ? tile.c_next[0][r] : tile.keeps ? tile.slots[r] + k.c_saved * padded : tile.slots[r];
        for (int64_t u = 0; u < hidden; u += V::kLanes) {
            V values[kPlain.stored()];
            row.fill(values, u);
            ForwardUnit<V> unit{values, zero, zero, zero, nullptr, tile.functions};
            if constexpr (k.reads_h) unit.h = load_units(tile.h[r], u, hidden);
            if constexpr (C::kHasC) unit.c = load_units(tile.c[0][r], u, hidden);
            const V before = unit.c;
            Plain::template forward<0>(unit);
            if constexpr (C::kHasC) {
                unit.c.store(made + u);
                if (zone_c) zone_out(unit.c, before, load_units(zone_c, u, hidden)).store(tile.c_next[0][r] + u);
                values[Plain::kOutputGate].store(out + u);
            } else {
                hand_on(unit.out, u);
            }
        }
        if constexpr (C::kHasC) {
            const auto c = normalised_c<T>(tile, r, made);
            for (int64_t u = 0; u < hidden; u += V::kLanes) {
                V values[kPlain.saved];
                values[Plain::kOutputGate] = V::load(out + u);
                values[kPlain.c_saved] = c.scaled(0, u);
                hand_on(Plain::template handed_on<0>(plain_unit<V>(values, nullptr, tile.functions)), u);
                if (tile.keeps) V::load(tile.c_next[0][r] + u).store(tile.slots[r] + k.c_saved * padded + u);
            }
        }
    }
}

template <class T, class C>
FASTRNN_NOINLINE void backward_rows(const BackwardTile<T>& tile) {
    using V = Vec<T>;
    using Plain = typename C::Plain;
    using At = RowValues<C>;
    constexpr CellTraits k = C::traits(), kPlain = C::kPlain;
    const int64_t padded = tile.padded, hidden = tile.hidden;
    const V zero{T(0)};
    for (int64_t r = 0; r < tile.rows; ++r) {
        const NormalisedRow<T, C> row(tile, r, tile.saved[r]);
        T *const d_values = tile.d_values[r], *const d = d_values + At::kD * padded;
        T* const moments = d_values + At::kMoments * padded;
        const auto keep = [&](int at, const Moments<T>& found) {
            moments[at] = found.mean;
            moments[at + 1] = found.scale;
        };
        keep(At::kMomentsOfX, row.x.moments);
        keep(At::kMomentsOfH, row.h.moments);
        const T *const zone_h = zone_row<T, k.zone_h>(tile, r), *const zone_c = zone_row<T, k.zone_c>(tile, r);
        const auto unit_of = [&](const V* saved, V* d_slots) { return plain_unit<V>(saved, d_slots, tile.functions); };
        // that of what was made, and on its own way back to h what zoneout has kept of it
        const auto split_d_out = [&](int64_t u) {
            V d = load_units(tile.d_out[r], u, hidden);
            if (tile.d_y) d = d + load_units(tile.d_y[r], u, hidden);
            return zone_h ? ZonedGradient<V>(d, load_units(zone_h, u, hidden)) : ZonedGradient<V>(d);
        };
        const auto store = [&](const V* values, int64_t u) {
            for (int i = 0; i < kPlain.slots; ++i) values[i].store(d + i * padded + u);
        };
        if constexpr (C::kHasC) {
            T* const made = d_values + At::kMade * padded;
            for (int64_t u = 0; zone_c && u < hidden; u += V::kLanes) {
                V values[kPlain.stored()];
                row.fill(values, u);
                ForwardUnit<V> again{values, zero, load_units(tile.c[0][r], u, hidden), zero, nullptr, tile.functions};
                Plain::template forward<0>(again);
                again.c.store(made + u);
            }
            const auto c = normalised_c<T>(tile, r, zone_c ? made : tile.saved[r] + k.c_saved * padded);
            T* const d_cell = d_values + At::kDCell * padded;
            keep(At::kMomentsOfC, c.moments);
            for (int64_t u = 0; u < hidden; u += V::kLanes) {
                V values[kPlain.stored()];
                row.fill(values, u);
                ForwardUnit<V> again{values, zero, zero, zero, nullptr, tile.functions};
                Plain::template forward<0>(again);
                values[kPlain.c_saved] = c.scaled(0, u);
                if (tile.handed_on) {
                    Plain::template handed_on<0>(plain_unit<V>(values, nullptr, tile.functions))
                        .store(tile.handed_on[r] + u);
                }
                V gates[kPlain.slots];
                for (int i = 0; i < kPlain.slots; ++i) gates[i] = values[i];
                const ZonedGradient<V> d_h = split_d_out(u);
                BackwardUnit<V> unit = unit_of(values, gates);
                unit.d_out = d_h.made;
                Plain::backward_output(unit);
                if (zone_h) d_h.before.store(tile.d_h[r] + u);
                store(gates, u);  // the gates but that of the output, which has its gradient
                unit.d_c.store(d_cell + u);
            }
            // what comes to the gradient of c' waits in the place of the first slot's
            c.backward([&](int, int64_t u) { return V::load(d_cell + u); }, d_values);
            for (int64_t u = 0; u < hidden; u += V::kLanes) {
                V gates[kPlain.stored()], d_slots[kPlain.slots];
                for (int i = 0; i < kPlain.slots; ++i) gates[i] = d_slots[i] = V::load(d + i * padded + u);
                BackwardUnit<V> unit = unit_of(gates, d_slots);
                unit.c = load_units(tile.c[0][r], u, hidden);
                const V d_c = load_units(tile.d_c[0][r], u, hidden);
                auto split = ZonedGradient<V>(d_c);
                if (zone_c) split = ZonedGradient<V>(d_c, load_units(zone_c, u, hidden));
                unit.d_c = split.made + V::load(d_values + u);
                Plain::backward_state(unit);
                store(d_slots, u);
                (zone_c ? unit.d_c + split.before : unit.d_c).store(tile.d_c[0][r] + u);
            }
        } else {
            for (int64_t u = 0; u < hidden; u += V::kLanes) {
                V values[kPlain.stored()], d_slots[kPlain.slots];
                row.fill(values, u);
                const V h = k.reads_h ? load_units(tile.h[r], u, hidden) : zero;
                ForwardUnit<V> again{values, h, zero, zero, nullptr, tile.functions};
                Plain::template forward<0>(again);
                const ZonedGradient<V> d_h = split_d_out(u);
                BackwardUnit<V> unit = unit_of(values, d_slots);
                unit.h = h;
                unit.d_out = d_h.made;
                Plain::template backward<0>(unit);
                store(d_slots, u);
                if (zone_h) unit.d_h = unit.d_h + d_h.before;
                if (k.reads_h || zone_h) unit.d_h.store(tile.d_h[r] + u);
            }
        }
        const auto d_of = [&](const SlotRange& slots) {
            const T* const from = d + slots.begin * padded;
            return [=](int i, int64_t u) { return V::load(from + i * padded + u); };
        };
        row.x.backward(d_of(kPlain.input), d_values);
        row.h.backward(d_of(kPlain.recurrent[0]), d_values + k.input.count * padded);
    }
}

// Sums over rows of `Count` values, which values(row, terms) gives, in chains as sum_rows has them; those whose place
// is null are not wanted.
template <int Count, class T, class Values>
FASTRNN_INLINE void sum_values_of_rows(int64_t rows, bool anew, int64_t lanes, T* const* out, const Values& values) {
    using V = Vec<T>;
    constexpr int64_t kShortChain = 16;
    bool wanted = false;
    for (int i = 0; i < Count; ++i) wanted |= out[i] != nullptr;
    if (!wanted) return;
    V totals[Count];
    for (int i = 0; i < Count; ++i) totals[i] = anew || !out[i] ? V{T(0)} : load_partial(out[i], lanes);
    for (int64_t first = 0; first < rows; first += kShortChain) {
        const int64_t end = min(first + kShortChain, rows);
        V sums[Count], terms[Count];
        for (V& sum : sums) sum = V{T(0)};
        for (int64_t r = first; r < end; ++r) {
            values(r, terms);
            for (int i = 0; i < Count; ++i) sums[i] = sums[i] + terms[i];
        }
        for (int i = 0; i < Count; ++i) totals[i] = totals[i] + sums[i];
    }
    for (int i = 0; i < Count; ++i) {
        if (out[i]) store_partial(totals[i], out[i], lanes);
    }
}

template <class T, class C>
FASTRNN_NOINLINE void sum_row_gradients(const SumTile<T>& tile) {
    using V = Vec<T>;
    using At = RowValues<C>;
    constexpr CellTraits k = C::traits(), kPlain = C::kPlain;
    const int64_t padded = tile.padded, hidden = tile.hidden;
    for (int64_t u = tile.units.begin; u < tile.units.end; u += V::kLanes) {
        const int64_t lanes = min(tile.units.end - u, V::kLanes);
        const auto saved = [&](int64_t r, int value) {
            return V::load(tile.saved + (r * k.saved + value) * padded + u);
        };
        const auto d_value = [&](int64_t r, int value) {
            return V::load(tile.d_values + (r * k.gradients() + value) * padded + u);
        };
        const auto normalised = [&](int64_t r, int value, int moments) {
            const T* const found = tile.d_values + (r * k.gradients() + At::kMoments) * padded + moments;
            const V of = tile.zones_c && value == k.c_saved ? d_value(r, At::kMade) : saved(r, value);
            return (of - V{found[0]}) * V{found[1]};
        };
        for (int i = 0; i < kPlain.slots; ++i) {
            const int64_t at = kPlain.gate_of_slot[i] * hidden + u;
            const auto place = [&](T* of, bool has) { return of && has ? of + at : nullptr; };
            const bool from_x = kPlain.input.has(i), from_h = kPlain.from_h(i);
            const int x = i - kPlain.input.begin, h = k.input.count + i - kPlain.recurrent[0].begin;
            T* const out[] = {place(tile.d_b_ih, from_x), place(tile.d_b_hh, from_h), place(tile.d_operands[0], from_x),
                              place(tile.d_operands[1], from_h)};
            sum_values_of_rows<4>(tile.rows, tile.anew, lanes, out, [&](int64_t r, V* terms) {
                const V d = d_value(r, At::kD + i);
                terms[0] = terms[1] = d;
                terms[2] = from_x ? d * normalised(r, x, At::kMomentsOfX) : d;
                terms[3] = from_h ? d * normalised(r, h, At::kMomentsOfH) : d;
            });
        }
        if constexpr (C::kHasC) {
            T* const out[] = {tile.d_operands[2] ? tile.d_operands[2] + u : nullptr,
                              tile.d_operands[3] ? tile.d_operands[3] + u : nullptr};
            sum_values_of_rows<2>(tile.rows, tile.anew, lanes, out, [&](int64_t r, V* terms) {
                const V d = d_value(r, At::kDCell);
                terms[0] = d * normalised(r, k.c_saved, At::kMomentsOfC);
                terms[1] = d;
            });
        }
    }
}

}  // namespace
}  // namespace fastrnn
