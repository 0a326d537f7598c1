// The interpreter's lock, given away and taken, by threads that may still be at work when Python shuts down.
//
// Up to 3.13 Python ends such a thread as soon as it asks for the lock, by unwinding its stack; destructors, and
// handlers that catch everything, then abort the process. Here the thread waits for the process to end, as Python
// itself has it do from 3.14 on.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace vapo_fast {

[[noreturn]] inline void wait_for_the_process_to_end() noexcept {
    while (true) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Calls what may run Python code, which may ask for the lock as well.
template <class Call>
auto unless_python_ends(const Call& call) {
#if defined(__GLIBCXX__)
    try {
        return call();
    } catch (abi::__forced_unwind&) {
        wait_for_the_process_to_end();
    }
#else
    return call();
#endif
}

// For a scope in which other Python threads may run.
class WithoutLock {
public:
    WithoutLock() : state_(PyEval_SaveThread()) {}
    ~WithoutLock() {
        unless_python_ends([this] { PyEval_RestoreThread(state_); });
    }
    WithoutLock(const WithoutLock&) = delete;
    WithoutLock& operator=(const WithoutLock&) = delete;

private:
    PyThreadState* state_;
};

// For a scope inside of one of the former.
class WithLock {
public:
    WithLock() : state_(unless_python_ends([] { return PyGILState_Ensure(); })) {}
    ~WithLock() { PyGILState_Release(state_); }
    WithLock(const WithLock&) = delete;
    WithLock& operator=(const WithLock&) = delete;

private:
    PyGILState_STATE state_;
};

}  // namespace vapo_fast
