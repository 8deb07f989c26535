"""Space: what is sent and fetched, what lies where, and what may go."""
