// Every cell against a loop over scalars in double precision, on one instruction set: test_kernels ISA.
#include <optional>

#include "check.h"
#include "runner.h"

using namespace fastrnn_test;

namespace {

// of the largest element of a tensor, or of 1; the largest sums have about a thousand terms
template <class T>
constexpr double kTolerance = sizeof(T) == sizeof(double) ? 1e-14 : 5e-6;

// A layer-normalised row that is made of few values may have nearly no variance, which magnifies rounding up to
// sqrt(1 / eps).
double magnification(const Problem& p) {
    return p.layer_norm() && std::min({p.hidden, p.recurrent(), p.input}) < 16 ? 64 : 1;
}

template <class T>
void compare(const std::vector<T>& got, const std::vector<double>& want, const Problem& p, const std::string& where) {
    if (got.size() != want.size()) return CHECK(got.size() == want.size(), where);
    double scale = 1;
    for (double value : want) scale = std::fmax(scale, std::fabs(value));
    for (size_t i = 0; i < got.size(); ++i) {
        const double value = static_cast<double>(got[i]);
        const bool close = std::fabs(value - want[i]) <= kTolerance<T> * magnification(p) * scale;  // false for NaN
        if (!close) {
            return CHECK(close, where + "[" + std::to_string(i) + "] is " + std::to_string(value) + ", not " +
                                    std::to_string(want[i]));
        }
    }
    CHECK(true, where);
}

template <class T>
void compare_outputs(const Results<T>& got, const Tensors& want, const Problem& p, const std::string& where) {
    compare(got.y, want.y, p, where + " y");
    compare(got.h_n, want.h_n, p, where + " h_n");
    compare(got.c_n, want.c_n, p, where + " c_n");
    compare(got.cell_states, want.cell_states, p, where + " cell_states");
}

template <class T>
void compare_gradients(const Results<T>& got, const Tensors& want, const Problem& p, Wanted wanted,
                       const std::string& where) {
    static const char* names[] = {" d_w_ih", " d_w_hh", " d_b_ih", " d_b_hh", " d_w_hr"};
    if (wanted.x) compare(got.d_x, want.x, p, where + " d_x");
    if (wanted.state) compare(got.d_h0, want.h0, p, where + " d_h0");
    if (wanted.state) compare(got.d_c0, want.c0, p, where + " d_c0");
    for (int d = 0; d < p.directions && wanted.weights; ++d) {
        const Tensors::Direction& w = want.weights[d];
        const std::vector<double>* parts[] = {&w.w_ih, &w.w_hh, &w.b_ih, &w.b_hh, &w.w_hr};
        for (int i = 0; i < 5; ++i) {
            compare(got.d_weights[5 * d + i], *parts[i], p, where + names[i] + " of direction " + std::to_string(d));
        }
        for (int i = 0; i < p.learned() && p.has(i); ++i) {
            compare(got.d_operands[fastrnn::kMaxOperands * d + i], w.operands[i], p,
                    where + " d_operand " + std::to_string(i) + " of direction " + std::to_string(d));
        }
    }
}

template <class T>
bool same(const Results<T>& a, const Results<T>& b) {
    bool equal = true;
    const auto add = [&](const std::vector<T>& u, const std::vector<T>& v) { equal &= Runner<T>::same_bytes(u, v); };
    add(a.y, b.y);
    add(a.h_n, b.h_n);
    add(a.c_n, b.c_n);
    add(a.cell_states, b.cell_states);
    add(a.d_x, b.d_x);
    add(a.d_h0, b.d_h0);
    add(a.d_c0, b.d_c0);
    for (int i = 0; i < 10; ++i) add(a.d_weights[i], b.d_weights[i]);
    for (int i = 0; i < 2 * fastrnn::kMaxOperands; ++i) add(a.d_operands[i], b.d_operands[i]);
    return equal;
}

template <class T>
Results<T> run(const Problem& p, const Tensors& given, Layout layout, int threads, Wanted wanted = {}) {
    Results<T> results;
    Runner<T> runner(p, given, layout, threads);
    runner.forward(true, results);
    runner.backward(given, wanted, results);
    return results;
}

// A sanitizer looks at the memory that is touched: rows with nothing between them show a read beyond them best, numbers
// of threads do not differ in it. Values are compared where there is none.
#if defined(__SANITIZE_ADDRESS__)
constexpr Layout kLayouts[] = {Layout::time_major, Layout::ragged}, kThreaded = Layout::time_major;
constexpr int kTeams[] = {3};
constexpr bool kCompares = false;
#else
constexpr Layout kLayouts[] = {Layout::time_major, Layout::batch_major, Layout::gapped, Layout::ragged};
constexpr Layout kThreaded = Layout::gapped;
constexpr int kTeams[] = {2, 3};
constexpr bool kCompares = true;
#endif

// every layout, with and without the reserve; the same bits from every number of threads
template <class T>
void test_outputs_and_gradients(const Problem& p, const Tensors& given, const std::optional<Reference>& reference) {
    const std::string name = p.name() + (sizeof(T) == sizeof(double) ? "-f64" : "-f32");
    for (Layout layout : kLayouts) {
        if (layout == Layout::ragged && p.batch_sizes.empty()) continue;
        const bool all_begin = p.batch_sizes.empty() || p.batch_sizes.front() == p.batch;
        if (layout != Layout::ragged && !all_begin) continue;  // packed rows all have a first step
        const std::string where = name + "-layout" + std::to_string(static_cast<int>(layout));
        const Results<T> alone = run<T>(p, given, layout, 1);
        if (reference) compare_outputs(alone, reference->outputs, p, where);
        if (reference) compare_gradients(alone, reference->gradients, p, {}, where);
        CHECK(alone.kept_inputs, where);
        CHECK(alone.kept_gaps, where);
        Results<T> inference;
        Runner<T>(p, given, layout, 1).forward(false, inference);
        if (reference) compare_outputs(inference, reference->outputs, p, where + "-inference");
        if (layout != kThreaded && layout != Layout::ragged) continue;
        static int count = 0;  // threads that wait for a core take most of a sanitizer's time
        if (!kCompares && ++count % 8) continue;
        for (int threads : kTeams) {
            const std::string with_threads = where + "-threads" + std::to_string(threads);
            CHECK(same(alone, run<T>(p, given, layout, threads)), with_threads);
            Results<T> inference_with_threads;
            Runner<T>(p, given, layout, threads).forward(false, inference_with_threads);
            CHECK(same(inference, inference_with_threads), with_threads + "-inference");
        }
    }
}

void test(const Problem& p) {
    const Tensors given = random_tensors(p);
    std::optional<Reference> reference;
    if (kCompares) reference.emplace(p, given);
    test_outputs_and_gradients<float>(p, given, reference);
    test_outputs_and_gradients<double>(p, given, reference);
}

// gradients that are not wanted, and incoming ones that are null
void test_absent_gradients(const Problem& p) {
    for (int present = 1; present < 8; ++present) {
        Tensors given = random_tensors(p);
        if (!(present & 1)) given.y.clear();
        if (!(present & 2)) given.h_n.clear();
        if (!(present & 4)) given.c_n.clear();
        if (present & 1) given.cell_states.clear();
        std::optional<Reference> reference;
        if (kCompares) reference.emplace(p, given);
        for (int wanted = 1; wanted < 8; ++wanted) {
            const Wanted parts{(wanted & 1) != 0, (wanted & 2) != 0, (wanted & 4) != 0};
            const std::string where =
                p.name() + "-present" + std::to_string(present) + "-wanted" + std::to_string(wanted);
            const Results<double> results = run<double>(p, given, Layout::time_major, 2, parts);
            if (reference) compare_gradients(results, reference->gradients, p, parts, where);
        }
    }
}

struct Size {
    int64_t time, batch, input, hidden, projection;
};

// A sanitizer meets one cell of each kind of memory; test_activations and test_operands have them all.
#if defined(__SANITIZE_ADDRESS__)
const Cell kCells[] = {Cell::lstm, Cell::gru_reset_before, Cell::rnn, Cell::lstm_layer_norm, Cell::slstm};
#else
const Cell kCells[] = {Cell::lstm,
                       Cell::gru,
                       Cell::gru_reset_before,
                       Cell::rnn,
                       Cell::lstm_layer_norm,
                       Cell::gru_layer_norm,
                       Cell::rnn_layer_norm,
                       Cell::slstm,
                       Cell::indrnn,
                       Cell::min_gru,
                       Cell::min_lstm};
#endif

void test_sizes() {
    const Size sizes[] = {
        {1, 1, 1, 1, 1},      {4, 1, 5, 7, 3},     {3, 2, 1, 16, 16},   {5, 3, 6, 17, 18},
        {3, 7, 4, 33, 5},     {2, 0, 3, 5, 2},     {6, 4, 10, 16, 1},   {3, 5, 0, 9, 4},
        {2, 6, 37, 65, 9},    {150, 5, 1, 12, 2},  {3, 530, 2, 3, 2},  // these two: several chunks of the backward pass
        {1, 17, 140, 70, 66}, {2, 33, 9, 130, 20}, {1, 115, 70, 35, 5},  // few steps of many rows
    };
    int count = 0;
    for (const Size& size : sizes) {
        for (Cell cell : kCells) {
            for (int directions : {1, 2}) {
                for (bool packed : {false, true}) {
                    if (packed && size.batch == 0) continue;
                    const auto batch_sizes =
                        packed ? falling_batch_sizes(size.time, size.batch) : std::vector<int64_t>();
                    // few features of h that happen to be near zero are magnified without bound
                    const bool narrow = cell == Cell::lstm_layer_norm && size.projection <= 2;
                    const bool biases = ++count % 3 != 0, states = narrow || count % 4 != 1;
                    test({cell, Activation::tanh, size.time, size.batch, size.input, size.hidden, 0, directions,
                          batch_sizes, biases, states});
                    if (!fastrnn::cell_info(cell).may_project) continue;
                    test({cell, Activation::tanh, size.time, size.batch, size.input, size.hidden, size.projection,
                          directions, batch_sizes, !biases, states});
                }
            }
        }
    }
}

// large enough for the kernels to use all three threads: split by units, by rows, and by direction
void test_threads() {
    for (Cell cell : kCells) {
        const int64_t hidden = fastrnn::gate_count(cell) == 1 ? 277 : 147;
        test({cell, Activation::tanh, 12, 1, 9, hidden, 0, 1, {}, true, true});
        test({cell, Activation::tanh, 3, 7, 40, hidden, 0, 1, falling_batch_sizes(3, 7), true, true});
        test({cell, Activation::tanh, 2, 3, 40, hidden, 0, 2, {}, true, false});
        // rows further apart than they are long
        test({cell, Activation::tanh, 3, 2, 5, 256, 0, 2, falling_batch_sizes(3, 2), true, true});
        test({cell, Activation::tanh, 90, 6, 9, 40, 0, 2, {}, true, true});
    }
    test({Cell::lstm, Activation::tanh, 3, 5, 60, 150, 70, 1, {}, true, true});
    test({Cell::lstm, Activation::tanh, 8, 1, 60, 150, 70, 2, {}, true, true});
}

Problem with_cuts(Problem p, bool resets, bool cell_states) {
    p.resets = resets;
    p.cell_states = cell_states && p.has_c() && p.info().memories == 1;
    return p;
}

void test_cuts() {
    int count = 0;
    for (Cell cell : kCells) {
        for (int directions : {1, 2}) {
            for (int rows = 0; rows < 3; ++rows) {
                const auto sizes = [&](int64_t time, int64_t batch) {
                    return rows == 0   ? std::vector<int64_t>()
                           : rows == 1 ? falling_batch_sizes(time, batch)
                                       : short_batch_sizes(time, batch);
                };
                const bool states = ++count % 3 != 0;
                const auto check = [&](int64_t time, int64_t batch, int64_t input, int64_t hidden, int64_t projection,
                                       bool resets, bool cell_states) {
                    const Problem p{cell,       Activation::tanh,   time, batch, input, hidden, projection,
                                    directions, sizes(time, batch), true, states};
                    test(with_cuts(p, resets, cell_states));
                };
                check(7, 5, 4, 17, 0, count % 4 != 1, true);
                check(1, 4, 3, 33, 0, true, true);
                if (directions == 1 || count % 2) continue;
                check(9, 6, 30, 147, 0, true, true);
                check(150, 4, 2, 3, 0, true, false);
                if (cell != Cell::lstm) continue;
                check(6, 4, 5, 19, 7, count % 4 != 1, true);
                check(3, 530, 2, 3, 2, true, true);
            }
        }
        test({cell, Activation::tanh, 3, 4, 2, 9, 0, 2, {0, 0, 0}, true, true});
    }
    Problem p{Cell::gru, Activation::tanh, 7, 5, 4, 64, 0, 2, {}, true, true};
    p.heads = 4;
    p.masked = true;
    test(with_cuts(p, true, false));
}

void test_activations() {
    int count = 0;
    const auto next = [&] { return static_cast<Activation>(++count % fastrnn::kActivationCount); };
    for (int cell = 0; cell < fastrnn::kCellCount; ++cell) {
        for (int i = 0; i < fastrnn::kActivationCount; ++i) {
            const auto activation = static_cast<Activation>(i);
            // what it keeps does not tell the derivative
            if (static_cast<Cell>(cell) == Cell::rnn && activation == Activation::silu) continue;
            const bool packed = ++count % 2;
            if (!fastrnn::kCells[cell].has_activation && i > 0) continue;
            Problem p{static_cast<Cell>(cell), activation, 4, 3, 5, 19, 0, packed ? 1 : 2, {}, !packed, !packed};
            if (packed) p.batch_sizes = falling_batch_sizes(4, 3);
            const bool has_gates = p.info().gates > 1 && p.info().recurrent && p.info().has_activation;
            p.gate = has_gates ? next() : Activation::sigmoid;
            test(p);
        }
    }
}

// what a cell may do without: parameters, zoneout and the bound of c, each alone and together
void test_operands() {
    const Size sizes[] = {
        {1, 1, 1, 1, 1}, {5, 3, 6, 17, 18}, {2, 33, 9, 130, 20}, {150, 5, 1, 12, 2}, {7, 1, 9, 147, 40}};
    int count = 0;
    for (int cell = 0; cell < fastrnn::kCellCount; ++cell) {
        const fastrnn::CellInfo& info = fastrnn::kCells[cell];
        const unsigned all = (1u << info.operands) - 1, learned = (1u << info.learned) - 1;
        if (info.required == info.operands) continue;
        for (const Size& s : sizes) {
            for (unsigned given : {all, learned, all & ~learned, 1u << info.learned, 2u << info.learned}) {
                Problem p{static_cast<Cell>(cell),
                          Activation::tanh,
                          s.time,
                          s.batch,
                          s.input,
                          s.hidden,
                          0,
                          1,
                          {},
                          true,
                          true};
                p.given = given & all;
                p.directions = ++count % 2 + 1;
                p.states = count % 3 != 0;
                if (count % 3 == 1) p.batch_sizes = falling_batch_sizes(s.time, s.batch);
                p.masked = count % 5 == 1;
                test(with_cuts(p, count % 4 == 1, count % 5 == 0));
                if (!info.may_project || s.hidden > 20) continue;
                p.projection = s.projection;
                p.given &= ~(1u << p.zone_h());
                test(p);
            }
        }
        Problem p{static_cast<Cell>(cell), Activation::tanh, 4, 3, 5, 9, 0, 2, {3, 2, 2, 1}, true, true};
        p.given = all;
        test_absent_gradients(p);
    }
}

// heads of one panel, of several, and of a part of one; with threads that share a head and that have their own
void test_heads() {
    struct Heads {
        int64_t heads, length;
    };
    const Heads shapes[] = {{2, 16}, {3, 48}, {2, 80}};
    for (Cell cell : kCells) {
        if (!fastrnn::cell_info(cell).recurrent) continue;
        const bool one_gate = fastrnn::gate_count(cell) == 1;
        for (const Heads& shape : shapes) {
            const int64_t hidden = shape.heads * shape.length;
            const auto run = [&](int64_t time, int64_t batch, int directions, bool packed, bool states) {
                const auto batch_sizes = packed ? falling_batch_sizes(time, batch) : std::vector<int64_t>();
                test({cell, Activation::tanh, time, batch, 7, hidden, 0, directions, batch_sizes, true, states,
                      shape.heads});
            };
            run(4, 3, 2, true, true);
            run(1, 19, 2, false, true);  // rows in lanes
            run(2, 2, 1, false, false);  // weights as they lie
            run(5, 9, 1, true, false);
        }
        test({cell, Activation::tanh, one_gate ? 60 : 20, 1, 7, 256, 0, 1, {}, true, true, 4});
        if (!fastrnn::cell_info(cell).may_project) continue;
        for (int64_t projection : {32, 64, 96}) {
            test({cell, Activation::tanh, 5, 3, 6, 64, projection, 2, {}, true, true, 2});
            test({cell, Activation::tanh, 3, 5, 60, 160, projection, 1, falling_batch_sizes(3, 5), true, true, 2});
        }
    }
}

void test_recurrent_masks() {
    const Size sizes[] = {{1, 1, 1, 1, 1},    {4, 1, 5, 7, 3},    {5, 3, 6, 17, 18},  {2, 0, 3, 5, 2},
                          {150, 5, 1, 12, 2}, {1, 33, 9, 70, 20}, {6, 1, 9, 147, 70}, {3, 130, 2, 20, 9}};
    for (Cell cell : kCells) {
        if (!fastrnn::cell_info(cell).recurrent) continue;
        for (const Size& s : sizes) {
            const auto run = [&](int64_t projection, int directions, const std::vector<int64_t>& batch_sizes) {
                test({cell, Activation::tanh, s.time, s.batch, s.input, s.hidden, projection, directions, batch_sizes,
                      true, true, 1, true});
            };
            run(0, 1, {});
            if (s.batch > 0) run(0, 2, falling_batch_sizes(s.time, s.batch));
            if (fastrnn::cell_info(cell).may_project) run(s.projection, 2, {});
        }
        test({cell, Activation::tanh, 9, 5, 4, 128, 0, 2, falling_batch_sizes(9, 5), true, false, 2, true});
        test({cell, Activation::tanh, 12, 1, 4, 192, 0, 1, {}, true, true, 4, true});
    }
    test({Cell::lstm, Activation::tanh, 5, 3, 6, 64, 32, 2, {}, true, true, 2, true});
    test_absent_gradients({Cell::lstm, Activation::tanh, 4, 3, 5, 9, 4, 2, {3, 2, 2, 1}, true, false, 1, true});
    test_absent_gradients({Cell::gru_reset_before, Activation::tanh, 4, 3, 5, 9, 0, 2, {}, true, true, 1, true});
}

}  // namespace

int main(int argc, char** argv) {
    const char* isa = argc > 1 ? argv[1] : "generic";
    if (!fastrnn::isa_supported(isa)) {
        std::printf("this build or CPU has no %s\n", isa);
        return 77;
    }
    fastrnn::force_isa(isa);
    test_sizes();
    test_activations();
    test_operands();
    test_cuts();
    test_threads();
    test_heads();
    test_recurrent_masks();
    for (Cell cell : kCells) test_absent_gradients({cell, Activation::tanh, 4, 3, 5, 9, 0, 2, {}, true, true});
    test_absent_gradients({Cell::lstm, Activation::tanh, 4, 3, 5, 9, 4, 2, {3, 2, 2, 1}, true, false});
    test_absent_gradients(
        with_cuts({Cell::lstm, Activation::tanh, 4, 3, 5, 9, 0, 2, {3, 2, 2, 1}, true, true}, true, true));
    return finish();
}
