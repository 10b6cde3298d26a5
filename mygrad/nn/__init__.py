"""Modules, losses, optimisers, data and state: thin layers over Tensor."""
