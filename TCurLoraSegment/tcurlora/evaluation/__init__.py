"""How well segmentations agree with the truth, and what an adapter gained.

Knows scores, paired statistics and reports. Knows nothing of networks or training.
"""
