// vapo_fast._native.replay, the replay loop; vapo_fast/engines/graph/replay.py uses it.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>

#include "bindings/bindings.h"
#include "bindings/arguments.h"
#include "graph/replay.h"
#include "bindings/interpreter_lock.h"

namespace py = pybind11;

namespace vapo_fast {
namespace {

Handle handle(py::handle value, const char* name) {
    return reinterpret_cast<Handle>(static_cast<std::uintptr_t>(arguments::unsigned_word(value, name)));
}

py::tuple replay_graph(py::handle library, py::handle graph, py::handle stream, py::handle flags, py::handle every,
                       py::handle stop_at, py::handle most, py::handle monitor) {
    constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max() - 1;
    const std::string name = arguments::text(library, "library");
    Replays replays{};
    replays.graph = handle(graph, "graph");
    replays.stream = handle(stream, "stream");
    replays.flags = static_cast<const volatile Flags*>(handle(flags, "flags"));
    if (replays.graph == nullptr) throw py::value_error("graph must be a handle, got 0");
    if (replays.flags == nullptr || reinterpret_cast<std::uintptr_t>(replays.flags) % alignof(Flags) != 0)
        throw py::value_error("flags must be an address that is a multiple of 8, got " + arguments::shown(flags));
    replays.every = arguments::integer(every, "every", 1, largest);
    replays.stop_at = arguments::integer(stop_at, "stop_at", 0, largest);
    replays.most = arguments::integer(most, "most", 1, largest);
    const auto tell = arguments::monitor(monitor);
    const Driver driver(name);
    Replayed replayed{};
    {
        const WithoutLock release;
        replayed = replay(driver, replays, [&](std::int64_t running) { tell(running); });
    }
    return py::make_tuple(replayed.running, replayed.launched);
}

}  // namespace

void bind_graph(py::module_& m) {
    // Lives as long as the process: the translator below uses it and holds no reference.
    static const py::handle error = py::exception<DriverError>(m, "DriverError", PyExc_RuntimeError).release();
    py::register_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const DriverError& failed) {
            PyErr_SetObject(error.ptr(), py::make_tuple(failed.function, failed.name, failed.code).ptr());
        }
    });
    m.def("replay", &replay_graph, py::arg("library"), py::arg("graph"), py::arg("stream"), py::arg("flags"),
          py::arg("every"), py::arg("stop_at"), py::arg("most"), py::arg("monitor") = py::none(),
          "Launch a CUDA graph until few enough samples run: (how many run, how many launches). DriverError(function, "
          "name, code) if the driver fails.");
}

}  // namespace vapo_fast
