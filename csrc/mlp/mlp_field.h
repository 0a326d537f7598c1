// What a caller asks of an MLP potential: its field on a batch, the solver's view of it, and its loss with gradients.
#pragma once

#include <cstdint>
#include <memory>

#include "solver/field.h"
#include "mlp/kernels.h"
#include "mlp/mlp.h"
#include "core/scheduler.h"

namespace vapo_fast {

template <class T>
class MlpField final : public Field<T> {
public:
    MlpField(std::shared_ptr<const PackedMlp<T>> mlp, InstructionSet instruction_set, Trace<T> trace);
    int dimension() const override { return mlp_->shape().dimension; }
    int width() const override { return dimension() + trace_.integrals(); }
    int tile() const override { return kernels_.tile; }
    std::size_t workspace_size() const override { return kernels_.field_workspace(*mlp_, trace_); }
    void evaluate(const FieldRows<T>& rows, T* workspace) const override {
        kernels_.field(*mlp_, trace_, rows, workspace);
    }

private:
    std::shared_ptr<const PackedMlp<T>> mlp_;
    Trace<T> trace_;
    const Kernels<T>& kernels_;
};

// Evaluates rows of any number on up to `threads` threads; rows.sample may be null without probes. False if stopped.
template <class T>
bool evaluate_batch(const Field<T>& field, const FieldRows<T>& rows, int threads, const Monitor& monitor = {});

// A training batch; see LossRows. The gradient arrays have the shapes of the parameters.
template <class T>
struct LossBatch {
    std::int64_t rows;
    const T *x_data, *t, *noise, *weight;
    bool inverse_variance, covariance;
};

template <class T>
struct LossResult {
    double linear = 0.0;  // means over the batch
    double quadratic = 0.0;
    std::vector<T*> weight, bias;  // in: where to write, layer by layer
    T* output = nullptr;
};

// Memory that loss_and_gradient works in. Kept from one training step to the next, it spares the system tens of
// megabytes of fresh pages in each. One call at a time may use it.
template <class T>
class LossMemory {
public:
    // At least `size` elements, of any content; bad_alloc.
    T* gradients(std::size_t size);
    T* workspace(int thread, std::size_t size);

private:
    AlignedBuffer<T> gradients_;
    std::vector<AlignedBuffer<T>> workspaces_;
};

// Loss terms and the gradient of their sum. The result does not depend on the number of threads. False if stopped.
template <class T>
bool loss_and_gradient(const PackedMlp<T>& mlp, InstructionSet instruction_set, const LossBatch<T>& batch,
                       LossResult<T>& result, int threads, LossMemory<T>& memory, const Monitor& monitor = {});

}  // namespace vapo_fast
