// Matrix products of a tile of rows with packed weights, and the outer products that sum over a tile.
//
// Every output is one chain of multiply-adds in the order of the inner index, whatever block it is computed in, so that
// a row has the same bits in any tile.
#pragma once

#include "mlp/mlp.h"
#include "simd/simd.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

// Rows and registers of a block. The accumulators must fill the multiply-add pipelines (latency times throughput) and
// fit the register file beside one broadcast and a row of weights.
#if defined(VAPO_FAST_ISA_AVX512)
constexpr int tall_rows = 8, tall_panels = 3;
constexpr int tile_rows = 32;
#elif defined(VAPO_FAST_ISA_AVX2)
constexpr int tall_rows = 6, tall_panels = 2;
constexpr int tile_rows = 36;
#else
constexpr int tall_rows = 4, tall_panels = 2;
constexpr int tile_rows = 32;
#endif
constexpr int middle_rows = 4, middle_panels = tall_rows > 6 ? 4 : 2;
constexpr int pair_panels = tall_rows > 6 ? 8 : 4;
constexpr int single_panels = 8;

constexpr int fewer(int panels) { return panels == 3 ? 2 : panels / 2; }

// An array of rows: row r begins at data + r * stride.
template <class T>
struct Strided {
    T* data;
    int stride;
};

// Y = start + X W, in place of Y.
template <class T>
struct Product {
    Strided<const T> x;  // its first `weights.in` columns
    Panels<T> weights;
    Strided<T> y;                 // whole panels
    const T* bias = nullptr;      // start from this row; null: from 0, or from Y itself
    bool accumulate = false;      // start from Y
    const T* multiply = nullptr;  // multiply the result by this array, which has Y's stride; null: do not
};

template <class T, int rows, int panels>
VAPO_FAST_INLINE void product_block(const Product<T>& p, std::int64_t row, int panel) {
    using V = Vec<T>;
    V sum[rows][panels];
    const T* x = p.x.data + row * p.x.stride;
    T* y = p.y.data + row * p.y.stride + panel * V::lanes;
    const int in = p.weights.in;
    if (p.accumulate) {
        VAPO_FAST_UNROLL
        for (int i = 0; i < rows; ++i) {
            VAPO_FAST_UNROLL
            for (int j = 0; j < panels; ++j) sum[i][j] = V::load(y + i * p.y.stride + j * V::lanes);
        }
    } else {
        VAPO_FAST_UNROLL
        for (int j = 0; j < panels; ++j) {
            const V start = p.bias != nullptr ? V::load(p.bias + (panel + j) * V::lanes) : V::zero();
            VAPO_FAST_UNROLL
            for (int i = 0; i < rows; ++i) sum[i][j] = start;
        }
    }
    const std::int64_t panel_size = static_cast<std::int64_t>(in) * V::lanes;
    const T* w = p.weights.data + panel * panel_size;
    for (int k = 0; k < in; ++k) {
        V weight[panels];
        VAPO_FAST_UNROLL
        for (int j = 0; j < panels; ++j)
            weight[j] = V::load(w + j * panel_size + static_cast<std::int64_t>(k) * V::lanes);
        VAPO_FAST_UNROLL
        for (int i = 0; i < rows; ++i) {
            const V value = V::broadcast(x[i * p.x.stride + k]);
            VAPO_FAST_UNROLL
            for (int j = 0; j < panels; ++j) sum[i][j] = fma(value, weight[j], sum[i][j]);
        }
    }
    if (p.multiply != nullptr) {
        const T* factor = p.multiply + row * p.y.stride + panel * V::lanes;
        VAPO_FAST_UNROLL
        for (int i = 0; i < rows; ++i) {
            VAPO_FAST_UNROLL
            for (int j = 0; j < panels; ++j) sum[i][j] = sum[i][j] * V::load(factor + i * p.y.stride + j * V::lanes);
        }
    }
    VAPO_FAST_UNROLL
    for (int i = 0; i < rows; ++i) {
        VAPO_FAST_UNROLL
        for (int j = 0; j < panels; ++j) sum[i][j].store(y + i * p.y.stride + j * V::lanes);
    }
}

