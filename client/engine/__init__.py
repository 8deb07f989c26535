"""The load engine: ``run_load(spec, on_record, cancel)`` is the seam, ``metrics`` turns its records into
figures.
"""
