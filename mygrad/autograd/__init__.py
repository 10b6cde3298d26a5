"""Derivatives of graphs: tables of rules over the primitives, and the drivers that apply them."""
