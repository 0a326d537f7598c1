"""The key of a model's recordings: equal while they stay valid, different after whatever Python may decide by."""

import gc
import operator
from collections import deque
from functools import partial

import pytest
import torch
from torch import nn

import vapo_fast as vf
from vapo_fast.engines.graph.fingerprint import fingerprint

PATH = vf.DataHomotopy(1.0, 0.1)


class Settings:
    def __init__(self):
        self.power = 2


class Slotted:
    __slots__ = ("power",)

    def __init__(self):
        self.power = 2


class Hook:
    def __init__(self):
        self.gain = 1.0

    def __call__(self, module, given, out):
        return self.gain * out

    def applied(self, y):
        return self.gain * y


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.scale = 1.5
        self.settings = Settings()
        self.parts = [nn.Linear(4, 4)]  # hidden from torch.nn
        self.table = torch.ones(4)
        self.register_buffer("shift", torch.zeros(4))
        amount = [1.0]
        self.function = lambda y: y * amount[0]
        self.amount = amount
        self.slotted = Slotted()
        self.last = deque([1.0, 2.0])
        self.hook, self.owner, self.bound = Hook(), Hook(), Hook()
        self.inner.register_forward_hook(self.hook)
        self.method = self.owner.applied
        self.partial = partial(operator.mul, self.bound)
        del self.__dict__["hook"], self.__dict__["owner"], self.__dict__["bound"]  # reached by what uses them alone

    def forward(self, x):
        y = self.parts[0](self.inner(x)) + self.shift
        return (self.function(y.tanh()) ** self.settings.power * self.scale * self.table).sum(1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return vf.Potential.from_module(Head(), (3,), PATH)


def test_the_same_model_and_new_values_of_its_tensors(model):
    before = fingerprint(model)
    assert fingerprint(model) == before
    assert hash(fingerprint(model)) == hash(before)
    with torch.no_grad():
        model.module.inner.weight.mul_(2.0)
        model.module.shift.add_(1.0)
    model.load_state_dict(model.state_dict())
    assert fingerprint(model) == before
    model.field(torch.ones(2, 3))
    assert fingerprint(model) == before


CHANGES = {
    "a parameter's place": lambda m: setattr(
        m.module.inner, "weight", nn.Parameter(m.module.inner.weight.detach().clone())
    ),
    "a parameter's data": lambda m: setattr(m.module.inner.weight, "data", m.module.inner.weight.detach().clone()),
    "a parameter's layout": lambda m: setattr(m.module.parts[0].weight, "data", m.module.parts[0].weight.data.t()),
    "dtype": lambda m: m.double(),
    "a buffer": lambda m: m.module.register_buffer("shift", torch.ones(4)),
    "a tensor attribute": lambda m: setattr(m.module, "table", torch.full((4,), 2.0)),
    "mode": lambda m: m.eval(),
    "mode of one part": lambda m: m.module.inner.eval(),
    "a module": lambda m: setattr(m.module, "inner", nn.Linear(3, 4)),
    "a module in a list": lambda m: m.module.parts.__setitem__(0, nn.Linear(4, 4)),
    "a new module": lambda m: setattr(m.module, "more", nn.Identity()),
    "a forward hook": lambda m: m.module.inner.register_forward_hook(lambda *_: None),
    "a pre-hook": lambda m: m.module.inner.register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda m: m.module.inner.register_full_backward_hook(lambda *_: None),
    "a number": lambda m: setattr(m.module, "scale", 1.25),
    "a number's type": lambda m: setattr(m.module.settings, "power", 2.0),
    "a number inside an object": lambda m: setattr(m.module.settings, "power", 3),
    "an object": lambda m: setattr(m.module, "settings", Settings()),
    "a method": lambda m: setattr(m.module, "forward", lambda x: x.sum(1)),
    "a function": lambda m: setattr(m.module, "function", lambda y: 2.0 * y),
    "what a function closes over": lambda m: m.module.amount.__setitem__(0, 3.0),
    "a number in slots": lambda m: setattr(m.module.slotted, "power", 3),
    "a number in a queue": lambda m: m.module.last.append(3.0),
    "what a hook goes by": lambda m: setattr(next(iter(m.module.inner._forward_hooks.values())), "gain", 2.0),
    "what a method goes by": lambda m: setattr(m.module.method.__self__, "gain", 2.0),
    "what a partial function goes by": lambda m: setattr(m.module.partial.args[0], "gain", 2.0),
    "the path": lambda m: setattr(m, "homotopy", vf.DataHomotopy(1.0, 0.2)),
    "time": lambda m: setattr(m, "time_dependent", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(model, change):
    before = fingerprint(model)
    CHANGES[change](model)
    assert fingerprint(model) != before


def test_hooks_for_all_modules_are_seen(model):
    before = fingerprint(model)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert fingerprint(model) != before
    finally:
        handle.remove()
    assert fingerprint(model) == before


def test_a_module_in_the_place_of_one_that_is_gone_is_another(model):
    """An address that is used again does not make a key equal."""
    keys = []
    for _ in range(4):
        model.module.function = None
        gc.collect()
        model.module.function = nn.Identity()
        keys.append(fingerprint(model))
    assert all(a != b for i, a in enumerate(keys) for b in keys[:i])


def test_a_key_keeps_nothing_alive():
    import weakref

    model = vf.Potential.from_module(Head(), (3,), PATH)
    key, gone = fingerprint(model), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert key == key


def test_cycles_end(model):
    model.module.settings.owner = model.module.settings
    model.module.settings.module = model
    assert fingerprint(model) == fingerprint(model)
