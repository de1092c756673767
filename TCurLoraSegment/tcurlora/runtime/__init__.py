"""What a run needs of the computer: files that appear whole, events, job folders, devices, processes.

Knows nothing of images, networks or methods.
"""
