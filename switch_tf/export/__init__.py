"""Trained models for use without this package: SavedModel and StableHLO."""
