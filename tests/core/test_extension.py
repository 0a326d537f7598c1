"""What the C++ extension says about itself, and about its absence."""

import pytest
import torch

from vapo_fast.core import extension

needs_native = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason=str(extension.unavailable_reason())
)


@needs_native
def test_build_info():
    info = extension.build_info()
    assert info["cpp_standard"] >= 201703
    assert info["compiler"]
    assert extension.instruction_sets()[0] == "baseline"
    assert extension.chosen_instruction_set() in extension.instruction_sets()
    assert info["architecture"] in {"x86_64", "aarch64", "other"}
    if info["architecture"] == "x86_64":
        assert info["instruction_sets"][0] == "sse2"


def test_a_missing_extension_says_why(monkeypatch, tmp_path):
    record = tmp_path / "record.json"
    record.write_text('{"built": false, "error": "CompileError: no g++"}')
    monkeypatch.setattr(extension, "_BUILD_RECORD", record)
    monkeypatch.setattr(extension.importlib, "import_module", _refuse)
    extension._load.cache_clear()
    extension.unavailable_reason.cache_clear()
    try:
        assert "CompileError: no g++" in extension.unavailable_reason()
        with pytest.raises(
            extension.NativeUnavailableError, match=r"not available: it was not built: CompileError: no g\+\+"
        ):
            extension.normal_draws(0, torch.arange(1), 1, 0, torch.float32)
    finally:
        extension._load.cache_clear()
        extension.unavailable_reason.cache_clear()


def _refuse(name):
    raise ImportError(name)
