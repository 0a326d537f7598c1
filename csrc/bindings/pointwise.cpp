// vapo_fast._native.pointwise: the operations of pointwise.h on NumPy arrays, which are checked here.
//
// Maps are C-contiguous (rows, pixels, channels). NumPy has no bfloat16: such maps are passed as uint16 arrays of bits.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>

#include "bindings/bindings.h"
#include "bindings/arguments.h"
#include "bindings/interpreter_lock.h"
#include "image/pointwise.h"

namespace py = pybind11;

namespace vapo_fast {
namespace {

using arguments::any;
using arguments::Shape;

// The element type of an array of N in NumPy.
template <class N>
using Element = std::conditional_t<std::is_same_v<N, BFloat16>, std::uint16_t, N>;

template <class N>
const N* input(py::handle value, const char* name, const Shape& shape) {
    return reinterpret_cast<const N*>(arguments::input<Element<N>>(value, name, shape));
}

template <class N>
N* output(py::handle value, const char* name, const Shape& shape) {
    return reinterpret_cast<N*>(arguments::output<Element<N>>(value, name, shape));
}

bool has_bits_of_bfloat16(py::handle value) { return py::isinstance<py::array_t<std::uint16_t>>(value); }

// Calls f(T{}, N{}) with the element types of the stream and of an array that a convolution reads or writes.
template <class F>
void with_types(py::handle stream, const char* name, py::handle convolved, const F& f) {
    if (py::isinstance<py::array_t<double>>(stream)) return f(double{}, double{});
    if (py::isinstance<py::array_t<float>>(stream))
        return has_bits_of_bfloat16(convolved) ? f(float{}, BFloat16{}) : f(float{}, float{});
    const std::string found = py::isinstance<py::array>(stream)
                                  ? std::string(py::str(py::reinterpret_borrow<py::array>(stream).dtype()))
                                  : arguments::type_of(stream);
    throw py::type_error(std::string(name) + " must be a NumPy array of float32 or float64, got " + found);
}

PointwiseRun run_with(py::handle threads) { return {chosen_instruction_set(), arguments::threads_of(threads)}; }

// The shape of a map, none of whose sizes may be 0. The call's other arrays are checked against it.
MapShape map_shape(py::handle map, const char* name) {
    if (!py::isinstance<py::array>(map))
        throw py::type_error(std::string(name) + " must be a NumPy array, got " + arguments::type_of(map));
    const auto array = py::reinterpret_borrow<py::array>(map);
    const Shape shape = arguments::shape_of(array);
    if (shape.size() != 3 || array.size() == 0)
        throw py::value_error(std::string(name) + " must have shape (rows, pixels, channels), each at least 1, got " +
                              arguments::shape_text(shape));
    return {shape[0], shape[1], shape[2]};
}

Shape whole(MapShape s) { return {s.rows, s.pixels, s.channels}; }
Shape pair(MapShape s) { return {2 * s.rows, s.pixels, s.channels}; }
Shape coefficients(MapShape s) { return {s.rows, s.channels}; }

template <class T>
Film<T> film_of(py::handle gain, py::handle offset, MapShape shape) {
    return {input<T>(gain, "gain", coefficients(shape)), input<T>(offset, "offset", coefficients(shape))};
}

// The output may be one of these inputs, but not a part of one.
void refuse_partial_overlap(const char* name, py::handle out, const char* other_name, py::handle other) {
    const auto a = py::reinterpret_borrow<py::array>(out), b = py::reinterpret_borrow<py::array>(other);
    if (a.data() != b.data() || a.nbytes() != b.nbytes())
        arguments::refuse_overlap({{name, out}}, {{other_name, other}});
}

void silu_map_of(py::handle x, py::handle out, py::handle threads) {
    const PointwiseRun run = run_with(threads);
    with_types(x, "x", out, [&](auto t, auto n) {
        using T = decltype(t);
        using N = decltype(n);
        const MapShape shape = map_shape(x, "x");
        const T* from = input<T>(x, "x", whole(shape));
        N* to = output<N>(out, "out", whole(shape));
        arguments::refuse_overlap({{"out", out}}, {{"x", x}});
        const WithoutLock release;
        silu_map(from, to, shape, run);
    });
}

void silu_derivative_of(py::handle x, py::handle v, py::handle skip, py::handle out, py::handle threads) {
    const PointwiseRun run = run_with(threads);
    const bool bfloat16_v = has_bits_of_bfloat16(v);
    with_types(x, "x", bfloat16_v ? v : out, [&](auto t, auto n) {
        using T = decltype(t);
        using N = decltype(n);
        const MapShape shape = map_shape(x, "x");
        const T* at = input<T>(x, "x", whole(shape));
        const T* added = skip.is_none() ? nullptr : input<T>(skip, "skip", whole(shape));
        const auto compute = [&](const auto* direction, auto* to) {
            arguments::refuse_overlap({{"out", out}}, {{"x", x}});
            refuse_partial_overlap("out", out, "v", v);
            if (added != nullptr) refuse_partial_overlap("out", out, "skip", skip);
            const WithoutLock release;
            silu_derivative(at, direction, added, to, shape, run);
        };
        if constexpr (std::is_same_v<T, N>) {
            compute(input<T>(v, "v", whole(shape)), output<T>(out, "out", whole(shape)));
        } else if (bfloat16_v) {
            compute(input<N>(v, "v", whole(shape)), output<T>(out, "out", whole(shape)));
        } else {
            compute(input<T>(v, "v", whole(shape)), output<N>(out, "out", whole(shape)));
        }
    });
}

void silu_second_of(py::handle x, py::handle x_dot, py::handle a_s, py::handle b_s, py::handle adjoints, py::handle add,
                    py::handle values, py::handle threads) {
    const PointwiseRun run = run_with(threads);
    const bool adds = arguments::boolean(add, "add");
    with_types(x, "x", values, [&](auto t, auto n) {
        using T = decltype(t);
        using N = decltype(n);
        const MapShape shape = map_shape(x, "x");
        SiluSecond<T, N> arrays;
        arrays.x = input<T>(x, "x", whole(shape));
        arrays.x_dot = input<T>(x_dot, "x_dot", whole(shape));
        arrays.a_s = input<N>(a_s, "a_s", whole(shape));
        arrays.b_s = input<N>(b_s, "b_s", whole(shape));
        arrays.adjoints = output<T>(adjoints, "adjoints", pair(shape));
        arrays.add = adds;
        arrays.values = output<N>(values, "values", pair(shape));
        arguments::refuse_overlap({{"adjoints", adjoints}, {"values", values}},
                                  {{"x", x}, {"x_dot", x_dot}, {"a_s", a_s}, {"b_s", b_s}});
        const WithoutLock release;
        silu_second(arrays, shape, run);
    });
}

void film_silu_of(py::handle c, py::handle gain, py::handle offset, py::handle out, py::handle threads) {
    const PointwiseRun run = run_with(threads);
    with_types(gain, "gain", c, [&](auto t, auto n) {
        using T = decltype(t);
        using N = decltype(n);
        const MapShape shape = map_shape(c, "c");
        const N* from = input<N>(c, "c", whole(shape));
        const Film<T> film = film_of<T>(gain, offset, shape);
        N* to = output<N>(out, "out", whole(shape));
        arguments::refuse_overlap({{"out", out}}, {{"gain", gain}, {"offset", offset}});
        refuse_partial_overlap("out", out, "c", c);
        const WithoutLock release;
        film_silu(from, film, to, shape, run);
    });
}

void film_silu_derivative_of(py::handle c, py::handle v, py::handle gain, py::handle offset, py::handle out,
                             py::handle threads) {
    const PointwiseRun run = run_with(threads);
    with_types(gain, "gain", c, [&](auto t, auto n) {
        using T = decltype(t);
        using N = decltype(n);
        const MapShape shape = map_shape(c, "c");
        const N* at = input<N>(c, "c", whole(shape));
        const N* direction = input<N>(v, "v", whole(shape));
        const Film<T> film = film_of<T>(gain, offset, shape);
        N* to = output<N>(out, "out", whole(shape));
        arguments::refuse_overlap({{"out", out}}, {{"gain", gain}, {"offset", offset}});
        refuse_partial_overlap("out", out, "c", c);
        refuse_partial_overlap("out", out, "v", v);
        const WithoutLock release;
        film_silu_derivative(at, direction, film, to, shape, run);
    });
}

void film_silu_second_of(py::handle c, py::handle c_dot, py::handle a_s, py::handle b_s, py::handle gain,
                         py::handle offset, py::handle adjoints, py::handle values, py::handle of_gain,
                         py::handle of_offset, py::handle threads) {
    const PointwiseRun run = run_with(threads);
    with_types(gain, "gain", c, [&](auto t, auto n) {
        using T = decltype(t);
        using N = decltype(n);
        const MapShape shape = map_shape(c, "c");
        FilmSecond<T, N> arrays;
        arrays.c = input<N>(c, "c", whole(shape));
        arrays.c_dot = input<N>(c_dot, "c_dot", whole(shape));
        arrays.a_s = input<N>(a_s, "a_s", whole(shape));
        arrays.b_s = input<N>(b_s, "b_s", whole(shape));
        arrays.film = film_of<T>(gain, offset, shape);
        arrays.adjoints = output<N>(adjoints, "adjoints", pair(shape));
        arrays.values = output<N>(values, "values", pair(shape));
        arrays.of_gain = output<T>(of_gain, "of_gain", coefficients(shape));
        arrays.of_offset = output<T>(of_offset, "of_offset", coefficients(shape));
        arguments::refuse_overlap(
            {{"adjoints", adjoints}, {"values", values}, {"of_gain", of_gain}, {"of_offset", of_offset}},
            {{"c", c}, {"c_dot", c_dot}, {"a_s", a_s}, {"b_s", b_s}, {"gain", gain}, {"offset", offset}});
        const WithoutLock release;
        film_silu_second(arrays, shape, run);
    });
}

void residual_of(py::handle branch, py::handle skip, py::handle bias, py::handle out, py::handle threads) {
    const PointwiseRun run = run_with(threads);
    with_types(skip, "skip", branch, [&](auto t, auto n) {
        using T = decltype(t);
        using N = decltype(n);
        const MapShape shape = map_shape(skip, "skip");
        const N* first = input<N>(branch, "branch", whole(shape));
        const T* second = input<T>(skip, "skip", whole(shape));
        const T* added = bias.is_none() ? nullptr : input<T>(bias, "bias", {shape.channels});
        T* to = output<T>(out, "out", whole(shape));
        if (added != nullptr) arguments::refuse_overlap({{"out", out}}, {{"bias", bias}});
        refuse_partial_overlap("out", out, "branch", branch);
        refuse_partial_overlap("out", out, "skip", skip);
        const WithoutLock release;
        residual(first, second, added, to, shape, run);
    });
}

}  // namespace

void bind_pointwise(py::module_& parent) {
    py::module_ m = parent.def_submodule(
        "pointwise", "What lies between convolutions; vapo_fast/engines/explicit/pointwise_native.py uses it.");
    m.def("silu", &silu_map_of, py::arg("x"), py::arg("out"), py::arg("threads"), "Writes silu(x).");
    m.def("silu_derivative", &silu_derivative_of, py::arg("x"), py::arg("v"), py::arg("skip"), py::arg("out"),
          py::arg("threads"), "Writes silu'(x) v + skip; skip may be None. out may be v or skip.");
    m.def("silu_second", &silu_second_of, py::arg("x"), py::arg("x_dot"), py::arg("a_s"), py::arg("b_s"),
          py::arg("adjoints"), py::arg("add"), py::arg("values"), py::arg("threads"),
          "Writes [b; a], or adds them to what is there, and writes [s; s_dot].");
    m.def("film_silu", &film_silu_of, py::arg("c"), py::arg("gain"), py::arg("offset"), py::arg("out"),
          py::arg("threads"), "Writes silu(gain c + offset). out may be c.");
    m.def("film_silu_derivative", &film_silu_derivative_of, py::arg("c"), py::arg("v"), py::arg("gain"),
          py::arg("offset"), py::arg("out"), py::arg("threads"),
          "Writes gain silu'(gain c + offset) v. out may be c or v.");
    m.def("film_silu_second", &film_silu_second_of, py::arg("c"), py::arg("c_dot"), py::arg("a_s"), py::arg("b_s"),
          py::arg("gain"), py::arg("offset"), py::arg("adjoints"), py::arg("values"), py::arg("of_gain"),
          py::arg("of_offset"), py::arg("threads"),
          "Writes [b_c; a_c], [s; s_dot] and the gradients of gain and offset.");
    m.def("residual", &residual_of, py::arg("branch"), py::arg("skip"), py::arg("bias"), py::arg("out"),
          py::arg("threads"), "Writes branch + skip + bias; bias may be None. out may be branch or skip.");
}

}  // namespace vapo_fast