// All rows of a tile in groups of `rows`, for the panels [panel, panel + panels).
template <class T, int rows, int panels>
inline std::int64_t product_rows(const Product<T>& p, std::int64_t row, std::int64_t end, int panel) {
    for (; row + rows <= end; row += rows) product_block<T, rows, panels>(p, row, panel);
    return row;
}

// The panels in groups of at most `panels`, then smaller ones; rows in groups of exactly `rows`.
template <class T, int rows, int panels>
inline void product_panels(const Product<T>& p, std::int64_t row, std::int64_t end, int panel) {
    for (; panel + panels <= p.weights.count; panel += panels) product_rows<T, rows, panels>(p, row, end, panel);
    if constexpr (panels > 1) product_panels<T, rows, fewer(panels)>(p, row, end, panel);
}

template <class T>
inline void product(const Product<T>& p, std::int64_t rows) {
    std::int64_t row = 0;
    const auto group = [&](int size) {
        const std::int64_t first = row;
        row += (rows - row) / size * size;
        return first;
    };
    std::int64_t first = group(tall_rows);
    if (row > first) product_panels<T, tall_rows, tall_panels>(p, first, row, 0);
    if constexpr (middle_rows < tall_rows) {
        first = group(middle_rows);
        if (row > first) product_panels<T, middle_rows, middle_panels>(p, first, row, 0);
    }
    first = group(2);
    if (row > first) product_panels<T, 2, pair_panels>(p, first, row, 0);
    first = group(1);
    if (row > first) product_panels<T, 1, single_panels>(p, first, row, 0);
}

// G += sum over rows of a (x) y + b (x) z: the gradient of a weight matrix, [out][g_stride].
template <class T>
struct OuterSum {
    const T *a, *b;  // [rows][out_stride]
    const T *y, *z;  // [rows][in_stride]
    int out, out_stride;
    int in, in_stride;
    Strided<T> g;
};

template <class T, int outs, int panels>
VAPO_FAST_INLINE void outer_block(const OuterSum<T>& p, std::int64_t rows, int out, int in) {
    using V = Vec<T>;
    V sum[outs][panels];
    T* g = p.g.data + static_cast<std::int64_t>(out) * p.g.stride + in;
    VAPO_FAST_UNROLL
    for (int i = 0; i < outs; ++i) {
        VAPO_FAST_UNROLL
        for (int j = 0; j < panels; ++j) sum[i][j] = V::load(g + i * p.g.stride + j * V::lanes);
    }
    const T* left[2] = {p.a + out, p.b + out};
    const T* right[2] = {p.y + in, p.z + in};
    for (int pair = 0; pair < 2; ++pair) {
        const T *u = left[pair], *v = right[pair];
        for (std::int64_t r = 0; r < rows; ++r, u += p.out_stride, v += p.in_stride) {
            V columns[panels];
            VAPO_FAST_UNROLL
            for (int j = 0; j < panels; ++j) columns[j] = V::load(v + j * V::lanes);
            VAPO_FAST_UNROLL
            for (int i = 0; i < outs; ++i) {
                const V value = V::broadcast(u[i]);
                VAPO_FAST_UNROLL
                for (int j = 0; j < panels; ++j) sum[i][j] = fma(value, columns[j], sum[i][j]);
            }
        }
    }
    VAPO_FAST_UNROLL
    for (int i = 0; i < outs; ++i) {
        VAPO_FAST_UNROLL
        for (int j = 0; j < panels; ++j) sum[i][j].store(g + i * p.g.stride + j * V::lanes);
    }
}

template <class T, int outs, int panels>
inline void outer_panels(const OuterSum<T>& p, std::int64_t rows, int first, int end, int in) {
    const int lanes = Vec<T>::lanes, padded = (p.in + lanes - 1) / lanes * lanes;
    for (; in + panels * lanes <= padded; in += panels * lanes) {
        for (int out = first; out < end; out += outs) outer_block<T, outs, panels>(p, rows, out, in);
    }
    if constexpr (panels > 1) outer_panels<T, outs, fewer(panels)>(p, rows, first, end, in);
}

template <class T>
inline void outer_sum(const OuterSum<T>& p, std::int64_t rows) {
    const int whole = p.out / tall_rows * tall_rows;
    if (whole != 0) outer_panels<T, tall_rows, tall_panels>(p, rows, 0, whole, 0);
    if (whole != p.out) outer_panels<T, 1, single_panels>(p, rows, whole, p.out, 0);
}

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
