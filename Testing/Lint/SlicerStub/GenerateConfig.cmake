# Slicer writes a <extension>Config.cmake here, which nothing of this project reads.
