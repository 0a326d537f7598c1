// One thread's part of a solve: rows side by side, each a sample at its own time. All rows try one step at a time.
//
// A row that has ended is replaced by a waiting one at once, so that evaluations of the field are as full as possible.
// Waiting samples are prepared many at a time, because their first evaluations cost the same for one row as for a few.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

#include "solver/controller.h"
#include "solver/exchange.h"
#include "solver/field.h"
#include "solver/results.h"
#include "solver/rows.h"
#include "core/scheduler.h"
#include "solver/solve.h"
#include "solver/stages.h"
#include "core/storage.h"

namespace vapo_fast {

// Data that the threads of one solve share.
template <class T, class Worker>
struct SharedSolve {
    const Field<T>& field;
    const SolveOptions& options;
    const SolveArrays<T>& arrays;
    Interval interval;
    int lanes;  // rows that a thread integrates side by side
    int threads;
    CallState& state;
    SampleRanges ranges;
    Exchange<Worker> exchange;
};

template <class T, const auto& tableau>
class Worker {
public:
    using Shared = SharedSolve<T, Worker>;

    Worker(Shared& shared, int thread)
        : shared_(shared),
          thread_(thread),
          width_(shared.field.width()),
          storage_(storage_size(shared)),
          results_(shared.arrays, shared.options.n_eval, width_),
          controller_(tableau.adaptive ? tableau.error_order : 1, shared.options.proportional_share),
          tolerance_{static_cast<T>(shared.options.rtol), static_cast<T>(shared.options.atol)} {
        const std::size_t lanes = static_cast<std::size_t>(shared.lanes), elements = lanes * width_;
        workspace_ = storage_.take(shared.field.workspace_size());
        for (T** array : {&active_.x, &active_.f, &waiting_.x, &waiting_.f, &point_, &step_, &squares_})
            *array = storage_.take(elements);
        for (int i = 1; i < kStages; ++i) later_[i] = storage_.take(elements);
        field_t_ = storage_.take(lanes);
        active_.allocate(lanes);
        waiting_.allocate(lanes);
        attempts_.reset(new Attempt[lanes]);
        trials_.reset(new double[lanes]);
        ended_.reset(new Ended[lanes]);
    }

    // Integrates samples until none are left for this thread. Allocates nothing and does not throw.
    void run() noexcept {
        shared_.exchange.enter();
        bool inside = true;
        while (inside && !shared_.state.stopped()) {
            fill_lanes();
            if (active_.count == 0) {
                inside = shared_.exchange.wait(*this, shared_.state, thread_ == 0);
                continue;
            }
            try_step();
            if (shared_.state.stopped()) break;
            retire_ended();
            shared_.exchange.share(*this);
        }
        if (inside) shared_.exchange.leave();
    }

    std::int64_t rows() const { return active_.count + waiting_.count; }

    // Moves `count` rows to a worker without rows: first waiting rows, then running ones.
    void give(std::int64_t count, Worker& to) {
        for (; count > 0; --count) {
            Rows<T>& from = waiting_.count > 0 ? waiting_ : active_;
            to.active_.copy(to.active_.count++, from, --from.count, width_);
        }
    }

private:
    static constexpr int kStages = std::decay_t<decltype(tableau)>::stages;

    struct Ended {
        int lane;
        Status status;
    };

    static std::size_t storage_size(const Shared& shared) {
        using S = Storage<T>;
        const std::size_t lanes = static_cast<std::size_t>(shared.lanes);
        const std::size_t elements = lanes * static_cast<std::size_t>(shared.field.width());
        return S::rounded(shared.field.workspace_size()) + S::rounded(lanes) + (6 + kStages) * S::rounded(elements);
    }

    // --- samples in ---

    void fill_lanes() {
        const int lanes = shared_.lanes;
        while (active_.count < lanes) {
            if (waiting_.count == 0 && !prepare_samples()) return;
            while (active_.count < lanes && waiting_.count > 0)
                active_.copy(active_.count++, waiting_, --waiting_.count, width_);
        }
    }

