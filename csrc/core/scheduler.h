// Threads and how they share work: a team of threads for one call, parallel loops, and work-stealing sample ranges.
//
// Which thread does what is decided at run time, so results must not depend on it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

namespace vapo_fast {

// A callback with the number of samples or tasks done. It runs on the calling thread, at most every 50 ms. If it
// returns false, the call stops. An exception that it throws reaches the caller after all threads have stopped.
using Monitor = std::function<bool(std::int64_t)>;

// State that the threads of one call share: progress, the request to stop, and the exception that caused it.
class CallState {
public:
    explicit CallState(Monitor monitor);

    void add_done(std::int64_t count) { done_.fetch_add(count, std::memory_order_relaxed); }
    void stop() { stopped_.store(true, std::memory_order_relaxed); }
    bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
    // Calls the monitor if 50 ms have passed. On the calling thread only. `fail` keeps an exception of the monitor.
    void poll() noexcept;
    // Keeps the exception in flight, if it is the call's first, and stops the call. In a catch block only.
    void fail() noexcept;
    // Throws the exception that was kept, if any. After all threads have left.
    void rethrow();

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

// Calls work(thread) on the calling thread (thread 0) and on pool threads (1 .. threads - 1) as they become free. Then
// waits for the threads that have started, and polls the monitor meanwhile. A pool thread that wakes late, or works for
// another caller, may never join, so any subset of the threads must be able to do all the work.
//
// If work throws, `state` is stopped, and the first exception is thrown here after all threads have left. Every thread
// computes in the default floating-point mode, whatever mode (such as flushing denormal numbers to 0) was set before.
void run_team(int threads, CallState& state, const std::function<void(int)>& work);

// Calls task(i, thread) once for each i in [0, tasks), each on some thread in [0, threads). False if stopped early.
bool parallel_for(std::int64_t tasks, int threads, const std::function<void(std::int64_t, int)>& task,
                  const Monitor& monitor = {});

// Consecutive samples [begin, end).
struct SampleRange {
    std::int64_t begin = 0, end = 0;
    std::int64_t size() const { return end - begin; }
};

// The samples that no thread has taken yet: one range for each thread. A thread takes from the front of its own range
// and steals from the back of other ranges.
class SampleRanges {
public:
    SampleRanges(std::int64_t samples, int threads);  // samples < 2^32

    // Up to `wanted` samples of the thread's own range; empty if none are left there.
    SampleRange take(int thread, std::int64_t wanted);
    // Moves half of the longest other range to the thread's own range, which must be empty. Returns up to `wanted` of
    // these samples.
    SampleRange steal(int thread, std::int64_t wanted);
    // The number of samples left in all ranges, at about this time.
    std::int64_t remaining() const;

private:
    struct alignas(64) Slot {  // a cache line each, against false sharing
        std::atomic<std::uint64_t> range{0};
    };
    int threads_;
    std::unique_ptr<Slot[]> slots_;
};

}  // namespace vapo_fast
