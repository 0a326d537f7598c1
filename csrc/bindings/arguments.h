// Checks of arguments that come from Python: numbers, names and NumPy arrays. An error names the argument, its value
// and what would be right. Arrays are never converted or copied: the caller's memory is used as it is.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "bindings/interpreter_lock.h"
#include "core/scheduler.h"

namespace vapo_fast {
namespace arguments {

namespace py = pybind11;

inline std::string shown(py::handle value) {
    const std::string text = py::repr(value);
    if (text.size() <= 60) return text;
    std::size_t end = 57;
    while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // no character of UTF-8 is cut in two
    return text.substr(0, end) + "...";
}

// Clears Python's error after a failed conversion, so that the caller can raise its own; true if it was a TypeError.
// Rethrows what is not an Exception, such as KeyboardInterrupt.
inline bool forget_error() {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) throw py::error_already_set();
    const bool of_type = PyErr_ExceptionMatches(PyExc_TypeError) != 0;
    PyErr_Clear();
    return of_type;
}

inline std::string type_of(py::handle value) { return py::str(py::type::handle_of(value).attr("__name__")); }

// A Python int; a bool is refused.
inline py::object whole_number(py::handle value, const char* name) {
    py::object number;
    if (!PyBool_Check(value.ptr()) && PyIndex_Check(value.ptr())) {
        number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
        if (!number) forget_error();  // an array of several numbers, say
    }
    if (!number)
        throw py::type_error(std::string(name) + " must be an integer, got " + shown(value) + " (" + type_of(value) +
                             ")");
    return number;
}

// An integer in [low, high].
inline std::int64_t integer(py::handle value, const char* name, std::int64_t low, std::int64_t high) {
    const py::object number = whole_number(value, name);
    int overflow = 0;
    const long long converted = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (overflow != 0 || converted < low || converted > high)
        throw py::value_error(std::string(name) + " must be in [" + std::to_string(low) + ", " + std::to_string(high) +
                              "], got " + shown(number));
    return converted;
}

// The number of threads that a call may use.
inline int threads_of(py::handle threads) { return static_cast<int>(integer(threads, "threads", 1, kMaxThreads)); }

inline std::uint64_t unsigned_word(py::handle value, const char* name) {
    const py::object number = whole_number(value, name);
    const std::uint64_t converted = PyLong_AsUnsignedLongLong(number.ptr());
    if (PyErr_Occurred() != nullptr) {
        forget_error();
        throw py::value_error(std::string(name) + " must be in [0, 2^64), got " + shown(number));
    }
    return converted;
}

// A finite float (or an int that is one).
inline double number(py::handle value, const char* name) {
    const auto refuse = [&] {
        throw py::type_error(std::string(name) + " must be a number, got " + shown(value) + " (" + type_of(value) +
                             ")");
    };
    if (PyBool_Check(value.ptr()) || !(PyFloat_Check(value.ptr()) || PyIndex_Check(value.ptr()))) refuse();
    const double converted = PyFloat_AsDouble(value.ptr());
    if (PyErr_Occurred() != nullptr) {
        if (forget_error()) refuse();  // an array of several numbers, say
        throw py::value_error(std::string(name) + " must be finite, got " + shown(value));
    }
    if (!std::isfinite(converted)) throw py::value_error(std::string(name) + " must be finite, got " + shown(value));
    return converted;
}

inline double positive(py::handle value, const char* name) {
    const double converted = number(value, name);
    if (!(converted > 0.0)) throw py::value_error(std::string(name) + " must be > 0, got " + shown(value));
    return converted;
}

inline bool boolean(py::handle value, const char* name) {
    if (!PyBool_Check(value.ptr()))
        throw py::type_error(std::string(name) + " must be True or False, got " + shown(value));
    return value.ptr() == Py_True;
}

inline std::string text(py::handle value, const char* name) {
    if (!PyUnicode_Check(value.ptr()))
        throw py::type_error(std::string(name) + " must be a str, got " + shown(value) + " (" + type_of(value) + ")");
    // No name has half a surrogate pair, which UTF-8 has no bytes for; escaped, it is one more unknown name.
    return py::reinterpret_steal<py::bytes>(PyUnicode_AsEncodedString(value.ptr(), "utf-8", "backslashreplace"));
}

// A list or tuple.
inline py::sequence sequence(py::handle value, const char* name) {
    if (!py::isinstance<py::list>(value) && !py::isinstance<py::tuple>(value))
        throw py::type_error(std::string(name) + " must be a list or a tuple, got " + type_of(value));
    return py::reinterpret_borrow<py::sequence>(value);
}

constexpr std::int64_t any = -1;  // in a wanted shape: whatever size the array has
using Shape = std::vector<std::int64_t>;

inline std::string shape_text(const Shape& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i)
        text += (i == 0 ? "" : ", ") + (shape[i] == any ? std::string("n") : std::to_string(shape[i]));
    return text + (shape.size() == 1 ? ",)" : ")");
}

