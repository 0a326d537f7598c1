// Logarithm, exponential, sine and cosine in float64, from correctly rounded operations only. Results have the bits of
// vapo_fast/core/elementary.py on every machine, if the compiler fuses no multiply and add (-ffp-contract=off).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace vapo_fast {
namespace elementary {

inline constexpr int kFractionBits = 52;
inline constexpr std::int64_t kExponentBias = 1023;
// ln 2 in two parts; the first has 32 significant bits, so that its product with an exponent is exact.
inline constexpr double kLn2High = 0x1.62e42ff000000p-1;
inline constexpr double kLn2Low = -0x1.718432a1b0e26p-35;
inline constexpr double kInverseLn2 = 1.0 / 0x1.62e42fefa39efp-1;
inline constexpr std::int64_t kSqrtHalfBits = 0x3FE6A09E667F3BCD;  // float64 sqrt(1/2), as an integer

template <int N>
struct Coefficients {
    double value[N];
};

constexpr Coefficients<12> atanh_coefficients() {
    Coefficients<12> c{};
    for (int k = 0; k < 12; ++k) c.value[k] = 1.0 / (2 * k + 1);
    return c;
}

constexpr Coefficients<15> exp_coefficients() {
    Coefficients<15> c{};
    double factorial = 1.0;  // exact up to 14!
    for (int k = 0; k < 15; ++k) {
        if (k > 0) factorial *= k;
        c.value[k] = 1.0 / factorial;
    }
    return c;
}

// 1, -1/3!, 1/5!, ... for first = 1 and 1, -1/2!, 1/4!, ... for first = 0.
constexpr Coefficients<10> alternating_coefficients(int first) {
    Coefficients<10> c{};
    double factorial = 1.0;  // exact up to 22!
    for (int k = 0; k < 10; ++k) {
        const int last = 2 * k + first;
        if (k > 0) factorial *= (last - 1) * last;
        c.value[k] = (k % 2 == 0 ? 1.0 : -1.0) / factorial;
    }
    return c;
}

inline constexpr auto kAtanh = atanh_coefficients();
inline constexpr auto kExp = exp_coefficients();
inline constexpr auto kSin = alternating_coefficients(1);
inline constexpr auto kCos = alternating_coefficients(0);

// Horner's rule, lowest power first in c.
template <int N>
inline double polynomial(double x, const Coefficients<N>& c) {
    double total = c.value[N - 1];
    for (int k = N - 2; k >= 0; --k) total = total * x + c.value[k];
    return total;
}

inline std::int64_t bits_of(double x) {
    std::int64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline double from_bits(std::int64_t bits) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

}  // namespace elementary

// Natural logarithm of a positive, finite, normal number: x = m 2^e with m in [sqrt(1/2), sqrt 2), and
// ln m = 2 artanh s, s = (m - 1)/(m + 1), by its series.
inline double portable_log(double x) {
    using namespace elementary;
    // Unsigned shifts and conversion by bits (numbers below 2^52) exist in every processor's vector instructions.
    constexpr std::uint64_t bias = std::uint64_t{kExponentBias} << kFractionBits;
    constexpr double two_to_52 = 0x1p52;
    const std::uint64_t bits = static_cast<std::uint64_t>(bits_of(x));
    // Measured from sqrt(1/2), the exponent field counts the powers of two that bring m into [sqrt(1/2), sqrt 2).
    const std::uint64_t biased = (bits - static_cast<std::uint64_t>(kSqrtHalfBits) + bias) >> kFractionBits;
    const double m = from_bits(static_cast<std::int64_t>(bits - (biased << kFractionBits) + bias));
    const double e = from_bits(static_cast<std::int64_t>(biased) | bits_of(two_to_52)) - (two_to_52 + kExponentBias);
    const double s = (m - 1.0) / (m + 1.0);
    return e * kLn2High + (2.0 * s * polynomial(s * s, kAtanh) + e * kLn2Low);
}

// Exponential of a finite number, held to [-700, 700] where it is a normal number: x = k ln 2 + r, |r| <= ln(2)/2, and
// exp r by its series.
inline double portable_exp(double x) {
    using namespace elementary;
    x = x < -700.0 ? -700.0 : (x > 700.0 ? 700.0 : x);
    const double k = std::floor(x * kInverseLn2 + 0.5);
    const double r = (x - k * kLn2High) - k * kLn2Low;
    const double power_of_two =
        from_bits((static_cast<std::int64_t>(k) + kExponentBias) * (std::int64_t{1} << kFractionBits));
    return polynomial(r, kExp) * power_of_two;
}

// cos 2 pi u and sin 2 pi u for u in [0, 1]: the nearest quarter turn is taken off exactly, and the series see an angle
// of at most pi/4.
inline void portable_cos_sin_turns(double u, double& cosine, double& sine) {
    using namespace elementary;
    constexpr double two_pi = 0x1.921fb54442d18p+2;
    const int quarter = static_cast<int>(4.0 * u + 0.5);
    const double angle = (u - 0.25 * quarter) * two_pi;
    const double square = angle * angle;
    const double odd = angle * polynomial(square, kSin);
    const double even = polynomial(square, kCos);
    // Selections and products, without branches: a compiler can vectorise them over many u.
    const bool swap = (quarter & 1) != 0;
    const double along = swap ? odd : even, across = swap ? even : odd;
    cosine = ((quarter + 1) & 2 ? -1.0 : 1.0) * along;
    sine = (quarter & 2 ? -1.0 : 1.0) * across;
}

}  // namespace vapo_fast
