"""The arms: one small adapter a peer, and vapo_fast's own engines."""

from __future__ import annotations

from benchmarks.peers import compiled, jax_client, torch_solvers, vapo_arms
from benchmarks.peers.base import Arm

ARMS: dict[str, Arm] = {
    arm.name: arm for arm in (*vapo_arms.ARMS, *torch_solvers.ARMS, *compiled.ARMS, *jax_client.ARMS)
}
