// What a Butcher tableau of an explicit Runge-Kutta method holds. The methods themselves are in solver/methods.h, which
// generate_methods.py writes from vapo_fast/ode/tableaus.py when the extension is built.
//
// With stages k_1 = f(x, t), k_i = f(x + h sum_j a_ij k_j, t + c_i h) the step is x + h sum_i b_i k_i, the error
// estimate is h sum_i e_i k_i, and inside the step x(t + theta h) = x + h sum_i b_i(theta) k_i with
// b_i(theta) = sum_j dense_ij theta^(j+1).
#pragma once

namespace vapo_fast {

template <int S>
struct Tableau {
    static constexpr int stages = S;
    const char* name;
    double a[S][S];  // row i, of which the first i numbers count, leads to stage i; row 0 is empty
    double b[S];
    double c[S];
    double error[S];     // all zero for a fixed-step method
    double dense[S][4];  // padded with zeros beyond dense_terms
    int dense_terms;
    int order;
    int error_order;  // the error estimate is O(h^error_order); 0 for a fixed-step method
    int dense_order;
    bool adaptive;
    bool fsal;  // the last stage is the field at the end of the step, hence the next step's first
};

// The methods as a list of types, in the order of enum Method.
template <const auto&... tableaus>
struct TableauList {};

}  // namespace vapo_fast
