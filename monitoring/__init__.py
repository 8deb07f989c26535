"""Pushing to Pushgateway and asking Prometheus."""
