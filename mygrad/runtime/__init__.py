"""Devices: allocate, copy, compile, launch."""
