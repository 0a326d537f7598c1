// Replays a recorded step until few enough samples are running. Launches run ahead of the results: each replay copies
// the number of running samples to the host, which says when to stop. vapo_fast/engines/graph/replay.py is the Python
// version.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "graph/driver.h"

namespace vapo_fast {

// Pinned memory that each replay writes at its end: how many samples are running, and how many of these need more than
// one further step.
struct Flags {
    std::int64_t running, more_than_one_step_left;
};

struct Replays {
    Handle graph, stream;
    const volatile Flags* flags;
    std::int64_t every;    // replays between two looks at the flags
    std::int64_t stop_at;  // stops when at most so many samples are running
    std::int64_t most;     // replays at most
};

struct Replayed {
    std::int64_t running;   // at the last look
    std::int64_t launched;  // replays, some of which may still be under way
};

// Calls `monitor` with the number of running samples, at most every 50 ms; before the first look at the flags, with the
// largest integer. The monitor may throw. After an exception no replay is under way. While some samples are known to
// need more than the replays under way, the next group is launched before these end.
Replayed replay(const Driver& driver, const Replays& replays, const std::function<void(std::int64_t)>& monitor);

}  // namespace vapo_fast
