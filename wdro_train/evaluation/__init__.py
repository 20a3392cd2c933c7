"""Whole-set evaluation of a checkpoint."""
