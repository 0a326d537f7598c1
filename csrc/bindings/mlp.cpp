// vapo_fast._native.Mlp: the field, the solves and the loss of an MLP potential, on NumPy arrays that are checked here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/arguments.h"
#include "bindings/solve_results.h"
#include "bindings/interpreter_lock.h"
#include "mlp/mlp_field.h"
#include "solver/solve.h"

namespace py = pybind11;

namespace vapo_fast {
namespace {

using arguments::any;
using arguments::initialised;
using arguments::input;
using arguments::output;
using arguments::threads_of;

constexpr std::int64_t largest_size = 1 << 20;  // of a layer, an event, or a count of features or probes
constexpr std::int64_t most_rows = (1LL << 32) - 1;

// A weight is NaN or infinite. A class of its own: for a training loop this is a result, not a wrong argument.
class NonFiniteWeights : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

void check_rows(std::int64_t rows, const char* name) {
    if (rows > most_rows)
        throw py::value_error(std::string(name) + " must have fewer than 2^32 rows, got " + std::to_string(rows));
}

// What Mlp does, for either dtype. Numbers are converted before arrays are looked at, because a conversion may run the
// caller's code.
class AnyMlp {
public:
    virtual ~AnyMlp() = default;
    virtual bool load(py::handle weights, py::handle biases, py::handle output, py::handle frequencies) = 0;
    virtual void field(py::handle x, py::handle t, py::handle phi, py::handle grad, int threads) const = 0;
    virtual py::dict solve(py::handle x0, double t0, double t1, const SolveOptions& options, py::handle trace,
                           int threads, py::handle progress) const = 0;
    virtual py::tuple loss(py::handle x_data, py::handle t, py::handle noise, py::handle estimator, py::handle weight,
                           int threads) const = 0;
};

template <class T>
class TypedMlp final : public AnyMlp {
public:
    TypedMlp(MlpShape shape, InstructionSet instruction_set)
        : shape_(std::move(shape)), instruction_set_(instruction_set) {}

    bool load(py::handle weights, py::handle biases, py::handle output, py::handle frequencies) override {
        const py::sequence weight_list = arguments::sequence(weights, "weights");
        const py::sequence bias_list = arguments::sequence(biases, "biases");
        const auto layers = static_cast<std::size_t>(shape_.layers());
        for (const auto& [name, list] : {std::pair{"weights", weight_list}, std::pair{"biases", bias_list}}) {
            if (list.size() != layers)
                throw py::value_error(std::string(name) + " must hold " + std::to_string(layers) +
                                      " arrays, one for each hidden layer, got " + std::to_string(list.size()));
        }
        MlpWeights<T> views;
        std::vector<std::string> names;
        std::vector<std::int64_t> sizes;
        std::vector<const T*> all;
        // A Python list may change while another object of it is looked at; each array is held until the end.
        std::vector<py::object> held;
        const auto view = [&](py::object array, const std::string& name, const arguments::Shape& wanted) {
            const T* data = input<T>(array, name, wanted);
            std::int64_t size = 1;
            for (const std::int64_t extent : wanted) size *= extent;
            held.push_back(std::move(array));
            names.push_back(name);
            sizes.push_back(size);
            all.push_back(data);
            return data;
        };
        for (int l = 0; l < shape_.layers(); ++l) {
            const auto i = static_cast<std::size_t>(l);
            const std::string place = "[" + std::to_string(l) + "]";
            views.weight.push_back(view(weight_list[i], "weights" + place, {shape_.size(l + 1), shape_.size(l)}));
            views.bias.push_back(view(bias_list[i], "biases" + place, {shape_.size(l + 1)}));
        }
        views.output = view(py::reinterpret_borrow<py::object>(output), "output", {shape_.size(shape_.layers())});
        views.frequencies =
            view(py::reinterpret_borrow<py::object>(frequencies), "frequencies", {shape_.features, shape_.inputs()});
        if (packed_ != nullptr && packed_->holds(views)) return false;
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (!std::all_of(all[i], all[i] + sizes[i], [](T value) { return std::isfinite(value); }))
                throw NonFiniteWeights(names[i] + " has NaN or infinite values");
        }
        packed_ = std::make_shared<const PackedMlp<T>>(shape_, views, table_for<Kernels<T>>(instruction_set_).lanes);
        return true;
    }

