#include "image/winograd.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/shared_threads.h"
#include "image/winograd_table.h"
#include "simd/dispatch.h"

namespace vapo_fast {

namespace {

constexpr int taps = 9;
constexpr int line = 64 / sizeof(float);  // of the cache
// Outputs of a group: as many as three of the widest registers hold, whose sums stay in registers.
constexpr int group_size = 48;
// Tiles of a block: as many as leave most of a core's own cache to the weights that pass through it.
constexpr std::int64_t block_size = (384 << 10) / sizeof(float);
constexpr std::int64_t fewest_tiles = 8, most_tiles = 96;

const WinogradKernels& kernels_for(InstructionSet instruction_set, int tile) {
    const auto& table = table_for<WinogradTable>(instruction_set);
    return tile == 2 ? table.tile_2 : table.tile_4;
}

std::int64_t rounded_up(std::int64_t size, std::int64_t unit) { return (size + unit - 1) / unit * unit; }

// An odd number of cache lines, so that accesses to all positions at once do not map to the same set of the cache.
std::int64_t position_stride(std::int64_t size) { return (rounded_up(size, line) / line | 1) * line; }

WinogradLayout layout_of(int inputs, int outputs, int tile, int lanes) {
    WinogradLayout layout{};
    layout.tile = tile;
    layout.inputs = inputs;
    layout.outputs = outputs;
    layout.lanes = lanes;
    layout.panels = static_cast<int>(rounded_up(outputs, lanes)) / lanes;
    layout.groups = static_cast<int>(rounded_up(std::int64_t{layout.panels} * lanes, group_size)) / group_size;
    layout.input_stride = rounded_up(inputs, lanes);
    layout.output_stride = rounded_up(layout.panels, layout.groups) / layout.groups * lanes;
    layout.weight_stride = position_stride(std::int64_t{layout.panels} * lanes * inputs);
    return layout;
}

}  // namespace

WinogradConvolution::WinogradConvolution(const float* weight, int outputs, int inputs, bool transposed, int tile,
                                         InstructionSet instruction_set, int threads)
    : instruction_set_(instruction_set),
      transposed_(transposed),
      layout_(transposed ? layout_of(outputs, inputs, tile, kernels_for(instruction_set, tile).lanes)
                         : layout_of(inputs, outputs, tile, kernels_for(instruction_set, tile).lanes)),
      raw_(static_cast<std::size_t>(outputs) * static_cast<std::size_t>(inputs) * taps),
      packed_(static_cast<std::size_t>(layout_.weight_stride) * static_cast<std::size_t>(layout_.positions())) {
    std::copy_n(weight, raw_.size(), raw_.data());
    const std::ptrdiff_t output = std::ptrdiff_t{taps} * inputs;
    // The adjoint is a convolution too: inputs and outputs change places, and the nine weights are turned around.
    const WinogradWeights weights = transposed
                                        ? WinogradWeights{weight + (taps - 1) * inputs, output, 1, -3 * inputs, -inputs}
                                        : WinogradWeights{weight, 1, output, 3 * inputs, inputs};
    const WinogradKernels& kernels = kernels_for(instruction_set_, tile);
    shared_parallel_for(layout_.panels, threads, [&](std::int64_t panel) {
        kernels.pack(weights, layout_, static_cast<int>(panel), packed_.data());
    });
}

bool WinogradConvolution::holds(const float* weight) const {
    return std::memcmp(weight, raw_.data(), raw_.size() * sizeof(float)) == 0;
}

void WinogradConvolution::apply(const float* x, float* y, ImageShape shape, int threads) const {
    const WinogradKernels& kernels = kernels_for(instruction_set_, layout_.tile);
    const std::int64_t tile = layout_.tile, positions = layout_.positions();
    const std::int64_t tiles = shape.rows * ((shape.height + tile - 1) / tile) * ((shape.width + tile - 1) / tile);
    const std::int64_t fitting = block_size / (positions * (layout_.input_stride + layout_.output_stride));
    const std::int64_t share = rounded_up((tiles + threads - 1) / threads, fewest_tiles);
    const std::int64_t block =
        std::min({share, most_tiles, std::max<std::int64_t>(fewest_tiles, fitting / fewest_tiles * fewest_tiles)});
    const std::int64_t blocks = (tiles + block - 1) / block;
    const int team = static_cast<int>(std::min<std::int64_t>(threads, blocks));

    const std::int64_t transformed = position_stride(block * layout_.input_stride);
    const std::int64_t products = position_stride(block * layout_.output_stride);
    const std::int64_t width = rounded_up(layout_.input_stride, line),
                       panels = std::int64_t{layout_.panels} * layout_.lanes;
    const std::int64_t workspace = positions * (transformed + products) + width + rounded_up(panels, line);
    // Kept between calls: mapping new pages would take as long as a transform.
    static thread_local AlignedBuffer<float> memory;
    if (memory.size() < static_cast<std::size_t>(workspace * team))
        memory = AlignedBuffer<float>(static_cast<std::size_t>(workspace * team));
    float* const all = memory.data();

    std::atomic<std::int64_t> next{0};
    shared_parallel_for(team, team, [&](std::int64_t member) {
        float* const own = all + member * workspace;
        float* const zeros = own + positions * (transformed + products);
        std::fill_n(zeros, layout_.input_stride, 0.0f);
        WinogradBlock some{};
        some.x = x;
        some.y = y;
        some.shape = shape;
        some.packed = packed_.data();
        some.transformed = own;
        some.products = own + positions * transformed;
        some.transformed_position = transformed;
        some.products_position = products;
        some.zeros = zeros;
        some.discarded = zeros + width;
        for (;;) {
            some.first = next.fetch_add(1, std::memory_order_relaxed) * block;
            if (some.first >= tiles) return;
            some.count = std::min(block, tiles - some.first);
            kernels.block(some, layout_);
        }
    });
}

}  // namespace vapo_fast
