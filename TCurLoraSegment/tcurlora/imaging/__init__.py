"""Scans and segmentations as voxels in space: read with every doubt named, brought to a grid and back, written whole.

Knows SimpleITK and file formats. Knows nothing of cases, base models or networks.
"""
