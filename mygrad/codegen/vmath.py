"""Placeholder rows, replaced below."""

from mygrad.codegen.llvm_types import mangled, vector


def _call(name: str, element: str, lanes: int) -> str:
    ty = vector(element, lanes)
    return f"  {{r}} = call {ty} @llvm.{name}.{mangled(element, lanes)}({ty} {{a}})\n"


def exp(element: str, lanes: int) -> str:
    return _call("exp", element, lanes)


def log(element: str, lanes: int) -> str:
    return _call("log", element, lanes)


def sin(element: str, lanes: int) -> str:
    return _call("sin", element, lanes)
