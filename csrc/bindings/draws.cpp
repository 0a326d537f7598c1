// Python bindings of the counter-based generator; vapo_fast/noise.py uses them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/arguments.h"
#include "random/draws.h"
#include "bindings/interpreter_lock.h"

namespace py = pybind11;

namespace vapo_fast {
namespace {

constexpr std::int64_t largest_word = std::numeric_limits<std::uint32_t>::max();
constexpr std::int64_t largest_size = std::int64_t{1} << 34;

std::uint32_t word(py::handle value, const char* name) {
    return static_cast<std::uint32_t>(arguments::integer(value, name, 0, largest_word));
}

std::int64_t rows(py::handle index) { return py::reinterpret_borrow<py::array>(index).shape(0); }

template <class T>
using DrawFunction = void (*)(const Draws&, T*) noexcept;

template <class T>
py::array draw(const Draws& draws, DrawFunction<T> function) {
    py::array_t<T> out({draws.samples, draws.size});
    T* values = out.mutable_data();
    {
        const WithoutLock release;
        function(draws, values);
    }
    return std::move(out);
}

py::array draw_of(py::handle seed, py::handle index, py::handle size, py::handle stream, py::handle dtype,
                  DrawFunction<float> single, DrawFunction<double> both) {
    Draws draws{};
    // The array comes last: converting a number may run the caller's code, which may resize it.
    draws.seed = arguments::unsigned_word(seed, "seed");
    draws.size = arguments::integer(size, "size", 1, largest_size);
    draws.stream = word(stream, "stream");
    draws.index = arguments::input<std::int64_t>(index, "index", {arguments::any});
    draws.samples = rows(index);
    const std::string name = arguments::text(dtype, "dtype");
    if (name == "float32") return draw(draws, single);
    if (name == "float64") return draw(draws, both);
    throw py::value_error("dtype must be 'float32' or 'float64', got '" + name + "'");
}

py::array permutation_of(py::handle seed, py::handle stream, py::handle epoch, py::handle n) {
    const std::uint64_t key = arguments::unsigned_word(seed, "seed");
    const std::uint32_t stream_word = word(stream, "stream");
    const std::int64_t index = arguments::integer(epoch, "epoch", 0, std::numeric_limits<std::int64_t>::max());
    const std::int64_t count = arguments::integer(n, "n", 0, std::int64_t{1} << 33);
    py::array_t<std::int64_t> out(count);
    std::int64_t* order = out.mutable_data();
    {
        const WithoutLock release;
        permutation(key, stream_word, index, count, order);
    }
    return std::move(out);
}

}  // namespace

void bind_draws(py::module_& m) {
    m.def(
        "normal_draws",
        [](py::handle seed, py::handle index, py::handle size, py::handle stream, py::handle dtype) {
            return draw_of(seed, index, size, stream, dtype, &draw_normal<float>, &draw_normal<double>);
        },
        py::arg("seed"), py::arg("index"), py::arg("size"), py::arg("stream"), py::arg("dtype"),
        "Standard normal draws (n, size) for int64 sample numbers (n,).");
    m.def(
        "uniform_draws",
        [](py::handle seed, py::handle index, py::handle size, py::handle stream, py::handle dtype) {
            return draw_of(seed, index, size, stream, dtype, &draw_uniform<float>, &draw_uniform<double>);
        },
        py::arg("seed"), py::arg("index"), py::arg("size"), py::arg("stream"), py::arg("dtype"),
        "Draws (n, size), uniform in (0, 1), for int64 sample numbers (n,).");
    m.def("permutation", &permutation_of, py::arg("seed"), py::arg("stream"), py::arg("epoch"), py::arg("n"),
          "A shuffle of 0 .. n - 1.");
}

}  // namespace vapo_fast
