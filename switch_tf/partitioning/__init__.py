"""Axis names, layout rules, and the engines that shard a model over devices."""
