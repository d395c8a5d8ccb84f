"""How well a model retrieves: exact metrics, protocols, and the report that shows them."""
