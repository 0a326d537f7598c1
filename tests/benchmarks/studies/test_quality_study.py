"""The study of training: its measure against a closed form, its heads, its command on a tiny run."""

import dataclasses

import pytest
import torch

import vapo_fast as vf
from benchmarks import pages, provenance
from benchmarks.studies.quality import heads, study
from benchmarks.studies.quality.group_norm import NormalisedBlock
from benchmarks.studies.quality.settings import ARMS, SETTINGS, network_of
from vapo_fast.noise import normal
from vapo_fast.potentials.blocks import ResidualBlock

SHAPE = (1, 8, 8)


@pytest.mark.parametrize("path", [vf.DataHomotopy(sigma=0.02), vf.LinearHomotopy(t1=0.98)], ids=repr)
def test_noise_left_is_the_posterior_variance_of_gaussian_data(path):
    # For data N(0, s^2 I): E|x_hat - x_data|^2 = D s^2 beta^2 / (alpha^2 s^2 + beta^2).
    s, n = 0.6, 4000
    data = s * normal(7, range(n), (16,), dtype=torch.float64)
    exact = vf.GaussianMixturePotential(torch.ones(1), torch.zeros(1, 16), s**2 * torch.eye(16)[None], path)
    found = study.noise_left(lambda x, t: exact.field(x, t)[1], path, data)
    for name, (most, least) in study.LEVELS.items():
        beta = most * (least / most) ** ((torch.arange(n, dtype=torch.float64) + 0.5) / n)
        alpha = path.kernel(path.time_at_noise_level(beta)).alpha
        assert found[name] == pytest.approx(float((s**2 / ((alpha * s) ** 2 + beta**2)).mean()), rel=0.03)
    worse = study.noise_left(lambda x, t: exact.field(x, t)[1] + 0.1, path, data)
    assert all(worse[name] > found[name] for name in found)


@pytest.mark.parametrize("name", list(heads.HEADS))
def test_every_head_starts_as_a_potential_that_can_learn(name):
    torch.manual_seed(0)
    model = heads.HEADS[name](SHAPE, vf.DataHomotopy(sigma=0.02), 8, (1, 2), 1, data_scale=0.7).double()
    x, t = normal(0, range(3), SHAPE, dtype=torch.float64), torch.tensor([0.5, 3.0, 7.0], dtype=torch.float64)
    phi, gradient = model.field(x, t)
    assert phi.shape == (3,)
    nudge = 1e-5 * normal(1, range(3), SHAPE, dtype=torch.float64)
    change = (model(x + nudge, t) - model(x - nudge, t)).detach() / 2
    torch.testing.assert_close(change, (gradient * nudge).flatten(1).sum(1), rtol=1e-6, atol=1e-12)
    loss = vf.energy_loss(model, 0.7 * x, t, normal(2, range(3), SHAPE, dtype=torch.float64)).total
    (found,) = torch.autograd.grad(loss, model.output.weight)
    assert float(found.abs().max()) > 0.0


def test_the_half_head_is_half_of_the_librarys():
    models = []
    for cls in (vf.UNetPotential, heads.HalfInner):
        torch.manual_seed(0)
        models.append(cls(SHAPE, vf.DataHomotopy(sigma=0.02), 8, (1, 2), 1))
        torch.nn.init.normal_(models[-1].output.weight, generator=torch.Generator().manual_seed(1))
    z, position = normal(0, range(4), SHAPE), torch.linspace(-1, 1, 4)
    whole, half = (model.network(z, position).detach() for model in models)
    torch.testing.assert_close(half, whole / 2)
    assert float(whole.abs().max()) > 1e-2


@pytest.mark.parametrize("arm", ARMS[:2])
def test_group_norm_normalises_every_block_and_has_no_explicit_passes(arm):
    setting = dataclasses.replace(SETTINGS["digits"], group_norm=True)
    torch.manual_seed(0)
    model = network_of(arm, setting, SHAPE)
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    assert blocks
    assert all(type(block) is NormalisedBlock for block in blocks)
    seen = []
    for block in blocks:
        torch.nn.init.normal_(block.second.weight, std=0.1)
        block.second.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    features = 7.0 + 100.0 * normal(1, range(2), (blocks[0].first.in_channels, 8, 8))
    embedding = normal(2, range(2), (blocks[0].film.in_features,))
    found = blocks[0](features, embedding)
    # Another scale and offset of all features: only the skip connection sees them.
    torch.testing.assert_close(
        blocks[0](3.0 * features - 5.0, embedding) - found, 2.0 * features - 5.0, rtol=1e-4, atol=1e-2
    )
    assert 0.0 < float(seen[0].abs().max()) < 50.0
    if arm == ARMS[0]:
        assert vf.Trainer(model).engine.name == "reference"


def test_a_variation_changes_what_it_says_and_nothing_else():
    setting = SETTINGS["digits"]
    assert study.VARIATIONS["none"].of(setting) == setting
    changed = study.VARIATIONS["batch 32, lr x 2"].of(setting)
    assert changed == dataclasses.replace(setting, batch_size=32, lr=2 * setting.lr)
    t = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    weight = study.VARIATIONS["weight x beta"].of(dataclasses.replace(setting, linear=False)).weight
    torch.testing.assert_close(weight(t), vf.DataHomotopy(sigma=setting.sigma).kernel(t).beta ** -1)
    weight = study.VARIATIONS["weight x beta"].of(dataclasses.replace(setting, linear=True)).weight
    torch.testing.assert_close(weight(t), 1.0 - t)


def test_the_command_runs_each_case_once_and_writes_the_page(tmp_path, capsys):
    (tmp_path / "s.md").write_text("\n".join(pages.marks("study")))
    arguments = ["digits", "--channels", "8", "--images", "128", "--csv", str(tmp_path / "s.csv")]
    arguments += ["--docs", str(tmp_path / "s.md"), "--only", "none", "betas .9, .99", "head <z + M, F>"]
    assert study.main(arguments) == 0
    rows = provenance.load(tmp_path / "s.csv")
    assert [(row["variation"], row["arm"]) for row in rows] == [
        ("none", ARMS[0]),
        ("none", ARMS[1]),
        ("betas .9, .99", ARMS[0]),
        ("betas .9, .99", ARMS[1]),
        ("head <z + M, F>", ARMS[0]),
    ]
    assert rows[0]["noise_left_high"] != rows[2]["noise_left_high"]
    assert {row["steps"] for row in rows} == {"2"}
    assert study.main(arguments) == 0
    assert provenance.load(tmp_path / "s.csv") == rows
    page = (tmp_path / "s.md").read_text()
    assert "| betas .9, .99 | flow matching | 1 | 2 |" in page
    assert "## digits, U-Net 8x(1, 2)x1, 128 images" in page
    again = dict(rows[0], frechet="55.5")
    study.write([dict(rows[0], frechet="11.5"), *rows[1:], again], tmp_path / "s.md")
    page = (tmp_path / "s.md").read_text()
    assert "| 55.5 |" in page
    assert "11.5" not in page
    capsys.readouterr()