    void field(py::handle x, py::handle t, py::handle phi, py::handle grad, int threads) const override {
        const auto mlp = loaded();
        const T* x_data = input<T>(x, "x", {any, shape_.dimension});
        const std::int64_t n = py::reinterpret_borrow<py::array>(x).shape(0);
        check_rows(n, "x");
        FieldRows<T> rows;
        rows.rows = n;
        rows.state = x_data;
        rows.t = input<T>(t, "t", {n});
        rows.derivative = output<T>(grad, "grad", {n, shape_.dimension});
        rows.value = output<T>(phi, "phi", {n});
        arguments::refuse_overlap({{"phi", phi}, {"grad", grad}}, {{"x", x}, {"t", t}});
        if (n == 0) return;
        const Monitor monitor = arguments::monitor(py::none());
        const MlpField<T> field(mlp, instruction_set_, Trace<T>{});
        const WithoutLock release;
        evaluate_batch<T>(field, rows, threads, monitor);
    }

    py::dict solve(py::handle x0, double t0, double t1, const SolveOptions& options, py::handle trace, int threads,
                   py::handle progress) const override {
        const auto mlp = loaded();
        const int d = shape_.dimension;
        const T* start = input<T>(x0, "x0", {any, d});
        const std::int64_t n = py::reinterpret_borrow<py::array>(x0).shape(0);
        check_rows(n, "x0");
        const MlpField<T> field(mlp, instruction_set_, trace_of(trace, n));
        const Monitor monitor = arguments::monitor(progress);

        const std::int64_t width = field.width();
        SolveResults<T> results(n, width, options.n_eval);
        SolveArrays<T> arrays = results.arrays(nullptr);
        arrays.x0 = arrays.x;  // each row is read before it is written
        {
            const WithoutLock release;
            for (std::int64_t i = 0; i < n; ++i) {
                T* row = arrays.x + i * width;
                std::fill(std::copy_n(start + i * d, d, row), row + width, T(0));
            }
            vapo_fast::solve<T>(field, t0, t1, options, arrays, threads, monitor);
        }
        return results.dict();
    }

    py::tuple loss(py::handle x_data, py::handle t, py::handle noise, py::handle estimator, py::handle weight,
                   int threads) const override {
        const auto mlp = loaded();
        const LossBatch<T> batch = batch_of(x_data, t, noise, estimator, weight);
        const Monitor monitor = arguments::monitor(py::none());

        LossResult<T> result;
        py::list weights, biases;
        for (int l = 0; l < shape_.layers(); ++l) {
            py::array_t<T> of_weight({shape_.size(l + 1), shape_.size(l)}), of_bias(shape_.size(l + 1));
            result.weight.push_back(of_weight.mutable_data());
            result.bias.push_back(of_bias.mutable_data());
            weights.append(std::move(of_weight));
            biases.append(std::move(of_bias));
        }
        py::array_t<T> of_output(shape_.size(shape_.layers()));
        result.output = of_output.mutable_data();
        {
            const WithoutLock release;
            // A second thread that trains the same potential at the same time works in memory of its own.
            const std::unique_lock<std::mutex> kept(loss_mutex_, std::try_to_lock);
            LossMemory<T> other;
            loss_and_gradient<T>(*mlp, instruction_set_, batch, result, threads, kept ? loss_memory_ : other, monitor);
        }
        return py::make_tuple(result.linear, result.quadratic, weights, biases, of_output);
    }

private:
    std::shared_ptr<const PackedMlp<T>> loaded() const {
        if (packed_ == nullptr) throw std::runtime_error("no weights are loaded; call load() first");
        return packed_;
    }

