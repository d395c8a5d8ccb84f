"""From files to descriptors, and from a query to hits."""