    // Takes samples and prepares them as waiting rows; false if no samples are left.
    bool prepare_samples() {
        const int lanes = shared_.lanes, free = lanes - active_.count;
        // Near the end a worker takes fewer at a time, so that all workers finish at about the same time.
        const std::int64_t share = shared_.ranges.remaining() / (2 * shared_.threads);
        const std::int64_t wanted = std::min<std::int64_t>(lanes, std::max<std::int64_t>(free, share));
        SampleRange range = shared_.ranges.take(thread_, wanted);
        // No stealing while at least half of the lanes have work: other threads may only be starting.
        if (range.size() == 0 && 2 * free > lanes) range = shared_.ranges.steal(thread_, wanted);
        if (range.size() == 0) return false;
        begin_rows(range);
        if constexpr (tableau.adaptive) {
            if (waiting_.count > 0) choose_first_steps();
        }
        return true;
    }

    void begin_rows(const SampleRange& range) {
        const SolveArrays<T>& arrays = shared_.arrays;
        const SolveOptions& options = shared_.options;
        const Interval& interval = shared_.interval;
        waiting_.count = 0;
        for (std::int64_t sample = range.begin; sample < range.end; ++sample) {
            const int i = waiting_.count;
            T* x = waiting_.x + i * width_;
            std::copy_n(arrays.x0 + sample * width_, width_, x);
            Row& row = waiting_.row[i];
            row = {{interval.t0, 1.0, 1.0, false, 0, 0}, 0, 0};
            waiting_.sample[i] = sample;
            while (row.next_output < options.n_eval && options.t_eval[row.next_output] == interval.t0)
                std::copy_n(x, width_, results_.output(row.next_output++, sample));
            if (!all_finite(x, width_)) {
                retire(waiting_, i, Status::kNonFinite);
            } else if (interval.t0 == interval.t1) {
                retire(waiting_, i, Status::kSuccess);
            } else {
                ++waiting_.count;
            }
        }
    }

    // Computes the first field and the first step size of every waiting row; rows whose field is not finite end.
    void choose_first_steps() {
        const SolveOptions& options = shared_.options;
        const Interval& interval = shared_.interval;
        const int count = waiting_.count;
        for (int i = 0; i < count; ++i) field_t_[i] = static_cast<T>(interval.t0);
        evaluate(waiting_, waiting_.x, waiting_.f);
        if (options.has_first_step) {
            for (int i = 0; i < count; ++i) waiting_.row[i].progress.h = std::min(options.first_step, interval.span);
        } else {
            probe_first_steps();
        }
        if (shared_.state.stopped()) return;
        for (int i = 0; i < count; ++i) waiting_.row[i].nfe = options.has_first_step ? 1 : 2;
        // From the back, so that the row that fills a gap has been checked already.
        for (int i = count - 1; i >= 0; --i) {
            if (all_finite(waiting_.f + i * width_, width_)) continue;
            retire(waiting_, i, Status::kNonFinite);
            if (i != --waiting_.count) waiting_.copy(i, waiting_, waiting_.count, width_);
        }
    }

    void probe_first_steps() {
        const Interval& interval = shared_.interval;
        const int count = waiting_.count;
        T* const scale = step_;
        T* const change = later_[kStages - 1];
        for (int i = 0; i < count; ++i) {
            const std::int64_t first = i * width_;
            const T *x = waiting_.x + first, *f = waiting_.f + first;
            for (int j = 0; j < width_; ++j) scale[first + j] = tolerance_.scale(std::fabs(x[j]));
            const double state_norm = scaled_norm(x, scale + first);
            const double field_norm = scaled_norm(f, scale + first);
            trials_[i] = control::trial_step(state_norm, field_norm, interval.span);
            waiting_.row[i].progress.h = field_norm;  // kept here until the probe is done
            const T step = static_cast<T>(interval.direction * trials_[i]);
            for (int j = 0; j < width_; ++j) point_[first + j] = x[j] + step * f[j];
            field_t_[i] = static_cast<T>(interval.t0 + interval.direction * trials_[i]);
        }
        evaluate(waiting_, point_, change);
        for (int i = 0; i < count; ++i) {
            const std::int64_t first = i * width_;
            for (int j = 0; j < width_; ++j) change[first + j] = change[first + j] - waiting_.f[first + j];
            double& h = waiting_.row[i].progress.h;
            h = control::initial_step(h, scaled_norm(change + first, scale + first), trials_[i], interval.span,
                                      tableau.error_order);
        }
    }

