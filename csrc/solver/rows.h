// Samples that the solver integrates side by side.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "solver/controller.h"

namespace vapo_fast {

struct Row {
    Progress progress;
    std::int64_t nfe;
    std::int64_t next_output;  // the first of t_eval that is still to come
};

// Rows without gaps: [0, count) of each array. x and f point to memory that the worker owns and may swap.
template <class T>
struct Rows {
    int count = 0;
    T* x = nullptr;  // [capacity][width]
    T* f = nullptr;  // [capacity][width]: the field at x of a method that is fsal
    std::unique_ptr<Row[]> row;
    std::unique_ptr<std::int64_t[]> sample;

    void allocate(std::size_t capacity) {
        row.reset(new Row[capacity]);
        sample.reset(new std::int64_t[capacity]);
    }

    void copy(int to, const Rows& from, int i, int width) {
        std::copy_n(from.x + i * width, width, x + to * width);
        std::copy_n(from.f + i * width, width, f + to * width);
        row[to] = from.row[i];
        sample[to] = from.sample[i];
    }
};

}  // namespace vapo_fast
