"""The client service: a Flask API over a load engine. Runs alone on a compute node."""
