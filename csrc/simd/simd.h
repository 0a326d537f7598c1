// One register of numbers, Vec<float> or Vec<double>, with the widest instructions that the including file targets.
//
// isa_begin.h comes before this and says how a file chooses its instruction set. Everything here is inline in the
// namespace VAPO_FAST_ISA, which keeps the variants apart. Lanes never meet: what a lane holds afterwards depends on
// nothing but what it held before.
//
// fma(a, b, c) is fused where the instruction set has it and rounds twice where it does not: results of one instruction
// set are reproducible to the last bit, results of two differ by rounding.
#pragma once

#include "simd/dispatch.h"

#ifndef VAPO_FAST_ISA
#error "include isa_begin.h before simd.h"
#endif

#if defined(_MSC_VER)
#define VAPO_FAST_INLINE __forceinline
#else
#define VAPO_FAST_INLINE inline __attribute__((always_inline))
#endif

// Before a loop with a small, constant number of iterations: unrolls it.
#if defined(__clang__)
#define VAPO_FAST_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define VAPO_FAST_UNROLL _Pragma("GCC unroll 32")
#else
#define VAPO_FAST_UNROLL
#endif

namespace vapo_fast {
namespace VAPO_FAST_ISA {

#if defined(VAPO_FAST_ISA_AVX512)
constexpr int register_bytes = 64;
#elif defined(VAPO_FAST_ISA_AVX2)
constexpr int register_bytes = 32;
#else
constexpr int register_bytes = 16;  // what every x86-64 and AArch64 processor has
#endif

template <int bytes>
struct Unsigned;
template <>
struct Unsigned<4> {
    using Type = std::uint32_t;
};
template <>
struct Unsigned<8> {
    using Type = std::uint64_t;
};

// A register as a type of the compiler: + - * / & | ^ << >> act lane by lane, and < gives a mask for a lane-wise ?:.
template <class T>
struct Register {
#if defined(__GNUC__) || defined(__clang__)
    typedef T Type __attribute__((vector_size(register_bytes), may_alias));
    typedef T Unaligned __attribute__((vector_size(register_bytes), may_alias, aligned(sizeof(T))));
    static constexpr int lanes = register_bytes / sizeof(T);
    static VAPO_FAST_INLINE Type load(const void* p) { return *static_cast<const Unaligned*>(p); }
    static VAPO_FAST_INLINE void store(void* p, Type v) { *static_cast<Unaligned*>(p) = v; }
#else
    // A compiler without vector types: one number a register.
    using Type = T;
    static constexpr int lanes = 1;
    static VAPO_FAST_INLINE Type load(const void* p) { return *static_cast<const T*>(p); }
    static VAPO_FAST_INLINE void store(void* p, Type v) { *static_cast<T*>(p) = v; }
#endif
    static VAPO_FAST_INLINE Type broadcast(T x) { return x - Type{}; }
};

template <class T>
struct Vec {
    using Element = T;
    using Type = typename Register<T>::Type;
    static constexpr int lanes = Register<T>::lanes;
    Type v;
    static VAPO_FAST_INLINE Vec load(const T* p) { return {Register<T>::load(p)}; }
    static VAPO_FAST_INLINE Vec broadcast(T x) { return {Register<T>::broadcast(x)}; }
    static VAPO_FAST_INLINE Vec zero() { return {Type{}}; }
    VAPO_FAST_INLINE void store(T* p) const { Register<T>::store(p, v); }
    friend VAPO_FAST_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
    friend VAPO_FAST_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
    friend VAPO_FAST_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
    friend VAPO_FAST_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
    friend VAPO_FAST_INLINE auto operator<(Vec a, Vec b) { return a.v < b.v; }  // masks, for select
    friend VAPO_FAST_INLINE auto operator==(Vec a, Vec b) { return a.v == b.v; }
    friend VAPO_FAST_INLINE Vec operator&(Vec a, Vec b) { return {a.v & b.v}; }
    friend VAPO_FAST_INLINE Vec operator|(Vec a, Vec b) { return {a.v | b.v}; }
    friend VAPO_FAST_INLINE Vec operator^(Vec a, Vec b) { return {a.v ^ b.v}; }
    friend VAPO_FAST_INLINE Vec operator<<(Vec a, int n) { return {a.v << n}; }
    friend VAPO_FAST_INLINE Vec operator>>(Vec a, int n) { return {a.v >> n}; }
};

// a where the mask is set, b elsewhere.
template <class Mask, class T>
VAPO_FAST_INLINE Vec<T> select(Mask mask, Vec<T> a, Vec<T> b) {
    return {mask ? a.v : b.v};
}

// The same bits as lanes of another type.
template <class To, class T>
VAPO_FAST_INLINE Vec<To> reinterpret(Vec<T> from) {
    static_assert(sizeof(To) == sizeof(T), "lanes of one size");
    Vec<To> to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// fma: a b + c. minimum, maximum: of two numbers; b where either is NaN.
#if defined(VAPO_FAST_ISA_AVX512)
VAPO_FAST_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
VAPO_FAST_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
    return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
// The forms without a mask start from an undefined register, and gcc 12 warns about that in its own header.
VAPO_FAST_INLINE Vec<float> minimum(Vec<float> a, Vec<float> b) { return {_mm512_maskz_min_ps(0xFFFF, a.v, b.v)}; }
VAPO_FAST_INLINE Vec<double> minimum(Vec<double> a, Vec<double> b) { return {_mm512_maskz_min_pd(0xFF, a.v, b.v)}; }
VAPO_FAST_INLINE Vec<float> maximum(Vec<float> a, Vec<float> b) { return {_mm512_maskz_max_ps(0xFFFF, a.v, b.v)}; }
VAPO_FAST_INLINE Vec<double> maximum(Vec<double> a, Vec<double> b) { return {_mm512_maskz_max_pd(0xFF, a.v, b.v)}; }
#elif defined(VAPO_FAST_ISA_AVX2)
VAPO_FAST_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
VAPO_FAST_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
    return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
VAPO_FAST_INLINE Vec<float> minimum(Vec<float> a, Vec<float> b) { return {_mm256_min_ps(a.v, b.v)}; }
VAPO_FAST_INLINE Vec<double> minimum(Vec<double> a, Vec<double> b) { return {_mm256_min_pd(a.v, b.v)}; }
VAPO_FAST_INLINE Vec<float> maximum(Vec<float> a, Vec<float> b) { return {_mm256_max_ps(a.v, b.v)}; }
VAPO_FAST_INLINE Vec<double> maximum(Vec<double> a, Vec<double> b) { return {_mm256_max_pd(a.v, b.v)}; }
#else
#if defined(VAPO_FAST_NEON)
VAPO_FAST_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
VAPO_FAST_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
#else
template <class T>
VAPO_FAST_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
    return a * b + c;
}
#endif
template <class T>
VAPO_FAST_INLINE Vec<T> minimum(Vec<T> a, Vec<T> b) {
    return select(a < b, a, b);
}
template <class T>
VAPO_FAST_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
    return select(b < a, a, b);
}
#endif

// The lanes' bits as unsigned integers.
template <class T>
using Bits = Vec<typename Unsigned<sizeof(T)>::Type>;

template <class T>
VAPO_FAST_INLINE Bits<T> bits_of(Vec<T> a) {
    return reinterpret<typename Bits<T>::Element>(a);
}

// How a table of dispatch.h is filled with this instruction set's kernels: `static constexpr Table table()`, in a
// specialisation beside the kernels.
template <class Table>
struct Fill;

template <class Table>
const Table& table() {
    static constexpr Table filled = Fill<Table>::table();
    return filled;
}

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
