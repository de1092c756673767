"""Base models and adapters on disk: read as data, never executed; kept by name; merged and exported.

Knows the method, imaging and what a base model expects of its input. Knows nothing of cases or training.
"""
