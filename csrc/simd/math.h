// exp, log, sigmoid, cosine and sine of turns, and activations with their derivatives, on registers of numbers.
//
// There are no branches and no calls: all lanes run the same instructions, so a result depends on its argument alone.
// The range reductions are standard; the polynomials are minimax fits (Remez) on the reduced ranges. Values and first
// derivatives have errors of at most 4 units in the last place where they are normal numbers. For silu', which has a
// zero, the unit is that of max(|result|, 1/8). Second derivatives: 7 such units.
// tests/native/test_native_math.py has them all.
#pragma once

#include "simd/activation.h"
#include "simd/simd.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

template <class T>
struct Constants;

template <>
struct Constants<float> {
    static constexpr int fraction_bits = 23, bias = 127;
    static constexpr std::uint32_t sign = 0x80000000u, fraction = 0x007FFFFFu;
    static constexpr float infinity = __builtin_huge_valf();
    static constexpr float smallest_normal = 0x1p-126f;
    static constexpr float shift = 0x1.8p23f;  // adding it rounds to an integer, held in the lowest bits
    static constexpr float log2_e = 0x1.715476p0f;
    static constexpr float ln2_high = 0x1.62e8p-1f;  // short enough for exact products with an exponent
    static constexpr float ln2_low = -0x1.e8082ep-16f;
    static constexpr float sqrt_half = 0x1.6a09e6p-1f;
    // (e^r - 1)/r in powers of r, |r| <= ln(2)/2
    static constexpr float exp[] = {1.0f, 0x1p-1f, 0x1.55548ep-3f, 0x1.55545ep-5f, 0x1.123b64p-7f, 0x1.6db438p-10f};
    // 2 (artanh(s)/s - 1)/s^2 in powers of s^2, |s| <= 1/3
    static constexpr float artanh[] = {0x1.555558p-1f, 0x1.9996d8p-2f, 0x1.250512p-2f, 0x1.b72b5cp-3f, 0x1.f08cfcp-3f};
    // sin(2 pi r)/r - two_pi and (cos(2 pi r) - 1)/r^2, |r| <= 1/8, in powers of r^2
    static constexpr float two_pi = 0x1.921fb6p+2f;
    static constexpr float sine[] = {-0x1.a0f784p-23f, -0x1.4abbbap+5f, 0x1.465ee8p+6f, -0x1.2da12ep+6f};
    static constexpr float cosine[] = {-0x1.3bd3ccp+4f, 0x1.03c1aep+6f, -0x1.55b146p+6f, 0x1.d47d46p+5f};
    // Where e^x overflows, and where it is less than half the smallest number that is not 0.
    static constexpr float exp_most = 89.0f, exp_least = -104.0f;
    // Here the power of two of e^x, and of 4 e^x, is 2^-127, for which exponential() has 0.
    static constexpr float vanishing = -88.0f, tanh_vanishing = -89.4f;
    // For logistic(): beyond `most` e^-x x is nothing beside 1; at `least` the power of two of 2^32 e^x is 2^-127.
    static constexpr int raised = 32;
    static constexpr float raise = 0x1p32f, logistic_most = 60.0f, logistic_least = -110.2f;
};

