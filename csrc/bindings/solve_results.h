// The NumPy arrays that a solve fills, and the dictionary in which Python gets them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "solver/solve.h"

namespace vapo_fast {

template <class T>
class SolveResults {
public:
    SolveResults(std::int64_t n, std::int64_t width, std::int64_t outputs)
        : x_({n, width}), ys_({outputs, n, width}), t_(n), status_(n), nfe_(n), accepted_(n), rejected_(n) {}

    SolveArrays<T> arrays(const T* x0) {
        SolveArrays<T> arrays;
        arrays.n = x_.shape(0);
        arrays.x0 = x0;
        arrays.x = x_.mutable_data();
        arrays.t = t_.mutable_data();
        arrays.status = status_.mutable_data();
        arrays.nfe = nfe_.mutable_data();
        arrays.accepted = accepted_.mutable_data();
        arrays.rejected = rejected_.mutable_data();
        if (ys_.shape(0) > 0) arrays.ys = ys_.mutable_data();
        return arrays;
    }

    // "ys" is None where no times were asked for.
    pybind11::dict dict() const {
        pybind11::dict result;
        result["x"] = x_;
        result["t"] = t_;
        result["status"] = status_;
        result["nfe"] = nfe_;
        result["accepted"] = accepted_;
        result["rejected"] = rejected_;
        result["ys"] = ys_.shape(0) > 0 ? pybind11::object(ys_) : pybind11::none();
        return result;
    }

private:
    pybind11::array_t<T> x_, ys_;
    pybind11::array_t<double> t_;
    pybind11::array_t<std::int64_t> status_, nfe_, accepted_, rejected_;
};

}  // namespace vapo_fast
