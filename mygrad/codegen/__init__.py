"""Kernels to programs: schedule actions, analysis, lowering to statements, renderers."""
