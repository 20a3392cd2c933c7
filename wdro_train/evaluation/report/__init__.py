"""The report of an evaluation: its fields, and every form it is published in."""
