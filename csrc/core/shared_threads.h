// Short parallel loops between the operations of a host program that has threads of its own.
//
// PyTorch's OpenMP threads spin for a while after each operation, and would compete with the threads of another pool
// for the processors. So a loop runs on that OpenMP runtime if it is loaded, and on this library's pool if not.
#pragma once

#include <cstdint>
#include <functional>

namespace vapo_fast {

// Calls task(i) once for each i in [0, tasks), on at most `threads` threads. Tasks must not throw.
void shared_parallel_for(std::int64_t tasks, int threads, const std::function<void(std::int64_t)>& task);

}  // namespace vapo_fast
