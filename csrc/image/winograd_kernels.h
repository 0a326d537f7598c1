// The kernels of winograd_table.h for one instruction set; see isa_begin.h for how it is included.
#pragma once

#include "mlp/product.h"
#include "simd/lanes.h"
#include "image/winograd_table.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

// The one-dimensional transforms: y = A^T ((G g) * (B^T d)) are m outputs of a filter g of three taps over m + 2 inputs
// d. With points a_j, one of them infinity, row j of B^T is the polynomial prod_{k != j} (x - a_k), G divides by its
// value at a_j, and A^T holds the powers of a_j.
template <int m>
struct MinimalFilter;

// Points 0, 1, -1 and infinity.
template <>
struct MinimalFilter<2> {
    template <class V>
    static VAPO_FAST_INLINE void input(const V (&d)[4], V (&v)[4]) {
        v[0] = d[0] - d[2];
        v[1] = d[1] + d[2];
        v[2] = d[2] - d[1];
        v[3] = d[3] - d[1];
    }
    template <class V>
    static VAPO_FAST_INLINE void weight(const V (&g)[3], V (&u)[4]) {
        const V half = V::broadcast(0.5), even = g[0] + g[2];
        u[0] = g[0];
        u[1] = half * (even + g[1]);
        u[2] = half * (even - g[1]);
        u[3] = g[2];
    }
    template <class V>
    static VAPO_FAST_INLINE void output(const V (&p)[4], V (&y)[2]) {
        y[0] = p[0] + p[1] + p[2];
        y[1] = p[1] - p[2] + p[3];
    }
};

// Points 0, +-1/sqrt(2), +-sqrt(2) and infinity: of those whose squares are short numbers, they round least.
template <>
struct MinimalFilter<4> {
    static constexpr double p = 0.70710678118654752440, q = 1.41421356237309504880;  // p^2 = 1/2, q^2 = 2

    template <class V>
    static VAPO_FAST_INLINE void input(const V (&d)[6], V (&v)[6]) {
        using T = typename V::Element;
        const V near = V::broadcast(T(p)), far = V::broadcast(T(q));
        const V minus_two = V::broadcast(T(-2)), minus_half = V::broadcast(T(-0.5)), sum = V::broadcast(T(-2.5));
        const V even_near = fma(minus_two, d[2], d[4]), odd_near = fma(minus_two, d[1], d[3]);
        const V even_far = fma(minus_half, d[2], d[4]), odd_far = fma(minus_half, d[1], d[3]);
        v[0] = fma(sum, d[2], d[0] + d[4]);
        v[1] = fma(near, odd_near, even_near);
        v[2] = fma(V::zero() - near, odd_near, even_near);
        v[3] = fma(far, odd_far, even_far);
        v[4] = fma(V::zero() - far, odd_far, even_far);
        v[5] = fma(sum, d[3], d[1] + d[5]);
    }
    template <class V>
    static VAPO_FAST_INLINE void weight(const V (&g)[3], V (&u)[6]) {
        const V near = V::broadcast(-1.0 / 1.5), far = V::broadcast(1.0 / 6.0);
        const V even_near = g[0] + V::broadcast(0.5) * g[2], odd_near = V::broadcast(p) * g[1];
        const V even_far = g[0] + V::broadcast(2.0) * g[2], odd_far = V::broadcast(q) * g[1];
        u[0] = g[0];
        u[1] = near * (even_near + odd_near);
        u[2] = near * (even_near - odd_near);
        u[3] = far * (even_far + odd_far);
        u[4] = far * (even_far - odd_far);
        u[5] = g[2];
    }
    template <class V>
    static VAPO_FAST_INLINE void output(const V (&m)[6], V (&y)[4]) {
        using T = typename V::Element;
        const V even_near = m[1] + m[2], odd_near = m[1] - m[2], even_far = m[3] + m[4], odd_far = m[3] - m[4];
        y[0] = m[0] + even_near + even_far;
        y[1] = fma(V::broadcast(T(q)), odd_far, V::broadcast(T(p)) * odd_near);
        y[2] = fma(V::broadcast(T(2)), even_far, V::broadcast(T(0.5)) * even_near);
        y[3] = fma(V::broadcast(T(2 * q)), odd_far, fma(V::broadcast(T(p / 2)), odd_near, m[5]));
    }
};

