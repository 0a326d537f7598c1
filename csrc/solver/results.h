// Where the results of a solve are written, sample by sample.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "solver/controller.h"
#include "solver/rows.h"
#include "solver/solve.h"

namespace vapo_fast {

template <class T>
class Results {
public:
    Results(const SolveArrays<T>& arrays, std::int64_t outputs, int width)
        : arrays_(arrays), outputs_(outputs), width_(width) {}

    // Where the state of a sample at t_eval[k] belongs.
    T* output(std::int64_t k, std::int64_t sample) const { return arrays_.ys + (k * arrays_.n + sample) * width_; }

    // Writes the results of a row that has ended; outputs at times that it did not reach are NaN.
    void retire(const Rows<T>& rows, int i, Status status) const {
        const Row& row = rows.row[i];
        const std::int64_t sample = rows.sample[i];
        std::copy_n(rows.x + i * width_, width_, arrays_.x + sample * width_);
        arrays_.t[sample] = row.progress.t;
        arrays_.status[sample] = static_cast<std::int64_t>(status);
        arrays_.nfe[sample] = row.nfe;
        arrays_.accepted[sample] = row.progress.accepted;
        arrays_.rejected[sample] = row.progress.rejected;
        for (std::int64_t k = row.next_output; k < outputs_; ++k)
            std::fill_n(output(k, sample), width_, std::numeric_limits<T>::quiet_NaN());
    }

private:
    const SolveArrays<T>& arrays_;
    const std::int64_t outputs_;
    const int width_;
};

}  // namespace vapo_fast
