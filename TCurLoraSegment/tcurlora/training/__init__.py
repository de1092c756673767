"""From labeled cases to an adapter: presets, steps that can be broken off and resumed, cross-validation.

Knows everything that a single adaptation needs. Knows nothing of other methods, plots or the command line.
"""
