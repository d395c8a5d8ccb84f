"""The shell: a thin layer over the workflows."""
