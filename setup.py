"""Packaging of mygrad: `pip install .`, or `pip install -e '.[test]'` to work on it."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

_README = Path(__file__).parent / "README.md"

OPENCL = ["pyopencl[pocl]"]
EXAMPLES = ["tqdm", "matplotlib", "safetensors>=0.8"]
TEST = ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", *EXAMPLES, *OPENCL]

setup(
    name="mygrad",
    version="0.1.0",
    description="A lazy tensor compiler that one person can read",
    license="MIT",
    long_description=_README.read_text(encoding="utf-8") if _README.is_file() else "",
    long_description_content_type="text/markdown",
    packages=find_packages(include=["mygrad", "mygrad.*"]),
    package_data={"mygrad": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=["numpy", "llvmlite>=0.45"],
    extras_require={
        "opencl": OPENCL,
        "examples": EXAMPLES,
        "test": TEST,
        "peers": ["torch"],  # the oracle of some tests and of `--compare-torch`; never needed
        "bench": ["matplotlib", "torch", "jax", "tinygrad"],  # a chart, and more peers
    },
)
