"""The arms: one small adapter a peer, and vapo_fast's own engines."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cases import Case
from benchmarks.peers import compiled, image_arms, jax_client, machine, torch_solvers, vapo_arms
from benchmarks.peers.base import Arm

ARMS: dict[str, Arm] = {
    arm.name: arm for arm in (*vapo_arms.ARMS, *torch_solvers.ARMS, *compiled.ARMS, *jax_client.ARMS)
}
"""Of MLPs, by name; arms of images depend on the case (`benchmarks.peers.image_arms`)."""


def names() -> list[str]:
    """Every arm's name, without the precision of those of images."""
    return list(dict.fromkeys((*ARMS, *image_arms.NAMES)))


def arms_for(case: Case, among: Sequence[str] | None = None) -> list[Arm]:
    """The arms that do a case's job on its device, all or those named, and what measures the machine beside them."""
    if case.of_images:
        arms = image_arms.arms_of(case)
        return [arm for arm in arms if among is None or {arm.name, arm.name.partition(", ")[0]} & set(among)]
    arms = [ARMS[name] for name in (ARMS if among is None else among) if name in ARMS]
    return [arm for arm in (*arms, *machine.ARMS) if case.job in arm.jobs and case.device in arm.devices]
