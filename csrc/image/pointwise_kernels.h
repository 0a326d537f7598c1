// The kernels of pointwise_table.h for one instruction set; see isa_begin.h for how it is included.
#pragma once

#include "image/pointwise_table.h"
#include "simd/lanes.h"
#include "simd/math.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

template <class T>
VAPO_FAST_INLINE Vec<T> silu_first(Vec<T> z) {
    Vec<T> value, first;
    activation<Activation::silu>(z, value, first);
    return first;
}

template <class T, class N>
void silu_map(const T* x, N* s, std::int64_t begin, std::int64_t end) {
    each<T>(begin, end,
            [&](auto lanes, std::int64_t i) { lanes.set(s + i, activation<Activation::silu>(lanes.get(x + i))); });
}

template <class T, class V, class O>
void silu_derivative(const T* x, const V* v, const T* skip, O* out, std::int64_t begin, std::int64_t end) {
    if (skip == nullptr) {
        each<T>(begin, end, [&](auto lanes, std::int64_t i) {
            lanes.set(out + i, silu_first(lanes.get(x + i)) * lanes.get(v + i));
        });
    } else {
        each<T>(begin, end, [&](auto lanes, std::int64_t i) {
            lanes.set(out + i, fma(silu_first(lanes.get(x + i)), lanes.get(v + i), lanes.get(skip + i)));
        });
    }
}

template <class T, class N>
void silu_second(const SiluSecond<T, N>& arrays, std::int64_t size, std::int64_t begin, std::int64_t end) {
    const SiluSecond<T, N> p = arrays;
    each<T>(begin, end, [&](auto lanes, std::int64_t i) {
        Vec<T> value, first, second;
        silu(lanes.get(p.x + i), value, first, second);
        const Vec<T> x_dot = lanes.get(p.x_dot + i), a_s = lanes.get(p.a_s + i), b_s = lanes.get(p.b_s + i);
        Vec<T> b = Vec<T>::zero(), a = Vec<T>::zero();
        if (p.add) {
            b = lanes.get(p.adjoints + i);
            a = lanes.get(p.adjoints + size + i);
        }
        lanes.set(p.adjoints + i, fma(b_s, first, fma(a_s * second, x_dot, b)));
        lanes.set(p.adjoints + size + i, fma(a_s, first, a));
        lanes.set(p.values + i, value);
        lanes.set(p.values + size + i, first * x_dot);
    });
}

template <class T, class N>
void film_silu(const N* c, Film<T> film, N* out, std::int64_t channels, std::int64_t pixels) {
    for (std::int64_t p = 0; p < pixels; ++p, c += channels, out += channels) {
        each<T>(0, channels, [&](auto lanes, std::int64_t i) {
            const Vec<T> h = fma(lanes.get(c + i), lanes.get(film.gain + i), lanes.get(film.offset + i));
            lanes.set(out + i, activation<Activation::silu>(h));
        });
    }
}

template <class T, class N>
void film_silu_derivative(const N* c, const N* v, Film<T> film, N* out, std::int64_t channels, std::int64_t pixels) {
    for (std::int64_t p = 0; p < pixels; ++p, c += channels, v += channels, out += channels) {
        each<T>(0, channels, [&](auto lanes, std::int64_t i) {
            const Vec<T> g = lanes.get(film.gain + i), h = fma(lanes.get(c + i), g, lanes.get(film.offset + i));
            lanes.set(out + i, silu_first(h) * g * lanes.get(v + i));
        });
    }
}

template <class T, class N>
void film_silu_second(const FilmSecond<T, N>& arrays, MapShape shape, std::int64_t row) {
    const FilmSecond<T, N> p = arrays;
    const std::int64_t channels = shape.channels, map = shape.pixels * channels, half = shape.size();
    const Film<T> film = p.film.at(row * channels);
    T *of_gain = p.of_gain + row * channels, *of_offset = p.of_offset + row * channels;
    // Blocks of pixels: their cache lines are still in the cache when the next channels read them.
    constexpr std::int64_t block = 16;
    for (std::int64_t first_pixel = 0; first_pixel < shape.pixels; first_pixel += block) {
        const std::int64_t last_pixel = first_pixel + block < shape.pixels ? first_pixel + block : shape.pixels;
        each<T>(0, channels, [&](auto lanes, std::int64_t i) {
            const Vec<T> g = lanes.get(film.gain + i), o = lanes.get(film.offset + i);
            Vec<T> sum_gain = first_pixel == 0 ? Vec<T>::zero() : lanes.get(of_gain + i);
            Vec<T> sum_offset = first_pixel == 0 ? Vec<T>::zero() : lanes.get(of_offset + i);
            for (std::int64_t pixel = first_pixel; pixel < last_pixel; ++pixel) {
                const std::int64_t at = row * map + pixel * channels + i;
                const Vec<T> c = lanes.get(p.c + at), c_dot = lanes.get(p.c_dot + at);
                const Vec<T> a_s = lanes.get(p.a_s + at), b_s = lanes.get(p.b_s + at);
                Vec<T> value, first, second;
                silu(fma(c, g, o), value, first, second);
                const Vec<T> h_dot = g * c_dot, a_h = a_s * first;
                const Vec<T> b_h = fma(b_s, first, a_s * second * h_dot);
                sum_gain = fma(b_h, c, fma(a_h, c_dot, sum_gain));
                sum_offset = sum_offset + b_h;
                lanes.set(p.adjoints + at, g * b_h);
                lanes.set(p.adjoints + half + at, g * a_h);
                lanes.set(p.values + at, value);
                lanes.set(p.values + half + at, first * h_dot);
            }
            lanes.set(of_gain + i, sum_gain);
            lanes.set(of_offset + i, sum_offset);
        });
    }
}

template <class T, class N>
void residual(const N* branch, const T* skip, const T* bias, T* out, std::int64_t channels, std::int64_t pixels) {
    if (bias == nullptr) {
        each<T>(0, pixels * channels,
                [&](auto lanes, std::int64_t i) { lanes.set(out + i, lanes.get(branch + i) + lanes.get(skip + i)); });
        return;
    }
    for (std::int64_t p = 0; p < pixels; ++p, branch += channels, skip += channels, out += channels) {
        each<T>(0, channels, [&](auto lanes, std::int64_t i) {
            lanes.set(out + i, lanes.get(branch + i) + (lanes.get(skip + i) + lanes.get(bias + i)));
        });
    }
}

template <class T, class N>
struct Fill<PointwiseTable<T, N>> {
    static constexpr PointwiseTable<T, N> table() {
        PointwiseTable<T, N> kernels{};
        kernels.silu_map = silu_map<T, N>;
        kernels.silu_adjoint = silu_derivative<T, N, T>;
        kernels.silu_tangent = silu_derivative<T, T, N>;
        kernels.silu_second = silu_second<T, N>;
        kernels.film_silu = film_silu<T, N>;
        kernels.film_silu_derivative = film_silu_derivative<T, N>;
        kernels.film_silu_second = film_silu_second<T, N>;
        kernels.residual = residual<T, N>;
        return kernels;
    }
};

template const PointwiseTable<float, float>& table();
template const PointwiseTable<float, BFloat16>& table();
template const PointwiseTable<double, double>& table();

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
