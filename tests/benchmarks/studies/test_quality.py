"""The flow-matching baseline against closed forms and the potential whose layers it has; the kit on tiny budgets."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import vapo_fast as vf
from benchmarks import pages, provenance
from benchmarks.studies.quality import __main__ as kit
from benchmarks.studies.quality import arms, flow_matching, report, results
from benchmarks.studies.quality.flow_matching import FlowMatching
from benchmarks.studies.quality.settings import ARMS, SETTINGS, network_of, options_of, path_of
from benchmarks.studies.quality.velocity import VelocityUNet
from vapo_fast.loss import Batch
from vapo_fast.noise import normal
from vapo_fast.training.batches import Batches, as_source, training_batch
from vapo_fast.training.options import TrainingOptions

SHAPE = (2, 8, 8)
PATHS = [vf.DataHomotopy(1.0, 0.05), vf.LinearHomotopy(1.0, 0.9)]


def network(path=PATHS[0], gauge=True, patch_size=2, start=0.05):
    torch.manual_seed(0)
    model = VelocityUNet(SHAPE, path, 6, (1, 1.5), 1, patch_size=patch_size, data_scale=0.6, gauge=gauge)
    torch.nn.init.normal_(model.trunk.output.weight, std=start)
    for block in model.trunk.modules():
        if hasattr(block, "second"):
            torch.nn.init.normal_(block.second.weight, std=0.1)
    return model.double()


def options(**changes):
    return TrainingOptions(**{"lr": 1e-3, "batch_size": 8, "weight": "inverse_variance", "seed": 3, **changes})


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_image_is_what_the_potential_takes_the_inner_product_with(patch_size):
    model = network(patch_size=patch_size)
    z, position = normal(0, range(4), SHAPE, dtype=torch.float64), torch.linspace(-1, 1, 4, dtype=torch.float64)
    inner = (z * model.image(z, position)).flatten(1).sum(1)
    torch.testing.assert_close(inner, model.trunk.network(z, position), rtol=1e-10, atol=1e-12)
    assert float(inner.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_in_the_gauge_it_starts_as_the_exact_velocity_of_gaussian_data(path):
    model = network(path, start=0.0)
    covariance = 0.36 * torch.eye(128, dtype=torch.float64)
    exact = vf.GaussianMixturePotential(torch.ones(1), torch.zeros(1, 128), covariance[None], path)
    x = normal(1, range(5), SHAPE, dtype=torch.float64)
    for fraction in (0.0, 0.3, 1.0):
        t = torch.full((5,), path.t0 + fraction * (path.t1 - path.t0), dtype=torch.float64)
        velocity = model(x, t).detach()
        torch.testing.assert_close(velocity.flatten(1), exact.field(x.flatten(1), t)[1], rtol=1e-9, atol=1e-9)


def test_without_the_gauge_the_image_is_the_velocity():
    model = network(gauge=False)
    x, t = normal(1, range(3), SHAPE, dtype=torch.float64), torch.tensor([0.1, 2.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(model(x, t), model.image(x, PATHS[0].noise_position(t)))


@pytest.mark.parametrize("weight", ["inverse_variance", "uniform"])
def test_its_loss_is_the_energy_loss_up_to_what_no_parameter_changes(weight):
    # For one and the same field, E w |v - u|^2 / 2 = energy loss + E w |u|^2 / 2.
    model = network(start=0.0)
    batch = training_batch(
        as_source(0.5 * normal(2, range(16), SHAPE, dtype=torch.float64), SHAPE),
        0,
        homotopy=model.homotopy,
        seed=1,
        batch_size=16,
        time_sampling="log_noise",
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    matched = FlowMatching(model, options(weight=weight)).loss(*batch)
    energy = vf.energy_loss(model.trunk, *batch, weight=weight).total
    u = model.homotopy.perturb(*batch).velocity.flatten(1).square().sum(1)
    w = model.homotopy.kernel(batch.t).beta ** -2 if weight == "inverse_variance" else torch.ones_like(u)
    torch.testing.assert_close(matched, energy + 0.5 * (w * u).mean(), rtol=1e-10, atol=1e-10)


def test_training_learns_and_follows_the_schedule_and_the_average():
    data = 0.5 * normal(5, range(32), SHAPE) + torch.tensor([0.8, -0.8])[:, None, None]
    model = network().float()
    run = FlowMatching(model, options(lr=3e-3, ema_decay=0.9, warmup_steps=2))
    fixed = training_batch(
        as_source(data, SHAPE), 999, homotopy=model.homotopy, seed=8, batch_size=32, time_sampling="log_noise",
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    before = float(run.loss(*fixed).detach())
    seen = []
    run.fit(data, 40, seen.append)
    assert seen == list(range(1, 41))
    assert float(run.loss(*fixed).detach()) < 0.8 * before
    rate = run.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(3e-3 * 0.5 * (1 + math.cos(math.pi * 39 / 40)))
    lag = [(a - b).detach().abs().max() for a, b in zip(run.average.parameters(), model.parameters(), strict=True)]
    assert 0.0 < float(max(lag)) < 0.1
    again = FlowMatching(network().float(), options(lr=3e-3, ema_decay=0.9, warmup_steps=2))
    again.fit(data, 40)
    assert all(torch.equal(a, b) for a, b in zip(again.average.parameters(), run.average.parameters(), strict=True))


def test_a_single_point_of_data_is_reproduced():
    # Data at one point m: the velocity must carry every prior draw to alpha m + beta noise.
    shape = (1, 4, 4)
    torch.manual_seed(0)
    model = VelocityUNet(shape, vf.DataHomotopy(sigma=0.05), 8, (1,), 1, data_scale=0.4)
    untrained = flow_matching.sample(model, 20, rtol=1e-3, seed=1).x
    run = FlowMatching(model, options(lr=1e-2, batch_size=16, warmup_steps=5, ema_decay=0.9))
    run.fit(torch.full((1, *shape), 0.4), 200)
    solution = flow_matching.sample(run.average, 20, rtol=1e-3, seed=1)
    assert solution.x.shape == (20, *shape)
    # What is left is the path's own noise, .05.
    assert float((solution.x - 0.4).square().mean().sqrt()) < 0.1
    assert float((untrained - 0.4).square().mean().sqrt()) > 0.4


def test_samples_do_not_depend_on_the_batch_and_share_the_prior_with_the_potential():
    model = network(start=0.0).float()
    whole, split = (flow_matching.sample(model, 6, rtol=1e-4, seed=2, batch_size=size).x for size in (6, 4))
    torch.testing.assert_close(whole, split, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, vf.sample(model.trunk, 6, rtol=1e-4, seed=2), rtol=0, atol=1e-4)


def test_all_arms_of_one_backbone_have_the_same_parameters_and_start():
    shape, found = (1, 8, 8), {}
    for arm in ARMS[:3]:
        torch.manual_seed(4)
        found[arm] = network_of(arm, SETTINGS["digits"], shape)
    counts = {flow_matching.parameters(model) for model in found.values()}
    assert len(counts) == 1
    first = list(found[ARMS[0]].state_dict().values())
    for arm in ARMS[1:3]:
        assert all(torch.equal(a, b) for a, b in zip(first, found[arm].state_dict().values(), strict=True))
    wide = network_of(ARMS[3], SETTINGS["digits"], shape)
    assert isinstance(wide, vf.WideResNetPotential)
    assert 0.8 < flow_matching.parameters(wide) / min(counts) < 1.25


def test_all_arms_have_the_same_path_and_options():
    setting = SETTINGS["digits"]
    assert {path_of(arm, setting) for arm in ARMS} == {vf.LinearHomotopy(t1=0.98)}
    first = options_of(ARMS[0], setting, 7)
    assert (first.weight, first.time_sampling) == ("uniform", "uniform")
    assert all(options_of(arm, setting, 7) == first for arm in ARMS)


def test_an_arm_may_have_a_rate_of_its_own():
    setting = replace(SETTINGS["digits"], rates={ARMS[2]: 1e-5})
    assert [options_of(arm, setting, 0).lr for arm in ARMS] == [setting.lr, setting.lr, 1e-5, setting.lr]


def test_on_the_data_homotopy_only_the_plain_arm_differs_and_ends_at_the_same_noise():
    setting = replace(SETTINGS["digits"], linear=False)
    others = [options_of(arm, setting, 7) for arm in ARMS if arm != ARMS[2]]
    assert all((o.weight, o.time_sampling) == ("inverse_variance", "log_noise") for o in others)
    assert options_of(ARMS[2], setting, 7) == options_of(ARMS[2], SETTINGS["digits"], 7)
    ends = [float(path.kernel(path.t1).beta) for path in (path_of(arm, setting) for arm in ARMS)]
    assert max(ends) / min(ends) < 1.001


def test_step_times_take_turns_and_leave_out_the_first():
    clock = iter(range(10_000))
    calls = []

    class Counted(arms.Arm):
        def __init__(self, name, cost):
            self.name, self.cost, self.engine = name, cost, "none"

        def fit(self, data, steps, after_step=None):
            calls.append(self.name)
            for step in range(1, steps + 1):
                for _ in range(self.cost):
                    next(clock)
                after_step(step)

        def averaged(self):
            raise NotImplementedError

        def sample(self, model, n, rtol, seed):
            raise NotImplementedError

    makers = {"a": lambda: Counted("a", 2), "b": lambda: Counted("b", 5)}
    found = arms.step_seconds(makers, None, torch.device("cpu"), lambda: float(next(clock)), rounds=3)
    assert calls == ["a", "b"] * 3
    # A reading of the clock itself counts one; it falls into the timed steps once.
    assert found == {"a": pytest.approx(2.125), "b": pytest.approx(5.125)}


@pytest.fixture
def page(tmp_path):
    """A page with marks and nothing between them."""
    path = tmp_path / "q.md"
    path.write_text("\n".join(line for name in SETTINGS for line in pages.marks(name)))
    return path


def test_the_whole_command_on_a_tiny_budget(tmp_path, capsys, page):
    arguments = [
        "digits",
        "--images",
        "128",
        "--samples",
        "20",
        "--rtol",
        "1e-2",
        "--extractor",
        "pixels",
        "--n",
        "200",
    ]
    arguments += ["--channels", "8", "--fractions", "0.5", "1", "--csv", str(tmp_path / "q.csv"), "--device", "cpu"]
    arguments += ["--docs", str(tmp_path / "q.md"), "--pictures", str(tmp_path), "--keep", str(tmp_path / "kept")]
    arguments += ["--arms", *ARMS]
    assert kit.main(arguments) == 0
    rows = provenance.load(tmp_path / "q.csv")
    assert [(row["arm"], row["fraction"]) for row in rows] == [(arm, f) for arm in ARMS for f in ("0.5", "1.0")]
    assert {row["images"] for row in rows} == {"64", "128"}
    assert {int(row["steps"]) * int(row["batch_size"]) for row in rows} == {128}
    assert rows[0]["engine"] in vf.engines()
    assert {row["engine"] for row in rows[2:6]} == {"autograd"}
    assert rows[6]["engine"] in vf.engines()
    assert all(float(row[name]) == float(row[name]) for row in rows for name in results.METRICS)
    assert all(0 <= float(row["recall"]) <= 1 for row in rows)
    assert isinstance(vf.load(tmp_path / "kept" / "digits-seed0.safetensors"), vf.UNetPotential)
    assert isinstance(vf.load(tmp_path / "kept" / "digits-wide-resnet-seed0.safetensors"), vf.WideResNetPotential)
    assert "FD of the potential over that of flow matching, plain:" in pages.written(page, "digits")
    assert pages.written(page, "cifar10") == "Not run yet."
    assert (tmp_path / "quality_digits.png").stat().st_size > 2000
    capsys.readouterr()


@pytest.fixture
def cifar_folder(tmp_path):
    """An image folder as that of CIFAR-10: JPEG files in train/CLASS and test/CLASS, of 32x32 colours."""
    pytest.importorskip("PIL")
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 8)):
        for name in ("airplane", "truck"):
            folder = tmp_path / "cifar" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                colours = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(colours).resize((32, 32), Image.Resampling.BILINEAR).save(folder / f"{i:04}.jpg")
    return tmp_path / "cifar"


def test_the_cifar_command_on_a_tiny_folder(cifar_folder, tmp_path, capsys, monkeypatch, page):
    """The page's command, but for its budget, backbone and device: an image folder, flips, bf16, a compiled baseline,
    two arms, and the page with both."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    monkeypatch.setitem(SETTINGS, "cifar10", replace(SETTINGS["cifar10"], multipliers=(1, 1.5), blocks=1))
    arguments = ["cifar10", "--data", str(cifar_folder), "--images", "4", "--precision", "bf16", "--compile"]
    arguments += [
        "--arms",
        *ARMS[:2],
        "--fractions",
        "1",
        "--keep",
        str(tmp_path / "kept"),
        "--csv",
        str(tmp_path / "q.csv"),
    ]
    arguments += ["--docs", str(tmp_path / "q.md"), "--pictures", str(tmp_path), "--device", "cpu"]
    tiny = [
        "--channels",
        "4",
        "--batch-size",
        "4",
        "--samples",
        "6",
        "--rtol",
        "2e-2",
        "--extractor",
        "cnn",
        "--cache",
        str(tmp_path),
    ]
    assert kit.main([*arguments, *tiny]) == 0
    ours, theirs = provenance.load(tmp_path / "q.csv")
    assert (ours["arm"], theirs["arm"]) == ARMS[:2]
    assert (ours["engine"], theirs["engine"]) == ("graph", "autograd, compiled")
    assert {row["arithmetic"] for row in (ours, theirs)} == {"bf16"}
    assert {row["parameters"] for row in (ours, theirs)} == {ours["parameters"]}
    assert {row["n_real"] for row in (ours, theirs)} == {"24"}
    assert len(compiled) == 1
    assert options_of(ARMS[0], SETTINGS["cifar10"], 0).augment == "flip"
    assert "FD of the potential over that of flow matching:" in pages.written(page, "cifar10")
    assert (tmp_path / "quality_cifar10.png").stat().st_size > 2000
    assert isinstance(vf.load(tmp_path / "kept" / "cifar10-seed0.safetensors"), vf.UNetPotential)
    capsys.readouterr()


