"""One file a method, top to bottom: idea, recipe, named recipes, model parts, losses, the Method class."""