    double scaled_norm(const T* values, const T* scale) {
        for (int j = 0; j < width_; ++j) {
            const T ratio = values[j] / scale[j];
            squares_[j] = ratio * ratio;
        }
        return static_cast<double>(root_mean(squares_, width_));
    }

    // --- a step of every running row ---

    void try_step() {
        const int count = active_.count;
        const std::int64_t elements = std::int64_t{count} * width_;
        for (int i = 0; i < count; ++i) {
            attempts_[i] = attempt(active_.row[i].progress);
            const T h = static_cast<T>(attempts_[i].h);
            for (int j = 0; j < width_; ++j) step_[i * width_ + j] = h;
        }
        const Stages<T, kStages> stages = this->stages();
        if constexpr (!tableau.fsal) evaluate_at<0>(active_.x);
        evaluate_later_stages(stages, std::make_integer_sequence<int, kStages - 1>{});
        if constexpr (!tableau.fsal)
            advance<tableau, kStages + static_cast<int>(Sum::kStep)>(elements, active_.x, step_, stages, point_);
        if constexpr (tableau.adaptive)
            error_squares<tableau>(elements, active_.x, point_, step_, stages, tolerance_, squares_);
        if (shared_.state.stopped()) return;
        finish_step(stages);
    }

    template <int... i>
    void evaluate_later_stages(const Stages<T, kStages>& stages, std::integer_sequence<int, i...>) {
        (..., evaluate_stage<i + 1>(stages));
    }

    // The last stage of a method that is fsal is evaluated at the new state, which stays in point_.
    template <int stage>
    void evaluate_stage(const Stages<T, kStages>& stages) {
        advance<tableau, stage>(std::int64_t{active_.count} * width_, active_.x, step_, stages, point_);
        evaluate_at<stage>(point_);
    }

    template <int stage>
    void evaluate_at(const T* x) {
        for (int i = 0; i < active_.count; ++i)
            field_t_[i] = static_cast<T>(active_.row[i].progress.t + tableau.c[stage] * attempts_[i].h);
        evaluate(active_, x, stage == 0 ? active_.f : later_[stage]);
    }

    // The next try, with its size signed.
    Attempt attempt(const Progress& progress) const {
        const Interval& interval = shared_.interval;
        if constexpr (tableau.adaptive) {
            Attempt next = next_attempt(progress, interval);
            next.h *= interval.direction;
            return next;
        } else {
            const std::int64_t i = progress.accepted, steps = shared_.options.steps;
            const auto time = [&](std::int64_t n) {
                const double fraction = static_cast<double>(n) / static_cast<double>(steps);
                return interval.t0 + (interval.t1 - interval.t0) * fraction;
            };
            const bool last = i == steps - 1;
            const double t_end = last ? interval.t1 : time(i + 1);
            return {t_end - time(i), t_end, last};
        }
    }