def test_the_pages_commands_are_the_kits():
    text = report.DOCS.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line.split() for line in text.splitlines() if line.startswith("python -m benchmarks.studies.quality")]
    found = [kit._parser().parse_args(words[3:]) for words in commands]
    assert [options.setting for options in found] == ["cifar10", "celeba"]
    assert {options.device for options in found} == {"cuda"}


@pytest.mark.parametrize("augment", [None, "flip"])
@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_are_those_of_the_trainer_prepared_ahead_or_not(ahead, augment):
    model, data = network(), normal(3, range(20), SHAPE)
    run = FlowMatching(model.float(), options(prefetch=ahead, augment=augment))
    wanted = Batches(
        as_source(data, SHAPE), model.homotopy, 3, 8, "log_noise", torch.device("cpu"), torch.float32, augment
    )
    with run._batches(data, range(4, 9)) as batch_of:
        for step in range(4, 9):
            for found, part in zip(batch_of(step), wanted(step), strict=True):
                assert torch.equal(found, part)


def test_batches_are_drawn_by_the_device_where_it_can(monkeypatch):
    """As the trainer's captured step draws them: with the step's number in a tensor."""
    seen = []

    class Drawing:
        def prepare(self, step):
            seen.append(step)

        def __call__(self, step):
            assert step.dtype == torch.int64
            return Batch(*3 * (torch.full((2,), float(step)),))

    monkeypatch.setattr(flow_matching.DeviceBatches, "of", staticmethod(lambda batches: Drawing()))
    run = FlowMatching(network().float(), options())
    with run._batches(normal(3, range(20), SHAPE), range(2, 5)) as batch_of:
        assert [float(batch_of(step).t[0]) for step in range(2, 5)] == [2.0, 3.0, 4.0]
    assert seen == [2, 3, 4]


