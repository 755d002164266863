"""The layer by which systems that `make bench` compares are compared with the paper."""

from benchmarks.peer_sizes import Layer

SIZES = Layer(num_experts=8, d_model=24, d_ff=32, num_groups=3, group_size=64, capacity_factor=1.0)
