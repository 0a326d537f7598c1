// vapo_fast._native.WinogradConvolution: minimal filtering on NumPy arrays, which are checked here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "bindings/bindings.h"
#include "bindings/arguments.h"
#include "bindings/interpreter_lock.h"
#include "image/winograd.h"

namespace py = pybind11;

namespace vapo_fast {
namespace {

using arguments::any;
using arguments::initialised;
using arguments::input;
using arguments::output;
using arguments::Shape;
using arguments::threads_of;

constexpr std::int64_t most_channels = 1 << 14;

// The shape of an array of T that has the wanted shape and is not empty.
template <class T>
Shape sizes(py::handle value, const char* name, const Shape& wanted) {
    const Shape shape = arguments::shape_of(arguments::checked_array<T>(value, name, wanted));
    for (const py::ssize_t size : shape) {
        if (size < 1)
            throw py::value_error(std::string(name) + " must not be empty, got shape " + arguments::shape_text(shape));
    }
    return shape;
}

std::unique_ptr<WinogradConvolution> convolution(py::handle weight, py::handle transposed, py::handle tile,
                                                 py::handle threads) {
    const bool adjoint = arguments::boolean(transposed, "transposed");
    const std::int64_t side = arguments::integer(tile, "tile", 2, 4);
    if (side == 3) throw py::value_error("tile must be 2 or 4, got 3");
    const int team = threads_of(threads);
    const InstructionSet instruction_set = chosen_instruction_set();
    const Shape shape = sizes<float>(weight, "weight", {any, 3, 3, any});
    if (shape[0] > most_channels || shape[3] > most_channels)
        throw py::value_error("weight must have at most " + std::to_string(most_channels) + " channels, got shape " +
                              arguments::shape_text(shape));
    const float* data = input<float>(weight, "weight", shape);
    const WithoutLock release;
    return std::make_unique<WinogradConvolution>(data, static_cast<int>(shape[0]), static_cast<int>(shape[3]), adjoint,
                                                 static_cast<int>(side), instruction_set, team);
}

bool holds(py::handle object, py::handle weight) {
    const auto& self = initialised<WinogradConvolution>(object, "WinogradConvolution");
    const int first = self.transposed() ? self.inputs() : self.outputs();
    const int last = self.transposed() ? self.outputs() : self.inputs();
    const float* data = input<float>(weight, "weight", {first, 3, 3, last});
    const WithoutLock release;
    return self.holds(data);
}

void apply(py::handle object, py::handle x, py::handle out, py::handle threads) {
    const auto& self = initialised<WinogradConvolution>(object, "WinogradConvolution");
    const int team = threads_of(threads);
    const Shape shape = sizes<float>(x, "x", {any, any, any, self.inputs()});
    const float* from = input<float>(x, "x", shape);
    float* to = output<float>(out, "out", {shape[0], shape[1], shape[2], self.outputs()});
    arguments::refuse_overlap({{"out", out}}, {{"x", x}});
    const WithoutLock release;
    self.apply(from, to, {shape[0], shape[1], shape[2]}, team);
}

}  // namespace

void bind_winograd(py::module_& m) {
    py::class_<WinogradConvolution>(
        m, "WinogradConvolution",
        "A 3x3 convolution that keeps the image's size, or its adjoint, in float32: a transformed copy of its weights. "
        "vapo_fast/engines/explicit/winograd.py uses it.")
        .def(py::init(&convolution), py::arg("weight"), py::kw_only(), py::arg("transposed"), py::arg("tile"),
             py::arg("threads"),
             "weight: (outputs, 3, 3, inputs). tile: 2 or 4, the side of the squares of outputs computed at once.")
        .def("holds", &holds, py::arg("weight"), "Whether these are, byte for byte, the weights it was made of.")
        .def("apply", &apply, py::arg("x"), py::arg("out"), py::arg("threads"),
             "Writes the convolution of x, (rows, height, width, channels).");
}

}  // namespace vapo_fast
