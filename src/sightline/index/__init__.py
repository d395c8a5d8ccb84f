"""Indexes of pictures: the contract (``base.Index``) and its engines."""
