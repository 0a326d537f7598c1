// vapo_fast._native_testing.rates: single kernels run over and over; benchmarks use them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/interpreter_lock.h"
#include "testing/bindings.h"
#include "testing/rates.h"

namespace py = pybind11;

namespace vapo_fast {
namespace {

constexpr std::int64_t largest_size = 1 << 14;
constexpr std::int64_t most_turns = std::int64_t{1} << 32;

struct Work {
    InstructionSet instruction_set;
    std::int64_t turns;
    int threads;

    Work(py::handle name, py::handle turns_asked, py::handle threads_asked)
        : instruction_set(instruction_set_named(arguments::text(name, "instruction_set"))),
          turns(arguments::integer(turns_asked, "turns", 1, most_turns)),
          threads(arguments::threads_of(threads_asked)) {}
};

int size_of(py::handle value, const char* name) {
    return static_cast<int>(arguments::integer(value, name, 1, largest_size));
}

double multiply_adds(py::handle instruction_set, py::handle turns, py::handle threads) {
    const Work work(instruction_set, turns, threads);
    const WithoutLock release;
    return repeat_multiply_adds(work.instruction_set, work.turns, work.threads);
}

double product(py::handle inner, py::handle columns, py::handle instruction_set, py::handle turns, py::handle threads) {
    const Work work(instruction_set, turns, threads);
    const int in = size_of(inner, "inner"), out = size_of(columns, "columns");
    const WithoutLock release;
    return repeat_product(work.instruction_set, in, out, work.turns, work.threads);
}

double activation(py::handle name, py::handle columns, py::handle instruction_set, py::handle turns,
                  py::handle threads) {
    const Work work(instruction_set, turns, threads);
    const Activation kind = activation_named(arguments::text(name, "activation"));
    const int out = size_of(columns, "columns");
    const WithoutLock release;
    return repeat_activation(work.instruction_set, kind, out, work.turns, work.threads);
}

double field(py::handle dimension, py::handle widths, py::handle instruction_set, py::handle turns,
             py::handle threads) {
    const Work work(instruction_set, turns, threads);
    MlpShape shape;
    shape.dimension = size_of(dimension, "dimension");
    for (const py::object width : arguments::sequence(widths, "widths"))
        shape.widths.push_back(size_of(width, "each width in widths"));
    if (shape.widths.empty() || shape.widths.size() > static_cast<std::size_t>(most_layers))
        throw py::value_error("widths must hold between 1 and " + std::to_string(most_layers) + " sizes, got " +
                              std::to_string(shape.widths.size()));
    shape.log_beta_last = -4.0;
    const WithoutLock release;
    return repeat_field(work.instruction_set, shape, work.turns, work.threads);
}

}  // namespace

void bind_rates(py::module_& parent) {
    py::module_ m = parent.def_submodule(
        "rates", "Single float32 kernels run over and over, for benchmarks; each returns how much was done.");
    m.def("multiply_adds", &multiply_adds, py::arg("instruction_set"), py::arg("turns"), py::arg("threads"),
          "Operations of 1 000 multiply-adds a turn in each of several chains, in registers alone.");
    m.def("product", &product, py::arg("inner"), py::arg("columns"), py::arg("instruction_set"), py::arg("turns"),
          py::arg("threads"), "Operations of a tile of rows times a matrix (inner, columns).");
    m.def("activation", &activation, py::arg("activation"), py::arg("columns"), py::arg("instruction_set"),
          py::arg("turns"), py::arg("threads"), "Entries of a tile, each of which got its activation and derivative.");
    m.def("field", &field, py::arg("dimension"), py::arg("widths"), py::arg("instruction_set"), py::arg("turns"),
          py::arg("threads"), "Rows of a tile whose Phi and grad Phi were computed, SiLU, with time.");
}

}  // namespace vapo_fast
