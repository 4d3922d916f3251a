// The CUDA kernels, emulated on the CPU, against a loop over scalars in double precision.
#include "check.h"
#include "cuda_library.h"
#include "emulation/emulation.h"

using namespace fastrnn_test;

namespace {

// of the largest element of a tensor, or of 1
template <class T>
constexpr double kTolerance = 5e-6;
template <>
constexpr double kTolerance<double> = 1e-14;
template <>
constexpr double kTolerance<bfloat16> = 5e-2;
template <>
constexpr double kTolerance<float16> = 4e-3;

template <class T>
constexpr const char* kName = "-f32";
template <>
constexpr const char* kName<double> = "-f64";
template <>
constexpr const char* kName<bfloat16> = "-bf16";
template <>
constexpr const char* kName<float16> = "-f16";

template <class T>
void compare(const std::vector<T>& got, const std::vector<double>& want, const std::string& where) {
    if (got.size() != want.size()) return CHECK(got.size() == want.size(), where);
    double scale = 1;
    for (double value : want) scale = std::fmax(scale, std::fabs(value));
    for (size_t i = 0; i < got.size(); ++i) {
        const double value = static_cast<double>(fastrnn::widen(got[i]));
        const bool close = std::fabs(value - want[i]) <= kTolerance<T> * scale;  // false for NaN
        if (!close) {
            return CHECK(close, where + "[" + std::to_string(i) + "] is " + std::to_string(value) + ", not " +
                                    std::to_string(want[i]));
        }
    }
    CHECK(true, where);
}

template <class T>
void compare_all(const Results<T>& got, const Reference& want, const Problem& p, Wanted wanted,
                 const std::string& where) {
    static const char* names[] = {" d_w_ih", " d_w_hh", " d_b_ih", " d_b_hh", " d_w_hr"};
    compare(got.y, want.outputs.y, where + " y");
    compare(got.h_n, want.outputs.h_n, where + " h_n");
    compare(got.c_n, want.outputs.c_n, where + " c_n");
    if (wanted.x) compare(got.d_x, want.gradients.x, where + " d_x");
    if (wanted.state) compare(got.d_h0, want.gradients.h0, where + " d_h0");
    if (wanted.state) compare(got.d_c0, want.gradients.c0, where + " d_c0");
    for (int d = 0; d < p.directions && wanted.weights; ++d) {
        const Tensors::Direction& w = want.gradients.weights[d];
        const std::vector<double>* parts[] = {&w.w_ih, &w.w_hh, &w.b_ih, &w.b_hh, &w.w_hr};
        for (int i = 0; i < 5; ++i) {
            compare(got.d_weights[5 * d + i], *parts[i], where + names[i] + " of direction " + std::to_string(d));
        }
    }
    CHECK(got.kept_inputs, where);
    CHECK(got.kept_gaps, where);
}

// as T holds it
template <class T>
Tensors rounded(Tensors t) {
    const auto each = [](std::vector<double>& values) {
        for (double& value : values) {
            T narrow;
            assign(narrow, value);
            value = static_cast<double>(fastrnn::widen(narrow));
        }
    };
    for (Tensors::Direction& w : t.weights) {
        for (auto* part : {&w.w_ih, &w.w_hh, &w.b_ih, &w.b_hh, &w.w_hr}) each(*part);
    }
    for (auto* part : {&t.x, &t.h0, &t.c0, &t.y, &t.h_n, &t.c_n}) each(*part);
    return t;
}

template <class T>
Results<T> run(const Problem& p, const Tensors& given, Layout layout, Wanted wanted = {}) {
    Results<T> results;
    Runner<T, CudaLibrary> runner(p, given, layout, 1);
    runner.forward(true, results);
    runner.backward(given, wanted, results);
    return results;
}

template <class T>
bool same(const Results<T>& a, const Results<T>& b) {
    bool equal = true;
    const auto add = [&](const std::vector<T>& u, const std::vector<T>& v) {
        equal &= Runner<T, CudaLibrary>::same_bytes(u, v);
    };
    add(a.y, b.y);
    add(a.h_n, b.h_n);
    add(a.c_n, b.c_n);
    add(a.d_x, b.d_x);
    add(a.d_h0, b.d_h0);
    add(a.d_c0, b.d_c0);
    for (int i = 0; i < 10; ++i) add(a.d_weights[i], b.d_weights[i]);
    return equal;
}

template <class T>
void test(const Problem& p, bool all_layouts) {
    const Tensors given = rounded<T>(random_tensors(p));
    const Reference reference(p, given);
    const std::string name = p.name() + kName<T>;
    for (Layout layout : {Layout::time_major, Layout::batch_major, Layout::gapped}) {
        if (layout != Layout::gapped && !all_layouts) continue;
        const std::string where = name + "-layout" + std::to_string(static_cast<int>(layout));
        emulation::set_seed(1);
        const Results<T> results = run<T>(p, given, layout);
        compare_all(results, reference, p, {}, where);
        Results<T> inference;
        emulation::set_seed(3);
        Runner<T, CudaLibrary>(p, given, layout, 1).forward(false, inference);
        CHECK((Runner<T, CudaLibrary>::same_bytes(inference.y, results.y)), where + " inference");
        if (layout != Layout::gapped) continue;
        emulation::set_seed(2);
        CHECK(same(results, run<T>(p, given, layout)), where + " another order of threads");
    }
}

void test_types(const Problem& p, bool all_layouts = false) {
    test<float>(p, all_layouts);
    test<double>(p, all_layouts);
    test<bfloat16>(p, false);
    test<float16>(p, false);
}

// gradients that are not wanted, and incoming ones that are null
void test_absent_gradients(const Problem& p) {
    for (int present = 1; present < 8; ++present) {
        Tensors given = random_tensors(p);
        if (!(present & 1)) given.y.clear();
        if (!(present & 2)) given.h_n.clear();
        if (!(present & 4)) given.c_n.clear();
        const Reference reference(p, given);
        for (int wanted = 1; wanted < 8; ++wanted) {
            const Wanted parts{(wanted & 1) != 0, (wanted & 2) != 0, (wanted & 4) != 0};
            const std::string where =
                p.name() + "-present" + std::to_string(present) + "-wanted" + std::to_string(wanted);
            compare_all(run<double>(p, given, Layout::time_major, parts), reference, p, parts, where);
        }
    }
}

std::vector<int64_t> falling_batch_sizes(int64_t time, int64_t batch) {
    std::vector<int64_t> sizes;
    for (int64_t t = 0; t < time; ++t) {
        sizes.push_back(1 + (batch - 1) * (time - 1 - t / 2 * 2) / (time > 1 ? time - 1 : 1));
    }
    return sizes;
}

struct Size {
    int64_t time, batch, input, hidden, projection;
};

const Cell kCells[] = {Cell::lstm, Cell::gru, Cell::gru_reset_before, Cell::rnn};

void test_steps() {
    const Size sizes[] = {{1, 1, 1, 1, 1}, {4, 1, 5, 7, 3}, {3, 2, 1, 16, 16}, {5, 3, 6, 17, 18},
                          {2, 0, 3, 5, 2}, {3, 5, 0, 9, 4}, {2, 6, 37, 33, 9}, {9, 31, 2, 5, 2}};
    int count = 0;
    for (const Size& size : sizes) {
        for (Cell cell : kCells) {
            for (int directions : {1, 2}) {
                for (bool packed : {false, true}) {
                    if (packed && size.batch == 0) continue;
                    const auto batch_sizes =
                        packed ? falling_batch_sizes(size.time, size.batch) : std::vector<int64_t>();
                    const bool biases = ++count % 3 != 0, states = count % 4 != 1;
                    test_types({cell, Activation::tanh, size.time, size.batch, size.input, size.hidden, 0, directions,
                                batch_sizes, biases, states},
                               true);
                    if (cell != Cell::lstm) continue;
                    test_types({cell, Activation::tanh, size.time, size.batch, size.input, size.hidden, size.projection,
                                directions, batch_sizes, !biases, states});
                }
            }
        }
    }
    for (Cell cell : kCells) {
        for (Activation activation : {Activation::softsign, Activation::relu, Activation::hardtanh}) {
            test_types({cell, activation, 4, 3, 5, 19, 0, 2, {}, true, true});
        }
    }
    for (Cell cell : kCells) test_absent_gradients({cell, Activation::tanh, 4, 3, 5, 9, 0, 2, {}, true, true});
    test_absent_gradients({Cell::lstm, Activation::tanh, 4, 3, 5, 9, 4, 2, {3, 2, 2, 1}, true, false});
}

// a plan of the grid engine on a device so small that rows come in several blocks, and directions one after the other
template <class T>
void test_grid(const Problem& p, int processors, int units) {
    fastrnn::CudaDevice device{90, processors, 227 * 1024, 1 << 20};
    const auto plan = [&](bool backward) {
        const fastrnn::Shape shape{p.time, p.batch, p.rows(), p.input, p.hidden, 0, p.directions, nullptr};
        const fastrnn::CudaProblem problem{CudaLibrary::dtype<T>(), p.cell, p.activation, shape, backward};
        CudaPlan found = fastrnn::cuda_plan(problem, device, fastrnn::CudaChoice::grid);
        CHECK(found.engine == fastrnn::CudaEngine::grid, p.name());
        found.units = units;
        return found;
    };
    CudaLibrary::forward_plan = plan(false);
    CudaLibrary::backward_plan = plan(true);
    test<T>(p, false);
    CudaLibrary::forward_plan = CudaLibrary::backward_plan = {};
}

void test_grid_sizes() {
    const Size sizes[] = {{1, 1, 1, 1, 0},  {4, 1, 5, 8, 0},   {3, 2, 1, 16, 0}, {5, 3, 6, 17, 0},
                          {3, 33, 3, 9, 0}, {4, 20, 2, 40, 0}, {2, 4, 3, 70, 0}};
    int count = 0;
    for (const Size& size : sizes) {
        for (Cell cell : {Cell::lstm, Cell::gru, Cell::rnn}) {
            for (int directions : {1, 2}) {
                for (bool packed : {false, true}) {
                    const auto batch_sizes =
                        packed ? falling_batch_sizes(size.time, size.batch) : std::vector<int64_t>();
                    const bool biases = ++count % 3 != 0, states = count % 4 != 1;
                    const auto activation = cell == Cell::rnn && count % 2 ? Activation::relu : Activation::tanh;
                    const Problem p{cell, activation, size.time,   size.batch, size.input, size.hidden,
                                    0,    directions, batch_sizes, biases,     states};
                    const int slices = static_cast<int>((size.hidden + 7) / 8);
                    // parts of the rows side by side and directions too; or all in turn
                    const int processors = count % 2 ? 4 * slices : slices;
                    test_grid<float>(p, processors, 8);
                    test_grid<bfloat16>(p, processors, 8);
                    if (count % 4 == 0) test_grid<float16>(p, processors, 16);
                    if (count % 4 == 1) test_grid<float>(p, processors, 16);
                }
            }
        }
    }
}

void test_refusals() {
    const int64_t numbers[] = {0};
    const auto refuses = [](const fastrnn::Shape& shape) {
        fastrnn::ForwardParams forward{};
        fastrnn::BackwardParams backward{};
        forward.shape = backward.shape = shape;
        Loops loops;
        return fastrnn::cuda_forward(forward, {}, loops, nullptr) == cudaErrorNotSupported &&
               fastrnn::cuda_backward(backward, {}, loops, nullptr) == cudaErrorNotSupported;
    };
    fastrnn::Shape ordered{}, ragged{};
    ordered.order = ragged.batch_sizes = numbers;
    CHECK(refuses(ordered), "an order of rows");
    CHECK(refuses(ragged), "ragged and not packed");
}

}  // namespace

int main(int argc, char** argv) {
    const std::string engine = argc > 1 ? argv[1] : "steps";
    if (engine == "grid") {
        test_grid_sizes();
    } else {
        test_refusals();
        test_steps();
    }
    return finish();
}