template <>
struct Constants<double> {
    static constexpr int fraction_bits = 52, bias = 1023;
    static constexpr std::uint64_t sign = 0x8000000000000000u, fraction = 0x000FFFFFFFFFFFFFu;
    static constexpr double infinity = __builtin_huge_val();
    static constexpr double smallest_normal = 0x1p-1022;
    static constexpr double shift = 0x1.8p52;
    static constexpr double log2_e = 0x1.71547652b82fep+0;
    static constexpr double ln2_high = 0x1.62e42fefa4p-1;
    static constexpr double ln2_low = -0x1.8432a1b0e2634p-43;
    static constexpr double sqrt_half = 0x1.6a09e667f3bcdp-1;
    static constexpr double exp[] = {
        1.0,
        0x1.000000000000bp-1,
        0x1.5555555555561p-3,
        0x1.555555555001fp-5,
        0x1.111111110d625p-7,
        0x1.6c16c185ab134p-10,
        0x1.a01a01bae8f9ep-13,
        0x1.a01996893b8e5p-16,
        0x1.71dddfbd7396bp-19,
        0x1.28b0531e08ba9p-22,
        0x1.af859d6bf42c8p-26,
    };
    static constexpr double artanh[] = {
        0x1.5555555555535p-1, 0x1.99999999a0790p-2, 0x1.24924920898cep-2, 0x1.c71c741dfa322p-3, 0x1.745cb3c893a59p-3,
        0x1.3b1de0044b57bp-3, 0x1.10678b1c97bd3p-3, 0x1.efdbb499a7f7fp-4, 0x1.55a30606e1eb5p-4, 0x1.5c850d851c655p-3,
    };
    static constexpr double two_pi = 0x1.921fb54442d18p+2;
    static constexpr double sine[] = {
        0x1.0398e8c52edccp-52, -0x1.4abbce625be41p+5, 0x1.466bc67758763p+6, -0x1.32d2cce2d9c4ap+6,
        0x1.50782fccdfaf2p+5,  -0x1.e300648f3e0a5p+3, 0x1.e3eeb383ff49dp+1,
    };
    static constexpr double cosine[] = {
        -0x1.3bd3cc9be45dep+4, 0x1.03c1f081b5a4fp+6, -0x1.55d3c7e3bf5adp+6, 0x1.e1f506749ab5fp+5,
        -0x1.a6d1e1395fd93p+4, 0x1.f9c3d46514e16p+2, -0x1.afee84c84905dp+0,
    };
    static constexpr double exp_most = 710.0, exp_least = -746.0;
    static constexpr double vanishing = -708.9, tanh_vanishing = -710.3;
    static constexpr int raised = 64;
    static constexpr double raise = 0x1p64, logistic_most = 650.0, logistic_least = -753.4;
};

template <class T>
VAPO_FAST_INLINE Vec<T> all(T x) {
    return Vec<T>::broadcast(x);
}

// Lowest power first in c. Pairs of terms are independent: a shorter chain than Horner's rule for one product more.
template <class T, int count>
VAPO_FAST_INLINE Vec<T> polynomial(const T (&c)[count], Vec<T> x) {
    const Vec<T> square = x * x;
    Vec<T> sum = count % 2 == 1 ? all(c[count - 1]) : fma(all(c[count - 1]), x, all(c[count - 2]));
    VAPO_FAST_UNROLL
    for (int i = (count - 3) / 2 * 2; i >= 0; i -= 2) sum = fma(sum, square, fma(all(c[i + 1]), x, all(c[i])));
    return sum;
}

template <class T>
VAPO_FAST_INLINE Vec<T> absolute(Vec<T> x) {
    return reinterpret<T>(bits_of(x) & all(~Constants<T>::sign));
}

// 2^doublings e^x as a power of two and the rest, so that e^x - 1 has no cancellation.
template <class T>
struct Exponential {
    Vec<T> scale, slope, offset;  // of scale (1 + (e^r - 1)): slope = (e^r - 1)/r and offset = scale r
    VAPO_FAST_INLINE Vec<T> value() const { return fma(slope, offset, scale); }
    VAPO_FAST_INLINE Vec<T> minus(Vec<T> x) const { return fma(slope, offset, scale - x); }
};

template <class T>
constexpr T exp_shift(int doublings) {
    return Constants<T>::shift + T(Constants<T>::bias + doublings);
}

// shift: exp_shift(doublings), for each lane. The exponent of the power of two, x/ln 2 to the nearest + doublings, must
// be that of a normal number, or one less: then all is 0. NaN stays NaN.
template <class T>
VAPO_FAST_INLINE Exponential<T> exponential(Vec<T> x, Vec<T> shift) {
    using C = Constants<T>;
    const Vec<T> shifted = fma(x, all(C::log2_e), shift);
    const Vec<T> k = shifted - shift;
    const Vec<T> r = fma(k, all(-C::ln2_low), fma(k, all(-C::ln2_high), x));
    // The lowest bits of `shifted` are the biased exponent itself.
    const Vec<T> scale = reinterpret<T>(bits_of(shifted) << C::fraction_bits);
    return {scale, polynomial(C::exp, r), scale * r};
}

