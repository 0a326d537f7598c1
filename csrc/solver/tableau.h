// Butcher tableaus of the explicit Runge-Kutta methods, the numbers of vapo_fast/ode/tableaus.py to the last bit.
//
// With stages k_1 = f(x, t), k_i = f(x + h sum_j a_ij k_j, t + c_i h) the step is x + h sum_i b_i k_i, the error
// estimate is h sum_i e_i k_i, and inside the step x(t + theta h) = x + h sum_i b_i(theta) k_i with
// b_i(theta) = sum_j dense_ij theta^(j+1). References for the numbers are in tableaus.py.
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

// The C1 extension of a method that is fsal: cubic Hermite plus theta^2 (1 - theta)^2 sum_i quartic_i k_i.
template <int S>
constexpr Tableau<S> with_hermite_dense(Tableau<S> tableau, const double (&quartic)[S]) {
    for (int i = 0; i < S; ++i) {
        const double first = i == 0 ? 1.0 : 0.0, last = i == S - 1 ? 1.0 : 0.0;
        const double b = tableau.b[i], d = quartic[i];
        tableau.dense[i][0] = first;
        tableau.dense[i][1] = 3.0 * b - 2.0 * first - last + d;
        tableau.dense[i][2] = -2.0 * b + first + last - 2.0 * d;
        tableau.dense[i][3] = d;
    }
    tableau.dense_terms = 4;
    return tableau;
}

inline constexpr Tableau<7> kDopri5 = with_hermite_dense<7>(
    {"dopri5",
     {{},
      {1.0 / 5},
      {3.0 / 40, 9.0 / 40},
      {44.0 / 45, -56.0 / 15, 32.0 / 9},
      {19372.0 / 6561, -25360.0 / 2187, 64448.0 / 6561, -212.0 / 729},
      {9017.0 / 3168, -355.0 / 33, 46732.0 / 5247, 49.0 / 176, -5103.0 / 18656},
      {35.0 / 384, 0.0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84}},
     {35.0 / 384, 0.0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84, 0.0},
     {0.0, 1.0 / 5, 3.0 / 10, 4.0 / 5, 8.0 / 9, 1.0, 1.0},
     {71.0 / 57600, 0.0, -71.0 / 16695, 71.0 / 1920, -17253.0 / 339200, 22.0 / 525, -1.0 / 40},
     {},
     0,
     5,
     5,
     4,
     true,
     true},
    {-12715105075.0 / 11282082432.0, 0.0, 87487479700.0 / 32700410799.0, -10690763975.0 / 1880347072.0,
     701980252875.0 / 199316789632.0, -1453857185.0 / 822651844.0, 69997945.0 / 29380423.0});

inline constexpr Tableau<7> kTsit5 = with_hermite_dense<7>(
    {"tsit5",
     {{},
      {0.161},
      {-0.008480655492356989, 0.335480655492357},
      {2.8971530571054935, -6.359448489975075, 4.3622954328695815},
      {5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525},
      {5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383},
      {0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774}},
     {0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774, 0.0},
     {0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0},
     {-0.001780011052225777, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629, 0.5823571654525552,
      -0.45808210592918697, 1.0 / 66},
     {},
     0,
     5,
     5,
     4,
     true,
     true},
    {-1.0530884977290216, 0.1017, 2.4906272856512528, -16.548102889244902, 47.37952196281928, -34.870657861496610,
     2.5});

inline constexpr Tableau<4> kBosh3 = with_hermite_dense<4>(
    {"bosh3",
     {{}, {1.0 / 2}, {0.0, 3.0 / 4}, {2.0 / 9, 1.0 / 3, 4.0 / 9}},
     {2.0 / 9, 1.0 / 3, 4.0 / 9, 0.0},
     {0.0, 1.0 / 2, 3.0 / 4, 1.0},
     {-5.0 / 72, 1.0 / 12, 1.0 / 9, -1.0 / 8},
     {},
     0,
     3,
     3,
     3,
     true,
     true},
    {0.0, 0.0, 0.0, 0.0});

inline constexpr Tableau<4> kRk4 = {
    "rk4",
    {{}, {1.0 / 2}, {0.0, 1.0 / 2}, {0.0, 0.0, 1.0}},
    {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6},
    {0.0, 1.0 / 2, 1.0 / 2, 1.0},
    {},
    {{1.0, -3.0 / 2, 2.0 / 3}, {0.0, 1.0, -2.0 / 3}, {0.0, 1.0, -2.0 / 3}, {0.0, -1.0 / 2, 2.0 / 3}},
    3,
    4,
    0,
    3,
    false,
    false};

inline constexpr Tableau<2> kHeun = {"heun",
                                     {{}, {1.0}},
                                     {1.0 / 2, 1.0 / 2},
                                     {0.0, 1.0},
                                     {},
                                     {{1.0, -1.0 / 2}, {0.0, 1.0 / 2}},
                                     2,
                                     2,
                                     0,
                                     2,
                                     false,
                                     false};

inline constexpr Tableau<1> kEuler = {"euler", {{}}, {1.0}, {0.0}, {}, {{1.0}}, 1, 1, 0, 1, false, false};

}  // namespace vapo_fast
