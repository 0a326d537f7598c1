#include "mlp/mlp_field.h"

#include <algorithm>
#include <atomic>
#include <vector>

namespace vapo_fast {

namespace {

// A batch is summed in slices, each on one thread and in the order of its rows; then slice by slice. How many slices
// there may be depends on the size of their gradients alone, so that the rounding of the sum does not depend on
// threads. Each slice has a gradient of its own: of a large network as many are kept as a gigabyte holds, but no fewer
// than `fewest_slices`.
constexpr std::size_t most_slices = 16, fewest_slices = 4, gradient_bytes = std::size_t{1} << 30;

std::int64_t slices_allowed(std::size_t bytes) {
    return static_cast<std::int64_t>(std::clamp(gradient_bytes / bytes, fewest_slices, most_slices));
}

}  // namespace

template <class T>
MlpField<T>::MlpField(std::shared_ptr<const PackedMlp<T>> mlp, InstructionSet instruction_set, Trace<T> trace)
    : mlp_(std::move(mlp)), trace_(trace), kernels_(table_for<Kernels<T>>(instruction_set)) {}

template <class T>
bool evaluate_batch(const Field<T>& field, const FieldRows<T>& rows, int threads, const Monitor& monitor) {
    const std::int64_t tile = field.tile(), tasks = (rows.rows + tile - 1) / tile;
    threads = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, tasks)));
    std::vector<AlignedBuffer<T>> workspaces;
    for (int i = 0; i < threads; ++i) workspaces.emplace_back(field.workspace_size());
    const std::int64_t width = field.width();
    return parallel_for(
        tasks, threads,
        [&](std::int64_t task, int thread) {
            const std::int64_t first = task * tile;
            FieldRows<T> part = rows;
            part.rows = std::min(tile, rows.rows - first);
            part.state += first * width;
            part.t += first;
            part.derivative += first * width;
            if (part.sample != nullptr) part.sample += first;
            if (part.value != nullptr) part.value += first;
            field.evaluate(part, workspaces[static_cast<std::size_t>(thread)].data());
        },
        monitor);
}

namespace {

// A piece of one parameter array: where it lies in the padded gradient, where it goes, and its size.
template <class T>
struct Piece {
    std::size_t offset;
    T* out;
    std::size_t size;
};

template <class T>
std::vector<Piece<T>> pieces_of(const MlpShape& shape, const MlpGradient<T>& layout, const LossResult<T>& result) {
    std::vector<Piece<T>> pieces;
    for (int l = 0; l < shape.layers(); ++l) {
        const auto i = static_cast<std::size_t>(l);
        const auto out = static_cast<std::size_t>(shape.size(l + 1)), in = static_cast<std::size_t>(shape.size(l));
        for (std::size_t row = 0; row < out; ++row) {
            const std::size_t offset = layout.weight[i] + row * static_cast<std::size_t>(layout.stride[i]);
            pieces.push_back({offset, result.weight[i] + row * in, in});
        }
        pieces.push_back({layout.bias[i], result.bias[i], out});
    }
    pieces.push_back({layout.output, result.output, static_cast<std::size_t>(shape.size(shape.layers()))});
    return pieces;
}

}  // namespace

template <class T>
T* LossMemory<T>::gradients(std::size_t size) {
    if (gradients_.size() < size) {
        gradients_ = AlignedBuffer<T>();  // never both at once
        gradients_ = AlignedBuffer<T>(size);
    }
    return gradients_.data();
}

template <class T>
T* LossMemory<T>::workspace(int thread, std::size_t size) {
    const auto i = static_cast<std::size_t>(thread);
    if (workspaces_.size() <= i) workspaces_.resize(i + 1);
    if (workspaces_[i].size() < size) workspaces_[i] = AlignedBuffer<T>(size);
    return workspaces_[i].data();
}

