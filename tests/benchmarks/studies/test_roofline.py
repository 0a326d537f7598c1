"""The rooflines of CUDA's kernels, as far as they show without a device: counts, shares, profiles and launches."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import provenance
from benchmarks.cases import SHAPES, Case, on
from benchmarks.devices import Accelerator
from benchmarks.flops import field_flops, loss_flops, product_shapes
from benchmarks.studies import roofline, traffic

H100 = Accelerator("H100", "580.1, CUDA 13.0", "3.6.0")
TOPS = roofline.Peaks(50.0, 400.0, 800.0, 6000.0, 3000.0)
TILE = SimpleNamespace(rows=64, block_n=64, block_k=32, warps=4, stages=2, precision="tf32x3")


def roof(**more: object) -> roofline.Roof:
    (case,) = on("cuda", [Case("field", "random", *SHAPES[1], 65_536, 2)])
    launch = roofline.Launch("_field", TILE, 264)
    one = roofline.row("2026-01-01T00:00:00Z", case, launch, 1, 1e-3, "profiler", TOPS, 6 * 10**10, 3 * 10**9, 10**7)
    given = {**vars(one), "accelerator": "H100", "date": "2026-01-01", "commit": "abc", "torch": "2.11"}
    return roofline.Roof(**{**given, **more})


def test_a_roofs_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roofline, "accelerator", lambda device: H100)
    one = roof()
    assert one.tflops == pytest.approx(60.0)
    assert one.share == pytest.approx(60.0 / (400.0 / 3.0))  # three TF32 products for one
    assert one.share_float32 == pytest.approx(1.2)
    assert one.l2_gbs == pytest.approx(3000.0)
    assert one.share_l2 == pytest.approx(0.5)
    assert one.tile == "64x64x32 w4 s2"
    assert [TOPS.of(name) for name in ("ieee", "tf32", "bf16", "")] == [50.0, 400.0, 800.0, None]
    path = tmp_path / "roofline.csv"
    provenance.write([one, roof(run="2025-01-01T00:00:00Z", flops=None, tflops=None, share=None)], path)
    first, second = provenance.read(path, roofline.Roof)
    assert (first.kernel, first.tflops, second.share) == ("_field", 60.0, None)
    assert provenance.last_run([first, second]) == [first]


def test_bytes_are_counted_from_shapes():
    blocks = traffic.Blocks(64, 32, 16)
    # One tile, one layer of one block: x twice, z and gradient; both products; what lies between them.
    by_hand = 4 * 64 * 2 + (2 * 32 + 64 * 2 + 2 * 64 * 32) + 3 * 64 * 32 + (32 * 2 + 64 * 32 + 64 * 2)
    assert traffic.field_l2_bytes(64, 2, (32,), blocks) == 4 * by_hand
    assert traffic.field_l2_bytes(65, 2, (32,), blocks) == 2 * traffic.field_l2_bytes(64, 2, (32,), blocks)
    wide = traffic.Blocks(64, 128, 16)
    shape = 6400, 64, (256,) * 3
    assert traffic.field_l2_bytes(*shape, wide) < traffic.field_l2_bytes(*shape, blocks)
    assert loss_flops(*shape) == 3 * field_flops(*shape)
    assert traffic.loss_l2_bytes(*shape, blocks) > 2 * traffic.field_l2_bytes(*shape, blocks)
    alone = traffic.field_l2_bytes(640, 64, (256,), blocks)
    assert traffic.solve_l2_bytes(640, 64, (256,), blocks, 7) == alone + int(4 * 640 * 64 * 6.5)
    assert sum(2 * a * b * c for a, b, c in product_shapes(*shape)) == field_flops(*shape)


def test_scratch_beyond_the_cache_goes_through_memory(monkeypatch: pytest.MonkeyPatch):
    """132 programs of 128 rows, 256x3: two activations and three derivatives, z and two more, 93 MiB."""
    pytest.importorskip("vapo_fast.kernels.shapes")
    footprint = traffic.scratch_bytes(132 * 128, 64, (256,) * 3, 5)
    assert footprint == 4 * 132 * 128 * (5 * 256 + 3 * 64)
    assert traffic.spilled_bytes(2.5, footprint, footprint) == 0
    assert traffic.spilled_bytes(2.5, footprint, footprint - 1000) == 5000
    properties = SimpleNamespace(L2_cache_size=50 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    (case,) = on("cuda", [Case("field", "random", *SHAPES[1], 65_536, 2)])
    launch = roofline.Launch("_field", SimpleNamespace(rows=128), 132)
    assert roofline._spilled(case, launch, 65_536) == int(2 * 65_536 / (132 * 128) * (footprint - 50 * 2**20))
    few = roofline.Launch("_field", SimpleNamespace(rows=128), 10)
    assert roofline._spilled(case, few, 65_536) == 0


def test_a_profiles_kernels_are_added_up_by_name():
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU

    def event(name: str, device: object, micros: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: micros))

    events = [event("_solve", cuda, 100.0), event("_solve", cuda, 50.0), event("cudaLaunchKernel", cpu, 9.0)]
    events += [event("Memcpy DtoH", cuda, 3.0), event("Memset", cuda, 2.0)]
    assert roofline.device_times(events) == {"_solve": pytest.approx(1.5e-4)}
    assert roofline.device_times(None) == {}


def test_launches_are_seen_and_let_through(monkeypatch: pytest.MonkeyPatch):
    launch = pytest.importorskip("vapo_fast.kernels.launch")
    done: list[object] = []
    monkeypatch.setattr(launch.Program, "launch", lambda self, kernel, *rest, **more: done.append(kernel))
    kernel = SimpleNamespace(__name__="_field")
    with roofline.launches() as seen:
        launch.Program(TILE, 7).launch(kernel, 3)
    launch.Program(TILE, 7).launch(kernel, 3)
    assert seen == [roofline.Launch("_field", TILE, 7)]
    assert done == [kernel, kernel]
