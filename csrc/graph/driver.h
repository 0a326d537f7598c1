// The CUDA driver's functions that replaying a recorded graph needs. They are looked up at run time in a library that
// is given by name: building needs nothing of CUDA, and tests can pass a library of their own.
#pragma once

#include <stdexcept>
#include <string>

namespace vapo_fast {

// A call into the driver that failed, or a library or function that is not there (code -1).
class DriverError : public std::runtime_error {
public:
    DriverError(const std::string& function, const std::string& name, int code)
        : std::runtime_error(function + " failed: " + name + " (" + std::to_string(code) + ")"),
          function(function),
          name(name),
          code(code) {}

    const std::string function, name;
    const int code;
};

using Handle = void*;  // a stream, an event, or a graph that can be launched

class Driver {
public:
    explicit Driver(const std::string& library);
    ~Driver();
    Driver(const Driver&) = delete;
    Driver& operator=(const Driver&) = delete;

    Handle create_event() const;                      // without timing
    void destroy_event(Handle event) const noexcept;  // ignores errors
    void launch(Handle graph, Handle stream) const;
    void record(Handle event, Handle stream) const;
    bool is_done(Handle event) const;
    void wait(Handle stream) const;

private:
    void check(const char* function, int code) const;

    void* library_ = nullptr;
    int (*event_create_)(Handle*, unsigned) = nullptr;
    int (*event_destroy_)(Handle) = nullptr;
    int (*event_record_)(Handle, Handle) = nullptr;
    int (*event_query_)(Handle) = nullptr;
    int (*graph_launch_)(Handle, Handle) = nullptr;
    int (*stream_synchronize_)(Handle) = nullptr;
    int (*error_name_)(int, const char**) = nullptr;
};

}  // namespace vapo_fast