template <int m>
void pack_winograd(const WinogradWeights& weights, const WinogradLayout& layout, int panel, float* packed) {
    constexpr int size = m + 2;
    constexpr int lanes = Vec<float>::lanes, half = Vec<double>::lanes;
    using V = Vec<double>;
    const int first = panel * lanes;
    const int used = layout.outputs - first < lanes ? layout.outputs - first : lanes;
    float* to = packed + static_cast<std::int64_t>(panel) * layout.inputs * lanes;
    for (int i = 0; i < layout.inputs; ++i, to += lanes) {
        double g[3][3][lanes] = {};
        const float* from = weights.data + i * weights.input + first * weights.output;
        for (int r = 0; r < 3; ++r) {
            for (int c = 0; c < 3; ++c) {
                const float* tap = from + r * weights.row + c * weights.column;
                for (int lane = 0; lane < used; ++lane) g[r][c][lane] = static_cast<double>(tap[lane * weights.output]);
            }
        }
        for (int part = 0; part < lanes; part += half) {
            V columns[size][3];
            for (int c = 0; c < 3; ++c) {
                const V taps[3] = {V::load(g[0][c] + part), V::load(g[1][c] + part), V::load(g[2][c] + part)};
                V u[size];
                MinimalFilter<m>::weight(taps, u);
                for (int r = 0; r < size; ++r) columns[r][c] = u[r];
            }
            for (int r = 0; r < size; ++r) {
                V u[size];
                MinimalFilter<m>::weight(columns[r], u);
                for (int c = 0; c < size; ++c) {
                    double exact[half];
                    u[c].store(exact);
                    float* out = to + (r * size + c) * layout.weight_stride + part;
                    for (int lane = 0; lane < half; ++lane) out[lane] = static_cast<float>(exact[lane]);
                }
            }
        }
    }
}

// A tile's inputs at channels c, c + 1, ..., to v, which goes on by `position` for each transformed input.
template <int m, class Lanes>
VAPO_FAST_INLINE void transform_inputs(Lanes lanes, const float* const* pixel, std::int64_t c, float* v,
                                       std::int64_t position) {
    using V = Vec<float>;
    constexpr int size = m + 2;
    V down[size][size];
    VAPO_FAST_UNROLL
    for (int j = 0; j < size; ++j) {
        V d[size], u[size];
        VAPO_FAST_UNROLL
        for (int i = 0; i < size; ++i) d[i] = lanes.get(pixel[i * size + j] + c);
        MinimalFilter<m>::input(d, u);
        VAPO_FAST_UNROLL
        for (int i = 0; i < size; ++i) down[i][j] = u[i];
    }
    VAPO_FAST_UNROLL
    for (int i = 0; i < size; ++i) {
        V u[size];
        MinimalFilter<m>::input(down[i], u);
        VAPO_FAST_UNROLL
        for (int j = 0; j < size; ++j) u[j].store(v + (i * size + j) * position);
    }
}

template <int m, class Lanes>
VAPO_FAST_INLINE void transform_outputs(Lanes lanes, const float* products, std::int64_t position, float* const* pixel,
                                        std::int64_t c) {
    using V = Vec<float>;
    constexpr int size = m + 2;
    V down[m][size];
    VAPO_FAST_UNROLL
    for (int j = 0; j < size; ++j) {
        V p[size], y[m];
        VAPO_FAST_UNROLL
        for (int i = 0; i < size; ++i) p[i] = V::load(products + (i * size + j) * position);
        MinimalFilter<m>::output(p, y);
        VAPO_FAST_UNROLL
        for (int i = 0; i < m; ++i) down[i][j] = y[i];
    }
    VAPO_FAST_UNROLL
    for (int i = 0; i < m; ++i) {
        V y[m];
        MinimalFilter<m>::output(down[i], y);
        VAPO_FAST_UNROLL
        for (int j = 0; j < m; ++j) lanes.set(pixel[i * m + j] + c, y[j]);
    }
}

