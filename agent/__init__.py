"""The hyperparameter search: an LLM proposes, Optuna keeps the study, the scheduler runs the trials."""
