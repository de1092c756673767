"""Other methods under the same conditions as ours, and the page that reports them.

Knows training and evaluation. Knows nothing of the command line.
"""