template <class T>
bool loss_and_gradient(const PackedMlp<T>& mlp, InstructionSet instruction_set, const LossBatch<T>& batch,
                       LossResult<T>& result, int threads, LossMemory<T>& memory, const Monitor& monitor) {
    const Kernels<T>& kernel = table_for<Kernels<T>>(instruction_set);
    const MlpShape& shape = mlp.shape();
    const MlpGradient<T> layout(mlp);
    const std::int64_t tile = kernel.tile, d = shape.dimension;
    // At least two tiles, so that adding slices up costs little beside computing them.
    const std::int64_t tiles = (batch.rows + tile - 1) / tile, most = slices_allowed(layout.size * sizeof(T));
    const std::int64_t slice = tile * std::max<std::int64_t>(2, (tiles + most - 1) / most);
    const std::int64_t slices = (batch.rows + slice - 1) / slice;
    threads = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, slices)));

    T* gradients = memory.gradients(layout.size * static_cast<std::size_t>(slices));
    std::vector<LossSums<T>> sums(static_cast<std::size_t>(slices));
    std::vector<T*> workspaces;
    for (int i = 0; i < threads; ++i) workspaces.push_back(memory.workspace(i, kernel.loss_workspace(mlp)));
    // A slice of a large batch takes long, so the monitor is asked, and work stopped, between tiles.
    CallState state(monitor);
    std::atomic<std::int64_t> next{0};
    run_team(threads, state, [&](int thread) {
        while (true) {
            const std::int64_t i = next.fetch_add(1, std::memory_order_relaxed);
            if (i >= slices) return;
            LossSums<T>& sum = sums[static_cast<std::size_t>(i)];
            sum.gradient = gradients + static_cast<std::size_t>(i) * layout.size;
            std::fill(sum.gradient, sum.gradient + layout.size, T(0));
            for (std::int64_t first = i * slice; first < std::min(batch.rows, (i + 1) * slice); first += tile) {
                if (state.stopped()) return;
                LossRows<T> rows;
                rows.rows = std::min(tile, batch.rows - first);
                rows.x_data = batch.x_data + first * d;
                rows.t = batch.t + first;
                rows.noise = batch.noise + first * d;
                rows.weight = batch.weight == nullptr ? nullptr : batch.weight + first;
                rows.inverse_variance = batch.inverse_variance;
                rows.covariance = batch.covariance;
                rows.scale = T(1) / static_cast<T>(batch.rows);
                kernel.loss(mlp, layout, rows, sum, workspaces[static_cast<std::size_t>(thread)]);
                state.add_done(1);
                if (thread == 0) state.poll();
            }
        }
    });
    if (state.stopped()) return false;

    result.linear = result.quadratic = 0.0;
    for (const LossSums<T>& sum : sums) {
        result.linear += sum.linear / static_cast<double>(batch.rows);
        result.quadratic += sum.quadratic / static_cast<double>(batch.rows);
    }
    // Every element adds its slices in order, whichever thread does it.
    const std::vector<Piece<T>> pieces = pieces_of(shape, layout, result);
    constexpr std::size_t group = 64;
    return parallel_for(
        static_cast<std::int64_t>((pieces.size() + group - 1) / group), threads,
        [&](std::int64_t task, int) {
            const std::size_t first = static_cast<std::size_t>(task) * group;
            for (std::size_t p = first; p < std::min(pieces.size(), first + group); ++p) {
                const Piece<T>& piece = pieces[p];
                std::copy_n(gradients + piece.offset, piece.size, piece.out);
                for (std::int64_t i = 1; i < slices; ++i) {
                    const T* part = gradients + static_cast<std::size_t>(i) * layout.size + piece.offset;
                    for (std::size_t k = 0; k < piece.size; ++k) piece.out[k] += part[k];
                }
            }
        },
        monitor);
}

template class MlpField<float>;
template class MlpField<double>;
template bool evaluate_batch(const Field<float>&, const FieldRows<float>&, int, const Monitor&);
template bool evaluate_batch(const Field<double>&, const FieldRows<double>&, int, const Monitor&);
template class LossMemory<float>;
template class LossMemory<double>;
template bool loss_and_gradient(const PackedMlp<float>&, InstructionSet, const LossBatch<float>&, LossResult<float>&,
                                int, LossMemory<float>&, const Monitor&);
template bool loss_and_gradient(const PackedMlp<double>&, InstructionSet, const LossBatch<double>&, LossResult<double>&,
                                int, LossMemory<double>&, const Monitor&);

}  // namespace vapo_fast
