#include "testing/rates.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "mlp/kernels.h"
#include "core/scheduler.h"
#include "core/storage.h"
#include "testing/rates_table.h"

namespace vapo_fast {

namespace {

// Made-up weights of a shape, small enough that nothing overflows, and packed.
PackedMlp<float> made_up(const MlpShape& shape, int lanes) {
    std::vector<std::vector<float>> held;
    const auto numbers = [&](std::int64_t size, float scale) {
        std::vector<float> values(static_cast<std::size_t>(size));
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = scale * (static_cast<float>(i % 17) - 8.0f);
        held.push_back(std::move(values));
        return held.back().data();
    };
    MlpWeights<float> weights;
    for (int l = 0; l < shape.layers(); ++l) {
        const std::int64_t in = shape.size(l), out = shape.size(l + 1);
        weights.weight.push_back(numbers(in * out, 0.1f / static_cast<float>(in)));
        weights.bias.push_back(numbers(out, 0.01f));
    }
    weights.output = numbers(shape.size(shape.layers()), 0.01f);
    weights.frequencies = numbers(std::int64_t{shape.features} * shape.inputs(), 0.1f);
    return PackedMlp<float>(shape, weights, lanes);
}

MlpShape layer(int inner, int columns) {
    MlpShape shape;
    shape.dimension = inner;
    shape.time_dependent = false;
    shape.widths = {columns};
    shape.log_beta_last = -1.0;
    return shape;
}

// Calls repeat(turns, workspace) so that `turns` add up, in pieces small enough to be shared.
template <class Repeat>
void share(std::int64_t turns, int threads, std::size_t workspace_size, const Repeat& repeat) {
    std::vector<AlignedBuffer<float>> workspaces;
    for (int i = 0; i < threads; ++i) {
        workspaces.emplace_back(workspace_size);
        std::fill_n(workspaces.back().data(), workspace_size, 0.5f);
    }
    const std::int64_t pieces = std::min<std::int64_t>(turns, 32 * threads);
    parallel_for(pieces, threads, [&](std::int64_t i, int thread) {
        const std::int64_t part = turns * (i + 1) / pieces - turns * i / pieces;
        repeat(part, workspaces[static_cast<std::size_t>(thread)].data());
    });
}

}  // namespace

double repeat_multiply_adds(InstructionSet instruction_set, std::int64_t turns, int threads) {
    const auto& loops = table_for<RateTable>(instruction_set);
    const int numbers = table_for<Kernels<float>>(instruction_set).lanes * loops.multiply_add_chains;
    share(turns, threads, static_cast<std::size_t>(numbers), loops.multiply_adds);
    return 2.0 * loops.multiply_adds_a_turn * numbers * static_cast<double>(turns);
}

double repeat_product(InstructionSet instruction_set, int inner, int columns, std::int64_t turns, int threads) {
    const Kernels<float>& kernel = table_for<Kernels<float>>(instruction_set);
    const PackedMlp<float> mlp = made_up(layer(inner, columns), kernel.lanes);
    const auto size = static_cast<std::size_t>(kernel.tile * (mlp.stride(inner) + mlp.stride(columns)));
    share(turns, threads, size, [&](std::int64_t part, float* workspace) {
        table_for<RateTable>(instruction_set).repeat_product(mlp, part, workspace);
    });
    return 2.0 * kernel.tile * inner * columns * static_cast<double>(turns);
}

double repeat_activation(InstructionSet instruction_set, Activation activation, int columns, std::int64_t turns,
                         int threads) {
    const Kernels<float>& kernel = table_for<Kernels<float>>(instruction_set);
    MlpShape shape = layer(1, columns);
    shape.activation = activation;
    const PackedMlp<float> mlp = made_up(shape, kernel.lanes);
    const auto size = static_cast<std::size_t>(2 * kernel.tile * mlp.stride(columns));
    share(turns, threads, size, [&](std::int64_t part, float* workspace) {
        table_for<RateTable>(instruction_set).repeat_activation(mlp, part, workspace);
    });
    return static_cast<double>(kernel.tile) * columns * static_cast<double>(turns);
}

double repeat_field(InstructionSet instruction_set, const MlpShape& shape, std::int64_t turns, int threads) {
    const Kernels<float>& kernel = table_for<Kernels<float>>(instruction_set);
    const PackedMlp<float> mlp = made_up(shape, kernel.lanes);
    const Trace<float> no_trace;
    const auto rows = static_cast<std::size_t>(kernel.tile);
    const std::vector<float> state(rows * static_cast<std::size_t>(shape.dimension), 0.5f), t(rows, 0.5f);
    const std::vector<std::int64_t> sample(rows, 0);
    const std::size_t size = kernel.field_workspace(mlp, no_trace);
    // The derivatives come after what the kernel itself needs.
    share(turns, threads, size + state.size(), [&](std::int64_t part, float* workspace) {
        FieldRows<float> tile;
        tile.rows = kernel.tile;
        tile.state = state.data();
        tile.t = t.data();
        tile.sample = sample.data();
        tile.derivative = workspace + size;
        for (std::int64_t i = 0; i < part; ++i) kernel.field(mlp, no_trace, tile, workspace);
    });
    return static_cast<double>(kernel.tile) * static_cast<double>(turns);
}

}  // namespace vapo_fast
