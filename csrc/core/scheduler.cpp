#include "core/scheduler.h"

#include <algorithm>
#include <cfenv>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#if defined(_WIN32)
#include <process.h>
#else
#include <unistd.h>
#endif

namespace vapo_fast {
namespace {

long process_id() {
#if defined(_WIN32)
    return static_cast<long>(_getpid());
#else
    return static_cast<long>(getpid());
#endif
}

// The default floating-point mode (rounding, denormal numbers) for a scope; the end restores the thread's mode.
class DefaultArithmetic {
public:
    DefaultArithmetic() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultArithmetic() { std::fesetenv(&saved_); }
    DefaultArithmetic(const DefaultArithmetic&) = delete;
    DefaultArithmetic& operator=(const DefaultArithmetic&) = delete;

private:
    std::fenv_t saved_;
};

// Threads that wait for work. They serve one team at a time: the team that has acquired the pool.
class Pool {
public:
    explicit Pool(long process) : process_(process) {}

    long process() const { return process_; }
    bool try_acquire() { return !taken_.exchange(true, std::memory_order_acquire); }
    void release() { taken_.store(false, std::memory_order_release); }

    // Offers work, which must not throw, to `helpers` pool threads. The pool must be acquired.
    void open(const std::function<void(int)>& work, int helpers) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            grow(helpers);
            work_ = &work;
            next_thread_ = 1;
            places_ = helpers;
        }
        if (helpers == 1) {
            offered_.notify_one();
        } else {
            offered_.notify_all();
        }
    }

    // Lets no more threads join, and waits until all have left; calls `idle` from time to time. The pool must be
    // acquired.
    void close(const std::function<void()>& idle) {
        std::unique_lock<std::mutex> lock(mutex_);
        places_ = 0;
        while (!left_.wait_for(lock, kMonitorInterval, [this] { return inside_ == 0; })) {
            lock.unlock();
            idle();
            lock.lock();
        }
        work_ = nullptr;
    }

private:
    void grow(int helpers) {
        try {
            // Detached: threads and pool live as long as the process.
            for (; size_ < helpers; ++size_) std::thread([this] { serve(); }).detach();
        } catch (const std::exception&) {
            // The system gives no more threads: the existing ones and the caller do the work.
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            offered_.wait(lock, [this] { return places_ > 0; });
            --places_;
            ++inside_;
            const int thread = next_thread_++;
            const std::function<void(int)>* work = work_;
            lock.unlock();
            (*work)(thread);
            lock.lock();
            if (--inside_ == 0) left_.notify_all();
        }
    }

    const long process_;
    std::atomic<bool> taken_{false};
    std::mutex mutex_;
    std::condition_variable offered_, left_;
    const std::function<void(int)>* work_ = nullptr;
    int size_ = 0, places_ = 0, inside_ = 0, next_thread_ = 1;
};

// This process's pool. A forked child inherits the memory of its parent's pool, without the threads, and possibly with
// a locked mutex that nothing will unlock. So the child leaves that pool alone and makes its own.
Pool& pool() {
    static std::atomic<Pool*> current{nullptr};
    const long process = process_id();
    Pool* found = current.load(std::memory_order_acquire);
    while (found == nullptr || found->process() != process) {
        Pool* fresh = new Pool(process);
        if (current.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
        delete fresh;  // another thread has stored a pool first; this one has started nothing
    }
    return *found;
}

}  // namespace

CallState::CallState(Monitor monitor)
    : monitor_(std::move(monitor)), next_(std::chrono::steady_clock::now() + kMonitorInterval) {}

void CallState::poll() noexcept {
    if (!monitor_ || stopped() || std::chrono::steady_clock::now() < next_) return;
    try {
        if (!monitor_(done_.load(std::memory_order_relaxed))) stop();
    } catch (...) {
        fail();
    }
    next_ = std::chrono::steady_clock::now() + kMonitorInterval;
}

void CallState::fail() noexcept {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!exception_) exception_ = std::current_exception();
    }
    stop();
}

void CallState::rethrow() {
    if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
}