    LossBatch<T> batch_of(py::handle x_data, py::handle t, py::handle noise, py::handle estimator,
                          py::handle weight) const {
        LossBatch<T> batch{};
        batch.x_data = input<T>(x_data, "x_data", {any, shape_.dimension});
        batch.rows = py::reinterpret_borrow<py::array>(x_data).shape(0);
        if (batch.rows == 0) throw py::value_error("x_data must have at least one row");
        check_rows(batch.rows, "x_data");
        batch.t = input<T>(t, "t", {batch.rows});
        batch.noise = input<T>(noise, "noise", {batch.rows, shape_.dimension});
        const std::string kind = arguments::text(estimator, "estimator");
        if (kind != "velocity" && kind != "covariance")
            throw py::value_error("estimator must be 'velocity' or 'covariance', got '" + kind + "'");
        batch.covariance = kind == "covariance";
        if (PyUnicode_Check(weight.ptr())) {
            const std::string name = arguments::text(weight, "weight");
            if (name != "inverse_variance" && name != "uniform")
                throw py::value_error("weight must be 'inverse_variance', 'uniform' or an array, got '" + name + "'");
            batch.inverse_variance = name == "inverse_variance";
        } else {
            batch.weight = input<T>(weight, "weight", {batch.rows});
        }
        return batch;
    }

    Trace<T> trace_of(py::handle trace, std::int64_t n) const {
        if (trace.is_none()) return {};
        if (PyUnicode_Check(trace.ptr())) {
            const std::string name = arguments::text(trace, "trace");
            if (name != "exact")
                throw py::value_error("trace must be None, 'exact' or an array of probes, got '" + name + "'");
            return {shape_.dimension, nullptr};
        }
        const T* probes = input<T>(trace, "trace", {n, any, shape_.dimension});
        const std::int64_t directions = py::reinterpret_borrow<py::array>(trace).shape(1);
        if (directions < 1 || directions > largest_size)
            throw py::value_error("trace must hold between 1 and " + std::to_string(largest_size) +
                                  " probes a sample, got " + std::to_string(directions));
        return {static_cast<int>(directions), probes};
    }

