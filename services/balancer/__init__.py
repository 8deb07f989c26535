"""The balancer in front of a run's replicas: HAProxy, and a follower that keeps its members those of the endpoint
records. ``python -m services.balancer`` needs the standard library, HAProxy and nothing of the run but its folder.
"""
