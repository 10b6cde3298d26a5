"""The registry of devices: names, the default, lazy opening, and clean absence."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mygrad.config import context
from mygrad.errors import ConfigError, DeviceError
from mygrad.runtime import device
from mygrad.runtime.base import Runtime
from mygrad.runtime.device import Device
from mygrad.runtime.reference import Reference

ROOT = Path(__file__).parent.parent
FLAGS = {"MYGRAD_DEVICE": "", "CPU": False, "OPENCL": False, "CUDA": False, "REFERENCE": False}


def in_subprocess(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_device_is_opened_once() -> None:
    runtime = device.get("reference")
    assert isinstance(runtime, Reference)
    assert device.get("reference") is runtime
    assert Device["reference"] is runtime


@pytest.mark.parametrize("name", ["reference", "REFERENCE", "Reference"])
def test_names_are_case_insensitive(name: str) -> None:
    assert device.get(name) is device.get("reference")
    assert device.canonical(name) == "reference"


@pytest.mark.parametrize("name", ["gpu", "", "cpu ", "reference:0", None, 3])
def test_an_unknown_name_lists_the_known_ones(name: object) -> None:
    with pytest.raises(DeviceError, match="cpu, opencl, cuda, reference"):
        device.get(name)  # type: ignore[arg-type]


def test_cuda_is_known_but_not_implemented() -> None:
    assert device.canonical("CUDA") == "cuda"
    with pytest.raises(DeviceError, match="not implemented in this version; use cpu"):
        device.get("cuda")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "cpu"),
        ({"OPENCL": True}, "opencl"),
        ({"REFERENCE": True}, "reference"),
        ({"CUDA": True}, "cuda"),
        ({"MYGRAD_DEVICE": "reference"}, "reference"),
        ({"MYGRAD_DEVICE": "reference", "CPU": True}, "reference"),
        ({"MYGRAD_DEVICE": "reference", "CPU": True, "OPENCL": True}, "reference"),
    ],
)
def test_default_from_the_environment(settings: dict[str, object], expected: str) -> None:
    with context(**(FLAGS | settings)):
        assert device.default() == expected
        assert expected == Device.DEFAULT


def test_two_flags_contradict() -> None:
    with (
        context(**(FLAGS | {"CPU": True, "OPENCL": True})),
        pytest.raises(ConfigError, match="CPU=1 and OPENCL=1"),
    ):
        device.default()


def test_an_unknown_default_is_an_error_when_asked_for() -> None:
    with context(**(FLAGS | {"MYGRAD_DEVICE": "tpu"})), pytest.raises(DeviceError, match="tpu"):
        device.default()


def test_the_explicit_default_comes_first() -> None:
    with context(**(FLAGS | {"MYGRAD_DEVICE": "opencl", "CPU": True})):
        Device.DEFAULT = "Reference"
        try:
            assert device.default() == "reference"
            with pytest.raises(DeviceError):
                Device.DEFAULT = "tpu"
            assert device.default() == "reference"
        finally:
            Device.DEFAULT = None
        assert device.default() == "opencl"


def test_available_gives_a_reason_for_what_is_missing() -> None:
    reasons = device.available()
    assert list(reasons) == ["cpu", "opencl", "cuda", "reference"]
    assert reasons["reference"] is None
    assert "not implemented" in str(reasons["cuda"])
    for name, reason in reasons.items():
        if reason is None:
            assert isinstance(device.get(name), Runtime)


def test_a_failed_device_can_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def broken() -> Runtime:
        attempts.append(1)
        raise DeviceError("broken today")

    module = types.ModuleType("mygrad_test_device")
    module.Broken = broken  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(device.DEVICES, "broken", device.Entry(module.__name__, "Broken", "a test"))
    for _ in range(2):
        with pytest.raises(DeviceError, match="broken today"):
            device.get("broken")
    assert device.available()["broken"] == "broken today"
    assert len(attempts) == 3


def test_importing_opens_nothing() -> None:
    code = (
        "import sys, mygrad, mygrad.runtime.device, mygrad.runtime.opencl\n"
        "print([m for m in ('llvmlite', 'pyopencl') if m in sys.modules])"
    )
    assert in_subprocess(code) == "[]"


def test_no_opencl_is_a_sentence() -> None:
    code = "from mygrad.runtime.device import available; print(available()['opencl'])"
    reason = in_subprocess(code, OCL_ICD_VENDORS="/nonexistent")
    assert "opencl" in reason
    assert "pip install 'mygrad[opencl]'" in reason


def test_no_pyopencl_is_a_sentence() -> None:
    code = (
        "import sys; sys.modules['pyopencl'] = None\n"
        "from mygrad.runtime.device import available; print(available()['opencl'])"
    )
    assert "pip install 'mygrad[opencl]'" in in_subprocess(code)


def test_pocl_without_a_linker_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("pyopencl")
    code = (
        "from mygrad.runtime.device import available, get\n"
        "reason = available()['opencl']\n"
        "print(reason or get('opencl').device.platform.name)"
    )
    reason = in_subprocess(code, PATH=str(tmp_path))
    assert "install binutils" in reason or "Portable" not in reason
