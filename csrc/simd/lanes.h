// Registers from and to arrays of any length and type: whole registers, and the few numbers at an array's end.
//
// isa_begin.h comes before this and says how a file chooses its instruction set.
#pragma once

#include "simd/bfloat16.h"
#include "simd/math.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

template <class T>
VAPO_FAST_INLINE Vec<T> fetch(const T* p) {
    return Vec<T>::load(p);
}
template <class T>
VAPO_FAST_INLINE void put(T* p, Vec<T> v) {
    v.store(p);
}

#if defined(__GNUC__) || defined(__clang__)
typedef std::uint16_t Halves __attribute__((vector_size(register_bytes / 2), may_alias, aligned(2)));

VAPO_FAST_INLINE Vec<float> fetch(const BFloat16* p) {
    const Halves halves = *reinterpret_cast<const Halves*>(p);
    const Bits<float> wide{__builtin_convertvector(halves, Bits<float>::Type)};
    return reinterpret<float>(wide << 16);
}

// To the nearest, ties to even; what is not a number stays so.
VAPO_FAST_INLINE void put(BFloat16* p, Vec<float> v) {
    using Integers = Bits<float>;
    const Integers bits = bits_of(v);
    const Integers odd = (bits >> 16) & all(std::uint32_t{1});
    const Integers rounded = (bits + all(std::uint32_t{0x7FFF}) + odd) >> 16;
    const Integers quiet = (bits >> 16) | all(std::uint32_t{0x40});
    *reinterpret_cast<Halves*>(p) = __builtin_convertvector(select(v == v, rounded, quiet).v, Halves);
}
#else
VAPO_FAST_INLINE Vec<float> fetch(const BFloat16* p) {
    const std::uint32_t bits = std::uint32_t{p->bits} << 16;
    Vec<float> v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

VAPO_FAST_INLINE void put(BFloat16* p, Vec<float> v) {
    std::uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    p->bits = static_cast<std::uint16_t>(v.v == v.v ? rounded : (bits >> 16) | 0x40);
}
#endif

// How a kernel reads and writes a register: whole, or the few numbers at the end of an array.
struct Whole {
    template <class E>
    VAPO_FAST_INLINE auto get(const E* p) const {
        return fetch(p);
    }
    template <class E, class T>
    VAPO_FAST_INLINE void set(E* p, Vec<T> v) const {
        put(p, v);
    }
};

template <int lanes>
struct Part {
    std::int64_t count;
    template <class E>
    VAPO_FAST_INLINE auto get(const E* p) const {
        E rest[lanes] = {};
        std::memcpy(rest, p, static_cast<std::size_t>(count) * sizeof(E));
        return fetch(static_cast<const E*>(rest));
    }
    template <class E, class T>
    VAPO_FAST_INLINE void set(E* p, Vec<T> v) const {
        E rest[lanes];
        put(rest, v);
        std::memcpy(p, rest, static_cast<std::size_t>(count) * sizeof(E));
    }
};

template <class T, class Body>
VAPO_FAST_INLINE void each(std::int64_t begin, std::int64_t end, const Body& body) {
    constexpr int lanes = Vec<T>::lanes;
    std::int64_t i = begin;
    for (; i + lanes <= end; i += lanes) body(Whole{}, i);
    if (i < end) body(Part<lanes>{end - i}, i);
}

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
