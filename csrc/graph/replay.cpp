#include "graph/replay.h"

#include <chrono>
#include <limits>
#include <thread>
#include <utility>

namespace vapo_fast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kMonitorInterval = std::chrono::milliseconds(50);
// A step takes some hundreds of microseconds at least: after as long without news, the processor is left to others.
constexpr auto kSpin = std::chrono::microseconds(200);
constexpr auto kNap = std::chrono::microseconds(50);

// The event after one lot of replays.
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
            // The first lot is needed; a second one only if some sample needs more than that.
            const int allowed = far_ > 0 ? 2 : 1;
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
        far_ = replays_.flags->far;
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
    std::int64_t launched_ = 0, far_ = 0;
    std::int64_t running_ = std::numeric_limits<std::int64_t>::max();  // nothing is known: no sample has ended
    Clock::time_point told_ = Clock::now();
};

}  // namespace

Replayed replay(const Driver& driver, const Replays& replays, const std::function<void(std::int64_t)>& monitor) {
    Loop loop(driver, replays, monitor);
    try {
        return loop.run();
    } catch (...) {
        // What is under way writes memory that the caller may now give up.
        try {
            driver.wait(replays.stream);
        } catch (const DriverError&) {
            // The first error is the one to tell.
        }
        throw;
    }
}

}  // namespace vapo_fast
