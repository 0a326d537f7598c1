#include "image/pointwise.h"

#include <algorithm>
#include <type_traits>

#include "image/pointwise_table.h"
#include "simd/dispatch.h"
#include "core/shared_threads.h"

namespace vapo_fast {

namespace {

// Numbers in a part: tens of microseconds of work, and a multiple of every register's lanes.
constexpr std::int64_t part_size = 1 << 14;

// f(begin, end) of parts of [0, size).
template <class F>
void over_numbers(std::int64_t size, int threads, const F& f) {
    shared_parallel_for((size + part_size - 1) / part_size, threads,
                        [&](std::int64_t part) { f(part * part_size, std::min(size, (part + 1) * part_size)); });
}

// f(row, first pixel, pixels) of parts of all rows.
template <class F>
void over_pixels(MapShape shape, int threads, const F& f) {
    const std::int64_t pixels = std::max<std::int64_t>(1, part_size / std::max<std::int64_t>(1, shape.channels));
    const std::int64_t parts = (shape.pixels + pixels - 1) / pixels;
    shared_parallel_for(shape.rows * parts, threads, [&](std::int64_t task) {
        const std::int64_t first = task % parts * pixels;
        f(task / parts, first, std::min(pixels, shape.pixels - first));
    });
}

}  // namespace

template <class T, class N>
void silu_map(const T* x, N* s, MapShape shape, PointwiseRun run) {
    const auto& kernels = table_for<PointwiseTable<T, N>>(run.instruction_set);
    over_numbers(shape.size(), run.threads, [&](auto begin, auto end) { kernels.silu_map(x, s, begin, end); });
}

template <class T, class V, class O>
void silu_derivative(const T* x, const V* v, const T* skip, O* out, MapShape shape, PointwiseRun run) {
    if constexpr (std::is_same_v<O, T>) {
        const auto& kernels = table_for<PointwiseTable<T, V>>(run.instruction_set);
        over_numbers(shape.size(), run.threads,
                     [&](auto begin, auto end) { kernels.silu_adjoint(x, v, skip, out, begin, end); });
    } else {
        const auto& kernels = table_for<PointwiseTable<T, O>>(run.instruction_set);
        over_numbers(shape.size(), run.threads,
                     [&](auto begin, auto end) { kernels.silu_tangent(x, v, skip, out, begin, end); });
    }
}

template <class T, class N>
void silu_second(const SiluSecond<T, N>& arrays, MapShape shape, PointwiseRun run) {
    const auto& kernels = table_for<PointwiseTable<T, N>>(run.instruction_set);
    over_numbers(shape.size(), run.threads,
                 [&](auto begin, auto end) { kernels.silu_second(arrays, shape.size(), begin, end); });
}

template <class T, class N>
void film_silu(const N* c, Film<T> film, N* out, MapShape shape, PointwiseRun run) {
    const auto& kernels = table_for<PointwiseTable<T, N>>(run.instruction_set);
    over_pixels(shape, run.threads, [&](auto row, auto first, auto pixels) {
        const auto at = (row * shape.pixels + first) * shape.channels;
        kernels.film_silu(c + at, film.at(row * shape.channels), out + at, shape.channels, pixels);
    });
}

template <class T, class N>
void film_silu_derivative(const N* c, const N* v, Film<T> film, N* out, MapShape shape, PointwiseRun run) {
    const auto& kernels = table_for<PointwiseTable<T, N>>(run.instruction_set);
    over_pixels(shape, run.threads, [&](auto row, auto first, auto pixels) {
        const auto at = (row * shape.pixels + first) * shape.channels;
        kernels.film_silu_derivative(c + at, v + at, film.at(row * shape.channels), out + at, shape.channels, pixels);
    });
}

template <class T, class N>
void film_silu_second(const FilmSecond<T, N>& arrays, MapShape shape, PointwiseRun run) {
    const auto& kernels = table_for<PointwiseTable<T, N>>(run.instruction_set);
    shared_parallel_for(shape.rows, run.threads,
                        [&](std::int64_t row) { kernels.film_silu_second(arrays, shape, row); });
}

template <class T, class N>
void residual(const N* branch, const T* skip, const T* bias, T* out, MapShape shape, PointwiseRun run) {
    const auto& kernels = table_for<PointwiseTable<T, N>>(run.instruction_set);
    over_pixels(shape, run.threads, [&](auto row, auto first, auto pixels) {
        const auto at = (row * shape.pixels + first) * shape.channels;
        kernels.residual(branch + at, skip + at, bias, out + at, shape.channels, pixels);
    });
}

#define VAPO_FAST_POINTWISE(T, N)                                                                \
    template void silu_map(const T*, N*, MapShape, PointwiseRun);                                \
    template void silu_second(const SiluSecond<T, N>&, MapShape, PointwiseRun);                  \
    template void film_silu(const N*, Film<T>, N*, MapShape, PointwiseRun);                      \
    template void film_silu_derivative(const N*, const N*, Film<T>, N*, MapShape, PointwiseRun); \
    template void film_silu_second(const FilmSecond<T, N>&, MapShape, PointwiseRun);             \
    template void residual(const N*, const T*, const T*, T*, MapShape, PointwiseRun);
VAPO_FAST_POINTWISE(float, float)
VAPO_FAST_POINTWISE(float, BFloat16)
VAPO_FAST_POINTWISE(double, double)
#undef VAPO_FAST_POINTWISE
template void silu_derivative(const float*, const float*, const float*, float*, MapShape, PointwiseRun);
template void silu_derivative(const float*, const BFloat16*, const float*, float*, MapShape, PointwiseRun);
template void silu_derivative(const float*, const float*, const float*, BFloat16*, MapShape, PointwiseRun);
template void silu_derivative(const double*, const double*, const double*, double*, MapShape, PointwiseRun);

}  // namespace vapo_fast
