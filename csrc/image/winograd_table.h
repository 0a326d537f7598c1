// The kernels behind winograd.h, one table for each instruction set.
#pragma once

#include "image/winograd.h"

namespace vapo_fast {

// Weights as they came: of input i, output o, row r and column c at data[i * input + o * output + r * row + c *
// column].
struct WinogradWeights {
    const float* data;
    std::ptrdiff_t input, output, row, column;
};

// Some tiles of a batch, from first to last in the order of rows, then down, then across.
struct WinogradBlock {
    const float* x;
    float* y;
    ImageShape shape;
    std::int64_t first, count;
    const float* packed;
    // Transformed inputs, and outputs of a group, [position][tile][channels], each position `*_position` after the one
    // before.
    float *transformed, *products;
    std::int64_t transformed_position, products_position;
    const float* zeros;  // [input_stride], read where a tile reaches out of the image
    float* discarded;    // [panels * lanes], written there
};

// For tiles of one size.
struct WinogradKernels {
    int lanes;
    // Transforms and packs a panel of outputs.
    void (*pack)(const WinogradWeights& weights, const WinogradLayout& layout, int panel, float* packed);
    void (*block)(const WinogradBlock& block, const WinogradLayout& layout);
};

struct WinogradTable {
    WinogradKernels tile_2, tile_4;
};

}  // namespace vapo_fast
