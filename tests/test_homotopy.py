"""Paths against their closed forms (docs: method) and against float64 at both ends."""

from __future__ import annotations

import pytest
import torch

from tests.support.exact import GAUSSIAN_TABLE
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy, homotopy_from_config

PATHS: list[Homotopy] = [
    DataHomotopy(1.0, 0.1),
    DataHomotopy(1.3, 0.01),
    LinearHomotopy(1.0, 0.99),
    LinearHomotopy(0.7, 0.9),
]
path_cases = pytest.mark.parametrize("path", PATHS, ids=repr)


def grid(path: Homotopy, n: int = 41) -> torch.Tensor:
    return torch.linspace(path.t0, path.t1, n, dtype=torch.float64)


@pytest.mark.parametrize(
    ("path", "t", "expected"), GAUSSIAN_TABLE, ids=lambda v: repr(v) if isinstance(v, (Homotopy, float)) else ""
)
def test_gaussian_table(path: Homotopy, t: float, expected: tuple[float, ...]) -> None:
    k = path.kernel(t)
    alpha, v, alpha_dot = float(k.alpha), float(k.beta) ** 2, float(k.alpha_dot)
    v_dot = 2 * float(k.beta) * float(k.beta_dot)
    total, total_dot = v + 0.25 * alpha**2, v_dot + 2 * alpha * alpha_dot * 0.25
    least = -0.5 * alpha_dot**2 * 5.25 - 3 * total_dot**2 / (8 * total)
    for got, want in zip((alpha, v, total, total_dot / (2 * total), alpha_dot, least), expected, strict=True):
        assert got == pytest.approx(want, rel=2e-8)


def test_end_of_the_data_path() -> None:
    assert DataHomotopy(1.0, 0.1).t1 == pytest.approx(4.6151, abs=5e-5)
    assert DataHomotopy(1.0, 0.01).t1 == pytest.approx(9.2104, abs=5e-5)
    path = DataHomotopy(1.3, 0.2)
    # The noise left at the paper's t = 1: v = omega^2 sigma^2 / (sigma^2 + omega^2).
    assert float(path.kernel(path.t1).beta) ** 2 == pytest.approx((1.3 * 0.2) ** 2 / (1.3**2 + 0.2**2))


@path_cases
def test_kernel_derivatives_match_autograd(path: Homotopy) -> None:
    t = grid(path).requires_grad_()
    k = path.kernel(t)
    for value, derivative in ((k.alpha, k.alpha_dot), (k.beta, k.beta_dot)):
        (got,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(got, derivative)


@path_cases
def test_gauge_and_read_out_match_their_definitions(path: Homotopy) -> None:
    t = grid(path)[1:]  # alpha = 0 at t0, where the definitions are 0/0
    k, gauge, c = path.kernel(t), path.gauge(t), path.density_coefficients(t)
    torch.testing.assert_close(gauge.quadratic, k.beta_dot / k.beta)
    torch.testing.assert_close(gauge.scale, k.alpha_dot - k.alpha * k.beta_dot / k.beta)
    # METHOD 3: (Phi - |x|^2 alpha'/(2 alpha)) / (v alpha'/alpha - v'/2)
    denominator = k.beta.square() * k.alpha_dot / k.alpha - k.beta * k.beta_dot
    torch.testing.assert_close(c.potential, 1 / denominator)
    torch.testing.assert_close(c.quadratic, -0.5 * (k.alpha_dot / k.alpha) / denominator)


def test_read_out_in_tau_is_the_published_form() -> None:
    path, tau = DataHomotopy(1.3, 0.1), torch.tensor([0.3, 2.0, 4.0], dtype=torch.float64)
    x, phi = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = (phi - x.square().sum(1) / (2 * (tau.exp() - 1))) / (0.5 * 1.3**2 * (-tau).exp() / torch.tanh(tau / 2))
    torch.testing.assert_close(path.log_density(phi, x, tau), expected)
    linear, t = LinearHomotopy(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(linear.log_density(phi, x, t), (t * phi - 0.5 * x.square().sum(1)) / (1 - t))


@path_cases
def test_float32_stays_accurate_at_both_ends(path: Homotopy) -> None:
    ends = torch.tensor([0.0, 1e-7, 1e-4, 1e-2, 0.5, 1 - 1e-2, 1 - 1e-4, 1.0], dtype=torch.float64)
    t32 = (path.t0 + (path.t1 - path.t0) * ends).float()
    t64 = t32.double()
    for method in (path.kernel, path.gauge, path.density_coefficients):
        for name, got in method(t32)._asdict().items():
            want = getattr(method(t64), name)
            assert got.dtype == torch.float32
            assert torch.isfinite(got).all()
            torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=0.0, msg=lambda m, n=name: f"{n}: {m}")


def test_read_out_at_the_start_is_the_prior() -> None:
    x, phi = torch.randn(4, 3), torch.randn(4)
    for path in PATHS:
        torch.testing.assert_close(path.log_density(phi, x, path.t0), -0.5 * x.square().sum(1) / path.omega**2)


@path_cases
def test_perturb_and_innovation(path: Homotopy) -> None:
    x_data, noise = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(6, 2, 3, dtype=torch.float64)
    t = grid(path, 6).requires_grad_()
    point = path.perturb(x_data, t, noise)
    k = path.kernel(t.detach())
    shape = (-1, 1, 1)
    torch.testing.assert_close(point.x.detach(), k.alpha.view(shape) * x_data + k.beta.view(shape) * noise)
    # velocity = d/dt of x at fixed noise
    ones = torch.ones_like(point.x)
    for row in range(6):
        (rate,) = torch.autograd.grad((point.x * ones)[row].sum(), t, retain_graph=True)
        assert float(rate[row]) == pytest.approx(float(point.velocity[row].sum().detach()), abs=1e-9)
    # innovation = -d/dt ln N(x; alpha x_data, beta^2 I) at fixed x
    time = grid(path, 6).requires_grad_()
    moving = path.kernel(time)
    log_density = (
        -0.5
        * ((point.x.detach() - moving.alpha.view(shape) * x_data).flatten(1).square().sum(1) / moving.beta.square())
        - 6 * moving.beta.log()
    )
    (slope,) = torch.autograd.grad(log_density.sum(), time)
    torch.testing.assert_close(point.innovation.detach(), -slope)


def test_innovation_in_the_paper_time_is_the_papers() -> None:
    """In raw t the innovation is (gamma - gamma_bar)/2, centred for each data point in closed form."""
    path, dimension = DataHomotopy(1.2, 0.3), 4
    x_data, noise = torch.randn(8, dimension, dtype=torch.float64), torch.randn(8, dimension, dtype=torch.float64)
    t = torch.rand(8, dtype=torch.float64)
    tau = path.from_paper_time(t)
    point = path.perturb(x_data, tau, noise)
    s2, w2 = 0.3**2, 1.2**2
    mu, v = t * w2 / (s2 + t * w2), w2 * s2 / (s2 + t * w2)
    gamma = (x_data - point.x).square().sum(1) / s2
    gamma_bar = (dimension * v + (1 - mu).square() * x_data.square().sum(1)) / s2
    dtau_dt = w2 / (s2 + t * w2)
    torch.testing.assert_close(point.innovation * dtau_dt, 0.5 * (gamma - gamma_bar))
    torch.testing.assert_close(path.to_paper_time(tau), t)
    assert float(path.from_paper_time(1.0)) == pytest.approx(path.t1)


@path_cases
def test_innovation_has_mean_zero_given_the_data_point(path: Homotopy) -> None:
    generator = torch.Generator().manual_seed(3)
    x_data = torch.tensor([[2.0, -1.0]], dtype=torch.float64).expand(100_000, 2)
    noise = torch.randn(100_000, 2, generator=generator, dtype=torch.float64)
    innovation = path.perturb(x_data, 0.5 * (path.t0 + path.t1), noise).innovation
    assert abs(float(innovation.mean())) < 4 * float(innovation.std()) / 100_000**0.5


@path_cases
def test_noise_position(path: Homotopy) -> None:
    assert float(path.noise_position(path.t0)) == pytest.approx(-1.0)
    assert float(path.noise_position(path.t1)) == pytest.approx(1.0)
    positions = torch.linspace(-1, 1, 9, dtype=torch.float64)
    times = path.time_at_noise_position(positions)
    torch.testing.assert_close(path.noise_position(times), positions)
    steps = path.kernel(times).beta.log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(8))