inline Shape shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

// A C-contiguous, aligned array of T in native byte order and of the wanted shape.
template <class T>
py::array checked_array(py::handle value, const std::string& name, const Shape& wanted) {
    const auto dtype_text = [](const py::dtype& dtype) { return std::string(py::str(dtype)); };
    if (!py::isinstance<py::array>(value))
        throw py::type_error(name + " must be a NumPy array of " + dtype_text(py::dtype::of<T>()) + ", got " +
                             type_of(value));
    const auto array = py::reinterpret_borrow<py::array>(value);
    if (!py::isinstance<py::array_t<T>>(value))
        throw py::type_error(name + " must have dtype " + dtype_text(py::dtype::of<T>()) + ", got " +
                             dtype_text(array.dtype()));
    const Shape shape = shape_of(array);
    bool fits = shape.size() == wanted.size();
    for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = wanted[i] == any || wanted[i] == shape[i];
    if (!fits) throw py::value_error(name + " must have shape " + shape_text(wanted) + ", got " + shape_text(shape));
    if ((array.flags() & py::array::c_style) == 0)
        throw py::value_error(name + " must be C-contiguous; use numpy.ascontiguousarray");
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) != 0)
        throw py::value_error(name + " must be aligned to " + std::to_string(alignof(T)) + " bytes; copy it");
    return array;
}

template <class T>
const T* input(py::handle value, const std::string& name, const Shape& wanted) {
    return static_cast<const T*>(checked_array<T>(value, name, wanted).data());
}

// An array that a call writes to; as `input`, and writable.
template <class T>
T* output(py::handle value, const std::string& name, const Shape& wanted) {
    py::array array = checked_array<T>(value, name, wanted);
    if (!array.writeable()) throw py::value_error(name + " must be writable, got a read-only array");
    return static_cast<T*>(array.mutable_data());
}

// ValueError if any of the outputs shares memory with another array of the call. All are contiguous.
inline void refuse_overlap(std::initializer_list<std::pair<const char*, py::handle>> outputs,
                           std::initializer_list<std::pair<const char*, py::handle>> inputs) {
    const auto overlap = [](py::handle first, py::handle second) {
        const auto a = py::reinterpret_borrow<py::array>(first), b = py::reinterpret_borrow<py::array>(second);
        const auto a_begin = reinterpret_cast<std::uintptr_t>(a.data()),
                   b_begin = reinterpret_cast<std::uintptr_t>(b.data());
        return a_begin < b_begin + static_cast<std::size_t>(b.nbytes()) &&
               b_begin < a_begin + static_cast<std::size_t>(a.nbytes());
    };
    const auto refuse = [&](const auto& out, const auto& other) {
        if (overlap(out.second, other.second))
            throw py::value_error(std::string(out.first) + " must not share memory with " + other.first);
    };
    for (auto out = outputs.begin(); out != outputs.end(); ++out) {
        for (auto other = std::next(out); other != outputs.end(); ++other) refuse(*out, *other);
        for (const auto& in : inputs) refuse(*out, in);
    }
}

// The object of class T, called `name` in Python, that a method was called on. TypeError if its __init__ has not run
// (T.__new__): pybind11 would give the method uninitialised memory.
template <class T>
const T& initialised(py::handle self, const char* name) {
    if (!py::isinstance<T>(self))
        throw py::type_error(std::string("self must be of type ") + name + ", got " + type_of(self));
    auto* instance = reinterpret_cast<py::detail::instance*>(self.ptr());
    if (!instance->get_value_and_holder().holder_constructed())
        throw py::type_error(std::string(name) + ".__init__() has not been called");
    return self.cast<const T&>();
}

// A monitor for calls that run without the interpreter's lock. It takes the lock, handles signals (Ctrl-C), and calls
// `progress`, a callable or None, with the number done. Both may raise. `progress` must outlive the call.
inline std::function<bool(std::int64_t)> monitor(py::handle progress) {
    if (!progress.is_none() && PyCallable_Check(progress.ptr()) == 0)
        throw py::type_error("progress must be callable or None, got " + type_of(progress));
    return [progress](std::int64_t done) {
        const WithLock lock;
        return unless_python_ends([&] {
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            if (!progress.is_none()) progress(done);
            return true;
        });
    };
}

}  // namespace arguments
}  // namespace vapo_fast
