// The scheduler on its own: every task once, exceptions, stopping, several callers, stealing, rows handed over.
#include "core/scheduler.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "solver/exchange.h"
#include "testing/programs/check.h"

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace vapo_fast {
namespace tests {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void every_task_runs_once() {
    for (const int threads : {1, 2, 4, 7}) {
        for (const int tasks : {0, 1, 3, 1000}) {
            std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
            std::atomic<bool> known_thread{true};
            const bool finished = parallel_for(tasks, threads, [&](std::int64_t i, int thread) {
                ++runs[static_cast<std::size_t>(i)];
                if (thread < 0 || thread >= threads) known_thread = false;
            });
            CHECK(finished && known_thread);
            for (const auto& count : runs) CHECK(count == 1);
        }
    }
}

void an_exception_of_a_task_reaches_the_caller() {
    for (const int threads : {1, 4}) {
        for (const std::int64_t culprit : {0, 57}) {
            bool thrown = false;
            try {
                parallel_for(100, threads, [&](std::int64_t i, int) {
                    if (i == culprit) throw std::out_of_range("task");
                });
            } catch (const std::out_of_range&) {
                thrown = true;
            }
            CHECK(thrown);
        }
        CHECK(parallel_for(10, threads, [](std::int64_t, int) {}));
    }
}

void a_monitor_stops_the_work_on_its_own_thread() {
    for (const int threads : {1, 4}) {
        const std::thread::id caller = std::this_thread::get_id();
        std::atomic<int> elsewhere{0};
        int calls = 0;
        const Clock::time_point start = Clock::now();
        const auto task = [](std::int64_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
        const bool finished = parallel_for(1'000'000, threads, task, [&](std::int64_t done) {
            if (std::this_thread::get_id() != caller || done < 0) ++elsewhere;
            return ++calls < 2;
        });
        CHECK(!finished && calls == 2 && elsewhere == 0);
        CHECK(seconds_since(start) > 0.09 && seconds_since(start) < 20.0);
    }
}

void a_monitor_is_asked_while_the_caller_waits() {
    std::atomic<int> calls{0};
    std::atomic<bool> joined{false};
    const Clock::time_point start = Clock::now();
    CallState state([&](std::int64_t) {
        ++calls;
        return true;
    });
    run_team(2, state, [&](int thread) {
        // The caller has nothing to do but to wait for the helper, who waits for the monitor.
        if (thread == 1) joined = true;
        const auto waiting = [&] { return thread == 0 ? !joined : calls < 3; };
        while (waiting() && seconds_since(start) < 20.0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
    CHECK(joined && calls >= 3 && !state.stopped());
}

void an_exception_of_a_monitor_reaches_the_caller() {
    bool thrown = false;
    try {
        parallel_for(
            1'000'000, 3, [](std::int64_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); },
            [](std::int64_t) -> bool { throw std::out_of_range("monitor"); });
    } catch (const std::out_of_range&) {
        thrown = true;
    }
    CHECK(thrown);
}

void work_within_work_runs() {
    std::atomic<int> runs{0};
    parallel_for(8, 3, [&](std::int64_t, int) { parallel_for(5, 3, [&](std::int64_t, int) { ++runs; }); });
    CHECK(runs == 40);
}

void several_callers_at_once() {
    std::atomic<std::int64_t> total{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c) {
        callers.emplace_back([&] {
            for (int repeat = 0; repeat < 50; ++repeat) parallel_for(20, 3, [&](std::int64_t i, int) { total += i; });
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(total == 4 * 50 * 190);
}

void ranges_are_taken_and_stolen_once() {
    for (const std::int64_t samples : {0, 1, 5, 20'000}) {
        const int threads = 4;
        SampleRanges ranges(samples, threads);
        CHECK(ranges.remaining() == samples);
        std::vector<std::atomic<int>> taken(static_cast<std::size_t>(samples));
        const auto loot = [&](int thread) {
            while (true) {
                SampleRange range = ranges.take(thread, 1 + thread);
                if (range.size() == 0) range = ranges.steal(thread, 2);
                if (range.size() == 0) return;
                CHECK(range.size() <= 4);
                for (std::int64_t i = range.begin; i < range.end; ++i) ++taken[static_cast<std::size_t>(i)];
            }
        };
        std::vector<std::thread> looters;
        for (int thread = 1; thread < threads; ++thread) looters.emplace_back(loot, thread);
        loot(0);
        for (std::thread& looter : looters) looter.join();
        CHECK(ranges.remaining() == 0);
        for (const auto& count : taken) CHECK(count == 1);
    }
    bool refused = false;
    try {
        SampleRanges(std::int64_t{1} << 32, 2);
    } catch (const std::length_error&) {
        refused = true;
    }
    CHECK(refused);
}

struct CountingWorker {
    std::int64_t count = 0;
    std::int64_t rows() const { return count; }
    void give(std::int64_t part, CountingWorker& to) {
        to.count += part;
        count -= part;
    }
};

void idle_workers_are_given_rows() {
    CallState state{Monitor{}};
    for (int repeat = 0; repeat < 200; ++repeat) {
        const int threads = 3;
        Exchange<CountingWorker> exchange(threads);
        std::vector<CountingWorker> workers(threads);
        workers[0].count = 300;
        std::atomic<std::int64_t> done{0};
        std::atomic<int> helped{0}, inside{0};
        const auto work = [&](int thread) {
            CountingWorker& mine = workers[static_cast<std::size_t>(thread)];
            exchange.enter();
            ++inside;
            // All are in before the first can finish alone.
            while (inside < threads) std::this_thread::yield();
            while (mine.count > 0 || exchange.wait(mine, state, thread == 0)) {
                if (thread != 0) ++helped;
                --mine.count;
                ++done;
                exchange.share(mine);
                std::this_thread::yield();
            }
        };
        std::vector<std::thread> helpers;
        for (int thread = 1; thread < threads; ++thread) helpers.emplace_back(work, thread);
        work(0);
        for (std::thread& helper : helpers) helper.join();
        CHECK(done == 300);
        CHECK(helped > 0);
    }
}

void a_stopped_call_releases_those_that_wait() {
    CallState state{Monitor{}};
    Exchange<CountingWorker> exchange(2);
    CountingWorker busy, idle;
    exchange.enter();
    std::thread waiting([&] {
        exchange.enter();
        CHECK(!exchange.wait(idle, state, false));
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    state.stop();
    exchange.leave();
    waiting.join();
    busy.count = 100;
    exchange.enter();
    exchange.share(busy);  // nobody waits any more
    exchange.leave();
    CHECK(busy.count == 100 && idle.count == 0);
}

#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
void a_forked_child_has_threads_of_its_own() {
    CHECK(parallel_for(100, 4, [](std::int64_t, int) {}));
    const pid_t child = fork();
    if (child == 0) {
        std::atomic<int> runs{0};
        parallel_for(100, 4, [&](std::int64_t, int) { ++runs; });
        std::_Exit(runs == 100 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

}  // namespace
}  // namespace tests
}  // namespace vapo_fast

int main() {
    using namespace vapo_fast::tests;
    const Test tests[] = {
        {"every task runs once", every_task_runs_once},
        {"an exception of a task reaches the caller", an_exception_of_a_task_reaches_the_caller},
        {"a monitor stops the work, on its own thread", a_monitor_stops_the_work_on_its_own_thread},
        {"a monitor is asked while the caller waits", a_monitor_is_asked_while_the_caller_waits},
        {"an exception of a monitor reaches the caller", an_exception_of_a_monitor_reaches_the_caller},
        {"work within work runs", work_within_work_runs},
        {"several callers at once", several_callers_at_once},
        {"ranges are taken and stolen once", ranges_are_taken_and_stolen_once},
        {"idle workers are given rows", idle_workers_are_given_rows},
        {"a stopped call releases those that wait", a_stopped_call_releases_those_that_wait},
#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
        {"a forked child has threads of its own", a_forked_child_has_threads_of_its_own},
#endif
    };
    return run_all(tests);
}
