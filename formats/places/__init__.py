"""Where a model lies, by the name that people give it: a path, a library of models, a hub."""
