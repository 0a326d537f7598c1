// Step-size control of one sample in float64: the decisions of vapo_fast/ode/controller.py and of the adaptive loop in
// vapo_fast/ode/solve.py, to the last bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/elementary.h"

namespace vapo_fast {

// How a sample's integration ended; the numbers of vapo_fast.ode.Status.
enum class Status : std::int64_t { kSuccess = 0, kMaxSteps = 1, kStepTooSmall = 2, kNonFinite = 3 };

namespace control {

inline constexpr double kSafety = 0.9;
inline constexpr double kMinFactor = 0.2;
inline constexpr double kMaxFactor = 10.0;
inline constexpr double kSmallestPreviousRatio = 1e-4;
inline constexpr double kSmallestRatio = 1e-300;
inline constexpr double kLargestRatio = 1e300;
// Steps below this many units in the last place of the times are not worth taking.
inline constexpr double kSmallestStepUlps = 16.0;
// A step that would leave less than this fraction of itself before t1 is stretched to t1.
inline constexpr double kStretch = 1.01;

// Unlike std::min and std::max these keep a NaN in x, as the reference's clamps do.
inline double at_most(double x, double limit) { return x > limit ? limit : x; }
inline double at_least(double x, double limit) { return x < limit ? limit : x; }

// A ratio clamped to numbers whose logarithm exists; NaN becomes the largest.
inline double positive(double ratio) {
    if (std::isnan(ratio)) return kLargestRatio;
    return at_most(at_least(ratio, kSmallestRatio), kLargestRatio);
}

// The size of an Euler step that changes x by about a hundredth of its own size: the probe for `initial_step`.
inline double trial_step(double state_norm, double field_norm, double span) {
    const bool usable = state_norm >= 1e-5 && field_norm >= 1e-5;
    return at_most(usable ? 0.01 * (state_norm / field_norm) : 1e-6, span);
}

// First step size of Hairer, Norsett and Wanner, "Solving ODEs I", II.4, from scaled norms, with the aim of
// controller.py.
inline double initial_step(double field_norm, double change_norm, double trial, double span, int error_order) {
    const double change = change_norm / trial;
    // NaN in either is kept, as torch.maximum does.
    const double steepest = std::isnan(field_norm) || field_norm > change ? field_norm : change;
    const double aimed = portable_exp(portable_log(positive(1.0 / steepest)) * (1.0 / error_order));
    const double chosen = steepest <= 1e-15 ? at_least(trial * 1e-3, 1e-6) : aimed;
    const double largest = 100.0 * trial;
    const double step = std::isnan(largest) || largest < chosen ? largest : chosen;
    // A field that is not finite at the probe says nothing about the step size; rejections will shorten it.
    return at_most(std::isfinite(change_norm) ? step : trial, span);
}

}  // namespace control

// The PI controller of Hairer and Wanner, "Solving ODEs II", IV.2, with the exponents of one method's error order.
class PiController {
public:
    // proportional_share: beta times the error order; 0 is integral control alone.
    PiController(int error_order, double proportional_share)
        : beta_(proportional_share / error_order),
          alpha_(1.0 / error_order - 0.75 * beta_),
          rejected_exponent_(-1.0 / error_order) {}

    static bool accepts(double ratio) { return ratio <= 1.0; }  // NaN rejects

    // By how much to multiply the step size after a try with this error ratio.
    double factor(double ratio, double previous_ratio, bool after_rejection) const {
        using namespace control;
        const double log_ratio = portable_log(positive(ratio));
        const bool accepted = accepts(ratio);
        const double exponent = accepted ? beta_ * portable_log(positive(previous_ratio)) - alpha_ * log_ratio
                                         : log_ratio * rejected_exponent_;
        const double factor = at_most(at_least(kSafety * portable_exp(exponent), kMinFactor), kMaxFactor);
        return accepted && !after_rejection ? factor : at_most(factor, 1.0);
    }

    // The previous_ratio of the next step.
    static double remember(double ratio, double previous_ratio) {
        return accepts(ratio) ? control::at_least(ratio, control::kSmallestPreviousRatio) : previous_ratio;
    }

private:
    double beta_, alpha_, rejected_exponent_;
};

// The interval of a solve and what follows from it.
struct Interval {
    Interval(double start, double stop)
        : t0(start),
          t1(stop),
          span(std::fabs(stop - start)),
          direction(stop > start ? 1.0 : -1.0),
          smallest_step(control::kSmallestStepUlps * std::numeric_limits<double>::epsilon() *
                        std::fmax(std::fabs(start), std::fabs(stop))) {}

    double t0, t1, span, direction, smallest_step;
};

// Where one sample stands between steps.
struct Progress {
    double t;
    double h;  // size of the next step, unsigned
    double previous_ratio;
    bool after_rejection;
    std::int64_t accepted, rejected;
};

// One try: its unsigned size and the time it leads to.
struct Attempt {
    double h;
    double t_new;
    bool last;
};

inline Attempt next_attempt(const Progress& progress, const Interval& interval) {
    const double remaining = std::fabs(interval.t1 - progress.t);
    const bool last = progress.h * control::kStretch >= remaining;
    const double h = last ? remaining : progress.h;
    return {h, last ? interval.t1 : progress.t + interval.direction * h, last};
}

// What a try led to: whether it is accepted, and whether (and how) the sample has ended.
struct Outcome {
    bool accepted;
    bool ended;
    Status status;
};

// Applies the error ratio of a try: moves time on, chooses the next step, counts.
inline Outcome finish_attempt(Progress& progress, const Attempt& attempt, double ratio, const PiController& controller,
                              const Interval& interval, std::int64_t max_steps) {
    const bool accepted = PiController::accepts(ratio);
    const double h_next = attempt.h * controller.factor(ratio, progress.previous_ratio, progress.after_rejection);
    progress.h = h_next;
    progress.previous_ratio = PiController::remember(ratio, progress.previous_ratio);
    progress.after_rejection = !accepted;
    if (accepted) {
        progress.t = attempt.t_new;
        ++progress.accepted;
        if (attempt.last) return {true, true, Status::kSuccess};
    } else {
        ++progress.rejected;
        if (h_next < interval.smallest_step)
            return {false, true, std::isfinite(ratio) ? Status::kStepTooSmall : Status::kNonFinite};
    }
    return {accepted, progress.accepted + progress.rejected >= max_steps, Status::kMaxSteps};
}

}  // namespace vapo_fast