    MlpShape shape_;
    InstructionSet instruction_set_;
    std::shared_ptr<const PackedMlp<T>> packed_;
    mutable std::mutex loss_mutex_;
    mutable LossMemory<T> loss_memory_;  // guarded by loss_mutex_
};

Path path_named(const std::string& name) {
    if (name == "DataHomotopy") return Path::data;
    if (name == "LinearHomotopy") return Path::linear;
    throw py::value_error("homotopy must be 'DataHomotopy' or 'LinearHomotopy', got '" + name + "'");
}

// The options of vapo_fast.ode.SolveOptions as Python passes them.
struct GivenOptions {
    py::handle method, rtol, atol, steps, max_steps, first_step, proportional_share, t_eval;
};

// `times` holds the numbers that the result's t_eval points to.
SolveOptions options_of(const GivenOptions& given, std::vector<double>& times) {
    SolveOptions options;
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    options.method = method_from_name(arguments::text(given.method, "method"));
    if (is_adaptive(options.method)) {
        if (!given.steps.is_none())
            throw py::value_error("steps must be None for an adaptive method, got " + arguments::shown(given.steps));
        options.rtol = arguments::positive(given.rtol, "rtol");
        options.atol = arguments::number(given.atol, "atol");
        if (options.atol < 0.0) throw py::value_error("atol must be >= 0, got " + arguments::shown(given.atol));
        options.max_steps = arguments::integer(given.max_steps, "max_steps", 1, most);
        options.has_first_step = !given.first_step.is_none();
        if (options.has_first_step) options.first_step = arguments::positive(given.first_step, "first_step");
        options.proportional_share = arguments::number(given.proportional_share, "proportional_share");
    } else {
        options.steps = arguments::integer(given.steps, "steps", 1, most);
    }
    if (!given.t_eval.is_none()) {
        // Each item is held: converting it may run code that takes it out of the list.
        for (const py::object time : arguments::sequence(given.t_eval, "t_eval"))
            times.push_back(arguments::number(time, "each time in t_eval"));
        if (times.empty()) throw py::value_error("t_eval must hold at least one time, or be None");
    }
    options.t_eval = times.data();
    options.n_eval = static_cast<std::int64_t>(times.size());
    return options;
}

class Mlp {
public:
    Mlp(py::handle dtype, py::handle dimension, py::handle widths, py::handle fourier_features, py::handle activation,
        py::handle homotopy, py::handle omega, py::handle t1, py::handle data_scale, py::handle time_dependent,
        py::handle log_beta_ends, py::handle instruction_set) {
        MlpShape shape;
        shape.dimension = static_cast<int>(arguments::integer(dimension, "dimension", 1, largest_size));
        const py::sequence sizes = arguments::sequence(widths, "widths");
        if (sizes.size() < 1 || sizes.size() > static_cast<std::size_t>(most_layers))
            throw py::value_error("widths must hold between 1 and " + std::to_string(most_layers) + " sizes, got " +
                                  std::to_string(sizes.size()));
        for (const py::object width : sizes)  // held, as the times of options_of are
            shape.widths.push_back(
                static_cast<int>(arguments::integer(width, "each width in widths", 1, largest_size)));
        shape.features = static_cast<int>(arguments::integer(fourier_features, "fourier_features", 0, largest_size));
        shape.activation = activation_named(arguments::text(activation, "activation"));
        shape.path = path_named(arguments::text(homotopy, "homotopy"));
        shape.omega = arguments::positive(omega, "omega");
        shape.data_scale = arguments::positive(data_scale, "data_scale");
        shape.time_dependent = arguments::boolean(time_dependent, "time_dependent");
        const double end = arguments::positive(t1, "t1");
        if (shape.path == Path::linear && end >= 1.0)
            throw py::value_error("t1 must be below 1 for 'LinearHomotopy', got " + arguments::shown(t1));
        const py::sequence ends = arguments::sequence(log_beta_ends, "log_beta_ends");
        if (ends.size() != 2)
            throw py::value_error("log_beta_ends must hold two numbers, got " + arguments::shown(ends));
        shape.log_beta_first = arguments::number(ends[0], "log_beta_ends[0]");
        shape.log_beta_last = arguments::number(ends[1], "log_beta_ends[1]");
        if (shape.log_beta_first == shape.log_beta_last)
            throw py::value_error("log_beta_ends must differ, got " + arguments::shown(ends));
        instruction_set_ = instruction_set.is_none()
                               ? chosen_instruction_set()
                               : instruction_set_named(arguments::text(instruction_set, "instruction_set"));
        const std::string name = arguments::text(dtype, "dtype");
        if (name == "float32") {
            mlp_ = std::make_unique<TypedMlp<float>>(std::move(shape), instruction_set_);
        } else if (name == "float64") {
            mlp_ = std::make_unique<TypedMlp<double>>(std::move(shape), instruction_set_);
        } else {
            throw py::value_error("dtype must be 'float32' or 'float64', got '" + name + "'");
        }
    }

    AnyMlp& get() const { return *mlp_; }
    std::string instruction_set() const { return name(instruction_set_); }

private:
    InstructionSet instruction_set_;
    std::unique_ptr<AnyMlp> mlp_;
};

AnyMlp& mlp_of(py::handle self) { return initialised<Mlp>(self, "Mlp").get(); }

}  // namespace