// Overflows to infinity, and is rounded to a denormal number or 0 where it is small.
template <class T>
VAPO_FAST_INLINE Vec<T> exp(Vec<T> x) {
    using C = Constants<T>;
    x = minimum(all(C::exp_most), maximum(all(C::exp_least), x));
    // The power of two may be out of range where e^x is not.
    const auto negative = x < Vec<T>::zero();
    const Vec<T> shift = select(negative, all(exp_shift<T>(64)), all(exp_shift<T>(-2)));
    return exponential(x, shift).value() * select(negative, all(T(0x1p-64)), all(T(4)));
}

// log(1 + f) + low, f in [sqrt(1/2) - 1, 1] and `low` small.
template <class T>
VAPO_FAST_INLINE Vec<T> log_one_plus(Vec<T> f, Vec<T> low) {
    // 2 artanh s = f - s f + s^3 (...) for s = f/(2 + f)
    const Vec<T> s = f / (f + all(T(2)));
    const Vec<T> square = s * s;
    const Vec<T> rest = square * polynomial(Constants<T>::artanh, square);
    return f + fma(s, rest - f, low);
}

// -infinity of zero, NaN of negative numbers.
template <class T>
VAPO_FAST_INLINE Vec<T> log(Vec<T> x) {
    using C = Constants<T>;
    using Integer = typename Bits<T>::Element;
    const Vec<T> zero = Vec<T>::zero(), one = all(T(1)), infinity = all(C::infinity);
    const auto denormal = x < all(C::smallest_normal);
    const Vec<T> normal = select(denormal, x * all(T(0x1p64)), x);
    // x = m 2^e with m in [sqrt(1/2), sqrt 2): counted from the bits of sqrt(1/2), the exponent field is e + bias.
    const Bits<T> sqrt_half = bits_of(all(C::sqrt_half));
    const Bits<T> counted = bits_of(normal) + (bits_of(one) - sqrt_half);
    const Vec<T> m = reinterpret<T>((counted & all(C::fraction)) + sqrt_half);
    // An integer in the lowest bits of 2^fraction_bits adds itself to that number.
    const T power = T(Integer(1) << C::fraction_bits);
    const Vec<T> biased = reinterpret<T>((counted >> C::fraction_bits) | bits_of(all(power)));
    const Vec<T> e = biased - select(denormal, all(power + T(C::bias + 64)), all(power + T(C::bias)));
    const Vec<T> result = fma(e, all(C::ln2_high), log_one_plus(m - one, e * all(C::ln2_low)));
    const Vec<T> outside = select(x == zero, zero - infinity, infinity - infinity);
    return select(x < infinity, select(zero < x, result, outside), x);
}

// cos and sin of 2 pi u for |u| up to 2^20, for which the reduction is exact; NaN for infinity.
template <class T>
VAPO_FAST_INLINE void cos_sin_turns(Vec<T> u, Vec<T>& cosine, Vec<T>& sine) {
    using C = Constants<T>;
    using Integer = typename Bits<T>::Element;
    constexpr int to_sign = 8 * sizeof(T) - 2;
    const Vec<T> shifted = fma(u, all(T(4)), all(C::shift));
    const Vec<T> r = fma(shifted - all(C::shift), all(T(-0.25)), u);
    const Vec<T> square = r * r;
    const Vec<T> s = fma(r, all(C::two_pi), r * polynomial(C::sine, square));
    const Vec<T> c = fma(square, polynomial(C::cosine, square), all(T(1)));
    // The two lowest bits count quarter turns: the first exchanges the two, the second changes signs.
    const Bits<T> quarter = bits_of(shifted), one = all(Integer(1)), sign = all(C::sign);
    const auto exchanged = (quarter & one) == one;
    cosine = reinterpret<T>(bits_of(select(exchanged, s, c)) ^ (((quarter + one) << to_sign) & sign));
    sine = reinterpret<T>(bits_of(select(exchanged, c, s)) ^ ((quarter << to_sign) & sign));
}

// c e^x and 1/(c + c e^x), where c = 2^raised keeps both normal: sigmoid x is their product, and further factors can be
// multiplied with either first. x is held to a range beyond which nothing changes.
template <class T>
struct Logistic {
    Vec<T> exponential, quotient;
};

template <class T>
VAPO_FAST_INLINE Logistic<T> logistic(Vec<T> x) {
    using C = Constants<T>;
    const Vec<T> raised = exponential(x, all(exp_shift<T>(C::raised))).value();
    return {raised, all(T(1)) / (raised + all(C::raise))};
}

