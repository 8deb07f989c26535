"""One batch job for a whole run (``placement: one_allocation``): its shape, its broker, its steps as jobs."""
