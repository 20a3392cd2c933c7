"""Commands beside `train.py` and `evaluate.py`."""
