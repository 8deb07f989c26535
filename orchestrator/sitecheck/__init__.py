"""Whether a site can run what orch submits, step by step, and a site file from what its scheduler says."""
