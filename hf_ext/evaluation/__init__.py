"""What a run learned and what it forgot: measurements and reports."""
