// Threads, and how work is shared among them: a team of threads for one call, tasks, and ranges of samples to steal.
//
// Which thread does what is decided as they go, so a result must not depend on it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

namespace vapo_fast {

// Asked on the calling thread, at most every 50 ms, with the number of samples or tasks done; false stops the call.
// What it throws reaches the caller once all threads have stopped.
using Monitor = std::function<bool(std::int64_t)>;

// What the threads of one call share: how far they are, whether they are to stop, and the exception that stopped them.
class CallState {
public:
    explicit CallState(Monitor monitor);

    void add_done(std::int64_t count) { done_.fetch_add(count, std::memory_order_relaxed); }
    void stop() { stopped_.store(true, std::memory_order_relaxed); }
    bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
    // On the calling thread only: asks the monitor if it is time to. An exception of the monitor is kept by `fail`.
    void poll() noexcept;
    // In a catch block: keeps the exception, the first of the call, and stops.
    void fail() noexcept;
    void rethrow();  // the exception kept, if any; when all threads have left

private:
    const Monitor monitor_;
    std::chrono::steady_clock::time_point next_;
    std::atomic<std::int64_t> done_{0};
    std::atomic<bool> stopped_{false};
    std::mutex mutex_;
    std::exception_ptr exception_;
};

inline constexpr int kMaxThreads = 256;
inline constexpr std::chrono::milliseconds kMonitorInterval{50};

// Calls work(thread) on the calling thread (thread 0), and on pool threads (1 .. threads - 1) as they become free; then
// waits for those that began, asking the monitor meanwhile. Work must be shared so that any of the threads can do all
// of it: a pool thread that wakes too late, or is busy with another caller's work, never joins.
//
// If work throws, `state` is stopped, and the first exception is thrown here when all threads have left. The arithmetic
// of every thread rounds as by default, whatever mode (such as flushing denormal numbers to 0) its owner had set.
void run_team(int threads, CallState& state, const std::function<void(int)>& work);

// Calls task(i, thread) once for each i in [0, tasks), each on some thread in [0, threads). False if stopped early.
bool parallel_for(std::int64_t tasks, int threads, const std::function<void(std::int64_t, int)>& task,
                  const Monitor& monitor = {});

// Consecutive samples [begin, end).
struct SampleRange {
    std::int64_t begin = 0, end = 0;
    std::int64_t size() const { return end - begin; }
};

// The samples that no thread has taken yet: a range for each thread, from whose front it takes, and from whose back
// the others steal.
class SampleRanges {
public:
    SampleRanges(std::int64_t samples, int threads);  // samples < 2^32

    // Up to `wanted` samples of the thread's own; empty if it has none left.
    SampleRange take(int thread, std::int64_t wanted);
    // Takes half of the longest range of another thread: up to `wanted` samples now, the others become the thread's
    // own, which must be empty before.
    SampleRange steal(int thread, std::int64_t wanted);
    // A snapshot of how many samples are left in all.
    std::int64_t remaining() const;

private:
    struct alignas(64) Slot {  // a cache line each, so that owners do not slow one another down
        std::atomic<std::uint64_t> range{0};
    };
    int threads_;
    std::unique_ptr<Slot[]> slots_;
};

}  // namespace vapo_fast
