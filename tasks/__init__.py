"""The seqio registry: importing a module of this package registers its tasks and mixtures."""
