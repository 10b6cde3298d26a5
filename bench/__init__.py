"""Benchmarks beside peers: everything in one run, taken in turns, and checked to agree.

    python -m bench [--quick] [--only NAME] [--threads N] [--json FILE]

Each workload is one function for mygrad and one for every installed peer (NumPy, PyTorch). They
take turns, so that a machine whose speed drifts slows all of them, and medians are compared:
`ratio` is the best peer's time over ours, so more is better.

    measure.py     taking turns, medians, tables
    peers.py       what is installed, and how many threads it may use
    workloads.py   kernels and training steps
    startup.py     whole processes: importing, the first step with an empty and with a full cache
"""
