"""What can be told of a run before it is paid for: cost, start, whether time and memory will do."""