    // Accepts or rejects; writes the outputs that a step passed; lists the rows that have ended.
    void finish_step(const Stages<T, kStages>& stages) {
        ended_count_ = 0;
        for (int i = 0; i < active_.count; ++i) {
            Row& row = active_.row[i];
            const T* x_new = point_ + i * width_;
            const double t = row.progress.t;
            const bool finite = all_finite(x_new, width_);
            Outcome outcome;
            if constexpr (tableau.adaptive) {
                // A state that is not finite is rejected, whatever its scaled error is.
                const double ratio = finite ? static_cast<double>(root_mean(squares_ + i * width_, width_))
                                            : std::numeric_limits<double>::infinity();
                const Attempt unsigned_attempt = {std::fabs(attempts_[i].h), attempts_[i].t_new, attempts_[i].last};
                outcome = finish_attempt(row.progress, unsigned_attempt, ratio, controller_, shared_.interval,
                                         shared_.options.max_steps);
                row.nfe += kStages - 1;
            } else {
                outcome = {finite, !finite || attempts_[i].last, finite ? Status::kSuccess : Status::kNonFinite};
                ++(finite ? row.progress.accepted : row.progress.rejected);
                if (finite) row.progress.t = attempts_[i].t_new;
                row.nfe += kStages;
            }
            if (outcome.accepted) {
                write_outputs(i, t, stages);
            } else {
                // Most rows are accepted: the arrays are swapped below, and a rejected row is copied back.
                std::copy_n(active_.x + i * width_, width_, point_ + i * width_);
                if constexpr (tableau.fsal)
                    std::copy_n(active_.f + i * width_, width_, later_[kStages - 1] + i * width_);
            }
            if (outcome.ended) ended_[ended_count_++] = {i, outcome.status};
        }
        std::swap(active_.x, point_);
        if constexpr (tableau.fsal) std::swap(active_.f, later_[kStages - 1]);
    }

    void write_outputs(int i, double t, const Stages<T, kStages>& stages) {
        const SolveOptions& options = shared_.options;
        const double direction = shared_.interval.direction, t_new = attempts_[i].t_new;
        Row& row = active_.row[i];
        for (; row.next_output < options.n_eval; ++row.next_output) {
            const double time = options.t_eval[row.next_output];
            if (!(direction * (t_new - time) >= 0.0 && t_new != t)) return;
            T* out = results_.output(row.next_output, active_.sample[i]);
            const std::int64_t first = i * width_;
            if (time == t_new) {  // there the polynomial is x_new only to rounding
                std::copy_n(point_ + first, width_, out);
            } else {
                state_at<tableau>(time, t, attempts_[i].h, active_.x + first, stages, first, width_, out);
            }
        }
    }

    // --- samples out ---

    // From the back, so that the row that fills a gap has not ended.
    void retire_ended() {
        for (int e = ended_count_ - 1; e >= 0; --e) {
            const int i = ended_[e].lane;
            retire(active_, i, ended_[e].status);
            if (waiting_.count > 0) {
                active_.copy(i, waiting_, --waiting_.count, width_);
            } else if (i != --active_.count) {
                active_.copy(i, active_, active_.count, width_);
            }
        }
    }

    void retire(const Rows<T>& rows, int i, Status status) {
        results_.retire(rows, i, status);
        shared_.state.add_done(1);
    }

    // --- the field ---

    Stages<T, kStages> stages() const {
        Stages<T, kStages> stages{};
        stages.k[0] = active_.f;
        for (int i = 1; i < kStages; ++i) stages.k[i] = later_[i];
        return stages;
    }

    // Polls the monitor after every evaluation, which takes longest. After a stop nothing is evaluated any more, and
    // results computed from stale derivatives must not be written.
    void evaluate(const Rows<T>& rows, const T* x, T* derivative) {
        if (shared_.state.stopped()) return;
        FieldRows<T> batch;
        batch.rows = rows.count;
        batch.state = x;
        batch.t = field_t_;
        batch.sample = rows.sample.get();
        batch.derivative = derivative;
        shared_.field.evaluate(batch, workspace_);
        if (thread_ == 0) shared_.state.poll();
    }

    Shared& shared_;
    const int thread_;
    const int width_;
    Storage<T> storage_;
    const Results<T> results_;
    const PiController controller_;
    const Tolerance<T> tolerance_;
    Rows<T> active_, waiting_;
    std::unique_ptr<Attempt[]> attempts_;
    std::unique_ptr<double[]> trials_;  // sizes of the Euler steps that first steps are chosen by
    std::unique_ptr<Ended[]> ended_;
    int ended_count_ = 0;
    T* workspace_;
    T* point_;           // [lanes][width]: where a stage is evaluated; the new state at the end of a step
    T* step_;            // [lanes][width]: a row's step size for each of its elements
    T* squares_;         // [lanes][width]
    T* later_[kStages];  // stages 1 ..; stage 0 is active_.f
    T* field_t_;         // [lanes]
};

}  // namespace vapo_fast
