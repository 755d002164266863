"""Batches, caches and vocabularies."""
