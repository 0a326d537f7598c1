// Fields given by a formula, for tests of the solver: a twin in Python repeats them to the last bit.
#pragma once

#include <limits>
#include <stdexcept>
#include <string>

#include "solver/field.h"

namespace vapo_fast {

// Formulas for column j of a row at time t; every operation is rounded on its own, left to right.
enum class Formula {
    kCubic,     // x (1 + t/4) - x x x: large states need more steps than small ones
    kRotation,  // x_(j+1) t - x_j/2: columns depend on one another
    kDecay,     // -50 x: steps limited by stability
    kStill,     // 0
    kTroubled,  // by sample % 5: kCubic; x x; 1 until t = 1 and NaN from there; infinity; 0 until t = 1/2, then 2^100
};

inline Formula formula_from_name(const std::string& name) {
    if (name == "cubic") return Formula::kCubic;
    if (name == "rotation") return Formula::kRotation;
    if (name == "decay") return Formula::kDecay;
    if (name == "still") return Formula::kStill;
    if (name == "troubled") return Formula::kTroubled;
    throw std::invalid_argument("field must be cubic, rotation, decay, still or troubled, got '" + name + "'");
}

template <class T>
class AnalyticField : public Field<T> {
public:
    AnalyticField(Formula formula, int width, int tile) : formula_(formula), width_(width), tile_(tile) {}

    int dimension() const override { return width_; }
    int width() const override { return width_; }
    int tile() const override { return tile_; }
    std::size_t workspace_size() const override { return 0; }

    void evaluate(const FieldRows<T>& rows, T*) const override {
        for (std::int64_t i = 0; i < rows.rows; ++i) {
            const T* x = rows.state + i * width_;
            for (int j = 0; j < width_; ++j) rows.derivative[i * width_ + j] = value(x, j, rows.t[i], rows.sample[i]);
        }
    }

private:
    T value(const T* x, int j, T t, std::int64_t sample) const {
        switch (formula_) {
            case Formula::kCubic: return cubic(x[j], t);
            case Formula::kRotation: return x[(j + 1) % width_] * t - T(0.5) * x[j];
            case Formula::kDecay: return T(-50) * x[j];
            case Formula::kStill: return T(0);
            case Formula::kTroubled: break;
        }
        switch (sample % 5) {
            case 0: return cubic(x[j], t);
            case 1: return x[j] * x[j];
            case 2: return t < T(1) ? T(1) : std::numeric_limits<T>::quiet_NaN();
            case 3: return std::numeric_limits<T>::infinity();
            default: return t < T(0.5) ? T(0) : T(0x1p100);
        }
    }

    static T cubic(T x, T t) { return x * (T(1) + T(0.25) * t) - x * x * x; }

    const Formula formula_;
    const int width_, tile_;
};

}  // namespace vapo_fast
