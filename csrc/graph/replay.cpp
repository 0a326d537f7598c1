#include "graph/replay.h"

#include <chrono>
#include <limits>
#include <thread>
#include <utility>

namespace vapo_fast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kMonitorInterval = std::chrono::milliseconds(50);
// A step takes at least some hundreds of microseconds. The loop spins for that long, then sleeps between two queries.
constexpr auto kSpin = std::chrono::microseconds(200);
constexpr auto kNap = std::chrono::microseconds(50);

// The event after one group of replays.
class Event {
public:
    explicit Event(const Driver& driver) : driver_(driver), handle_(driver.create_event()) {}
    ~Event() { driver_.destroy_event(handle_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;

    Handle handle() const { return handle_; }

private:
    const Driver& driver_;
    Handle handle_;
};

class Loop {
public:
    Loop(const Driver& driver, const Replays& replays, const std::function<void(std::int64_t)>& monitor)
        : driver_(driver), replays_(replays), monitor_(monitor), events_{Event(driver), Event(driver)} {}

    Replayed run() {
        while (true) {
            // The first group is needed in any case; a second one only if some sample needs more steps.
            const int allowed = more_than_one_step_left_ > 0 ? 2 : 1;
            while (waiting_ < allowed && launched_ < replays_.most) launch();
            if (waiting_ == 0) return {running_, launched_};
            wait();
            if (running_ <= replays_.stop_at) return {running_, launched_};
        }
    }

private:
    void launch() {
        for (std::int64_t i = 0; i < replays_.every && launched_ < replays_.most; ++i) {
            driver_.launch(replays_.graph, replays_.stream);
            ++launched_;
        }
        driver_.record(events_[(oldest_ + waiting_) % 2].handle(), replays_.stream);
        ++waiting_;
    }

    void wait() {
        const Clock::time_point begin = Clock::now();
        while (!driver_.is_done(events_[oldest_].handle())) {
            const Clock::time_point now = Clock::now();
            if (now - told_ >= kMonitorInterval) tell(now);
            if (now - begin >= kSpin) std::this_thread::sleep_for(kNap);
        }
        std::atomic_thread_fence(std::memory_order_acquire);
        oldest_ = 1 - oldest_;
        --waiting_;
        running_ = replays_.flags->running;
        more_than_one_step_left_ = replays_.flags->more_than_one_step_left;
        const Clock::time_point now = Clock::now();
        if (now - told_ >= kMonitorInterval) tell(now);
    }

    void tell(Clock::time_point now) {
        told_ = now;
        monitor_(running_);
    }

    const Driver& driver_;
    const Replays& replays_;
    const std::function<void(std::int64_t)>& monitor_;
    Event events_[2];
    int oldest_ = 0, waiting_ = 0;
    std::int64_t launched_ = 0, more_than_one_step_left_ = 0;
    std::int64_t running_ = std::numeric_limits<std::int64_t>::max();  // not known yet
    Clock::time_point told_ = Clock::now();
};

}  // namespace

Replayed replay(const Driver& driver, const Replays& replays, const std::function<void(std::int64_t)>& monitor) {
    Loop loop(driver, replays, monitor);
    try {
        return loop.run();
    } catch (...) {
        // Replays under way write memory that the caller may free after the exception.
        try {
            driver.wait(replays.stream);
        } catch (const DriverError&) {
            // The first error is the one to report.
        }
        throw;
    }
}

}  // namespace vapo_fast
