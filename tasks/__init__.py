"""The seqio registry: importing a module of this package registers its tasks and mixtures, `tasks.all` those of all.

The package itself registers nothing, so that a run imports (which takes seconds) only what it uses.
"""
