// 3x3 convolutions of stride 1 that keep the image's size, by minimal filtering: Winograd, "Arithmetic Complexity of
// Computations" (1980); Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016).
//
// A tile of m x m outputs depends on (m + 2)^2 inputs. These, and the nine weights, are transformed so that the tile
// takes one multiplication a channel for each transformed input, where the definition takes 9 for each output: 16 for
// 36 with m = 2, 36 for 144 with m = 4. Between the transforms there is a matrix product for each transformed position.
//
// Maps are [rows][height][width][channels]; what lies outside is zero. A row's results depend on that row alone, and
// not on the number of threads: each transformed output is one chain of multiply-adds in the order of the channels. A
// number that is not finite makes all outputs of its tiles so, which the definition does to nine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/instruction_set.h"
#include "core/storage.h"

namespace vapo_fast {

struct ImageShape {
    std::int64_t rows, height, width;
};

// The layout of the packed weights and of a block's workspace; strides count numbers.
struct WinogradLayout {
    int tile;                    // m
    int inputs, outputs;         // channels
    int lanes;                   // numbers of a register
    int panels, groups;          // registers of outputs, and in how many groups these are computed one after the other
    std::int64_t input_stride;   // of a tile's inputs at one position: whole registers
    std::int64_t output_stride;  // of its outputs of a group
    std::int64_t weight_stride;  // from one position's packed weights to the next's

    int positions() const { return (tile + 2) * (tile + 2); }
    int first_panel(int group) const { return panels * group / groups; }
};

// The weights of one moment, transformed and packed for one instruction set. Immutable.
class WinogradConvolution {
public:
    // `weight` is [outputs][3][3][inputs]; `transposed` is the adjoint of the convolution by it, from maps of `outputs`
    // channels to maps of `inputs`. `tile` is 2 or 4. Transforms are in double precision.
    WinogradConvolution(const float* weight, int outputs, int inputs, bool transposed, int tile,
                        InstructionSet instruction_set, int threads);

    bool holds(const float* weight) const;  // whether these are, byte for byte, the weights that were transformed

    // From x, of inputs() channels, to y, of outputs() channels, which may not overlap. Throws std::bad_alloc.
    void apply(const float* x, float* y, ImageShape shape, int threads) const;

    int inputs() const { return layout_.inputs; }
    int outputs() const { return layout_.outputs; }
    bool transposed() const { return transposed_; }

private:
    InstructionSet instruction_set_;
    bool transposed_;
    WinogradLayout layout_;
    AlignedBuffer<float> raw_;
    AlignedBuffer<float> packed_;
};

}  // namespace vapo_fast
