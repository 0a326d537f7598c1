// Short parallel loops between the operations of a host program that has threads of its own.
//
// PyTorch's OpenMP threads wait by spinning for a while after each of its operations: threads of another pool would
// share the processors with them. So a loop runs on that very runtime, if one is loaded, and else on this library's pool.
#pragma once

#include <cstdint>
#include <functional>

namespace vapo_fast {

// Calls task(i) once for each i in [0, tasks), on at most `threads` threads. Tasks must not throw.
void shared_parallel_for(std::int64_t tasks, int threads, const std::function<void(std::int64_t)>& task);

}  // namespace vapo_fast
