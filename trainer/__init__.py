"""Training of image classifiers as trials; runs alone on a compute node, without the rest of the project."""
