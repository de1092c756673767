"""What TCurLoraSegment does inside Slicer: the scene, the panel, and the worker process that computes."""
