"""What the engine and the extension in Slicer both rely on, said once.

Knows names, numbers and the form of messages. Knows neither torch nor Slicer, imports only Python's standard library,
and is shipped with both sides, which never import each other.
"""
