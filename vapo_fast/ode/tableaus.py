"""Butcher tableaus of the explicit Runge-Kutta methods, as data.

With stages ``k_1 = f(x, t)``, ``k_i = f(x + h sum_j a_ij k_j, t + c_i h)`` the step is ``x + h sum_i b_i k_i``, the
error estimate of an embedded pair is ``h sum_i e_i k_i``, and inside the step ``x(t + theta h) = x + h sum_i
b_i(theta) k_i`` with ``b_i(theta) = sum_j dense_ij theta^(j+1)``.
"""

from __future__ import annotations

from dataclasses import dataclass

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method; see the module's docstring for what the coefficients mean.

    Attributes:
        a: rows 2 .. s of the stage matrix, row i holding i - 1 numbers.
        b, c: weights and nodes, s numbers each.
        error: e = b - b_hat of an embedded pair; empty for a fixed-step method.
        dense: s rows of polynomial coefficients of the continuous extension.
        order: order of the method. error_order: the error estimate is O(h^error_order).
        dense_order: order of the continuous extension; results at inner times have the method's order all the same,
            because the extension's own error is one power of h smaller than its order says and does not accumulate.
        fsal: the last stage is the field at the end of the step (its row of ``a`` equals ``b``), hence the next first
            stage.
    """

    name: str
    a: tuple[Row, ...]
    b: Row
    c: Row
    error: Row
    dense: tuple[Row, ...]
    order: int
    error_order: int
    dense_order: int
    fsal: bool

    @property
    def adaptive(self) -> bool:
        """Whether the method has an error estimate."""
        return bool(self.error)

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.b)


def _hermite_dense(b: Row, quartic: Row) -> tuple[Row, ...]:
    """C1 extension of an FSAL method: cubic Hermite plus ``theta^2 (1 - theta)^2 sum_i quartic_i k_i``.

    Every quartic that matches x and f at both ends of the step has this form.
    """
    last = len(b) - 1
    return tuple(
        (
            float(i == 0),
            3.0 * b_i - 2.0 * (i == 0) - (i == last) + d_i,
            -2.0 * b_i + (i == 0) + (i == last) - 2.0 * d_i,
            d_i,
        )
        for i, (b_i, d_i) in enumerate(zip(b, quartic, strict=True))
    )


# Dormand and Prince, J. Comput. Appl. Math. 6 (1980); extension: Hairer, Norsett and Wanner, "Solving ODEs I", II.6.
_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
DOPRI5 = Tableau(
    name="dopri5",
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _DOPRI5_B[:6],
    ),
    b=_DOPRI5_B,
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    dense=_hermite_dense(
        _DOPRI5_B,
        (
            -12715105075 / 11282082432,
            0.0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    ),
    order=5,
    error_order=5,
    dense_order=4,
    fsal=True,
)

# Tsitouras, Comput. Math. Appl. 62 (2011), coefficients and extension.
_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
    0.0,
)
TSIT5 = Tableau(
    name="tsit5",
    a=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        _TSIT5_B[:6],
    ),
    b=_TSIT5_B,
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    error=(
        -0.001780011052225777,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    dense=_hermite_dense(
        _TSIT5_B,
        (
            -1.0530884977290216,
            0.1017,
            2.4906272856512528,
            -16.548102889244902,
            47.37952196281928,
            -34.870657861496610,
            2.5,
        ),
    ),
    order=5,
    error_order=5,
    dense_order=4,
    fsal=True,
)

# Bogacki and Shampine, Appl. Math. Lett. 2 (1989); extension: cubic Hermite.
_BOSH3_B = (2 / 9, 1 / 3, 4 / 9, 0.0)
BOSH3 = Tableau(
    name="bosh3",
    a=((1 / 2,), (0.0, 3 / 4), _BOSH3_B[:3]),
    b=_BOSH3_B,
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    dense=_hermite_dense(_BOSH3_B, (0.0, 0.0, 0.0, 0.0)),
    order=3,
    error_order=3,
    dense_order=3,
    fsal=True,
)

# The fixed-step methods' extensions are the ones of highest order that their own stages allow.
RK4 = Tableau(
    name="rk4",
    a=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    error=(),
    dense=((1.0, -3 / 2, 2 / 3), (0.0, 1.0, -2 / 3), (0.0, 1.0, -2 / 3), (0.0, -1 / 2, 2 / 3)),
    order=4,
    error_order=0,
    dense_order=3,
    fsal=False,
)

HEUN = Tableau(
    name="heun",
    a=((1.0,),),
    b=(1 / 2, 1 / 2),
    c=(0.0, 1.0),
    error=(),
    dense=((1.0, -1 / 2), (0.0, 1 / 2)),
    order=2,
    error_order=0,
    dense_order=2,
    fsal=False,
)

EULER = Tableau(
    name="euler",
    a=(),
    b=(1.0,),
    c=(0.0,),
    error=(),
    dense=((1.0,),),
    order=1,
    error_order=0,
    dense_order=1,
    fsal=False,
)

TABLEAUS = {tableau.name: tableau for tableau in (DOPRI5, TSIT5, BOSH3, HEUN, RK4, EULER)}
