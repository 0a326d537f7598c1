"""Bad inputs, each with what a user sees: the lines are run, and docs/bad_inputs.md is written from the outcome.

``python -m tests.test_bad_inputs`` writes the page anew; the last test fails while the page shows something else.
"""

import contextlib
import gzip
import os
import re
import resource
import shlex
import signal
import struct
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import vapo_fast as vf
from tests.support.bad_input_cases import CASES, SETUP, Case
from vapo_fast.cli.app import app
from vapo_fast.core import extension
from vapo_fast.sampling import batching

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bad_inputs.md"


class Outcome(NamedTuple):
    kind: type[BaseException] | int | None
    text: str


def make_files(names: dict[str, Any]) -> None:
    """The files that the lines name, in the current folder."""
    folders = ("empty", "sizes", "damaged_image", "other_pickle")
    for folder in folders:
        Path(folder).mkdir()
    Path("notes.txt").write_text("not data\n")
    header = struct.pack(">HBBIII", 0, 8, 3, 5, 4, 4)
    Path("truncated-idx3-ubyte").write_bytes(header + bytes(60))
    Path("damaged-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(80), mtime=0)[:20])
    Path("text-idx3-ubyte").write_text("not an idx file\n")
    for i in range(1, 6):
        # A pickle that would run os.system.
        Path(f"other_pickle/data_batch_{i}").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for i, side in enumerate((4, 6)):
        Image.new("L", (side, side)).save(f"sizes/{i}.png")
    Path("damaged_image/0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    Path("text.npy").write_text("not an array\n")
    np.save("objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save("integers.npy", np.ones((3, 2), dtype=np.int64))
    np.save("nan.npy", np.where(np.arange(24).reshape(12, 2) == 5, np.nan, 1.0).astype(np.float32))
    np.save("rows_0.npy", np.empty((0, 2), dtype=np.float32))
    Path("unknown_key.yaml").write_text("data: 8gaussians\nbatchsize: 8\n")
    Path("wrong_value.yaml").write_text("data: 8gaussians\nlr: fast\n")
    Path("broken.yaml").write_text("data: [8gaussians\n")
    model = names["model"]
    vf.save(model, "model.safetensors")
    vf.save(names["image"], "image.safetensors")
    linear = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Linear(8, 1), torch.nn.Flatten(0))
    vf.save(vf.Potential.from_module(linear, (2,), names["path"]), "module.safetensors")
    whole = Path("model.safetensors").read_bytes()
    Path("truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"weight": torch.ones(2)}, "foreign.safetensors")
    change_description("newer.safetensors", '"format_version": 1', '"format_version": 2')
    change_description("other_widths.safetensors", '"widths": [16, 16]', '"widths": [32, 16]')
    change_description("unknown_class.safetensors", "MLPPotential", "TransformerPotential")
    vf.Trainer(model, batch_size=8).fit(torch.randn(8, 2), 5, callbacks=[names["Checkpointer"]("run")])


def change_description(path: str, old: str, new: str) -> None:
    with safe_open("model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        # As a version without digests would have written it.
        text = re.sub(r', "sha256": "[0-9a-f]{64}"', "", file.metadata()["vapo_fast"])
    assert old in text
    save_file(tensors, path, {"vapo_fast": text.replace(old, new)})


@contextlib.contextmanager
def circumstances(given: str, names: dict[str, Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VAPO_FAST_ENGINE", raising=False)
        patch.delenv("VAPO_FAST_DATA", raising=False)
        patch.setenv("COLUMNS", "200")
        if match := re.fullmatch(r"(\w+)=(\w+)", given):
            patch.setenv(match[1], match[2])
        elif match := re.fullmatch(r"(\d+) kB of free memory", given):
            patch.setattr(batching, "free_memory", lambda device: 1000 * int(match[1]))
        elif match := re.fullmatch(r"a disk with (\d+) kB left", given):
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * int(match[1]), hard))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return
        elif given:
            killed_while_saving(names["image"], "model.safetensors")
        yield


def killed_while_saving(model: vf.Potential, path: str) -> None:
    """A process is killed between writing the new file and putting it in the old one's place."""
    child = os.fork()
    if child == 0:
        try:
            Path.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
            vf.save(model, path)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def run(case: Case) -> Outcome:
    """Do what the line says, in the current folder, and tell what a user sees."""
    names: dict[str, Any] = {}
    exec(SETUP, names)
    with circumstances(case.given, names), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if case.line.startswith("vapo-fast "):
            result = CliRunner().invoke(app, shlex.split(case.line)[1:])
            # Of several lines the error is the last; the frames that the terminal's width decides are left out.
            text = "".join(" " if c in "│╭╮╰╯─" else c for c in result.stderr)
            return Outcome(result.exit_code, normal(text[max(0, text.rfind("error: ")) :]))
        *statements, last = case.line.split("; ")
        try:
            exec("; ".join(statements), names)
            value = eval(last, names)
        except BaseException as error:
            return Outcome(type(error), normal(str(error)))
    told = [f"{warning.category.__name__}: {warning.message}" for warning in caught]
    return Outcome(None, normal("; ".join(told if value is None else [*told, f"returns {value}"])))


def normal(text: str) -> str:
    """``text`` on one line, without what differs between machines."""
    text = text.replace(str(Path.cwd()), "/here")
    text = re.sub(r"machine has [\d.]+ GiB", "machine has ... GiB", text)
    text = re.sub(r"[\d.e+-]+ GiB are free", "... GiB are free", text)
    text = re.sub(r"usable here: baseline[\w, ]*", "usable here: baseline ...", text)
    return " ".join(text.split())


def run_all() -> dict[Case, Outcome]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        names: dict[str, Any] = {}
        exec(SETUP, names)
        make_files(names)
        return {case: run(case) for cases in CASES.values() for case in cases}


def page(outcomes: dict[Case, Outcome]) -> str:
    failing = sum(outcome.kind is not None for outcome in outcomes.values())
    text = f"""# Bad inputs, and what a user sees

{len(outcomes)} mistakes and mishaps, {failing} of which end in an error; the others show what happens instead. This
page is written by `python -m tests.test_bad_inputs` from what the lines do, and the tests fail while it differs from
that. `/here` stands for the current folder and `...` before a unit for a number that depends on the machine.

The lines follow this:

```python
{SETUP.strip()}
```

and use these files: `model.safetensors` and `image.safetensors` (the models above), `module.safetensors` (a module
that was wrapped), `run/` (a finished training run of `model`, 5 steps), an `empty/` folder, and files whose names say
what is wrong with them.
"""
    for section, cases in CASES.items():
        text += f"\n## {section}\n\n| What was done | What the user sees |\n|---|---|\n"
        for case in cases:
            given = f", with {case.given}" if case.given else ""
            text += f"| {code(case.line)}{given} | {spoken(outcomes[case])} |\n"
    return text


def spoken(outcome: Outcome) -> str:
    if outcome.kind is None:
        return f"no error: {code(outcome.text)}"
    if isinstance(outcome.kind, int):
        return f"exit code {outcome.kind}: {code(outcome.text)}"
    return f"**{outcome.kind.__name__}** {code(outcome.text)}"


def code(text: str) -> str:
    """Markdown code inside a table."""
    assert "`" not in text
    return "`" + text.replace("|", "\\|") + "`"


def other_versions() -> str:
    """The packages whose own words are in some messages, and which are not here in the pinned version."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (PAGE.parents[1] / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {name.lower(): pin for name, pin in pins.items()}
    names = ("numpy", "pillow", "pyyaml", "safetensors", "torch", "typer")
    return ", ".join(name for name in names if version(name).split("+")[0] != pinned[name])


@pytest.fixture(scope="module")
def outcomes() -> dict[Case, Outcome]:
    return run_all()


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{case.line} {case.given}") for cases in CASES.values() for case in cases]
)
def test_ends_as_expected(case: Case, outcomes: dict[Case, Outcome]) -> None:
    outcome = outcomes[case]
    if case.given.startswith("VAPO_FAST_INSTRUCTION_SET") and extension.unavailable_reason():
        pytest.skip("nothing reads it without the native extension")
    assert outcome.kind == case.outcome, outcome.text
    assert len(outcome.text) > 15


def test_the_page_shows_what_happens(outcomes: dict[Case, Outcome]) -> None:
    if others := other_versions():
        pytest.skip(f"the page quotes the pinned versions of {others}, and others are installed")
    if extension.unavailable_reason():
        pytest.skip("the page shows what happens with the native extension")
    if torch.cuda.is_available():
        pytest.skip("the page shows what happens without a CUDA device")
    assert PAGE.read_text(encoding="utf-8") == page(outcomes), "write it anew: python -m tests.test_bad_inputs"


if __name__ == "__main__":
    # A shell starts what it puts in the background with the signal ignored; for tests, conftest.py does the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    PAGE.write_text(page(run_all()), encoding="utf-8")
