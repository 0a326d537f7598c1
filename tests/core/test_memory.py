"""How much memory counts as free: caches, containers, and what PyTorch keeps."""

import pytest
import torch

from vapo_fast.core import memory


def test_memory_that_holds_cached_files_counts_as_free(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemFree:  10 kB\nMemAvailable:    6000 kB\n")
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "meminfo")
    assert memory.free_memory(cpu) == 6000 * 1024
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "none")
    assert memory.free_memory(cpu) != 6000 * 1024


WHOLE = 6000 * 1024


def _group(place, limit, usage, cache):
    place.mkdir(parents=True, exist_ok=True)
    names = (
        ("memory.max", "memory.current")
        if cache == "inactive_file"
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    for name, text in zip((*names, "memory.stat"), (limit, usage, f"anon 5\n{cache} 400\nfile 7"), strict=True):
        (place / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("memberships", "groups", "free"),
    [
        ("0::/job/step\n", {"job/step": ("max", 0), "job": (5000, 3000)}, 2400),
        ("0::/job/step\n", {"job/step": (3000, 2999), "job": (5000, 3000)}, 401),
        ("0::/\n", {"": (900, 700)}, 600),
        ("0::/\n", {"": ("max", 700)}, WHOLE),
        ("0::/\n", {"": (700, 9000)}, 0),
        ("5:cpu:/a\n4:memory,pids:/outside/name\n0::/\n", {"memory": (900, 700)}, 600),
        ("4:memory:/a\n", {"memory/a": (9223372036854771712, 10)}, WHOLE),
        ("", {}, WHOLE),
    ],
)
def test_a_containers_limit_counts(memberships, groups, free, monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemAvailable: 6000 kB\n")
    (tmp_path / "own").write_text(memberships)
    for name, (limit, usage) in groups.items():
        kind = "total_inactive_file" if name.startswith("memory") else "inactive_file"
        _group(tmp_path / "groups" / name, limit, usage, kind)
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    found = memory.free_memory(torch.device("cpu"))
    assert found == free
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.free_memory(torch.device("cpu")) == found // 2


def test_what_pytorch_keeps_and_would_give_back_is_free(monkeypatch):
    def segment(size, active=0, device=1, pool=(0, 0)):
        return {"total_size": size, "active_size": active, "device": device, "segment_pool_id": pool}

    kept = [segment(100), segment(20), segment(1000, active=1), segment(3000, device=0), segment(5000, pool=(0, 7))]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: kept)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert memory.free_memory(torch.device("cuda", 1)) == 127
    assert memory.free_memory(torch.device("cuda")) == 3007
