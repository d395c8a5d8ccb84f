"""Looking inside a model: the shape of its descriptors, its attention, its neighbours."""
