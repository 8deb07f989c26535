"""Models: pulled, checked, converted and staged."""