void bind_mlp(py::module_& m) {
    py::register_exception<NonFiniteWeights>(m, "NonFiniteWeightsError", PyExc_ValueError);
    m.attr("MOST_LAYERS") = most_layers;
    m.attr("LARGEST_SIZE") = largest_size;
    m.attr("MOST_THREADS") = kMaxThreads;
    py::class_<Mlp>(m, "Mlp",
                    "An MLP potential: its shape, and a packed copy of the weights that were loaded last. Arrays are "
                    "NumPy's, C-contiguous and of the Mlp's dtype; a bad argument is a TypeError or ValueError that "
                    "names it.")
        .def(py::init<py::handle, py::handle, py::handle, py::handle, py::handle, py::handle, py::handle, py::handle,
                      py::handle, py::handle, py::handle, py::handle>(),
             py::kw_only(), py::arg("dtype"), py::arg("dimension"), py::arg("widths"), py::arg("fourier_features"),
             py::arg("activation"), py::arg("homotopy"), py::arg("omega"), py::arg("t1"), py::arg("data_scale"),
             py::arg("time_dependent"), py::arg("log_beta_ends"), py::arg("instruction_set") = py::none())
        .def_property_readonly("instruction_set",
                               [](py::handle self) { return initialised<Mlp>(self, "Mlp").instruction_set(); })
        .def(
            "load",
            [](py::handle self, py::handle weights, py::handle biases, py::handle output, py::handle frequencies) {
                return mlp_of(self).load(weights, biases, output, frequencies);
            },
            py::arg("weights"), py::arg("biases"), py::arg("output"), py::arg("frequencies"),
            "Takes a copy of the weights, if any byte differs from the copy it has; returns whether one did. Weights "
            "that are not finite raise NonFiniteWeightsError and leave the copy as it was.")
        .def(
            "field",
            [](py::handle self, py::handle x, py::handle t, py::handle phi, py::handle grad, py::handle threads) {
                mlp_of(self).field(x, t, phi, grad, threads_of(threads));
            },
            py::arg("x"), py::arg("t"), py::arg("phi"), py::arg("grad"), py::arg("threads"),
            "Writes Phi (n,) and grad Phi (n, D) at x (n, D) and t (n,).")
        .def(
            "solve",
            [](py::handle self, py::handle x0, py::handle t0, py::handle t1, py::handle method, py::handle rtol,
               py::handle atol, py::handle steps, py::handle max_steps, py::handle first_step,
               py::handle proportional_share, py::handle t_eval, py::handle trace, py::handle threads,
               py::handle progress) {
                GivenOptions given;
                given.method = method;
                given.rtol = rtol;
                given.atol = atol;
                given.steps = steps;
                given.max_steps = max_steps;
                given.first_step = first_step;
                given.proportional_share = proportional_share;
                given.t_eval = t_eval;
                std::vector<double> times;
                const SolveOptions options = options_of(given, times);
                const double start = arguments::number(t0, "t0"), end = arguments::number(t1, "t1");
                return mlp_of(self).solve(x0, start, end, options, trace, threads_of(threads), progress);
            },
            py::arg("x0"), py::arg("t0"), py::arg("t1"), py::kw_only(), py::arg("method"), py::arg("rtol"),
            py::arg("atol"), py::arg("steps"), py::arg("max_steps"), py::arg("first_step"),
            py::arg("proportional_share"), py::arg("t_eval"), py::arg("trace"), py::arg("threads"), py::arg("progress"),
            "Integrates x0 (n, D) from t0 to t1, with the trace of the Hessian if `trace` is 'exact' or probes "
            "(n, m, D); returns new arrays x (n, D + integrals), t, status, nfe, accepted, rejected and ys. "
            "`progress` is told the number of samples that have ended, about every 50 ms.")
        .def(
            "loss",
            [](py::handle self, py::handle x_data, py::handle t, py::handle noise, py::handle estimator,
               py::handle weight, py::handle threads) {
                return mlp_of(self).loss(x_data, t, noise, estimator, weight, threads_of(threads));
            },
            py::arg("x_data"), py::arg("t"), py::arg("noise"), py::arg("estimator"), py::arg("weight"),
            py::arg("threads"),
            "The loss's linear and quadratic term over a batch, and the gradients of their sum: for the weights, the "
            "biases and the output layer.");
}

}  // namespace vapo_fast
