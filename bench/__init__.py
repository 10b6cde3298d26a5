"""Benchmarks beside peers: everything in one run, taken in turns, and checked to agree.

    python -m bench [--quick] [--only NAME] [--threads N] [--peers A,B] [--budget S]
                    [--json FILE] [--chart FILE]
    python -m bench --only nanogpt --threads 1 --peers torch        one workload alone

Peers are NumPy, PyTorch, torch.compile, JAX and tinygrad, as far as they are installed. Each
workload is one function for mygrad and one for every peer. They take turns, so that a machine whose
speed drifts slows all of them, and medians are compared: `ratio` is the best peer's time over ours,
so more is better. Each number of threads (one, then all) has a process of its own.

`--quick` runs small versions for a moment, beside NumPy and PyTorch unless `--peers` names others:
it shows that everything works, not who is faster. A peer that fails, or needs more than `--budget`
seconds to start, is left out, and the table says so.

    measure.py     workloads and rows; taking turns, medians, agreement
    engine.py      one workload: which candidates take part, what becomes of errors
    peers.py       what is installed, how many threads it may use, how it runs a function
    report.py      the table and the chart
    arrays.py      functions of arrays as candidates

    workloads.py   the list of all
    small.py       what starting a computation costs
    products.py    matrix products, attention and convolutions
    bandwidth.py   what memory bounds, beside a copy
    training.py    training steps, in float32 and in mixed precision
    models.py      their networks, and libraries.py, what these are made of
    functional.py  the same networks for JAX and tinygrad
    inference.py   a token of GPT-2, an image through ResNet-50
    startup.py     whole processes: importing, the first step with an empty and with a full cache
    memory.py      whole processes: peak memory of a training step
"""
