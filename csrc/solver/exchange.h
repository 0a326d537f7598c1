// Load balancing at the end of a batch: threads without samples get rows from threads with many.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "core/scheduler.h"

namespace vapo_fast {

// Worker is what holds a thread's rows: `std::int64_t rows() const` and `void give(std::int64_t count, Worker& to)`.
// `give` writes to a waiting worker, under the mutex.
template <class Worker>
class Exchange {
public:
    // Fewer rows than this are not worth another thread: the kernels take as long for one row as for four.
    static constexpr std::int64_t kWorthwhile = 4;

    explicit Exchange(int threads) { waiting_.reserve(static_cast<std::size_t>(threads)); }

    // A worker enters before it takes samples, and leaves when it has none. Nothing may be thrown in between.
    void enter() {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++working_;
    }

    void leave() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (--working_ == 0) changed_.notify_all();
    }

    // Gives waiting workers their share of this worker's rows. Between two steps.
    void share(Worker& mine) {
        if (waiting_count_.load(std::memory_order_relaxed) == 0 || mine.rows() < 2 * kWorthwhile) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        while (!waiting_.empty()) {
            const std::int64_t part = mine.rows() / (static_cast<std::int64_t>(waiting_.size()) + 1);
            if (part < kWorthwhile) break;
            mine.give(part, *waiting_.back());
            waiting_.pop_back();
            ++working_;
        }
        waiting_count_.store(static_cast<int>(waiting_.size()), std::memory_order_relaxed);
        changed_.notify_all();
    }

    // Waits until another worker gives rows (true), or no more can come (false: the worker has left). For a worker that
    // has entered and has no rows. The calling thread polls the monitor meanwhile.
    bool wait(Worker& mine, CallState& state, bool polls) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (--working_ == 0) {
            changed_.notify_all();
            return false;
        }
        waiting_.push_back(&mine);
        waiting_count_.store(static_cast<int>(waiting_.size()), std::memory_order_relaxed);
        while (true) {
            changed_.wait_for(lock, kMonitorInterval);
            const auto place = std::find(waiting_.begin(), waiting_.end(), &mine);
            if (place == waiting_.end()) return true;
            if (working_ == 0 || state.stopped()) {
                waiting_.erase(place);
                waiting_count_.store(static_cast<int>(waiting_.size()), std::memory_order_relaxed);
                return false;
            }
            if (polls) {
                lock.unlock();
                state.poll();
                lock.lock();
            }
        }
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<Worker*> waiting_;
    int working_ = 0;
    std::atomic<int> waiting_count_{0};  // waiting_.size(), to be read without the mutex
};

}  // namespace vapo_fast
