"""From a scan file to a labelmap in exactly its geometry, with a base model or an adapter.

Knows models and imaging. Knows nothing of cases or training.
"""