template <class T>
VAPO_FAST_INLINE Vec<T> sigmoid(Vec<T> x) {
    using C = Constants<T>;
    const Logistic<T> l = logistic(minimum(all(C::logistic_most), maximum(all(C::logistic_least), x)));
    return l.exponential * l.quotient;
}

// z s, s (1 + z (1 - s)) and s (1 - s) (2 + z (1 - 2s)), where s = sigmoid z. 1 - s is c times the quotient, never a
// difference, and what may be denormal is rounded once.
template <class T>
VAPO_FAST_INLINE void silu(Vec<T> z, Vec<T>& value, Vec<T>& first, Vec<T>& second) {
    using C = Constants<T>;
    const Vec<T> bounded = maximum(all(C::logistic_least), z);
    const Vec<T> x = minimum(all(C::logistic_most), bounded);
    const Logistic<T> l = logistic(x);
    // Beyond logistic_most s is 1, and what z has more is added as it is.
    value = fma(x * l.exponential, l.quotient, bounded - x);
    const Vec<T> raised = x * all(C::raise);
    first = l.exponential * (l.quotient * fma(raised, l.quotient, all(T(1))));
    const Vec<T> difference = (all(C::raise) - l.exponential) * l.quotient;  // 1 - 2s
    second = (l.exponential * l.quotient) * (l.quotient * fma(raised, difference, all(T(2) * C::raise)));
}

// log(1 + e^z), s and s (1 - s), where s = sigmoid z; beyond PyTorch's threshold z, 1 and 0.
template <class T>
VAPO_FAST_INLINE void softplus(Vec<T> z, Vec<T>& value, Vec<T>& first, Vec<T>& second) {
    using C = Constants<T>;
    const Vec<T> zero = Vec<T>::zero(), one = all(T(1));
    const auto linear = all(T(20)) < z;
    const Vec<T> e = exponential(maximum(all(C::vanishing), zero - absolute(z)), all(exp_shift<T>(0))).value();
    const Vec<T> greater = one / (one + e), lesser = e * greater;  // of s and 1 - s
    value = select(linear, z, maximum(zero, z) + log_one_plus(e, zero));
    first = select(linear, one, select(z < zero, lesser, greater));
    second = select(linear, zero, lesser * (one - lesser));
}

// (1 - e)/(1 + e), 4 e/(1 + e)^2 and -2 times their product, where e = exp(-2 |z|); the sign is z's.
template <class T>
VAPO_FAST_INLINE void tanh(Vec<T> z, Vec<T>& value, Vec<T>& first, Vec<T>& second) {
    using C = Constants<T>;
    const Vec<T> x = maximum(all(C::tanh_vanishing), absolute(z) * all(T(-2)));
    const Exponential<T> e = exponential(x, all(exp_shift<T>(2)));  // 4 e^x
    const Vec<T> four = all(T(4)), four_e = e.value();
    const Vec<T> quotient = all(T(1)) / (four + four_e);
    value = reinterpret<T>((bits_of(e.minus(four) * quotient) & all(~C::sign)) | (bits_of(z) & all(C::sign)));
    const Vec<T> rest = (four_e + four_e) * quotient;  // 1 - |tanh z|, rounded better than through (1 + e)^2
    first = rest * (all(T(2)) - rest);
    second = first * (value * all(T(-2)));
}

// The value, and the derivatives that there are arguments for. Compilers remove the computation of unused ones.
template <Activation A, class T>
VAPO_FAST_INLINE void activation(Vec<T> z, Vec<T>& value, Vec<T>& first, Vec<T>& second) {
    if constexpr (A == Activation::silu) {
        silu(z, value, first, second);
    } else if constexpr (A == Activation::softplus) {
        softplus(z, value, first, second);
    } else {
        tanh(z, value, first, second);
    }
}
template <Activation A, class T>
VAPO_FAST_INLINE void activation(Vec<T> z, Vec<T>& value, Vec<T>& first) {
    Vec<T> second;
    activation<A>(z, value, first, second);
}
template <Activation A, class T>
VAPO_FAST_INLINE Vec<T> activation(Vec<T> z) {
    Vec<T> value, first, second;
    activation<A>(z, value, first, second);
    return value;
}

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
