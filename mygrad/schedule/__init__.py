"""Graph to kernels: where does each value live?"""
