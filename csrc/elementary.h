// Logarithm and exponential in float64 from correctly rounded operations only: the bits of vapo_fast/_elementary.py on
// every machine, provided that the compiler fuses no multiply and add (-ffp-contract=off).
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

inline constexpr auto kAtanh = atanh_coefficients();
inline constexpr auto kExp = exp_coefficients();

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
    const std::int64_t bits = bits_of(x);
    // Rounded down, as the reference's arithmetic shift is; a multiplication, since a negative number must not be shifted.
    const std::int64_t offset = bits - kSqrtHalfBits;
    const std::int64_t unit = std::int64_t{1} << kFractionBits;
    const std::int64_t exponent = offset / unit - (offset % unit < 0 ? 1 : 0);
    const double m = from_bits(bits - exponent * unit);
    const double s = (m - 1.0) / (m + 1.0);
    const double e = static_cast<double>(exponent);
    return e * kLn2High + (2.0 * s * polynomial(s * s, kAtanh) + e * kLn2Low);
}

// Exponential of a finite number, held to [-700, 700] where it is a normal number: x = k ln 2 + r, |r| <= ln(2)/2, and
// exp r by its series.
inline double portable_exp(double x) {
    using namespace elementary;
    x = x < -700.0 ? -700.0 : (x > 700.0 ? 700.0 : x);
    const double k = std::floor(x * kInverseLn2 + 0.5);
    const double r = (x - k * kLn2High) - k * kLn2Low;
    const double power_of_two = from_bits((static_cast<std::int64_t>(k) + kExponentBias) * (std::int64_t{1} << kFractionBits));
    return polynomial(r, kExp) * power_of_two;
}

}  // namespace vapo_fast
