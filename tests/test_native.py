"""What the C++ extension says about itself, and about its absence."""

import pytest
import torch

from vapo_fast import native

needs_native = pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))


@needs_native
def test_build_info():
    info = native.build_info()
    assert info["cpp_standard"] >= 201703
    assert info["compiler"]
    assert native.instruction_sets()[0] == "baseline"
    assert native.chosen_instruction_set() in native.instruction_sets()
    assert info["architecture"] in {"x86_64", "aarch64", "other"}
    if info["architecture"] == "x86_64":
        assert info["instruction_sets"][0] == "sse2"


def test_a_missing_extension_says_why(monkeypatch, tmp_path):
    record = tmp_path / "record.json"
    record.write_text('{"built": false, "error": "CompileError: no g++"}')
    monkeypatch.setattr(native, "_BUILD_RECORD", record)
    monkeypatch.setattr(native.importlib, "import_module", _refuse)
    native._load.cache_clear()
    native.unavailable_reason.cache_clear()
    try:
        assert "CompileError: no g++" in native.unavailable_reason()
        with pytest.raises(
            native.NativeUnavailableError, match=r"not available: it was not built: CompileError: no g\+\+"
        ):
            native.normal_draws(0, torch.arange(1), 1, 0, torch.float32)
    finally:
        native._load.cache_clear()
        native.unavailable_reason.cache_clear()


def _refuse(name):
    raise ImportError(name)
