"""Runs: their settings, their loop, what they write."""
