"""One file for each deployable service."""
