"""The composition root: each workflow is one call from names and paths to results; the shell and the demo stand on these."""
