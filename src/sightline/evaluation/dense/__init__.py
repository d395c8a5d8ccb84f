"""Dense protocols: what patch features are worth, place by place; `base` holds the contract."""
