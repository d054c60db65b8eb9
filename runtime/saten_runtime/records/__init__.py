"""What is kept on disk as JSON, line by line or whole, and printed as plain tables."""