void run_team(int threads, CallState& state, const std::function<void(int)>& work) {
    const std::function<void(int)> member = [&](int thread) {
        const DefaultArithmetic arithmetic;
        try {
            work(thread);
        } catch (...) {
            state.fail();
        }
    };
    const int helpers = std::min(threads, kMaxThreads) - 1;
    // While another call has acquired the pool, the calling thread works alone.
    Pool* helpers_pool = helpers > 0 ? &pool() : nullptr;
    if (helpers_pool == nullptr || !helpers_pool->try_acquire()) {
        member(0);
    } else {
        helpers_pool->open(member, helpers);
        member(0);
        helpers_pool->close([&] { state.poll(); });
        helpers_pool->release();
    }
    state.rethrow();
}

bool parallel_for(std::int64_t tasks, int threads, const std::function<void(std::int64_t, int)>& task,
                  const Monitor& monitor) {
    CallState state(monitor);
    std::atomic<std::int64_t> next{0};
    const std::int64_t team = std::min<std::int64_t>(threads, tasks);
    run_team(static_cast<int>(team), state, [&](int thread) {
        while (!state.stopped()) {
            const std::int64_t i = next.fetch_add(1, std::memory_order_relaxed);
            if (i >= tasks) return;
            task(i, thread);
            state.add_done(1);
            if (thread == 0) state.poll();
        }
    });
    return !state.stopped();
}

namespace {

std::uint64_t pack(std::int64_t begin, std::int64_t end) {
    return static_cast<std::uint64_t>(begin) << 32 | static_cast<std::uint64_t>(end);
}

SampleRange unpack(std::uint64_t packed) {
    return {static_cast<std::int64_t>(packed >> 32), static_cast<std::int64_t>(packed & 0xFFFFFFFFu)};
}

}  // namespace

// A range is packed in one integer, so taking and stealing are single atomic exchanges. The same integer always means
// the same samples, so a range that changes and changes back does no harm.
SampleRanges::SampleRanges(std::int64_t samples, int threads) : threads_(threads), slots_(new Slot[threads]) {
    if (samples < 0 || samples > std::numeric_limits<std::uint32_t>::max())
        throw std::length_error("one call takes fewer than 2^32 samples, got " + std::to_string(samples));
    for (int i = 0; i < threads; ++i)
        slots_[i].range.store(pack(samples * i / threads, samples * (i + 1) / threads), std::memory_order_relaxed);
}

SampleRange SampleRanges::take(int thread, std::int64_t wanted) {
    std::atomic<std::uint64_t>& own = slots_[thread].range;
    std::uint64_t seen = own.load(std::memory_order_relaxed);
    while (true) {
        const SampleRange range = unpack(seen);
        const std::int64_t count = std::min(wanted, range.size());
        if (count <= 0) return {};
        if (own.compare_exchange_weak(seen, pack(range.begin + count, range.end), std::memory_order_relaxed))
            return {range.begin, range.begin + count};
    }
}

SampleRange SampleRanges::steal(int thread, std::int64_t wanted) {
    while (true) {
        int victim = -1;
        std::uint64_t seen = 0;
        std::int64_t longest = 0;
        for (int i = 0; i < threads_; ++i) {
            const std::uint64_t packed = i == thread ? 0 : slots_[i].range.load(std::memory_order_relaxed);
            if (unpack(packed).size() > longest) {
                victim = i;
                seen = packed;
                longest = unpack(packed).size();
            }
        }
        if (victim < 0 || wanted <= 0) return {};
        const SampleRange range = unpack(seen);
        const std::int64_t middle = range.begin + range.size() / 2;
        if (!slots_[victim].range.compare_exchange_strong(seen, pack(range.begin, middle), std::memory_order_relaxed))
            continue;
        const std::int64_t count = std::min(wanted, range.end - middle);
        slots_[thread].range.store(pack(middle + count, range.end), std::memory_order_relaxed);
        return {middle, middle + count};
    }
}

std::int64_t SampleRanges::remaining() const {
    std::int64_t total = 0;
    for (int i = 0; i < threads_; ++i) total += unpack(slots_[i].range.load(std::memory_order_relaxed)).size();
    return total;
}

}  // namespace vapo_fast