// The tiles of a block one after the other: f(tile of the block, row of the batch, tile's first pixel down, and
// across).
template <class F>
VAPO_FAST_INLINE void each_tile(const WinogradBlock& block, int m, const F& f) {
    const std::int64_t across = (block.shape.width + m - 1) / m, down = (block.shape.height + m - 1) / m;
    std::int64_t column = block.first % across, line = block.first / across % down, row = block.first / across / down;
    for (std::int64_t tile = 0; tile < block.count; ++tile) {
        f(tile, row, line * m, column * m);
        if (++column == across) {
            column = 0;
            if (++line == down) {
                line = 0;
                ++row;
            }
        }
    }
}

template <int m>
void transform_all_inputs(const WinogradBlock& block, const WinogradLayout& layout) {
    constexpr int size = m + 2;
    each_tile(block, m, [&](std::int64_t tile, std::int64_t row, std::int64_t top, std::int64_t left) {
        const float* pixel[size * size];
        for (int i = 0; i < size; ++i) {
            for (int j = 0; j < size; ++j) {
                const std::int64_t y = top + i - 1, x = left + j - 1;
                const bool inside = y >= 0 && y < block.shape.height && x >= 0 && x < block.shape.width;
                const std::int64_t at = (row * block.shape.height + y) * block.shape.width + x;
                pixel[i * size + j] = inside ? block.x + at * layout.inputs : block.zeros;
            }
        }
        float* v = block.transformed + tile * layout.input_stride;
        each<float>(0, layout.inputs, [&](auto lanes, std::int64_t c) {
            transform_inputs<m>(lanes, pixel, c, v + c, block.transformed_position);
        });
    });
}

// Of the channels from first to last, whose products are there.
template <int m>
void transform_group_outputs(const WinogradBlock& block, const WinogradLayout& layout, int first, int last) {
    each_tile(block, m, [&](std::int64_t tile, std::int64_t row, std::int64_t top, std::int64_t left) {
        float* pixel[m * m];
        for (int i = 0; i < m; ++i) {
            for (int j = 0; j < m; ++j) {
                const std::int64_t y = top + i, x = left + j;
                const bool inside = y < block.shape.height && x < block.shape.width;
                const std::int64_t at = (row * block.shape.height + y) * block.shape.width + x;
                pixel[i * m + j] = inside ? block.y + at * layout.outputs : block.discarded;
            }
        }
        const float* products = block.products + tile * layout.output_stride;
        each<float>(first, last, [&](auto lanes, std::int64_t c) {
            transform_outputs<m>(lanes, products + (c - first), block.products_position, pixel, c);
        });
    });
}

template <int m>
void winograd_block(const WinogradBlock& block, const WinogradLayout& layout) {
    constexpr int lanes = Vec<float>::lanes;
    transform_all_inputs<m>(block, layout);
    for (int group = 0; group < layout.groups; ++group) {
        const int first = layout.first_panel(group), last = layout.first_panel(group + 1);
        for (int position = 0; position < layout.positions(); ++position) {
            const float* packed = block.packed + position * layout.weight_stride;
            Panels<float> weights;
            weights.data = packed + std::int64_t{first} * layout.inputs * lanes;
            weights.in = layout.inputs;
            weights.count = last - first;
            const Strided<const float> inputs{block.transformed + position * block.transformed_position,
                                              static_cast<int>(layout.input_stride)};
            const Strided<float> outputs{block.products + position * block.products_position,
                                         static_cast<int>(layout.output_stride)};
            product(Product<float>{inputs, weights, outputs}, block.count);
        }
        const int end = last * lanes;
        transform_group_outputs<m>(block, layout, first * lanes, end < layout.outputs ? end : layout.outputs);
    }
}

template <>
struct Fill<WinogradTable> {
    static constexpr WinogradTable table() {
        return {{Vec<float>::lanes, pack_winograd<2>, winograd_block<2>},
                {Vec<float>::lanes, pack_winograd<4>, winograd_block<4>}};
    }
};

template const WinogradTable& table();

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