def test_a_budget_of_time_gives_each_arm_its_own_steps(tmp_path, capsys, page):
    arguments = ["digits", "--seconds", "0.4", "--clock", "cpu", "--samples", "10", "--rtol", "1e-2", "--n", "100"]
    arguments += ["--extractor", "pixels", "--channels", "8", "--fractions", "1", "--csv", str(tmp_path / "q.csv")]
    arguments += ["--docs", str(tmp_path / "q.md"), "--pictures", str(tmp_path), "--device", "cpu"]
    arguments += ["--arms", *ARMS[:2]]
    assert kit.main(arguments) == 0
    first, second = provenance.load(tmp_path / "q.csv")
    assert first["budget"] == second["budget"] == "0.4 s of CPU time"
    assert int(second["steps"]) > int(first["steps"]) >= 1
    assert "seconds a step: potential" in capsys.readouterr().out


def test_the_page_shows_the_newest_protocol_and_means_over_seeds(tmp_path, page):
    columns = (*("date", "commit", "machine", "threads", "torch"), *results.COLUMNS)

    def row(arm, seed, frechet, **changes):
        blank = dict.fromkeys(columns, "1")
        facts = {"set": "digits", "arm": arm, "seed": str(seed), "budget": "9 s", "fraction": "1.0", "frechet": frechet}
        return blank | facts | {"frechet_floor": "2.0", "backbone": "b", "arithmetic": "auto"} | changes

    rows = [
        row("potential", 0, "99", budget="1 s"),
        row("flow matching", 1, "99", lr="2"),
        row("potential", 0, "7.0"),
        row("potential", 0, "4.0"),
        row("potential", 1, "8.0"),
        row("flow matching", 0, "3.0"),
        row("flow matching, plain", 0, "50.0", lr="3"),
        row("flow matching, plain", 1, "900.0", lr="3"),
        row("flow matching, plain", 0, "12.0", lr="0.5"),
    ]
    with (tmp_path / "q.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    report.write(provenance.load(tmp_path / "q.csv"), page)
    page = page.read_text()
    assert "| potential | 1 | 1 (1) | 6 ± 2.83 (2) | 3.00 |" in page
    assert "lr 1 (flow matching, plain: 0.5)" in " ".join(page.split())
    assert "| flow matching, plain | 1 | 1 (1) | 12 (2) | 6.00 |" in page
    assert "FD of the potential over that of flow matching: 2.00 (means over seeds)." in page
    assert "99" not in page
    assert "FD of the potential over that of flow matching, plain: 0.50 (means over seeds)." in page
