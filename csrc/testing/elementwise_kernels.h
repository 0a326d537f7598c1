// elementwise() of one instruction set; see isa_begin.h for how it is included.
#pragma once

#include "testing/elementwise.h"
#include "simd/math.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

template <ElementwiseFunction F, class T>
VAPO_FAST_INLINE Vec<T> evaluate(Vec<T> x) {
    using E = ElementwiseFunction;
    Vec<T> value, first, second;
    if constexpr (F == E::exp) {
        return exp(x);
    } else if constexpr (F == E::log) {
        return log(x);
    } else if constexpr (F == E::sigmoid) {
        return sigmoid(x);
    } else if constexpr (F == E::cos_turns || F == E::sin_turns) {
        cos_sin_turns(x, first, second);
        return F == E::cos_turns ? first : second;
    } else if constexpr (F == E::silu || F == E::silu_first || F == E::silu_second) {
        activation<Activation::silu>(x, value, first, second);
        return F == E::silu ? value : F == E::silu_first ? first : second;
    } else if constexpr (F == E::softplus || F == E::softplus_first || F == E::softplus_second) {
        activation<Activation::softplus>(x, value, first, second);
        return F == E::softplus ? value : F == E::softplus_first ? first : second;
    } else {
        activation<Activation::tanh>(x, value, first, second);
        return F == E::tanh ? value : F == E::tanh_first ? first : second;
    }
}

template <ElementwiseFunction F, class T>
void evaluate_array(const T* x, T* out, std::int64_t n) {
    using V = Vec<T>;
    std::int64_t i = 0;
    for (; i + V::lanes <= n; i += V::lanes) evaluate<F>(V::load(x + i)).store(out + i);
    if (i == n) return;
    T rest[V::lanes] = {};
    std::memcpy(rest, x + i, static_cast<std::size_t>(n - i) * sizeof(T));
    evaluate<F>(V::load(rest)).store(rest);
    std::memcpy(out + i, rest, static_cast<std::size_t>(n - i) * sizeof(T));
}

template <class T>
void elementwise(ElementwiseFunction function, const T* x, T* out, std::int64_t n) {
    using E = ElementwiseFunction;
    switch (function) {
        case E::exp: return evaluate_array<E::exp>(x, out, n);
        case E::log: return evaluate_array<E::log>(x, out, n);
        case E::sigmoid: return evaluate_array<E::sigmoid>(x, out, n);
        case E::cos_turns: return evaluate_array<E::cos_turns>(x, out, n);
        case E::sin_turns: return evaluate_array<E::sin_turns>(x, out, n);
        case E::silu: return evaluate_array<E::silu>(x, out, n);
        case E::silu_first: return evaluate_array<E::silu_first>(x, out, n);
        case E::silu_second: return evaluate_array<E::silu_second>(x, out, n);
        case E::softplus: return evaluate_array<E::softplus>(x, out, n);
        case E::softplus_first: return evaluate_array<E::softplus_first>(x, out, n);
        case E::softplus_second: return evaluate_array<E::softplus_second>(x, out, n);
        case E::tanh: return evaluate_array<E::tanh>(x, out, n);
        case E::tanh_first: return evaluate_array<E::tanh_first>(x, out, n);
        case E::tanh_second: return evaluate_array<E::tanh_second>(x, out, n);
    }
}

template <class T>
struct Fill<ElementwiseTable<T>> {
    static constexpr ElementwiseTable<T> table() { return {&elementwise<T>}; }
};

template const ElementwiseTable<float>& table();
template const ElementwiseTable<double>& table();

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
