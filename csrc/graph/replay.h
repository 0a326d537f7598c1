// Replays of a recorded step until few enough samples run: launches go ahead of what is known, and a number that the
// graph itself copies to the host says when to stop. vapo_fast/graph/replay.py is the same in Python.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "graph/driver.h"

namespace vapo_fast {

// Pinned memory that each replay ends by writing: how many samples run, and how many of them need more than one step.
struct Flags {
    std::int64_t running, far;
};

struct Replays {
    Handle graph, stream;
    const volatile Flags* flags;
    std::int64_t every;    // replays between two looks at the flags
    std::int64_t stop_at;  // so many samples may run at the end
    std::int64_t most;     // replays at most
};

struct Replayed {
    std::int64_t running;   // at the last look
    std::int64_t launched;  // replays, some of which may still be under way
};

// Calls `monitor` with the number that runs, every 50 ms at most; before the first look, with the largest of all numbers. It
// may throw. Whatever is thrown, nothing is under way then. While samples are known to need more than the replays under way, the next ones are launched before those end.
Replayed replay(const Driver& driver, const Replays& replays, const std::function<void(std::int64_t)>& monitor);

}  // namespace vapo_fast
