"""The method: tensor-CUR cores on the stacked weights of a frozen network.

Knows torch and the mathematics of arXiv 2501.02227. Knows nothing of files, scans, base models or training loops.
"""
