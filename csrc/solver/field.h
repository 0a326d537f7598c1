// The interface between a fused field and the solver: rows of states in, their time derivatives out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vapo_fast {

// A batch of rows, row-major with stride Field::width().
template <class T>
struct FieldRows {
    std::int64_t rows;
    const T* state;                        // [rows][width]: x in the first dimension() columns, then the integrals
    const T* t;                            // [rows]: times, already rounded to T
    const std::int64_t* sample = nullptr;  // [rows]: which sample of the whole call a row is; a solve gives it
    T* derivative;                         // [rows][width]: grad Phi, then the trace (one if exact, else one per probe)
    T* value = nullptr;                    // [rows]: Phi, or null
};

// Immutable, and safe to use from many threads, each with a workspace of its own. A row's result has the same bits in
// any batch.
template <class T>
class Field {
public:
    virtual ~Field() = default;
    virtual int dimension() const = 0;               // D
    virtual int width() const = 0;                   // D + number of integrals
    virtual int tile() const = 0;                    // rows of one evaluation at most, and at best
    virtual std::size_t workspace_size() const = 0;  // elements of T, aligned to 64 bytes
    virtual void evaluate(const FieldRows<T>& rows, T* workspace) const = 0;  // 1 <= rows.rows <= tile(); never throws
};

}  // namespace vapo_fast
