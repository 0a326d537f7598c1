#include "core/shared_threads.h"

#include <algorithm>
#include <atomic>

#include "core/scheduler.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace vapo_fast {
namespace {

// The function by which gcc's OpenMP runtime starts a parallel region: (function, its data, number of threads with the
// caller, flags).
using ParallelRegion = void (*)(void (*)(void*), void*, unsigned, unsigned);

ParallelRegion loaded_runtime() {
#if defined(__linux__)
    // Only found if something else (PyTorch, say) has loaded it; never loaded here.
    void* library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (library != nullptr) return reinterpret_cast<ParallelRegion>(dlsym(library, "GOMP_parallel"));
#endif
    return nullptr;
}

struct Loop {
    const std::function<void(std::int64_t)>& task;
    std::int64_t tasks;
    std::atomic<std::int64_t> next{0};
};

void work(void* data) {
    Loop& loop = *static_cast<Loop*>(data);
    for (;;) {
        const std::int64_t i = loop.next.fetch_add(1, std::memory_order_relaxed);
        if (i >= loop.tasks) return;
        loop.task(i);
    }
}

}  // namespace

void shared_parallel_for(std::int64_t tasks, int threads, const std::function<void(std::int64_t)>& task) {
    const auto team = static_cast<int>(std::min<std::int64_t>(threads, tasks));
    if (team <= 1) {
        for (std::int64_t i = 0; i < tasks; ++i) task(i);
        return;
    }
    static const ParallelRegion region = loaded_runtime();
    if (region != nullptr) {
        Loop loop{task, tasks};
        region(work, &loop, static_cast<unsigned>(team), 0);
    } else {
        parallel_for(tasks, team, [&](std::int64_t i, int) { task(i); });
    }
}

}  // namespace vapo_fast
