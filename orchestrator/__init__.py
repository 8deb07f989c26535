"""The core of orch: recipes, plans, rendering, the run directory, schedulers, transports and the in-job supervisor."""

__version__ = "0.1.0"