@path_cases
def test_config_round_trip(path: Homotopy) -> None:
    again = homotopy_from_config(path.config())
    assert again == path
    assert hash(again) == hash(path)
    assert repr(again) == repr(path)
    assert again != DataHomotopy(9.0, 0.5)


@pytest.mark.parametrize(
    "extreme",
    [DataHomotopy(1.0, 1e-15), DataHomotopy(1.0, 1e3), LinearHomotopy(1.0, 1e-6), LinearHomotopy(1e3, 0.999999)],
)
def test_the_widest_and_the_narrowest_paths_compute(extreme: Homotopy) -> None:
    times = extreme.time_at_noise_position(torch.linspace(-1, 1, 9, dtype=torch.float64))
    assert times[0] == pytest.approx(extreme.t0, abs=1e-9)
    assert times[-1] == pytest.approx(extreme.t1, rel=1e-6)
    weight = extreme.kernel(times.float()).beta.pow(-2)
    values = (
        *extreme.kernel(times.float()),
        *extreme.gauge(times.float()),
        *extreme.density_coefficients(times.float()),
    )
    assert all(torch.isfinite(value).all() for value in (weight, *values))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: DataHomotopy(omega=-1), ValueError, "omega must be a finite number > 0, got -1"),
        (lambda: DataHomotopy(omega=float("nan")), ValueError, "omega must be finite"),
        (
            lambda: DataHomotopy(sigma=1e-200),
            ValueError,
            "sigma must be between omega/1e15 and 1000 omega, got sigma=1e-2",
        ),
        (lambda: DataHomotopy(sigma=1e20), ValueError, "sigma must be between omega/1e15 and 1000 omega"),
        (lambda: LinearHomotopy(t1=1e-300), ValueError, "t1 must be at least 1e-6"),
        (lambda: homotopy_from_config({"class": "Other"}), ValueError, "homotopy class must be one of"),
        (lambda: homotopy_from_config({"class": "DataHomotopy", "s": 1}), ValueError, "cannot be built"),
        (lambda: PATHS[0].log_density(torch.ones(2), torch.ones(3, 2), 0.1), ValueError, "phi must have shape"),
        (lambda: PATHS[0].kernel(float("inf")), ValueError, "t must be finite"),
    ],
)
def test_bad_input(build, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        build()
