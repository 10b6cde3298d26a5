"""All workloads that are measured in a process that has warmed up, in the order of the table."""

from __future__ import annotations

from bench import bandwidth, inference, products, small, training
from bench.measure import Workload

WORKLOADS: dict[str, Workload] = {
    w.name: w for part in (small, products, bandwidth, training, inference) for w in part.WORKLOADS
}
