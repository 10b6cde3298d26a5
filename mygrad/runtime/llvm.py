"""LLVM through llvmlite: text to object files to functions in memory.

llvmlite is imported when the first `Compiler` is made. The passes are few: the text is already
vectorised and scheduled, so what is left is to turn stack cells into registers, and to tidy up.
LLVM's own vectorisers stay off: they make such code slower.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from mygrad.errors import CompileError, InternalError, MissingPackageError, message
from mygrad.helpers import content_key

PASSES = ("sroa", "simplify_cfg", "instruction_combine")
_PIPELINE = 1  # changes whenever the passes or their options do


def _llvmlite() -> Any:
    try:
        binding = importlib.import_module("llvmlite.binding")
    except ImportError as error:
        raise MissingPackageError(
            message(
                "device cpu",
                f"no llvmlite ({error})",
                "llvmlite 0.45 or later",
                "pip install llvmlite",
            )
        ) from None
    return binding


class Compiler:
    """Compiles for this processor. `name` and `features` are all that an object file
    depends on besides its text."""

    def __init__(self) -> None:
        self._llvm = _llvmlite()
        self._llvm.initialize_native_target()
        self._llvm.initialize_native_asmprinter()
        self._target = self._llvm.Target.from_default_triple()
        self.cpu: str = self._llvm.get_host_cpu_name()
        self.features: str = self._llvm.get_host_cpu_features().flatten()
        version = ".".join(map(str, self._llvm.llvm_version_info))
        self.name = f"{self.cpu}, LLVM {version}, passes {content_key(PASSES, _PIPELINE)[:8]}"
        self._engines: list[Any] = []  # functions die with their engine

    def _machine(self) -> Any:
        return self._target.create_target_machine(
            cpu=self.cpu, features=self.features, opt=2, jit=True, codemodel="jitdefault"
        )

    def _optimized(self, text: str, name: str) -> tuple[Any, Any]:
        machine = self._machine()
        try:
            module = self._llvm.parse_assembly(text, self._llvm.create_context())
            module.triple, module.data_layout = machine.triple, str(machine.target_data)
            module.verify()
        except RuntimeError as error:
            raise CompileError(
                message(
                    f"compile {name}",
                    f"a refusal by LLVM: {error}",
                    "valid LLVM text",
                    "this is a defect of mygrad; DEBUG=4 shows the text",
                )
            ) from None
        options = self._llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = options.slp_vectorization = False
        builder = self._llvm.create_pass_builder(machine, options)
        passes = self._llvm.create_new_module_pass_manager()
        for one in PASSES:
            getattr(passes, f"add_{one}_pass")()
        passes.run(module, builder)
        return module, machine

    def compile(self, text: str, name: str) -> bytes:
        """The object file of a module.

        Raises:
            CompileError: the text is no valid module; LLVM's reason is in the message.
        """
        module, machine = self._optimized(text, name)
        return bytes(machine.emit_object(module))

    def assembly(self, text: str, name: str) -> str:
        """The machine code of a module as text."""
        module, machine = self._optimized(text, name)
        return str(machine.emit_assembly(module))

    def load(self, binaries: Sequence[bytes], entries: Sequence[str]) -> list[int]:
        """Link object files into one engine; the addresses of these functions."""
        empty = self._llvm.parse_assembly("", self._llvm.create_context())
        engine = self._llvm.create_mcjit_compiler(empty, self._machine())
        for binary in binaries:
            engine.add_object_file(self._llvm.ObjectFileRef.from_data(binary))
        engine.finalize_object()
        addresses = [engine.get_function_address(entry) for entry in entries]
        if not all(addresses):
            raise InternalError(
                message("load", f"no function for one of {list(entries)}", "all of them")
            )
        self._engines.append(engine)
        return addresses
