#include "graph/driver.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace vapo_fast {
namespace {

constexpr int kSuccess = 0;
constexpr int kNotReady = 600;            // CUDA_ERROR_NOT_READY
constexpr unsigned kDisableTiming = 0x2;  // CU_EVENT_DISABLE_TIMING
constexpr int kMissing = -1;

#ifdef _WIN32
void* open_library(const std::string& name) { return reinterpret_cast<void*>(LoadLibraryA(name.c_str())); }
void close_library(void* library) { FreeLibrary(static_cast<HMODULE>(library)); }
void* find(void* library, const char* name) {
    return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}
std::string why() { return "error " + std::to_string(GetLastError()); }
#else
void* open_library(const std::string& name) { return dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL); }
void close_library(void* library) { dlclose(library); }
void* find(void* library, const char* name) { return dlsym(library, name); }
std::string why() {
    const char* text = dlerror();
    return text != nullptr ? text : "no reason given";
}
#endif

template <class Function>
void load(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(find(library, name));
    if (function == nullptr) throw DriverError(name, "not in the library", kMissing);
}

}  // namespace

Driver::Driver(const std::string& library) : library_(open_library(library)) {
    if (library_ == nullptr) throw DriverError("loading " + library, why(), kMissing);
    try {
        load(library_, "cuEventCreate", event_create_);
        load(library_, "cuEventDestroy_v2", event_destroy_);
        load(library_, "cuEventRecord", event_record_);
        load(library_, "cuEventQuery", event_query_);
        load(library_, "cuGraphLaunch", graph_launch_);
        load(library_, "cuStreamSynchronize", stream_synchronize_);
        load(library_, "cuGetErrorName", error_name_);
    } catch (...) {
        close_library(library_);
        throw;
    }
}

Driver::~Driver() { close_library(library_); }

Handle Driver::create_event() const {
    Handle event = nullptr;
    check("cuEventCreate", event_create_(&event, kDisableTiming));
    return event;
}

void Driver::destroy_event(Handle event) const noexcept { event_destroy_(event); }

void Driver::launch(Handle graph, Handle stream) const { check("cuGraphLaunch", graph_launch_(graph, stream)); }

void Driver::record(Handle event, Handle stream) const { check("cuEventRecord", event_record_(event, stream)); }

bool Driver::is_done(Handle event) const {
    const int code = event_query_(event);
    if (code == kNotReady) return false;
    check("cuEventQuery", code);
    return true;
}

void Driver::wait(Handle stream) const { check("cuStreamSynchronize", stream_synchronize_(stream)); }

void Driver::check(const char* function, int code) const {
    if (code == kSuccess) return;
    const char* name = nullptr;
    if (error_name_(code, &name) != kSuccess || name == nullptr) name = "unknown error";
    throw DriverError(function, name, code);
}

}  // namespace vapo_fast
