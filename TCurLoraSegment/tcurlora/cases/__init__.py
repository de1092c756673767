"""A site's labeled scans: found, named, checked and cached.

Knows imaging. Knows nothing of base models, networks or training.
"""
