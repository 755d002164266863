"""Axis names, layout rules, and the engines that place a model on devices."""
